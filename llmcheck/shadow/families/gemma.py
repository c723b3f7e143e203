"""Gemma, Gemma2 and the text part of Gemma3.

Written along ``transformers/models/{gemma,gemma2,gemma3}/modeling_*.py`` (5.17): scaled embeddings, RMSNorm entirely in fp32, four norms a
layer and sliding windows from Gemma2 on, soft caps on scores (eager attention only) and logits, normed queries and keys in Gemma3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LateNormAttention,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    RotaryEmbedding,
)
from llmcheck.shadow.module import Build, CheckpointedLayer, Embedding, Module
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


class GemmaRMSNorm(Module):
    """RMSNorm that applies ``1 + weight`` in fp32."""

    in_place = True  # Liger's kernel overwrites the incoming gradient

    def __init__(self, build: Build, h: int) -> None:
        self.weight = build.param(h)
        build.finish(self)

    def _norm(self, x: Tensor) -> Tensor:
        return ops.mul(x, ops.rsqrt(ops.add_scalar(ops.mean_last(ops.square(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if cur.liger:
            return liger.rms_norm(x, self.weight, self.in_place)
        output = self._norm(ops.cast(x, 4))
        output = ops.mul(output, ops.add_scalar(ops.cast(self.weight, 4)))
        return ops.cast(output, x.item)


class Gemma2RMSNorm(GemmaRMSNorm):
    """Gemma2's and Gemma3's: the same, but Liger's kernel leaves the incoming gradient alone (the residual uses it, too)."""

    in_place = False


class ScaledEmbedding(Embedding):
    """Embedding times a scalar that is a small buffer."""

    def __init__(self, build: Build, rows: int, cols: int) -> None:
        super().__init__(build, rows, cols)
        self.embed_scale = Tensor((), build.item)

    def forward(self, ids: Tensor) -> Tensor:
        return self.finish_output(ops.scale(ops.embedding(self.weight, ids)))


class Gemma2DecoderLayer(CheckpointedLayer):
    """Attention and MLP each between two norms."""

    def __init__(self, build: Build, config: Config, self_attn: Module) -> None:
        h = config.hidden_size
        self.self_attn = self_attn
        self.mlp = GatedMLP(build, h, config.intermediate_size, act=config.hidden_activation)
        self.input_layernorm = Gemma2RMSNorm(build, h)
        self.post_attention_layernorm = Gemma2RMSNorm(build, h)
        self.pre_feedforward_layernorm = Gemma2RMSNorm(build, h)
        self.post_feedforward_layernorm = Gemma2RMSNorm(build, h)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


class Gemma2Model(LlamaModel):
    """Both masks are made, whatever the layers are."""

    both_masks = True


class Gemma3RotaryEmbedding(Module):
    """A rotary embedding for each kind of layer, in the model's type or of `item` bytes."""

    positional = 3

    def __init__(self, config: Config, item: int = 0) -> None:
        self.kinds = {kind: RotaryEmbedding(config.head_dim, item) for kind in sorted(set(config.layer_types))}

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return self.kinds[layer_type].forward(x, position_ids)


class Gemma3Model(Gemma2Model):
    """Layers with and without a window have position embeddings of their own."""

    def __init__(self, build: Build, config: Config, run: Run, layer: Callable[[int], CheckpointedLayer], **parts: Any) -> None:
        super().__init__(build, config, run, layer, **parts)
        self.layer_types = tuple(config.layer_types)

    def positions(self, hidden_states: Tensor, position_ids: Tensor) -> list[Any]:
        position_embeddings = {kind: self.rotary_emb(hidden_states, position_ids, kind) for kind in sorted(set(self.layer_types))}
        return [position_embeddings[kind] for kind in self.layer_types]


def _cap(config: Config) -> tuple[Callable[[Tensor], Tensor], ...]:
    return () if config.final_logit_softcapping is None else (ops.scale, ops.tanh, ops.scale)


def _gemma(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> LlamaDecoderLayer:
        attention = LlamaAttention(build, config, run, bias=bias, out_bias=bias)
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp, GemmaRMSNorm)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer, norm=GemmaRMSNorm, embedding=ScaledEmbedding))


def _gemma2(build: Build, config: Config, run: Run) -> CausalLM:
    bias, cap = config.attention_bias, config.attn_logit_softcapping is not None

    def layer(_: int) -> Gemma2DecoderLayer:
        return Gemma2DecoderLayer(build, config, LlamaAttention(build, config, run, bias=bias, out_bias=bias, softcap=cap))

    model = Gemma2Model(build, config, run, layer, norm=Gemma2RMSNorm, embedding=ScaledEmbedding)
    return LlamaForCausalLM(build, config, run, model, _cap(config))


def _gemma3_text(build: Build, config: Config, run: Run) -> CausalLM:
    bias = config.attention_bias

    def layer(_: int) -> Gemma2DecoderLayer:
        return Gemma2DecoderLayer(build, config, LateNormAttention(build, config, run, norm=Gemma2RMSNorm, bias=bias, out_bias=bias))

    model = Gemma3Model(build, config, run, layer, norm=Gemma2RMSNorm, embedding=ScaledEmbedding, rotary=Gemma3RotaryEmbedding)
    return LlamaForCausalLM(build, config, run, model, _cap(config))


FAMILIES = (
    Family("gemma", _gemma, {}, LINEAR, ATTENTION),
    Family("gemma2", _gemma2, {}, LINEAR, ATTENTION),
    Family("gemma3_text", _gemma3_text, {}, LINEAR, ATTENTION),
)
