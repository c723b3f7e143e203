"""BLOOM: ALiBi, a fused interleaved query-key-value projection, eager attention, GELU as a Python autograd function.

Written along ``transformers/models/bloom/modeling_bloom.py`` (5.17), with the same local names, since they decide lifetimes. With
SDPA, which transformers has not, along the trainer's ``bloom.py``: one bias [1 or b, H, s, s] that all layers share.
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.attention import causal_mask, sdpa
from llmcheck.shadow.autograd import NoGrad, attach, begin, keep
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


def build_alibi_tensor(attention_mask: Tensor, num_heads: int, item: int) -> Tensor:
    """[b * H, 1, s] in the model's type, from the cumulative sum of the mask and one slope a head."""
    batch_size, seq_length = attention_mask.shape
    slopes = Tensor((num_heads, 1), 4)
    arange_tensor = ops.reshape(ops.mul(ops.add_scalar(Tensor(attention_mask.shape, 8)), attention_mask), batch_size, 1, seq_length)
    alibi = ops.mul(slopes, arange_tensor, 4)
    return ops.cast(ops.reshape(alibi, batch_size * num_heads, 1, seq_length), item)


def attention_bias(num_heads: int, batch: int, seq: int, item: int) -> Tensor:
    """The trainer's bias: ALiBi and causality, and the bounds of packed rows, where there are some."""
    at = Tensor((seq,), 8)
    distance = Tensor((seq, seq), 8)
    hidden = Tensor((1, seq, seq), 1)
    if cur.packed is not None:
        block = Tensor((batch, seq), 8)
        other = Tensor((batch, seq, seq), 1)
        hidden = Tensor((batch, seq, seq), 1)
        del other, block
    as_fp32 = Tensor((seq, seq), 4)
    distance = as_fp32
    bias = Tensor((hidden.shape[0], num_heads, seq, seq), item)
    for _ in range(num_heads):
        Tensor((seq, seq), 4)  # distance * slope
    del at, distance, as_fp32, hidden
    return bias


def dropout_add(x: Tensor, residual: Tensor, prob: float) -> Tensor:
    out = ops.dropout(x, prob)
    out = ops.add(residual, out)
    return out


def _gelu_forward(x: Tensor) -> Tensor:
    """``x * 0.5 * (1 + tanh(c * x * (1 + d * x * x)))``."""
    return ops.mul(ops.scale(x), ops.add_scalar(ops.tanh(ops.mul(ops.scale(x), ops.add_scalar(ops.mul(ops.scale(x), x))))))


def _gelu_back(g: Tensor, x: Tensor) -> Tensor:
    tanh_out = ops.tanh(ops.mul(ops.scale(x), ops.add_scalar(ops.mul(ops.scale(x), x))))
    ff = ops.add(
        ops.mul(ops.scale(x), ops.mul(ops.add_scalar(ops.mul(tanh_out, tanh_out)), ops.add_scalar(ops.mul(ops.scale(x), x)))),
        ops.scale(ops.add_scalar(tanh_out)),
    )
    return ops.mul(ff, g)


def gelu(x: Tensor) -> Tensor:
    """``GeLUFunction``: saves its input only; forward and backward are element-wise operators in Python."""
    if not (cur.grad and x.req):
        return _gelu_forward(x)
    shape, item = x.shape, x.item

    def back(saved: Any, g: Tensor) -> tuple[Tensor]:
        return (_gelu_back(g, Tensor(shape, item, saved[0])),)

    with NoGrad():
        out = _gelu_forward(x)
    return attach(out, begin(back, (x,), (keep(x),)))


class BloomAttention(Module):
    positional = 2

    def __init__(self, build: Build, config: Config, kind: str) -> None:
        self.kind = kind
        self.hidden_size = config.hidden_size
        self.num_heads = config.n_head
        self.head_dim = self.hidden_size // self.num_heads
        self.hidden_dropout = config.hidden_dropout
        self.query_key_value = Linear(build, self.hidden_size, 3 * self.hidden_size, True)
        self.dense = Linear(build, self.hidden_size, self.hidden_size, True)
        self.attention_dropout = Dropout(config.attention_dropout)

    def _reshape(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch_size, seq_length, _ = fused_qkv.shape
        fused_qkv = ops.view(fused_qkv, batch_size, seq_length, self.num_heads, 3, self.head_dim)
        query_layer = ops.transpose(ops.select(fused_qkv, 3), 1, 2)
        key_layer = ops.transpose(ops.select(fused_qkv, 3), 1, 2)
        value_layer = ops.transpose(ops.select(fused_qkv, 3), 1, 2)
        return query_layer, key_layer, value_layer

    def _merge_heads(self, x: Tensor) -> Tensor:
        batch_size_and_num_heads, seq_length, _ = x.shape
        batch_size = batch_size_and_num_heads // self.num_heads
        x = ops.view(x, batch_size, self.num_heads, seq_length, self.head_dim)
        x = ops.permute(x, 0, 2, 1, 3)
        return ops.reshape(x, batch_size, seq_length, self.num_heads * self.head_dim)

    def forward(
        self, hidden_states: Tensor, residual: Tensor, alibi: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.kind == "sdpa":
            return self._fused(hidden_states, residual, alibi), None
        batch_size, q_length, _ = hidden_states.shape
        fused_qkv = self.query_key_value(hidden_states)
        query_layer, key_layer, value_layer = self._reshape(fused_qkv)
        query_layer = ops.reshape(query_layer, batch_size * self.num_heads, -1, self.head_dim)
        key_layer = ops.transpose(ops.reshape(key_layer, batch_size * self.num_heads, -1, self.head_dim), -1, -2)
        value_layer = ops.reshape(value_layer, batch_size * self.num_heads, -1, self.head_dim)
        attention_scores = ops.baddbmm(alibi, query_layer, key_layer)
        attn_weights = ops.view(attention_scores, batch_size, self.num_heads, q_length, -1)
        if attention_mask is not None:
            attn_weights = ops.add(attn_weights, attention_mask)
        attention_probs = ops.cast(ops.softmax_fp32(attn_weights), query_layer.item)
        attention_probs = self.attention_dropout(attention_probs)
        attention_probs_reshaped = ops.view(attention_probs, batch_size * self.num_heads, q_length, -1)
        context_layer = ops.bmm(attention_probs_reshaped, value_layer)
        context_layer = self._merge_heads(context_layer)
        output_tensor = self.dense(context_layer)
        output_tensor = dropout_add(output_tensor, residual, self.hidden_dropout)
        return output_tensor, attention_probs

    def _fused(self, hidden_states: Tensor, residual: Tensor, alibi: Tensor) -> Tensor:
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        context = sdpa(query, key, value, alibi, self.attention_dropout.p)
        output = self.dense(ops.reshape(ops.transpose(context, 1, 2), *hidden_states.shape))
        return ops.add(residual, ops.dropout(output, self.hidden_dropout))


class BloomMLP(Module):
    positional = 2

    def __init__(self, build: Build, config: Config, kind: str) -> None:
        hidden_size = config.hidden_size
        self.dense_h_to_4h = Linear(build, hidden_size, 4 * hidden_size, True)
        self.gelu_impl = Activation(ops.gelu if kind == "sdpa" else gelu)  # the trainer's is one kernel
        self.dense_4h_to_h = Linear(build, 4 * hidden_size, hidden_size, True)
        self.hidden_dropout = config.hidden_dropout

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        hidden_states = self.gelu_impl(self.dense_h_to_4h(hidden_states))
        intermediate_output = self.dense_4h_to_h(hidden_states)
        output = dropout_add(intermediate_output, residual, self.hidden_dropout)
        return output


class BloomBlock(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, kind: str) -> None:
        hidden_size = config.hidden_size
        self.input_layernorm = LayerNorm(build, hidden_size)
        self.self_attention = BloomAttention(build, config, kind)
        self.post_attention_layernorm = LayerNorm(build, hidden_size)
        self.mlp = BloomMLP(build, config, kind)
        self.apply_residual_connection_post_layernorm = config.apply_residual_connection_post_layernorm

    def forward(self, hidden_states: Tensor, alibi: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        layernorm_output = self.input_layernorm(hidden_states)
        if self.apply_residual_connection_post_layernorm:
            residual = layernorm_output
        else:
            residual = hidden_states
        attention_output, attn_weights = self.self_attention(layernorm_output, residual, alibi, attention_mask)
        layernorm_output = self.post_attention_layernorm(attention_output)
        if self.apply_residual_connection_post_layernorm:
            residual = layernorm_output
        else:
            residual = attention_output
        output = self.mlp(layernorm_output, residual)
        return output, attn_weights


class BloomModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = attention_kind(run, "BLOOM", flash=False)
        self.num_heads = config.n_head
        self.word_embeddings = Embedding(build, config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(build, config.hidden_size)
        self.h = [BloomBlock(build, config, self.kind) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(build, config.hidden_size)
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.word_embeddings, input_ids)
        batch_size, seq_length, _ = inputs_embeds.shape
        hidden_states = self.word_embeddings_layernorm(inputs_embeds)
        if self.kind == "sdpa":
            del inputs_embeds
            mask, alibi = None, attention_bias(self.num_heads, batch_size, seq_length, hidden_states.item)
        else:
            alibi = build_alibi_tensor(attention_mask, self.num_heads, hidden_states.item)
            mask = causal_mask(self.kind, batch_size, seq_length, inputs_embeds.item)
        for block in self.h:
            outputs = block(hidden_states, alibi, mask)
            hidden_states = outputs[0]
        out: Tensor = self.ln_f(hidden_states)
        return out


def _bloom(build: Build, config: Config, run: Run) -> CausalLM:
    transformer = BloomModel(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.word_embeddings, config.hidden_size)


FAMILIES = (
    Family(
        "bloom",
        _bloom,
        {},
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ("query_key_value", "dense"),
        supports_sdpa=False,
        trainer_sdpa=True,
    ),
)
