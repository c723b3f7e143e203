"""Seed-OSS: Llama's layer with dropouts behind attention and MLP.

Written along ``transformers/models/seed_oss/modeling_seed_oss.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LINEAR, GatedMLP, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from llmcheck.shadow.module import Build
from llmcheck.shadow.tensor import Tensor


class SeedOssMLP(GatedMLP):
    """A dropout stands behind the MLP."""

    def __init__(self, build: Build, config: Config) -> None:
        super().__init__(build, config.hidden_size, config.intermediate_size, config.mlp_bias, config.hidden_act)
        self.residual_dropout = config.residual_dropout

    def forward(self, x: Tensor) -> Tensor:
        down_proj = super().forward(x)
        down_proj = ops.dropout(down_proj, self.residual_dropout)
        return down_proj


def _seed_oss(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=config.attention_bias, out_bias=config.attention_out_bias)
        attention.residual_dropout = config.residual_dropout
        return LlamaDecoderLayer(build, config, attention, SeedOssMLP(build, config))

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


FAMILIES = (Family("seed_oss", _seed_oss, {}, LINEAR, ATTENTION),)
