"""MiniMax-M2: query and key normed over all heads, experts chosen by sigmoids.

Written along ``transformers/models/minimax_m2/modeling_minimax_m2.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.glm4_moe import apply_rotary_pos_emb
from llmcheck.shadow.families.llama import ATTENTION, LlamaDecoderLayer, LlamaModel
from llmcheck.shadow.families.moe import Experts
from llmcheck.shadow.families.olmo import FlatNormAttention
from llmcheck.shadow.families.routed import RoutedForCausalLM, Router
from llmcheck.shadow.module import Build, Module
from llmcheck.shadow.tensor import Tensor


class MiniMaxM2TopKRouter(Router):
    """Sigmoids in fp32; the largest few of the corrected scores, whose own scores then sum to one."""

    def __init__(self, build: Build, config: Config) -> None:
        self.top_k = config.num_experts_per_tok
        self.weight = build.param(config.num_local_experts, config.hidden_size)
        build.finish(self)

    def forward(self, hidden_states: Tensor, e_score_correction_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = ops.reshape(hidden_states, -1, hidden_states.shape[-1])
        router_logits = ops.linear(hidden_states, self.weight)
        routing_weights = ops.sigmoid(ops.cast(router_logits, 4))
        scores_for_choice = ops.add(routing_weights, e_score_correction_bias)
        _, top_k_index = ops.topk(scores_for_choice, self.top_k)
        top_k_weights = ops.gather_last(routing_weights, top_k_index)
        top_k_weights = ops.div_(top_k_weights, ops.sum_dim(top_k_weights, -1, True))
        router_scores = top_k_weights
        self.record(router_logits)
        return router_logits, router_scores, top_k_index


class MiniMaxM2SparseMoeBlock(Module):
    """Router and experts."""

    def __init__(self, build: Build, config: Config) -> None:
        self.gate = MiniMaxM2TopKRouter(build, config)
        self.experts = Experts(build, config.num_local_experts, config.hidden_size, config.intermediate_size, config.hidden_act)
        self.e_score_correction_bias = Tensor((config.num_local_experts,), build.item)

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = hidden_states.shape
        hidden_states = ops.view(hidden_states, -1, shape[-1])
        _, top_k_weights, top_k_index = self.gate(hidden_states, self.e_score_correction_bias)
        hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        hidden_states = ops.reshape(hidden_states, *shape)
        return hidden_states


def _minimax_m2(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = FlatNormAttention(build, config, run, rotary=apply_rotary_pos_emb)
        return LlamaDecoderLayer(build, config, attention, MiniMaxM2SparseMoeBlock(build, config))

    return RoutedForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


FAMILIES = (Family("minimax_m2", _minimax_m2, {}, ATTENTION, ATTENTION),)
