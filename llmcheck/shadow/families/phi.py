"""Phi (parallel attention and MLP, biases everywhere) and Phi-3 (fused projections).

Written along ``transformers/models/{phi,phi3}/modeling_*.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import activations, liger, ops
from llmcheck.shadow.attention import attention_interface, causal_mask, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.families.llama import (
    LlamaForCausalLM,
    LlamaModel,
    RotaryEmbedding,
    apply_partial_rotary_pos_emb,
    apply_rotary_pos_emb,
    rotary_dim,
)
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module, RMSNorm
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


class PhiAttention(Module):
    """The first elements of each head are turned; on request each head's query and key are normed."""

    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        h, d = config.hidden_size, self.head_dim
        self.q_proj = Linear(build, h, config.num_attention_heads * d, True)
        self.k_proj = Linear(build, h, config.num_key_value_heads * d, True)
        self.v_proj = Linear(build, h, config.num_key_value_heads * d, True)
        self.dense = Linear(build, config.num_attention_heads * d, h, True)
        self.rotary_ndims = rotary_dim(config)
        self.q_layernorm = LayerNorm(build, d) if config.qk_layernorm else None
        self.k_layernorm = LayerNorm(build, d) if config.qk_layernorm else None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = ops.transpose(ops.view(self.q_proj(hidden_states), *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(self.k_proj(hidden_states), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(self.v_proj(hidden_states), *hidden_shape), 1, 2)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            query_states = self.q_layernorm(query_states)
            key_states = self.k_layernorm(key_states)
        cos, sin = position_embeddings
        n, rest = self.rotary_ndims, self.head_dim - self.rotary_ndims
        query_rot, query_pass = ops.narrow(query_states, -1, n), ops.narrow(query_states, -1, rest)
        key_rot, key_pass = ops.narrow(key_states, -1, n), ops.narrow(key_states, -1, rest)
        query_rot, key_rot = apply_rotary_pos_emb(query_rot, key_rot, cos, sin)
        query_states = ops.cat((query_rot, query_pass))
        key_states = ops.cat((key_rot, key_pass))
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights


class PhiMLP(Module):
    """Linear, activation, linear."""

    def __init__(self, build: Build, config: Config) -> None:
        self.activation_fn = Activation(activations.get(config.hidden_act))
        self.fc1 = Linear(build, config.hidden_size, config.intermediate_size, True)
        self.fc2 = Linear(build, config.intermediate_size, config.hidden_size, True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return hidden_states


class PhiDecoderLayer(CheckpointedLayer):
    """One norm; attention and MLP side by side."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.self_attn = PhiAttention(build, config, run)
        self.mlp = PhiMLP(build, config)
        self.input_layernorm = LayerNorm(build, config.hidden_size)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        attn_outputs, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        attn_outputs = self.resid_dropout(attn_outputs)
        feed_forward_hidden_states = self.resid_dropout(self.mlp(hidden_states))
        hidden_states = ops.add(ops.add(attn_outputs, feed_forward_hidden_states), residual)
        return hidden_states


class PhiModel(Module):
    """Embedding, layers, rotary embedding, dropout, norm."""

    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.embed_tokens = Embedding(build, config.vocab_size, config.hidden_size)
        self.layers = [PhiDecoderLayer(build, config, run) for _ in range(config.num_hidden_layers)]
        self.rotary_emb = RotaryEmbedding(rotary_dim(config))
        self.embed_dropout = Dropout(config.embd_pdrop)
        self.final_layernorm = LayerNorm(build, config.hidden_size)
        for layer in self.layers:
            layer.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.embed_tokens, input_ids)
        position_ids = position_ids_of(input_ids.shape[1])
        b, s = input_ids.shape
        causal = causal_mask(self.kind, b, s, inputs_embeds.item)
        inputs_embeds = self.embed_dropout(inputs_embeds)
        hidden_states: Tensor = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, causal, position_embeddings)
        hidden_states = self.final_layernorm(hidden_states)
        return hidden_states


class FusedGatedMLP(Module):
    """Gate and up projection in one (Phi-3, GLM)."""

    def __init__(self, build: Build, config: Config) -> None:
        self.gate_up_proj = Linear(build, config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(build, config.intermediate_size, config.hidden_size)
        self.activation_fn = Activation(activations.get(config.hidden_act))

    def forward(self, hidden_states: Tensor) -> Tensor:
        up_states = self.gate_up_proj(hidden_states)
        gate, up_states = ops.split(up_states, (up_states.shape[-1] // 2,) * 2)
        if cur.liger:
            gated: Tensor = self.down_proj(liger.gated(gate, up_states))
            return gated
        up_states = ops.mul(up_states, self.activation_fn(gate))
        down_proj: Tensor = self.down_proj(up_states)
        return down_proj


class Phi3Attention(Module):
    """Query, key and value in one projection."""

    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.query_pos = config.num_attention_heads * self.head_dim
        self.key_width = config.num_key_value_heads * self.head_dim
        self.o_proj = Linear(build, self.query_pos, config.hidden_size)
        self.qkv_proj = Linear(build, config.hidden_size, self.query_pos + 2 * self.key_width)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        qkv = self.qkv_proj(hidden_states)
        query_states = ops.narrow(qkv, -1, self.query_pos)
        key_states = ops.narrow(qkv, -1, self.key_width)
        value_states = ops.narrow(qkv, -1, self.key_width)
        query_states = ops.transpose(ops.view(query_states, *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(key_states, *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(value_states, *hidden_shape), 1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_partial_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class Phi3DecoderLayer(CheckpointedLayer):
    """Llama's layer with dropouts before the residual connections."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.self_attn = Phi3Attention(build, config, run)
        self.mlp = FusedGatedMLP(build, config)
        self.input_layernorm = RMSNorm(build, config.hidden_size)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size)
        self.resid_attn_dropout = Dropout(config.resid_pdrop)
        self.resid_mlp_dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, self_attn_weights = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, self.resid_attn_dropout(hidden_states))
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, self.resid_mlp_dropout(hidden_states))
        del self_attn_weights  # a local of the real frame: it lives to the end
        return hidden_states


def _phi(build: Build, config: Config, run: Run) -> CausalLM:
    model = PhiModel(build, config, run)
    return DecoderLM(build, config, run, "model", model, model.embed_tokens, config.hidden_size, bias=True)


def _phi3(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, lambda _: Phi3DecoderLayer(build, config, run)))


FAMILIES = (
    Family("phi", _phi, {}, ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), ("q_proj", "k_proj", "v_proj", "dense")),
    Family("phi3", _phi3, {}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), ("qkv_proj", "o_proj")),
)
