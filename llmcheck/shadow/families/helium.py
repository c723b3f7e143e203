"""Helium and Ernie 4.5: neighbouring elements of each head are turned together.

Written along ``transformers/models/{helium,ernie4_5}/modeling_*.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LINEAR, GatedMLP, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from llmcheck.shadow.families.llama_variants import rotate_neighbours
from llmcheck.shadow.families.olmo import fp32_rotary
from llmcheck.shadow.module import Build, Module
from llmcheck.shadow.tensor import Tensor


class HeliumRMSNorm(Module):
    """RMSNorm that converts its weight to fp32 too."""

    def __init__(self, build: Build, h: int) -> None:
        self.weight = build.param(h)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> Tensor:
        item = hidden_states.item
        hidden_states = ops.cast(hidden_states, 4)
        variance = ops.mean_last(ops.square(hidden_states))
        hidden_states = ops.mul(hidden_states, ops.rsqrt(ops.add_scalar(variance)))
        return ops.cast(ops.mul(ops.cast(self.weight, 4), hidden_states), item)


def _each_twice(t: Tensor) -> Tensor:
    """``t[..., : t.shape[-1] // 2].repeat_interleave(2, dim=-1)``."""
    return ops.repeat_interleave(ops.narrow(t, -1, t.shape[-1] // 2), 2, -1)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Helium's: in the model's type."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    cos = _each_twice(cos)
    sin = _each_twice(sin)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_neighbours(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_neighbours(k), sin))
    return q_embed, k_embed


def apply_rotary_pos_emb_fp32(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Ernie's: query, key and what they become when turned are converted to fp32."""
    item = q.item
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    cos = _each_twice(cos)
    sin = _each_twice(sin)
    q_embed = ops.add(ops.mul(ops.cast(q, 4), cos), ops.mul(ops.cast(rotate_neighbours(q), 4), sin))
    k_embed = ops.add(ops.mul(ops.cast(k, 4), cos), ops.mul(ops.cast(rotate_neighbours(k), 4), sin))
    return ops.cast(q_embed, item), ops.cast(k_embed, item)


def _helium(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=config.attention_bias, rotary=apply_rotary_pos_emb)
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, config.mlp_bias, config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp, HeliumRMSNorm)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, norm=HeliumRMSNorm))


def _ernie4_5(build: Build, config: Config, run: Run) -> CausalLM:
    bias = bool(config.use_bias)

    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb_fp32)
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, bias, config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, rotary=fp32_rotary))


FAMILIES = (
    Family("helium", _helium, {}, LINEAR, ATTENTION),
    Family("ernie4_5", _ernie4_5, {}, LINEAR, ATTENTION),
)
