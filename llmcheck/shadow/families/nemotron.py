"""Nemotron: layer norms whose weight is one more than what is stored, half of each head turned, an MLP without gate.

Written along ``transformers/models/nemotron/modeling_nemotron.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    PlainMLP,
    rotate_half,
)
from llmcheck.shadow.module import Activation, Build, LayerNorm
from llmcheck.shadow.tensor import Tensor


class NemotronLayerNorm1P(LayerNorm):
    """Layer norm by ``weight + 1``."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return ops.layer_norm(x, ops.add_scalar(self.weight), self.bias)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The first elements of each head are turned, as many as `cos` has."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    rot_dim, head_dim = cos.shape[-1], q.shape[-1]
    q, q_pass = ops.narrow(q, -1, rot_dim), ops.narrow(q, -1, head_dim - rot_dim)
    k, k_pass = ops.narrow(k, -1, rot_dim), ops.narrow(k, -1, head_dim - rot_dim)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_half(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_half(k), sin))
    return ops.cat((q_embed, q_pass)), ops.cat((k_embed, k_pass))


def _nemotron(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb)
        act_fn = Activation(activations.get(config.hidden_act))
        mlp = PlainMLP(build, config.hidden_size, config.intermediate_size, config.mlp_bias, act_fn)
        return LlamaDecoderLayer(build, config, attention, mlp, NemotronLayerNorm1P)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, norm=NemotronLayerNorm1P))


FAMILIES = (Family("nemotron", _nemotron, {}, (*ATTENTION, "up_proj", "down_proj"), ATTENTION),)
