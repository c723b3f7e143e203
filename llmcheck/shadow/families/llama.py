"""Llama and the families that share its layer: Mistral, Qwen2, Qwen3 and others by switches.

Written along ``transformers/models/llama/modeling_llama.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.attention import attention_interface, causal_mask
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.loss import head_and_loss
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Embedding, Linear, Module, RMSNorm
from llmcheck.shadow.tensor import NoGrad, Tensor, cur


class RotaryEmbedding(Module):
    """cos and sin [1, s, d] in the model's type; the inverse frequencies are two small fp32 buffers."""

    positional = 1

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.inv_freq = Tensor((dim // 2,), 4)
        self.original_inv_freq = Tensor((dim // 2,), 4)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with NoGrad():
            position_ids_expanded = Tensor((1, 1, position_ids.shape[-1]), 4)
            inv_freq_expanded = ops.reshape(self.inv_freq, 1, self.dim // 2, 1)
            freqs = ops.transpose(ops.bmm(inv_freq_expanded, position_ids_expanded), 1, 2)
            emb = ops.cat((freqs, freqs))
            cos = ops.scale(ops.unary(emb))
            sin = ops.scale(ops.unary(emb))
            return ops.cast(cos, x.item), ops.cast(sin, x.item)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    x1 = ops.narrow(x, -1, half)
    x2 = ops.narrow(x, -1, x.shape[-1] - half)
    return ops.cat((ops.neg(x2), x1))


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    if cur.liger:
        return liger.rope(q, k, cos, sin)
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_half(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_half(k), sin))
    return q_embed, k_embed


class LlamaAttention(Module):
    positional = 0

    def __init__(self, build: Build, config: Config, run: Run, *, bias: bool, out_bias: bool, qk_norm: bool) -> None:
        self.kind = run.attention
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_dropout
        h, d = config.hidden_size, self.head_dim
        self.q_proj = Linear(build, h, config.num_attention_heads * d, bias)
        self.k_proj = Linear(build, h, config.num_key_value_heads * d, bias)
        self.v_proj = Linear(build, h, config.num_key_value_heads * d, bias)
        self.o_proj = Linear(build, config.num_attention_heads * d, h, out_bias)
        self.q_norm = RMSNorm(build, d) if qk_norm else None
        self.k_norm = RMSNorm(build, d) if qk_norm else None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            query_states = ops.transpose(self.q_norm(ops.view(self.q_proj(hidden_states), *hidden_shape)), 1, 2)
            key_states = ops.transpose(self.k_norm(ops.view(self.k_proj(hidden_states), *hidden_shape)), 1, 2)
        else:
            query_states = ops.transpose(ops.view(self.q_proj(hidden_states), *hidden_shape), 1, 2)
            key_states = ops.transpose(ops.view(self.k_proj(hidden_states), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(self.v_proj(hidden_states), *hidden_shape), 1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(
            self.kind, query_states, key_states, value_states, attention_mask, self.dropout
        )
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class GatedMLP(Module):
    def __init__(self, build: Build, hidden: int, intermediate: int, bias: bool = False, act: Any = ops.silu) -> None:
        self.gate_proj = Linear(build, hidden, intermediate, bias)
        self.up_proj = Linear(build, hidden, intermediate, bias)
        self.down_proj = Linear(build, intermediate, hidden, bias)
        self.act_fn = Activation(act)

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor
        if cur.liger:
            down_proj = self.down_proj(liger.gated(self.gate_proj(x), self.up_proj(x)))
            return down_proj
        down_proj = self.down_proj(ops.mul(self.act_fn(self.gate_proj(x)), self.up_proj(x)))
        return down_proj


class LlamaDecoderLayer(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, run: Run, **attn: bool) -> None:
        self.self_attn = LlamaAttention(build, config, run, **attn)
        self.mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False))
        self.input_layernorm = RMSNorm(build, config.hidden_size)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


class LlamaModel(Module):
    positional = 0

    def __init__(self, build: Build, config: Config, run: Run, **attn: bool) -> None:
        self.kind = run.attention
        self.windows = layer_windows(config)
        self.embed_tokens = Embedding(build, config.vocab_size, config.hidden_size)
        self.layers = [LlamaDecoderLayer(build, config, run, **attn) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(build, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.head_dim or config.hidden_size // config.num_attention_heads)
        for layer in self.layers:
            layer.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.embed_tokens, input_ids)
        position_ids = Tensor((1, input_ids.shape[1]), 8)
        b, s = input_ids.shape
        masks = {w: causal_mask(self.kind, b, s, inputs_embeds.item, w) for w in dict.fromkeys(self.windows)}
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for decoder_layer, window in zip(self.layers, self.windows, strict=True):
            hidden_states = decoder_layer(hidden_states, masks[window], position_embeddings)
        hidden_states = self.norm(hidden_states)
        return hidden_states


def layer_windows(config: Config) -> list[int | None]:
    """The sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


class LlamaForCausalLM(CausalLM):
    def __init__(self, build: Build, config: Config, run: Run, **attn: bool) -> None:
        self.loss = run.loss
        self.model = LlamaModel(build, config, run, **attn)
        self.lm_head = Linear(build, config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            build.tied(self.lm_head, "weight", self.model.embed_tokens.weight)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_states = self.model(ids, mask, self)
        return head_and_loss(self.lm_head, hidden_states, labels, self.loss)


_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def _llama(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias, qk_norm=False)


def _mistral(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, bias=False, out_bias=False, qk_norm=False)


def _qwen2(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, bias=True, out_bias=False, qk_norm=False)


def _qwen3(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias, qk_norm=True)


FAMILIES = (
    Family("llama", _llama, {}, _LINEAR, _ATTENTION),
    Family("mistral", _mistral, {}, _LINEAR, _ATTENTION),
    Family("qwen2", _qwen2, {}, _LINEAR, _ATTENTION),
    Family("qwen3", _qwen3, {}, _LINEAR, _ATTENTION),
)
