"""Granite MoE: Granite's scaled residuals around a mixture of experts.

Written along ``transformers/models/granitemoe/modeling_granitemoe.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LlamaAttention, LlamaForCausalLM, LlamaModel
from llmcheck.shadow.families.moe import Experts
from llmcheck.shadow.module import Build, CheckpointedLayer, Module, RMSNorm
from llmcheck.shadow.tensor import Tensor


class GraniteMoeTopKRouter(Module):
    """The largest few logits, then a softmax over these in fp32."""

    def __init__(self, build: Build, config: Config) -> None:
        self.top_k = config.num_experts_per_tok
        self.weight = build.param(config.num_local_experts, config.hidden_size)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.cast(ops.linear(hidden_states, self.weight), 4)
        top_k_logits, top_k_index = ops.topk(router_logits, self.top_k)
        top_k_weights = ops.cast(ops.softmax(top_k_logits), hidden_states.item)
        return top_k_index, top_k_weights, router_logits


class GraniteMoeMoE(Module):
    """Router and experts."""

    def __init__(self, build: Build, config: Config) -> None:
        self.router = GraniteMoeTopKRouter(build, config)
        self.experts = Experts(build, config.num_local_experts, config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, layer_input: Tensor) -> Tensor:
        hidden_states = ops.reshape(layer_input, -1, layer_input.shape[-1])
        top_k_index, top_k_weights, _ = self.router(hidden_states)
        layer_output = self.experts(hidden_states, top_k_index, top_k_weights)
        return ops.view(layer_output, *layer_input.shape)


class GraniteMoeDecoderLayer(CheckpointedLayer):
    """What attention and experts add is scaled."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        bias = config.attention_bias
        self.self_attn = LlamaAttention(build, config, run, bias=bias, out_bias=bias)
        self.input_layernorm = RMSNorm(build, config.hidden_size)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size)
        self.block_sparse_moe = GraniteMoeMoE(build, config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, ops.scale(hidden_states))
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.block_sparse_moe(hidden_states)
        hidden_states = ops.add(residual, ops.scale(hidden_states))
        return hidden_states


class GraniteMoeModel(LlamaModel):
    """The embeddings are scaled once the mask is made."""

    def prepare(self, inputs_embeds: Tensor) -> Tensor:
        return ops.scale(inputs_embeds)


def _granitemoe(build: Build, config: Config, run: Run) -> CausalLM:
    model = GraniteMoeModel(build, config, run, lambda _: GraniteMoeDecoderLayer(build, config, run))
    return LlamaForCausalLM(build, config, run, model, (ops.scale,))


FAMILIES = (Family("granitemoe", _granitemoe, {}, ATTENTION, ATTENTION),)
