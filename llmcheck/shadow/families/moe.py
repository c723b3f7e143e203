"""Mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE.

Written along ``transformers/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}/modeling_*.py`` and ``integrations/moe.py`` (5.17). The experts are
two parameters of three dimensions, computed by the default ``grouped_mm``: every size follows from tokens times experts per token, none
from how the tokens are spread over the experts. LoRA adapts the attention's linear layers only: what peft (0.21) calls gate_proj,
up_proj and down_proj it takes for these parameters, and refuses with adapter dropout; "all-linear" it takes for them, too.
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import activations, ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
)
from llmcheck.shadow.families.olmo import FlatNormAttention
from llmcheck.shadow.families.routed import RoutedForCausalLM, Router
from llmcheck.shadow.module import Activation, Build, Linear, Module
from llmcheck.shadow.tensor import Param, Tensor


class Experts(Module):
    """``grouped_mm_experts_forward`` on fused gate and up projections; `is_transposed`: their weights are [E, in, out]."""

    is_transposed = False
    gate_up_proj_bias: Param | None = None
    down_proj_bias: Param | None = None

    def __init__(self, build: Build, num_experts: int, hidden: int, intermediate: int, act: str) -> None:
        self.num_experts = num_experts
        self.gate_up_proj = build.param(num_experts, 2 * intermediate, hidden)
        self.down_proj = build.param(num_experts, hidden, intermediate)
        self.act_fn = Activation(activations.get(act))
        build.finish(self)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        num_top_k = top_k_index.shape[-1]
        num_tokens, hidden_dim = hidden_states.shape
        sample_weights = ops.reshape(top_k_weights, -1)
        expert_ids = ops.reshape(top_k_index, -1)
        expert_ids_g, perm = Tensor(expert_ids.shape, 8), Tensor(expert_ids.shape, 8)  # torch.sort
        selected_hidden_states_g = ops.gather_rows(hidden_states, ops.scale(perm))  # hidden_states[perm // num_top_k]
        sample_weights_g = ops.gather_rows(sample_weights, perm)
        histc_input = ops.cast(expert_ids_g, 4)
        tokens_per_expert = Tensor((self.num_experts,), 4)
        offsets = Tensor((self.num_experts,), 4)
        sentinel_mask = ops.unsqueeze(Tensor(expert_ids.shape, 1), -1)
        selected_biases = None if self.gate_up_proj_bias is None else ops.gather_rows(self.gate_up_proj_bias, expert_ids_g)
        ops.masked_fill_(selected_hidden_states_g, sentinel_mask)
        proj_out = self._grouped_linear(selected_hidden_states_g, self.gate_up_proj, offsets, selected_biases)
        proj_out = ops.where_scalar(proj_out, sentinel_mask)
        proj_out = self._apply_gate(proj_out)
        selected_biases = None if self.down_proj_bias is None else ops.gather_rows(self.down_proj_bias, expert_ids_g)
        proj_out = self._grouped_linear(proj_out, self.down_proj, offsets, selected_biases)
        proj_out = ops.where_scalar(proj_out, sentinel_mask)
        weighted_out = ops.mul(proj_out, ops.unsqueeze(sample_weights_g, -1))
        inv_perm = Tensor(perm.shape, 8)
        Tensor(perm.shape, 8)  # torch.arange, scattered into it
        weighted_out = ops.gather_rows(weighted_out, inv_perm)
        final_hidden_states = ops.sum_dim(ops.view(weighted_out, num_tokens, num_top_k, hidden_dim), 1)
        result = ops.cast(final_hidden_states, hidden_states.item)
        del histc_input, tokens_per_expert  # read by kernels only; they live to the end of the frame
        return result

    def _grouped_linear(self, x: Tensor, weight: Param, offsets: Tensor, bias: Tensor | None) -> Tensor:
        out = ops.grouped_mm(x, weight if self.is_transposed else ops.transpose(weight, -2, -1), offsets)
        return out if bias is None else ops.add_(out, bias)

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor:
        gate, up = ops.split(gate_up_out, (gate_up_out.shape[-1] // 2,) * 2)
        return ops.mul(self.act_fn(gate), up)


class TopKRouter(Router):
    """Softmax over the experts in fp32, the largest few. `normalise`: they sum to one. `cast_back`: in the model's type."""

    def __init__(self, build: Build, num_experts: int, hidden: int, top_k: int, *, normalise: bool, cast_back: bool) -> None:
        self.top_k, self.normalise, self.cast_back = top_k, normalise, cast_back
        self.weight = build.param(num_experts, hidden)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = ops.reshape(hidden_states, -1, hidden_states.shape[-1])
        router_logits = ops.linear(hidden_states, self.weight)
        router_probs = ops.softmax_fp32(router_logits) if self.cast_back else ops.softmax(ops.cast(router_logits, 4))
        router_top_value, router_indices = ops.topk(router_probs, self.top_k)
        if self.normalise:
            router_top_value = ops.div_(router_top_value, ops.sum_dim(router_top_value, -1, True))
        if self.cast_back:
            router_top_value = ops.cast(router_top_value, router_logits.item)
        router_scores = router_top_value
        self.record(router_logits)
        return router_logits, router_scores, router_indices


class SparseMoeBlock(Module):
    """Router and experts; `experts_first`: in this order in the parameter list."""

    zero_leaf = True  # DeepSpeed 0.19.8, DEFAULT_LEAF_MODULE_CLASSES: Mixtral's, Qwen2-MoE's and Qwen3-MoE's

    def __init__(self, build: Build, config: Config, num_experts: int, intermediate: int, *, experts_first: bool, **router: bool) -> None:
        if experts_first:
            self.experts = Experts(build, num_experts, config.hidden_size, intermediate, config.hidden_act)
        self.gate = TopKRouter(build, num_experts, config.hidden_size, config.num_experts_per_tok, **router)
        if not experts_first:
            self.experts = Experts(build, num_experts, config.hidden_size, intermediate, config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = hidden_states.shape
        hidden_states_reshaped = ops.view(hidden_states, -1, shape[-1])
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        final_hidden_states = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        return ops.reshape(final_hidden_states, *shape)


class SharedMoeBlock(SparseMoeBlock):
    """Qwen2-MoE: beside the routed experts one that every token takes, weighted by a gate of its own."""

    def __init__(self, build: Build, config: Config, **router: bool) -> None:
        super().__init__(build, config, config.num_experts, config.moe_intermediate_size, experts_first=False, **router)
        self.shared_expert = GatedMLP(build, config.hidden_size, config.shared_expert_intermediate_size, act=config.hidden_act)
        self.shared_expert_gate = Linear(build, config.hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = hidden_states.shape
        hidden_states_reshaped = ops.view(hidden_states, -1, shape[-1])
        shared_expert_output = self.shared_expert(hidden_states_reshaped)
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        expert_output = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        shared_expert_output = ops.mul(ops.sigmoid(self.shared_expert_gate(hidden_states_reshaped)), shared_expert_output)
        expert_output = ops.add(expert_output, shared_expert_output)
        expert_output = ops.reshape(expert_output, *shape)
        return expert_output


class UnknownMoeBlock(SparseMoeBlock):
    """A block that is none of DeepSpeed's leaf modules: OLMoE's and others'."""

    zero_leaf = False


class BothMasksModel(LlamaModel):
    """A model that always makes the mask of the sliding window."""

    both_masks = True


def _is_sparse(config: Config, index: int) -> bool:
    return index not in config.mlp_only_layers and config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0


def _mixtral(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run)
        mlp = SparseMoeBlock(
            build, config, config.num_local_experts, config.intermediate_size, experts_first=False, normalise=True, cast_back=False
        )
        return LlamaDecoderLayer(build, config, attention, mlp)

    return RoutedForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _qwen3_moe(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(index: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias, qk_norm=True)
        mlp: Module
        if _is_sparse(config, index):
            mlp = SparseMoeBlock(
                build, config, config.num_experts, config.moe_intermediate_size,
                experts_first=True, normalise=config.norm_topk_prob, cast_back=True,
            )  # fmt: skip
        else:
            mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return RoutedForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _qwen2_moe(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(index: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=config.qkv_bias)
        mlp: Module
        if _is_sparse(config, index):
            mlp = SharedMoeBlock(build, config, normalise=config.norm_topk_prob, cast_back=True)
        else:
            mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return RoutedForCausalLM(build, config, run, BothMasksModel(build, config, run, layer))


def _olmoe(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> LlamaDecoderLayer:
        attention = FlatNormAttention(build, config, run, bias=bias, out_bias=bias, clip=config.clip_qkv is not None)
        mlp = UnknownMoeBlock(
            build, config, config.num_experts, config.intermediate_size,
            experts_first=False, normalise=config.norm_topk_prob, cast_back=True,
        )  # fmt: skip
        return LlamaDecoderLayer(build, config, attention, mlp)

    return RoutedForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


_SHARED: tuple[str, ...] = (*LINEAR, "shared_expert_gate")


def _family(name: str, build: Any, linear: tuple[str, ...]) -> Family:
    return Family(name, build, {}, linear, ATTENTION)


FAMILIES = (
    _family("mixtral", _mixtral, ATTENTION),
    _family("qwen2_moe", _qwen2_moe, _SHARED),
    _family("qwen3_moe", _qwen3_moe, ATTENTION),
    _family("olmoe", _olmoe, ATTENTION),
)
