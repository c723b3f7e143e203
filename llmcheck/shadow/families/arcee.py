"""Arcee (AFM): Llama's layer with an MLP that has no gate.

Written along ``transformers/models/arcee/modeling_arcee.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import activations
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel, PlainMLP
from llmcheck.shadow.module import Activation, Build


def _arcee(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias)
        act_fn = Activation(activations.get(config.hidden_act))
        mlp = PlainMLP(build, config.hidden_size, config.intermediate_size, config.mlp_bias, act_fn)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


FAMILIES = (Family("arcee", _arcee, {}, (*ATTENTION, "up_proj", "down_proj"), ATTENTION),)
