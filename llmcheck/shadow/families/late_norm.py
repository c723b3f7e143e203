"""Families that norm query and key behind the transposition: EXAONE 4, HunYuan (dense), Apertus.

Written along ``transformers/models/{exaone4,hunyuan_v1_dense,apertus}/modeling_*.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LateNormAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    PlainMLP,
)
from llmcheck.shadow.families.olmo import Olmo2DecoderLayer
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Module, RMSNorm
from llmcheck.shadow.tensor import Tensor

# --- EXAONE 4 -----------------------------------------------------------------------------------------------------------------


def _exaone4(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(index: int) -> Olmo2DecoderLayer:
        rope = config.sliding_window is None or config.layer_types[index] == "sliding_attention"
        return Olmo2DecoderLayer(build, config, LateNormAttention(build, config, run, rope=rope), RMSNorm)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


# --- HunYuan ------------------------------------------------------------------------------------------------------------------


class HunYuanDenseV1Attention(LateNormAttention):
    """Query and key are normed once they are turned."""

    after_rope = True
    norm_names = ("query_layernorm", "key_layernorm")


def _hunyuan_v1_dense(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = HunYuanDenseV1Attention(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias)
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


# --- Apertus ------------------------------------------------------------------------------------------------------------------


class XIELU(Module):
    """xIELU (arXiv:2411.13010) in Python: two trained numbers, ``where`` of a square and of an exponential."""

    def __init__(self, build: Build) -> None:
        self.alpha_p = build.param(1)
        self.alpha_n = build.param(1)
        self.beta = Tensor((), build.item)
        self.eps = Tensor((), build.item)
        build.finish(self)

    def forward(self, x: Tensor) -> Tensor:
        alpha_p = ops.unary(self.alpha_p)  # softplus
        alpha_n = ops.add(self.beta, ops.unary(self.alpha_n))
        return ops.where(
            Tensor(x.shape, 1),  # x > 0
            ops.add(ops.mul(ops.mul(alpha_p, x), x), ops.mul(self.beta, x)),
            ops.add(ops.mul(ops.sub(ops.expm1(ops.minimum(x, self.eps)), x), alpha_n), ops.mul(self.beta, x)),
        )


class ApertusDecoderLayer(CheckpointedLayer):
    """Llama's layer with other names of its norms."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.self_attn = LateNormAttention(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias)
        act_fn = XIELU(build) if config.hidden_act == "xielu" else Activation(activations.get(config.hidden_act))
        self.mlp = PlainMLP(build, config.hidden_size, config.intermediate_size, False, act_fn)
        self.attention_layernorm = RMSNorm(build, config.hidden_size)
        self.feedforward_layernorm = RMSNorm(build, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.attention_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


def _apertus(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, lambda _: ApertusDecoderLayer(build, config, run)))


FAMILIES = (
    Family("exaone4", _exaone4, {}, LINEAR, ATTENTION),
    Family("hunyuan_v1_dense", _hunyuan_v1_dense, {}, LINEAR, ATTENTION),
    Family("apertus", _apertus, {}, (*ATTENTION, "up_proj", "down_proj"), ATTENTION),
)
