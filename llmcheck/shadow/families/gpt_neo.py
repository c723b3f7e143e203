"""GPT-Neo: global and local attention by turns, both by a byte mask that each layer keeps; scores in fp32.

Written along ``transformers/models/gpt_neo/modeling_gpt_neo.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.attention import causal_mask, flash_attention_forward, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.families.gpt2 import GPT2MLP, biased_linear
from llmcheck.shadow.families.gptj import merge_heads
from llmcheck.shadow.module import Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


def attention_layers(types: Sequence[Any] | None) -> list[str]:
    """The kind of each layer from ``attention_types``, a list of [kinds, repetitions]."""
    return [kind for kinds, times in types or [[["global", "local"], 12]] for _ in range(times) for kind in kinds]


class GPTNeoSelfAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, kind: str, attention_type: str) -> None:
        self.kind = kind
        grid = (1, 1, config.max_position_embeddings, config.max_position_embeddings)
        ones = Tensor(grid, 1)
        bias = Tensor(grid, 1)  # the lower triangle
        del ones
        if attention_type == "local":
            far = Tensor(grid, 1)
            bias = Tensor(grid, 1)  # without what lies too far back
            del far
        self.bias = bias
        self.attn_dropout = Dropout(config.attention_dropout)
        self.resid_dropout = Dropout(config.resid_dropout)
        h = config.hidden_size
        self.num_heads = config.num_heads
        self.head_dim = h // config.num_heads
        self.k_proj = Linear(build, h, h)
        self.v_proj = Linear(build, h, h)
        self.q_proj = Linear(build, h, h)
        self.out_proj = Linear(build, h, h, True)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        tensor = ops.view(tensor, *tensor.shape[:-1], self.num_heads, self.head_dim)
        return ops.permute(tensor, 0, 2, 1, 3)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = ops.cast(query, 4)
        key = ops.cast(key, 4)
        attn_weights = ops.matmul(query, ops.transpose(key, -1, -2))
        causal = ops.narrow(ops.narrow(self.bias, 2, query.shape[-2]), 3, key.shape[-2])
        attn_weights = ops.where_scalar(attn_weights, causal)
        if attention_mask is not None:
            attn_weights = ops.add(attn_weights, attention_mask)
        attn_weights = ops.softmax(attn_weights)
        attn_weights = ops.cast(attn_weights, value.item)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = ops.matmul(attn_weights, value)
        return attn_output, attn_weights

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        if self.kind == "flash":
            attn_output = flash_attention_forward(query, key, value, self.attn_dropout.p)
            attn_weights = ops.reshape(attn_output, *attn_output.shape[:2], -1)
            attn_output = self.out_proj(attn_weights)
        else:
            attn_output, attn_weights = self._attn(query, key, value, attention_mask)
            attn_output = merge_heads(attn_output)
            attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTNeoAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, kind: str, attention_type: str) -> None:
        self.attention = GPTNeoSelfAttention(build, config, kind, attention_type)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.attention(hidden_states, attention_mask)
        return out


class GPTNeoBlock(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, kind: str, attention_type: str) -> None:
        inner_dim = config.intermediate_size if config.intermediate_size is not None else 4 * config.hidden_size
        self.ln_1 = LayerNorm(build, config.hidden_size)
        self.attn = GPTNeoAttention(build, config, kind, attention_type)
        self.ln_2 = LayerNorm(build, config.hidden_size)
        self.mlp = GPT2MLP(build, config.hidden_size, inner_dim, config.activation_function, config.resid_dropout, biased_linear)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, attn_weights = self.attn(hidden_states, attention_mask)
        hidden_states = ops.add(attn_output, residual)
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, feed_forward_hidden_states)
        return hidden_states, attn_weights


class GPTNeoModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = attention_kind(run, "GPT-Neo", sdpa=False)
        self.wte = Embedding(build, config.vocab_size, config.hidden_size)
        self.wpe = Embedding(build, config.max_position_embeddings, config.hidden_size)
        self.drop = Dropout(config.embed_dropout)
        kinds = attention_layers(config.attention_types)
        self.h = [GPTNeoBlock(build, config, self.kind, kinds[i]) for i in range(config.num_layers)]
        self.ln_f = LayerNorm(build, config.hidden_size)
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.wte, input_ids)
        position_ids = position_ids_of(input_ids.shape[1])
        mask = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        position_embeds = self.wpe(position_ids)
        hidden_states = ops.add(inputs_embeds, position_embeds)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            outputs = block(hidden_states, mask)
            hidden_states = outputs[0]
        out: Tensor = self.ln_f(hidden_states)
        return out


def _gpt_neo(build: Build, config: Config, run: Run) -> CausalLM:
    transformer = GPTNeoModel(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.wte, config.hidden_size)


FAMILIES = (
    Family(
        "gpt_neo",
        _gpt_neo,
        {},
        ("k_proj", "v_proj", "q_proj", "out_proj", "c_fc", "c_proj"),
        ("k_proj", "v_proj", "q_proj", "out_proj"),
        supports_sdpa=False,
    ),
)
