"""Llama and the families that share its layer: Mistral, Qwen2, Qwen3 and others by switches.

Written along ``transformers/models/llama/modeling_llama.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.shadow import activations, liger, ops
from llmcheck.shadow.attention import attention_interface, causal_mask, position_ids_of
from llmcheck.shadow.autograd import NoGrad
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Embedding, Linear, Module, RMSNorm
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


class RotaryEmbedding(Module):
    """cos and sin [1, s, d] in the model's type (or of `item` bytes); the inverse frequencies are two small fp32 buffers."""

    positional = 1

    def __init__(self, dim: int, item: int = 0) -> None:
        self.dim, self.item = dim, item
        self.inv_freq = Tensor((dim // 2,), 4)
        self.original_inv_freq = Tensor((dim // 2,), 4)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with NoGrad():
            position_ids_expanded = Tensor((position_ids.shape[0], 1, position_ids.shape[-1]), 4)
            inv_freq_expanded = ops.expand(ops.reshape(self.inv_freq, 1, self.dim // 2, 1), position_ids.shape[0], self.dim // 2, 1)
            freqs = ops.transpose(ops.bmm(inv_freq_expanded, position_ids_expanded), 1, 2)
            emb = ops.cat((freqs, freqs))
            cos = ops.scale(ops.unary(emb))
            sin = ops.scale(ops.unary(emb))
            return ops.cast(cos, self.item or x.item), ops.cast(sin, self.item or x.item)


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


def apply_partial_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Only the first elements of each head are turned, as many as `cos` has (Phi-3's)."""
    if cur.liger:
        return liger.rope(q, k, cos, sin)
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    rotary_dim, head_dim = cos.shape[-1], q.shape[-1]
    q_rot, q_pass = ops.narrow(q, -1, rotary_dim), ops.narrow(q, -1, head_dim - rotary_dim)
    k_rot, k_pass = ops.narrow(k, -1, rotary_dim), ops.narrow(k, -1, head_dim - rotary_dim)
    q_embed = ops.cat((ops.add(ops.mul(q_rot, cos), ops.mul(rotate_half(q_rot), sin)), q_pass))
    k_embed = ops.cat((ops.add(ops.mul(k_rot, cos), ops.mul(rotate_half(k_rot), sin)), k_pass))
    return q_embed, k_embed


class LlamaAttention(Module):
    """Separate projections for query, key and value. `qk_norm`: each head's query and key are normed before they are turned; `rope`:
    they are turned; `softcap`: the eager path caps its scores.
    """

    positional = 0
    residual_dropout = 0.0  # behind the output projection

    def __init__(
        self,
        build: Build,
        config: Config,
        run: Run,
        *,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        rope: bool = True,
        softcap: bool = False,
        rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = apply_rotary_pos_emb,
    ) -> None:
        self.kind = run.attention
        self.head_dim = config.head_dim
        self.dropout = getattr(config, "attention_dropout", 0.0)  # not all configurations have one
        self.use_rope, self.apply_rotary_pos_emb, self.softcap = rope, rotary, softcap
        h, d = config.hidden_size, self.head_dim
        self.q_proj = Linear(build, h, config.num_attention_heads * d, bias)
        self.k_proj = Linear(build, h, config.num_key_value_heads * d, bias)
        self.v_proj = Linear(build, h, config.num_key_value_heads * d, bias)
        self.o_proj = Linear(build, config.num_attention_heads * d, h, out_bias)
        self.q_norm: Module | None = RMSNorm(build, d) if qk_norm else None
        self.k_norm: Module | None = RMSNorm(build, d) if qk_norm else None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            query_states = ops.transpose(self.q_norm(ops.view(self.q_proj(hidden_states), *hidden_shape)), 1, 2)
            key_states = ops.transpose(self.k_norm(ops.view(self.k_proj(hidden_states), *hidden_shape)), 1, 2)
        else:
            query_states = ops.transpose(ops.view(self.q_proj(hidden_states), *hidden_shape), 1, 2)
            key_states = ops.transpose(ops.view(self.k_proj(hidden_states), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(self.v_proj(hidden_states), *hidden_shape), 1, 2)
        if self.use_rope:
            cos, sin = position_embeddings
            query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(
            self.kind, query_states, key_states, value_states, attention_mask, self.dropout, self.softcap
        )
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        attn_output = ops.dropout(attn_output, self.residual_dropout)
        return attn_output, attn_weights


class PlainMLP(Module):
    """Linear, activation, linear."""

    def __init__(self, build: Build, hidden: int, intermediate: int, bias: bool, act_fn: Module) -> None:
        self.up_proj = Linear(build, hidden, intermediate, bias)
        self.down_proj = Linear(build, intermediate, hidden, bias)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor = self.down_proj(self.act_fn(self.up_proj(x)))
        return down_proj


class GatedMLP(Module):
    def __init__(self, build: Build, hidden: int, intermediate: int, bias: bool = False, act: str = "silu") -> None:
        self.gate_proj = Linear(build, hidden, intermediate, bias)
        self.up_proj = Linear(build, hidden, intermediate, bias)
        self.down_proj = Linear(build, intermediate, hidden, bias)
        self.act_fn = Activation(activations.get(act))

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor
        if cur.liger:
            down_proj = self.down_proj(liger.gated(self.gate_proj(x), self.up_proj(x)))
            return down_proj
        down_proj = self.down_proj(ops.mul(self.act_fn(self.gate_proj(x)), self.up_proj(x)))
        return down_proj


class LateNormAttention(LlamaAttention):
    """Query and key are normed head by head behind the transposition, before they are turned or (`after_rope`) behind that; `norm`."""

    after_rope = False
    norm_names = ("q_norm", "k_norm")

    def __init__(self, build: Build, config: Config, run: Run, *, norm: Callable[[Build, int], Module] = RMSNorm, **attn: Any) -> None:
        super().__init__(build, config, run, **attn)
        for name in self.norm_names:
            setattr(self, name, norm(build, self.head_dim))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = ops.transpose(ops.view(self.q_proj(hidden_states), *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(self.k_proj(hidden_states), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(self.v_proj(hidden_states), *hidden_shape), 1, 2)
        q_norm, k_norm = (getattr(self, name) for name in self.norm_names)
        if not self.after_rope:
            query_states = q_norm(query_states)
            key_states = k_norm(key_states)
        cos, sin = position_embeddings
        if self.use_rope:
            query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if self.after_rope:
            query_states = q_norm(query_states)
            key_states = k_norm(key_states)
        attn_output, attn_weights = attention_interface(
            self.kind, query_states, key_states, value_states, attention_mask, self.dropout, self.softcap
        )
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class LlamaDecoderLayer(CheckpointedLayer):
    """Norm, attention, norm, MLP, each pair with a residual connection around it."""

    def __init__(
        self, build: Build, config: Config, self_attn: Module, mlp: Module, norm: Callable[[Build, int], Module] = RMSNorm
    ) -> None:
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = norm(build, config.hidden_size)
        self.post_attention_layernorm = norm(build, config.hidden_size)

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


def llama_layer(build: Build, config: Config, run: Run, **attn: Any) -> LlamaDecoderLayer:
    """Llama's layer; `attn`: options of its attention."""
    return LlamaDecoderLayer(
        build,
        config,
        LlamaAttention(build, config, run, **attn),
        GatedMLP(build, config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False), config.hidden_act),
    )


class LlamaModel(Module):
    """Embedding, `layer(index)` times the number of layers, norm, rotary embedding."""

    positional = 0
    both_masks = False  # the mask of the sliding window is made even where no layer uses it
    embedding_dropout = 0.0

    def __init__(
        self,
        build: Build,
        config: Config,
        run: Run,
        layer: Callable[[int], CheckpointedLayer],
        *,
        norm: Callable[[Build, int], Module] = RMSNorm,
        embedding: Callable[[Build, int, int], Embedding] = Embedding,
        rotary: Callable[[Config], Module] | None = None,
    ) -> None:
        self.kind = run.attention
        self.windows, self.mask_windows = layer_windows(config), mask_windows(config, self.both_masks)
        self.embed_tokens = embedding(build, config.vocab_size, config.hidden_size)
        self.layers = [layer(index) for index in range(config.num_hidden_layers)]
        self.norm = norm(build, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(rotary_dim(config)) if rotary is None else rotary(config)
        for decoder_layer in self.layers:
            decoder_layer.checkpointed = run.checkpointing

    def embed(self, input_ids: Tensor, owner: CausalLM) -> Tensor:
        """The embedding and what the model does to it at once."""
        return owner.embed(self.embed_tokens, input_ids)

    def prepare(self, inputs_embeds: Tensor) -> Tensor:
        """What the model does to the embeddings once the masks are made."""
        return inputs_embeds

    def mask(self, batch: int, seq: int, item: int, window: int | None) -> Tensor | None:
        """The mask of the layers with this window."""
        return causal_mask(self.kind, batch, seq, item, window)

    def positions(self, hidden_states: Tensor, position_ids: Tensor) -> list[Any]:
        """The position embeddings of each layer."""
        return [self.rotary_emb(hidden_states, position_ids)] * len(self.layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = self.embed(input_ids, owner)
        position_ids = position_ids_of(input_ids.shape[1])
        b, s = input_ids.shape
        masks = {w: self.mask(b, s, inputs_embeds.item, w) for w in self.mask_windows}
        inputs_embeds = self.prepare(inputs_embeds)
        hidden_states: Tensor = inputs_embeds
        hidden_states = ops.dropout(hidden_states, self.embedding_dropout)
        position_embeddings = self.positions(hidden_states, position_ids)
        for decoder_layer, window, position in zip(self.layers, self.windows, position_embeddings, strict=True):
            hidden_states = decoder_layer(hidden_states, masks[window], position)
        hidden_states = self.norm(hidden_states)
        return hidden_states


def rotary_dim(config: Config) -> int:
    """How many elements of a head are turned."""
    return int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def layer_windows(config: Config) -> list[int | None]:
    """The sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def mask_windows(config: Config, both: bool) -> list[int | None]:
    """The windows of the masks that the model makes, in order: one where all layers are alike, else full, then sliding."""
    windows = layer_windows(config)
    if getattr(config, "layer_types", None) is None:
        return windows[:1]
    return [None, config.sliding_window] if both or any(kind == "sliding_attention" for kind in config.layer_types) else [None]


class LlamaForCausalLM(DecoderLM):
    """`model`, a head without bias, the loss. `post`: what happens to the logits."""

    def __init__(self, build: Build, config: Config, run: Run, model: LlamaModel, post: Sequence[Callable[[Tensor], Tensor]] = ()) -> None:
        super().__init__(build, config, run, "model", model, model.embed_tokens, config.hidden_size, post=post)


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def llama_like(build: Build, config: Config, run: Run, **attn: Any) -> CausalLM:
    """A model of Llama's layers; `attn`: options of their attention."""
    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, lambda _: llama_layer(build, config, run, **attn)))


def _llama(build: Build, config: Config, run: Run) -> CausalLM:
    return llama_like(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias)


def _mistral(build: Build, config: Config, run: Run) -> CausalLM:
    return llama_like(build, config, run)


def _qwen2(build: Build, config: Config, run: Run) -> CausalLM:
    return llama_like(build, config, run, bias=True)


def _qwen3(build: Build, config: Config, run: Run) -> CausalLM:
    return llama_like(build, config, run, bias=config.attention_bias, out_bias=config.attention_bias, qk_norm=True)


FAMILIES = (
    Family("llama", _llama, {}, LINEAR, ATTENTION),
    Family("mistral", _mistral, {}, LINEAR, ATTENTION),
    Family("qwen2", _qwen2, {}, LINEAR, ATTENTION),
    Family("qwen3", _qwen3, {}, LINEAR, ATTENTION),
)
