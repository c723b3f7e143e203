"""Ministral (windows layer by layer) and Ministral 3 (queries scaled by position).

Written along ``transformers/models/{ministral,ministral3}/modeling_*.py`` (5.17).
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.attention import attention_interface
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    GatedMLP,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    llama_layer,
)
from llmcheck.shadow.module import Build
from llmcheck.shadow.tensor import Tensor


class MinistralModel(LlamaModel):
    """Both masks are made, whatever the layers are."""

    both_masks = True


class Ministral3Attention(LlamaAttention):
    """Each query is scaled by a number that follows from its position."""

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
        query_states = ops.mul(query_states, Tensor((1, 1, input_shape[1], 1), query_states.item))  # get_llama_4_attn_scale
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


def _ministral(build: Build, config: Config, run: Run) -> CausalLM:
    return LlamaForCausalLM(build, config, run, MinistralModel(build, config, run, lambda _: llama_layer(build, config, run)))


def _ministral3(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        attention = Ministral3Attention(build, config, run)
        mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


FAMILIES = (
    Family("ministral", _ministral, {}, LINEAR, ATTENTION),
    Family("ministral3", _ministral3, {}, LINEAR, ATTENTION),
)
