"""OLMo (norms without parameters), OLMo2 (norms behind attention and MLP, query and key normed over all heads), OLMo3 (with windows).

Written along ``transformers/models/{olmo,olmo2,olmo3}/modeling_*.py`` (5.17). All turn query and key in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.attention import attention_interface
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.gemma import Gemma3Model, Gemma3RotaryEmbedding
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    RotaryEmbedding,
    rotary_dim,
    rotate_half,
)
from llmcheck.shadow.module import Build, CheckpointedLayer, Module, RMSNorm
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


class OlmoLayerNorm(Module):
    """Layer norm in fp32 without parameters."""

    def __init__(self, build: Build, h: int) -> None:
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ops.cast(ops.layer_norm(ops.cast(hidden_states, 4), None, None), hidden_states.item)


class Olmo2RMSNorm(Module):
    """RMSNorm whose weight is applied in fp32."""

    def __init__(self, build: Build, h: int) -> None:
        self.weight = build.param(h)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if cur.liger:
            return liger.rms_norm(hidden_states, self.weight)
        item = hidden_states.item
        hidden_states = ops.cast(hidden_states, 4)
        variance = ops.mean_last(ops.square(hidden_states))
        hidden_states = ops.mul(hidden_states, ops.rsqrt(ops.add_scalar(variance)))
        return ops.cast(ops.mul(self.weight, hidden_states), item)


def apply_rotary_pos_emb_fp32(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """With fp32 cos and sin: products in fp32, the sums in the type of the query and key."""
    item = q.item
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_half(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_half(k), sin))
    return ops.cast(q_embed, item), ops.cast(k_embed, item)


def fp32_rotary(config: Config) -> RotaryEmbedding:
    """The rotary embedding that keeps cos and sin in fp32."""
    return RotaryEmbedding(rotary_dim(config), item=4)


class FlatNormAttention(LlamaAttention):
    """The outputs of the projections of query and key are normed as a whole, if at all, and clipped in place on request."""

    def __init__(self, build: Build, config: Config, run: Run, *, norm: Any = RMSNorm, clip: bool = False, **attn: Any) -> None:
        super().__init__(build, config, run, **attn)
        self.clip = clip
        if norm is not None:
            self.q_norm = norm(build, config.num_attention_heads * self.head_dim)
            self.k_norm = norm(build, config.num_key_value_heads * self.head_dim)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states) if self.q_norm is None else self.q_norm(self.q_proj(hidden_states))
        key_states = self.k_proj(hidden_states) if self.k_norm is None else self.k_norm(self.k_proj(hidden_states))
        value_states = self.v_proj(hidden_states)
        if self.clip:
            query_states = ops.clamp_(query_states)
            key_states = ops.clamp_(key_states)
            value_states = ops.clamp_(value_states)
        query_states = ops.transpose(ops.view(query_states, *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(key_states, *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(value_states, *hidden_shape), 1, 2)
        cos, sin = position_embeddings
        query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Olmo2DecoderLayer(CheckpointedLayer):
    """The norms stand behind attention and MLP."""

    def __init__(self, build: Build, config: Config, self_attn: Module, norm: Callable[[Build, int], Module] = Olmo2RMSNorm) -> None:
        self.self_attn = self_attn
        self.mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        self.post_attention_layernorm = norm(build, config.hidden_size)
        self.post_feedforward_layernorm = norm(build, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


def _olmo(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> LlamaDecoderLayer:
        attention = FlatNormAttention(
            build, config, run, norm=None, clip=config.clip_qkv is not None, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb_fp32
        )
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp, OlmoLayerNorm)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, norm=OlmoLayerNorm, rotary=fp32_rotary))


def _olmo2_layer(build: Build, config: Config, run: Run) -> Olmo2DecoderLayer:
    bias = config.attention_bias
    self_attn = FlatNormAttention(build, config, run, norm=Olmo2RMSNorm, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb_fp32)
    return Olmo2DecoderLayer(build, config, self_attn)


def _olmo2(build: Build, config: Config, run: Run) -> CausalLM:
    model = LlamaModel(build, config, run, lambda _: _olmo2_layer(build, config, run), norm=Olmo2RMSNorm, rotary=fp32_rotary)
    return LlamaForCausalLM(build, config, run, model)


def _olmo3(build: Build, config: Config, run: Run) -> CausalLM:
    def rotary(config: Config) -> Module:
        return Gemma3RotaryEmbedding(config, 4)

    model = Gemma3Model(build, config, run, lambda _: _olmo2_layer(build, config, run), norm=Olmo2RMSNorm, rotary=rotary)
    return LlamaForCausalLM(build, config, run, model)


FAMILIES = (
    Family("olmo", _olmo, {}, LINEAR, ATTENTION),
    Family("olmo2", _olmo2, {}, LINEAR, ATTENTION),
    Family("olmo3", _olmo3, {}, LINEAR, ATTENTION),
)
