"""DeepSeek-V2 and -V3, GLM-4.7-Flash: latent attention, routed experts beside shared ones.

Written along ``transformers/models/{deepseek_v2,deepseek_v3,glm4_moe_lite}/modeling_*.py`` (5.17). Query, key and value come from
low-rank projections; the key is assembled in place from a part of each head and one that all heads share. Routers compute in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.attention import attention_interface
from llmcheck.shadow.autograd import NoGrad
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    GatedMLP,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    rotary_dim,
)
from llmcheck.shadow.families.moe import Experts
from llmcheck.shadow.module import Build, Linear, Module, RMSNorm
from llmcheck.shadow.tensor import Tensor


class ComplexRotaryEmbedding(RotaryEmbedding):
    """V2's: one complex number for two elements of a head."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:  # type: ignore[override]
        with NoGrad():
            position_ids_expanded = Tensor((position_ids.shape[0], 1, position_ids.shape[-1]), 4)
            inv_freq_expanded = ops.expand(ops.reshape(self.inv_freq, 1, self.dim // 2, 1), position_ids.shape[0], self.dim // 2, 1)
            freqs = ops.transpose(ops.bmm(inv_freq_expanded, position_ids_expanded), 1, 2)
            freqs_cis = ops.unary(ops.unary(freqs), item=8)  # torch.polar(ones_like(freqs), freqs)
            freqs_cis = ops.scale(freqs_cis)
            return freqs_cis


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """V2's: products of complex numbers."""
    item = xq.item
    xq_ = ops.view_as_complex(ops.reshape(ops.cast(xq, 4), *xq.shape[:-1], -1, 2))
    xk_ = ops.view_as_complex(ops.reshape(ops.cast(xk, 4), *xk.shape[:-1], -1, 2))
    freqs_cis = ops.unsqueeze(freqs_cis, 1)
    xq_out = ops.cast(ops.reshape(ops.view_as_real(ops.mul_complex(xq_, freqs_cis)), *xq.shape), item)
    xk_out = ops.cast(ops.reshape(ops.view_as_real(ops.mul_complex(xk_, freqs_cis)), *xk.shape), item)
    return xq_out, xk_out


def apply_rotary_pos_emb_interleave(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """V3's: even and odd elements are turned together and put behind each other."""
    cos = ops.unsqueeze(ops.narrow(cos, -1, cos.shape[-1] // 2), 1)
    sin = ops.unsqueeze(ops.narrow(sin, -1, sin.shape[-1] // 2), 1)
    half = q.shape[-1] // 2
    q1, q2 = ops.narrow(q, -1, half, 2), ops.narrow(q, -1, half, 2)
    k1, k2 = ops.narrow(k, -1, half, 2), ops.narrow(k, -1, half, 2)
    q_embed = ops.cat((ops.sub(ops.mul(q1, cos), ops.mul(q2, sin)), ops.add(ops.mul(q2, cos), ops.mul(q1, sin))))
    k_embed = ops.cat((ops.sub(ops.mul(k1, cos), ops.mul(k2, sin)), ops.add(ops.mul(k2, cos), ops.mul(k1, sin))))
    return q_embed, k_embed


class LatentAttention(Module):
    """Low-rank projections; `rotate` turns the rotary parts of query and key."""

    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.dropout = config.attention_dropout
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.qk_head_dim = self.nope + self.rope
        self.kv_lora_rank = config.kv_lora_rank
        h, heads, bias, rank = config.hidden_size, config.num_attention_heads, config.attention_bias, config.q_lora_rank
        if rank is None:
            self.q_proj: Linear | None = Linear(build, h, heads * self.qk_head_dim)
        else:
            self.q_proj = None
            self.q_a_proj = Linear(build, h, rank, bias)
            self.q_a_layernorm = RMSNorm(build, rank)
            self.q_b_proj = Linear(build, rank, heads * self.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(build, h, self.kv_lora_rank + self.rope, bias)
        self.kv_a_layernorm = RMSNorm(build, self.kv_lora_rank)
        self.kv_b_proj = Linear(build, self.kv_lora_rank, heads * (self.nope + self.value))
        self.o_proj = Linear(build, heads * self.value, h, bias)

    def rotate(self, q_rot: Tensor, k_rot: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        b, _, s, _ = kv_nope.shape
        kv_nope = ops.transpose(ops.view(self.kv_b_proj(kv_nope), b, s, -1, self.nope + self.value), 1, 2)
        k_nope, value_states = ops.split(kv_nope, (self.nope, self.value))
        k_rot = ops.expand(k_rot, -1, k_nope.shape[1], -1, -1)
        key_states = Tensor((*kv_nope.shape[:-1], self.qk_head_dim), kv_nope.item)
        ops.assign(key_states, k_nope)
        ops.assign(key_states, k_rot)
        return key_states, value_states

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: Any) -> tuple[Tensor, Tensor | None]:
        b, s = hidden_states.shape[:-1]
        q_states = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states))) if self.q_proj is None else self.q_proj(hidden_states)
        q_states = ops.transpose(ops.view(q_states, b, s, -1, self.qk_head_dim), 1, 2)
        q_pass, q_rot = ops.split(q_states, (self.nope, self.rope))
        compressed_kv = self.kv_a_proj_with_mqa(hidden_states)
        kv_nope, k_rot = ops.split(compressed_kv, (self.kv_lora_rank, self.rope))
        kv_nope = self.kv_a_layernorm(kv_nope)
        kv_nope = ops.view(kv_nope, b, 1, s, self.kv_lora_rank)
        k_rot = ops.view(k_rot, b, 1, s, self.rope)
        q_rot, k_rot = self.rotate(q_rot, k_rot, position_embeddings)
        query_states = ops.cat((q_pass, q_rot))
        key_states, value_states = self.expand_kv(kv_nope, k_rot)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, b, s, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class DeepseekV2Attention(LatentAttention):
    """V2's latent attention."""

    def rotate(self, q_rot: Tensor, k_rot: Tensor, position_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rotary_emb(q_rot, k_rot, position_embeddings)


class DeepseekV3Attention(LatentAttention):
    """V3's latent attention."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        super().__init__(build, config, run)
        self.apply = apply_rotary_pos_emb_interleave if config.rope_interleave else apply_rotary_pos_emb

    def rotate(self, q_rot: Tensor, k_rot: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = position_embeddings
        return self.apply(q_rot, k_rot, cos, sin)


class TopkRouter(Module):
    """What the routers of both versions share: logits in fp32, for which hidden states and weight are converted."""

    def __init__(self, build: Build, config: Config) -> None:
        self.top_k, self.num_experts, self.hidden_dim = config.num_experts_per_tok, config.n_routed_experts, config.hidden_size
        self.num_group, self.topk_group = config.n_group, config.topk_group
        self.weight = build.param(self.num_experts, self.hidden_dim)
        build.finish(self)


def _inverted(score_mask: Tensor) -> Tensor:
    """``~score_mask.bool()``."""
    as_bool = Tensor(score_mask.shape, 1)
    out = Tensor(score_mask.shape, 1)
    del as_bool
    return out


class DeepseekV2Router(TopkRouter):
    """Softmax; the largest, or the largest of the best groups."""

    def __init__(self, build: Build, config: Config) -> None:
        super().__init__(build, config)
        self.topk_method = config.topk_method

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = ops.view(hidden_states, -1, self.hidden_dim)
        router_logits = ops.linear(ops.cast(hidden_states, 4), ops.cast(self.weight, 4))
        scores = ops.softmax(router_logits)
        if self.topk_method == "group_limited_greedy":
            groups = ops.view(scores, -1, self.num_group, self.num_experts // self.num_group)
            group_scores = ops.squeeze(ops.topk(groups, 1)[0], -1)  # max: values and indices, like the largest one
            del groups
            _group_idx = ops.topk(group_scores, self.topk_group)[1]  # not read by us: a local of the real frame
            group_mask = Tensor(group_scores.shape, 4)
            size = self.num_experts // self.num_group
            score_mask = ops.reshape(ops.expand(ops.unsqueeze(group_mask, -1), -1, self.num_group, size), -1, self.num_experts)
            scores = ops.where_scalar(scores, _inverted(score_mask))
        topk_weights, topk_indices = ops.topk(scores, self.top_k)
        topk_weights = ops.scale(topk_weights)
        return router_logits, topk_weights, topk_indices


class DeepseekV3Router(TopkRouter):
    """Sigmoid; groups by their two largest scores, corrected by a buffer; the chosen scores may be normalised."""

    def __init__(self, build: Build, config: Config) -> None:
        super().__init__(build, config)
        self.norm_topk_prob = config.norm_topk_prob
        self.e_score_correction_bias = Tensor((self.num_experts,), build.item)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = ops.view(hidden_states, -1, self.hidden_dim)
        router_logits = ops.linear(ops.cast(hidden_states, 4), ops.cast(self.weight, 4))
        scores = ops.sigmoid(router_logits)
        scores_for_choice = ops.add(scores, self.e_score_correction_bias)
        groups = ops.view(scores_for_choice, -1, self.num_group, self.num_experts // self.num_group)
        group_scores = ops.sum_dim(ops.topk(groups, 2)[0], -1)
        del groups
        group_idx = ops.topk(group_scores, self.topk_group)[1]
        group_mask = Tensor(group_scores.shape, 4)
        size = self.num_experts // self.num_group
        score_mask = ops.reshape(ops.expand(ops.unsqueeze(group_mask, -1), -1, self.num_group, size), -1, self.num_experts)
        scores_for_choice = ops.where_scalar(scores_for_choice, _inverted(score_mask))
        topk_indices = ops.topk(scores_for_choice, self.top_k)[1]
        topk_weights = ops.gather_last(scores, topk_indices)
        if self.norm_topk_prob:
            denominator = ops.add_scalar(ops.sum_dim(topk_weights, -1, True))
            topk_weights = ops.div_(topk_weights, denominator)
        topk_weights = ops.scale(topk_weights)
        del group_idx  # not read by us: a local of the real frame
        return router_logits, topk_weights, topk_indices


class DeepseekMoe(Module):
    """Routed experts, and shared ones on the same input."""

    def __init__(self, build: Build, config: Config, router: type[TopkRouter], bias: bool) -> None:
        width = config.moe_intermediate_size
        self.experts = Experts(build, config.n_routed_experts, config.hidden_size, width, config.hidden_act)
        self.gate = router(build, config)
        self.shared_experts = GatedMLP(build, config.hidden_size, width * config.n_shared_experts, bias, config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residuals = hidden_states
        orig_shape = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = ops.view(hidden_states, -1, orig_shape[-1])
        hidden_states = ops.view(self.experts(hidden_states, topk_indices, topk_weights), *orig_shape)
        hidden_states = ops.add(hidden_states, self.shared_experts(residuals))
        return hidden_states


def _model(
    build: Build,
    config: Config,
    run: Run,
    attention: type[LatentAttention],
    router: type[TopkRouter],
    bias: bool,
    sparse: Callable[[int], bool],
    rotary: Any = None,
) -> CausalLM:
    def layer(index: int) -> LlamaDecoderLayer:
        self_attn = attention(build, config, run)
        mlp: Module
        if sparse(index):
            mlp = DeepseekMoe(build, config, router, bias)
        else:
            mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, bias, config.hidden_act)
        return LlamaDecoderLayer(build, config, self_attn, mlp)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, rotary=rotary))


def _deepseek_v2(build: Build, config: Config, run: Run) -> CausalLM:
    def rotary(config: Config) -> Module:
        return ComplexRotaryEmbedding(rotary_dim(config))

    def sparse(index: int) -> bool:
        return bool(index >= config.first_k_dense_replace)

    return _model(build, config, run, DeepseekV2Attention, DeepseekV2Router, config.mlp_bias, sparse, rotary)


def _deepseek_v3(build: Build, config: Config, run: Run) -> CausalLM:
    def sparse(index: int) -> bool:
        return bool(index >= config.first_k_dense_replace)

    return _model(build, config, run, DeepseekV3Attention, DeepseekV3Router, False, sparse)


def _glm4_moe_lite(build: Build, config: Config, run: Run) -> CausalLM:
    def sparse(index: int) -> bool:
        return bool(config.mlp_layer_types[index] == "sparse")

    return _model(build, config, run, DeepseekV3Attention, DeepseekV3Router, False, sparse)


# peft (0.21) takes gate_proj, up_proj and down_proj for the experts' parameters and refuses them with adapter dropout: see moe.py
_ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
FAMILIES = (
    Family("deepseek_v2", _deepseek_v2, {}, _ATTENTION, _ATTENTION),
    Family("deepseek_v3", _deepseek_v3, {}, _ATTENTION, _ATTENTION),
    Family("glm4_moe_lite", _glm4_moe_lite, {}, _ATTENTION, _ATTENTION),
)
