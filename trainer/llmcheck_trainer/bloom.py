"""BLOOM with scaled_dot_product_attention, which transformers lacks: ALiBi and causality in one bias that all layers share.

ALiBi adds `slope · key position` to each score. Softmax does not see what is the same for all keys of a query, so the bias here is
`slope · (key − query)`: small near the diagonal, where bf16 is then exact, and right for packed sequences with only their blocks masked.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutput


def slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head (Press et al. 2022, as BLOOM has it for head counts that are no power of two)."""
    power = 2 ** math.floor(math.log2(num_heads))
    base = 2.0 ** (-(2.0 ** -(math.log2(power) - 3)))
    found = [base**i for i in range(1, power + 1)]
    between = 2.0 ** (-(2.0 ** -(math.log2(2 * power) - 3)))
    return found + [between**i for i in range(1, 2 * (num_heads - power) + 1, 2)]


def attention_bias(
    num_heads: int, seq_len: int, position_ids: torch.Tensor | None, *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[1 or b, heads, s, s]: ALiBi, with the smallest number where a key is later than its query or of another packed sequence."""
    at = torch.arange(seq_len, device=device)
    distance = at[None, :] - at[:, None]  # key - query
    hidden = (distance > 0)[None]
    if position_ids is not None:
        block = at[None, :] - position_ids  # where each token's sequence begins
        hidden = hidden | (block[:, None, :] != block[:, :, None])
    distance = distance.to(torch.float32)
    bias = torch.empty(len(hidden), num_heads, seq_len, seq_len, dtype=dtype, device=device)
    for head, slope in enumerate(slopes(num_heads)):
        bias[:, head] = distance * slope
    return bias.masked_fill_(hidden[:, None], torch.finfo(dtype).min)


def install(model: Any) -> None:
    """Replace the eager attention of a BloomForCausalLM, the forward of its BloomModel, which takes no position ids, and its GELU.

    The GELU is the same tanh form as one kernel: transformers' takes eight passes over the widest activation, and more in the backward.
    """
    model.transformer.forward = MethodType(_model_forward, model.transformer)
    for block in model.transformer.h:
        block.self_attention.forward = MethodType(_attention_forward, block.self_attention)
        block.mlp.gelu_impl = torch.nn.GELU(approximate="tanh")


def _model_forward(self: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **_: Any) -> BaseModelOutput:
    hidden = self.word_embeddings_layernorm(self.word_embeddings(input_ids))
    bias = attention_bias(self.num_heads, input_ids.shape[1], position_ids, dtype=hidden.dtype, device=hidden.device)
    for block in self.h:
        hidden = block(hidden, alibi=bias, attention_mask=None)[0]
    return BaseModelOutput(last_hidden_state=self.ln_f(hidden))


def _attention_forward(
    self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, alibi: torch.Tensor, attention_mask: None, **_: Any
) -> tuple[torch.Tensor, None]:
    assert attention_mask is None  # the bias has it
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    dropout = self.attention_dropout.p if self.training else 0.0
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=alibi, dropout_p=dropout, scale=self.inv_norm_factor)
    output = self.dense(context.transpose(1, 2).reshape(hidden_states.shape))
    return residual + F.dropout(output, p=self.hidden_dropout, training=self.training), None
