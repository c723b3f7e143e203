"""Families close to Llama: StableLM, StarCoder2, Granite, Cohere and Cohere2, SmolLM3.

Written along ``transformers/models/{stablelm,starcoder2,granite,cohere,cohere2,smollm3}/modeling_*.py`` (5.17).
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import attention_interface
from llmcheck.shadow.autograd import NoGrad
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    llama_layer,
    rotary_dim,
)
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor

# --- StableLM -----------------------------------------------------------------------------------------------------------------


class LayerNormPerHead(Module):
    """A norm of its own for each head."""

    def __init__(self, build: Build, dim: int, num_heads: int) -> None:
        self.norms = [LayerNorm(build, dim, bias=False) for _ in range(num_heads)]

    def forward(self, hidden_states: Tensor) -> Tensor:
        states_per_heads = ops.split(hidden_states, (1,) * len(self.norms), 1)
        return ops.cat([norm(states) for norm, states in zip(self.norms, states_per_heads, strict=True)], 1)


class StableLmAttention(LlamaAttention):
    """The first elements of each head are turned; on request each head has a norm."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        super().__init__(build, config, run, bias=config.use_qkv_bias)
        self.rotary_ndims = rotary_dim(config)
        if config.qk_layernorm:
            self.q_layernorm = LayerNormPerHead(build, self.head_dim, config.num_attention_heads)
            self.k_layernorm = LayerNormPerHead(build, self.head_dim, config.num_key_value_heads)
        self.qk_layernorm = config.qk_layernorm

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        query_states = ops.transpose(ops.view(query_states, *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(key_states, *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(value_states, *hidden_shape), 1, 2)
        if self.qk_layernorm:
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
        attn_output = ops.reshape(attn_output, *input_shape, -1)
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class StableLmDecoderLayer(CheckpointedLayer):
    """Layer norms; on request attention and MLP side by side."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.parallel = config.use_parallel_residual
        self.self_attn = StableLmAttention(build, config, run)
        self.mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        self.input_layernorm = LayerNorm(build, config.hidden_size)
        self.post_attention_layernorm = None if self.parallel else LayerNorm(build, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        self_attn_output, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        if self.post_attention_layernorm is None:
            mlp_output = self.mlp(hidden_states)
            mlp_output = self.dropout(mlp_output)
            hidden_states = ops.add(ops.add(residual, self_attn_output), mlp_output)
        else:
            residual = ops.add(residual, self_attn_output)
            mlp_output = self.mlp(self.post_attention_layernorm(residual))
            mlp_output = self.dropout(mlp_output)
            hidden_states = ops.add(residual, mlp_output)
        return hidden_states


# --- StarCoder2 ---------------------------------------------------------------------------------------------------------------


class Starcoder2Attention(LlamaAttention):
    """Llama's with a dropout behind the output projection."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        super().__init__(build, config, run, bias=config.use_bias, out_bias=config.use_bias)
        self.residual_dropout = config.residual_dropout


class Starcoder2MLP(Module):
    """Linear, activation, linear, dropout."""

    def __init__(self, build: Build, config: Config) -> None:
        self.c_fc = Linear(build, config.hidden_size, config.intermediate_size, config.use_bias)
        self.c_proj = Linear(build, config.intermediate_size, config.hidden_size, config.use_bias)
        self.act = Activation(activations.get(config.hidden_act))
        self.residual_dropout = config.residual_dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = ops.dropout(hidden_states, self.residual_dropout)
        return hidden_states


# --- Granite ------------------------------------------------------------------------------------------------------------------


class GraniteDecoderLayer(LlamaDecoderLayer):
    """What attention and MLP add is scaled."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, ops.scale(hidden_states))
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, ops.scale(hidden_states))
        return hidden_states


class GraniteModel(LlamaModel):
    """The embedding's result is scaled."""

    def embed(self, input_ids: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.embed_tokens, input_ids)
        inputs_embeds = ops.scale(inputs_embeds)
        return inputs_embeds


# --- Cohere -------------------------------------------------------------------------------------------------------------------


class CohereLayerNorm(Module):
    """Layer norm without bias, written out in fp32. `shape`: of its weight."""

    def __init__(self, build: Build, *shape: int) -> None:
        self.weight = build.param(*shape)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> Tensor:
        item = hidden_states.item
        hidden_states = ops.cast(hidden_states, 4)
        mean = ops.mean_last(hidden_states)
        variance = ops.mean_last(ops.square(ops.sub(hidden_states, mean)))
        hidden_states = ops.mul(ops.sub(hidden_states, mean), ops.rsqrt(ops.add_scalar(variance)))
        hidden_states = ops.mul(ops.cast(self.weight, 4), hidden_states)
        return ops.cast(hidden_states, item)


class CohereRotaryEmbedding(RotaryEmbedding):
    """Neighbouring elements are turned together: the frequencies are repeated one by one."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with NoGrad():
            position_ids_expanded = Tensor((position_ids.shape[0], 1, position_ids.shape[-1]), 4)
            inv_freq_expanded = ops.expand(ops.reshape(self.inv_freq, 1, self.dim // 2, 1), position_ids.shape[0], self.dim // 2, 1)
            freqs = ops.transpose(ops.bmm(inv_freq_expanded, position_ids_expanded), 1, 2)
            emb = ops.repeat_interleave(freqs, 2, -1)
            cos = ops.scale(ops.unary(emb))
            sin = ops.scale(ops.unary(emb))
            return ops.cast(cos, x.item), ops.cast(sin, x.item)


def rotate_neighbours(x: Tensor) -> Tensor:
    """``stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)``."""
    half = x.shape[-1] // 2
    x1 = ops.narrow(x, -1, half, 2)
    x2 = ops.narrow(x, -1, half, 2)
    return ops.reshape(ops.stack((ops.neg(x2), x1)), *x.shape)


def apply_rotary_pos_emb_neighbours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cohere's: everything in fp32."""
    item = q.item
    q = ops.cast(q, 4)
    k = ops.cast(k, 4)
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_neighbours(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_neighbours(k), sin))
    return ops.cast(q_embed, item), ops.cast(k_embed, item)


class EarlyNormAttention(LlamaAttention):
    """Query and key are normed, if at all, once all three are projected and before heads and positions change places."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = ops.view(self.q_proj(hidden_states), *hidden_shape)
        key_states = ops.view(self.k_proj(hidden_states), *hidden_shape)
        value_states = ops.view(self.v_proj(hidden_states), *hidden_shape)
        if self.q_norm is not None and self.k_norm is not None:
            query_states = self.q_norm(query_states)
            key_states = self.k_norm(key_states)
        query_states = ops.transpose(query_states, 1, 2)
        key_states = ops.transpose(key_states, 1, 2)
        value_states = ops.transpose(value_states, 1, 2)
        cos, sin = position_embeddings
        query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class CohereAttention(EarlyNormAttention):
    """On request query and key are normed, each head with a weight of its own."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        bias = config.attention_bias
        super().__init__(build, config, run, bias=bias, out_bias=bias, rotary=apply_rotary_pos_emb_neighbours)
        if config.use_qk_norm:
            self.q_norm = CohereLayerNorm(build, config.num_attention_heads, self.head_dim)
            self.k_norm = CohereLayerNorm(build, config.num_key_value_heads, self.head_dim)


class CohereDecoderLayer(CheckpointedLayer):
    """One norm; attention and MLP side by side."""

    def __init__(self, build: Build, config: Config, self_attn: LlamaAttention) -> None:
        self.self_attn = self_attn
        self.mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        self.input_layernorm = CohereLayerNorm(build, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states_attention, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states_mlp = self.mlp(hidden_states)
        hidden_states = ops.add(ops.add(residual, hidden_states_attention), hidden_states_mlp)
        return hidden_states


# --- the families -------------------------------------------------------------------------------------------------------------


def _stablelm(build: Build, config: Config, run: Run) -> CausalLM:
    model = LlamaModel(build, config, run, lambda _: StableLmDecoderLayer(build, config, run), norm=LayerNorm)
    return LlamaForCausalLM(build, config, run, model)


def _starcoder2(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = Starcoder2Attention(build, config, run)
        return LlamaDecoderLayer(build, config, attention, Starcoder2MLP(build, config), LayerNorm)

    model = LlamaModel(build, config, run, layer, norm=LayerNorm)
    model.embedding_dropout = config.embedding_dropout
    return LlamaForCausalLM(build, config, run, model)


def _granite(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> GraniteDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias)
        return GraniteDecoderLayer(
            build, config, attention, GatedMLP(build, config.hidden_size, config.intermediate_size, config.mlp_bias, config.hidden_act)
        )

    return LlamaForCausalLM(build, config, run, GraniteModel(build, config, run, layer), (ops.scale,))


def _cohere_rotary(config: Config) -> Module:
    return CohereRotaryEmbedding(rotary_dim(config))


def _cohere(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> CohereDecoderLayer:
        return CohereDecoderLayer(build, config, CohereAttention(build, config, run))

    model = LlamaModel(build, config, run, layer, norm=CohereLayerNorm, rotary=_cohere_rotary)
    return LlamaForCausalLM(build, config, run, model, (ops.scale,))


class Cohere2Model(LlamaModel):
    """Both masks are made, whatever the layers are."""

    both_masks = True


def _cohere2(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(index: int) -> CohereDecoderLayer:
        windowed = config.layer_types[index] == "sliding_attention" and config.sliding_window is not None  # only these know positions
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias, rope=windowed, rotary=apply_rotary_pos_emb_neighbours)
        return CohereDecoderLayer(build, config, attention)

    model = Cohere2Model(build, config, run, layer, norm=CohereLayerNorm, rotary=_cohere_rotary)
    return LlamaForCausalLM(build, config, run, model, (ops.scale,))


def _smollm3(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(index: int) -> LlamaDecoderLayer:
        return llama_layer(build, config, run, bias=bias, out_bias=bias, rope=bool(config.no_rope_layers[index]))

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _family(name: str, build: Any, linear: tuple[str, ...] = LINEAR) -> Family:
    return Family(name, build, {}, linear, ATTENTION)


FAMILIES = (
    _family("stablelm", _stablelm),
    _family("starcoder2", _starcoder2, (*ATTENTION, "c_fc", "c_proj")),
    _family("granite", _granite),
    _family("cohere", _cohere),
    _family("cohere2", _cohere2),
    _family("smollm3", _smollm3),
)
