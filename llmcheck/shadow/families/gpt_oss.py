"""GPT-OSS: attention with sinks, experts with biases, every other layer with a window.

Written along ``transformers/models/gpt_oss/modeling_gpt_oss.py`` and ``integrations/moe.py`` (5.17). Trained as transformers loads it for
training: in the model's type, not in the checkpoint's MXFP4. Only the eager attention knows sinks without more packages.
"""

from __future__ import annotations

from dataclasses import replace

from llmcheck.shadow import ops
from llmcheck.shadow.attention import repeat_kv
from llmcheck.shadow.autograd import NoGrad
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    RotaryEmbedding,
    rotary_dim,
)
from llmcheck.shadow.families.moe import Experts
from llmcheck.shadow.families.olmo import Olmo2RMSNorm
from llmcheck.shadow.families.routed import RoutedForCausalLM, Router
from llmcheck.shadow.module import Build, Module
from llmcheck.shadow.tensor import Tensor


class GptOssRotaryEmbedding(RotaryEmbedding):
    """cos and sin of half a head's width."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with NoGrad():
            position_ids_expanded = Tensor((position_ids.shape[0], 1, position_ids.shape[-1]), 4)
            inv_freq_expanded = ops.expand(ops.reshape(self.inv_freq, 1, self.dim // 2, 1), position_ids.shape[0], self.dim // 2, 1)
            freqs = ops.transpose(ops.bmm(inv_freq_expanded, position_ids_expanded), 1, 2)
            emb = freqs
            cos = ops.scale(ops.unary(emb))
            sin = ops.scale(ops.unary(emb))
            return ops.cast(cos, x.item), ops.cast(sin, x.item)


def _apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first_half, second_half = ops.split(x, (x.shape[-1] // 2,) * 2)
    first_ = ops.sub(ops.mul(first_half, cos), ops.mul(second_half, sin))
    second_ = ops.add(ops.mul(second_half, cos), ops.mul(first_half, sin))
    return ops.cat((first_, second_))


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of each head are turned together."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    q_embed = _apply_rotary_emb(q, cos, sin)
    k_embed = _apply_rotary_emb(k, cos, sin)
    return q_embed, k_embed


def eager_attention_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Scores with a column more, the head's sink, which takes part in the softmax in the model's type and is then dropped."""
    groups = q.shape[1] // k.shape[1]
    key_states = repeat_kv(k, groups)
    value_states = repeat_kv(v, groups)
    attn_weights = ops.scale(ops.matmul(q, ops.transpose(key_states, 2, 3)))
    if mask is not None:
        attn_weights = ops.add(attn_weights, mask)
    sinks = ops.expand(ops.reshape(sinks, 1, -1, 1, 1), q.shape[0], -1, q.shape[-2], -1)
    combined_logits = ops.cat((attn_weights, sinks))
    combined_logits = ops.sub(combined_logits, ops.max_last(combined_logits))
    probs = ops.softmax(combined_logits)
    scores = ops.narrow(probs, -1, probs.shape[-1] - 1)
    attn_weights = ops.dropout(scores, dropout)
    attn_output = ops.matmul(attn_weights, value_states)
    attn_output = ops.contiguous(ops.transpose(attn_output, 1, 2))
    return attn_output, attn_weights


class GptOssAttention(LlamaAttention):
    """Attention with a sink for each head."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        bias = config.attention_bias
        self.sinks = build.param(config.num_attention_heads)
        super().__init__(build, config, run, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb)
        build.finish(self)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = ops.transpose(ops.view(self.q_proj(hidden_states), *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(self.k_proj(hidden_states), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(self.v_proj(hidden_states), *hidden_shape), 1, 2)
        cos, sin = position_embeddings
        query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = eager_attention_forward(
            query_states, key_states, value_states, attention_mask, self.sinks, self.dropout
        )
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class GptOssExperts(Experts):
    """Gate and up projection in turns; biases; a clamped gate."""

    is_transposed = True

    def __init__(self, build: Build, config: Config) -> None:
        experts, hidden, width = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.gate_up_proj = build.param(experts, hidden, 2 * width)
        self.gate_up_proj_bias = build.param(experts, 2 * width)
        self.down_proj = build.param(experts, width, hidden)
        self.down_proj_bias = build.param(experts, hidden)
        build.finish(self)

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor:
        half = gate_up_out.shape[-1] // 2
        gate, up = ops.narrow(gate_up_out, -1, half, 2), ops.narrow(gate_up_out, -1, half, 2)
        gate = ops.clamp_max(gate)
        up = ops.clamp(up)
        glu = ops.mul(gate, ops.sigmoid(ops.scale(gate)))
        gated_output = ops.mul(ops.add_scalar(up), glu)
        return gated_output


class GptOssTopKRouter(Router):
    """The largest few logits, then a softmax over these in the model's type."""

    def __init__(self, build: Build, config: Config) -> None:
        self.top_k = config.num_experts_per_tok
        self.weight = build.param(config.num_local_experts, config.hidden_size)
        self.bias = build.param(config.num_local_experts)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight, self.bias)
        router_top_value, router_indices = ops.topk(router_logits, self.top_k)
        router_scores = ops.softmax(router_top_value)
        self.record(router_logits)
        return router_logits, router_scores, router_indices


class GptOssMLP(Module):
    """Router and experts."""

    def __init__(self, build: Build, config: Config) -> None:
        self.router = GptOssTopKRouter(build, config)
        self.experts = GptOssExperts(build, config)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        shape = hidden_states.shape
        hidden_states = ops.reshape(hidden_states, -1, shape[-1])
        _, router_scores, router_indices = self.router(hidden_states)
        hidden_states = self.experts(hidden_states, router_indices, router_scores)
        hidden_states = ops.reshape(hidden_states, *shape)
        return hidden_states, router_scores


class GptOssDecoderLayer(LlamaDecoderLayer):
    """Llama's, but the second result of the experts takes the place of the attention's probabilities."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, _ = self.mlp(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


class GptOssModel(LlamaModel):
    """Both masks are made, whatever the layers are."""

    both_masks = True


def _gpt_oss(build: Build, config: Config, run: Run) -> CausalLM:
    run = replace(run, attention=attention_kind(run, "GPT-OSS", sdpa=False, flash=False))

    def rotary(config: Config) -> Module:
        return GptOssRotaryEmbedding(rotary_dim(config))

    def layer(_: int) -> LlamaDecoderLayer:
        return GptOssDecoderLayer(build, config, GptOssAttention(build, config, run), GptOssMLP(build, config), Olmo2RMSNorm)

    model = GptOssModel(build, config, run, layer, norm=Olmo2RMSNorm, rotary=rotary)
    return RoutedForCausalLM(build, config, run, model)


# The experts are parameters of three dimensions, which LoRA's "all-linear" leaves alone.
FAMILIES = (Family("gpt_oss", _gpt_oss, {}, ATTENTION, ATTENTION, supports_sdpa=False),)
