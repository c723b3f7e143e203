"""GLM and GLM-4 (0414).

Written along ``transformers/models/{glm,glm4}/modeling_*.py`` (5.17): half of each head is turned, neighbour by neighbour; gate and up
projection are one.
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from llmcheck.shadow.families.llama_variants import rotate_neighbours
from llmcheck.shadow.families.phi import FusedGatedMLP
from llmcheck.shadow.module import Build, CheckpointedLayer, RMSNorm
from llmcheck.shadow.tensor import Tensor


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring elements of the first part of each head are turned together."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    cos = ops.repeat_interleave(ops.narrow(cos, -1, cos.shape[-1] // 2), 2, -1)
    sin = ops.repeat_interleave(ops.narrow(sin, -1, sin.shape[-1] // 2), 2, -1)
    rotary_dim, head_dim = cos.shape[-1], q.shape[-1]
    q_rot, q_pass = ops.narrow(q, -1, rotary_dim), ops.narrow(q, -1, head_dim - rotary_dim)
    k_rot, k_pass = ops.narrow(k, -1, rotary_dim), ops.narrow(k, -1, head_dim - rotary_dim)
    q_embed = ops.add(ops.mul(q_rot, cos), ops.mul(rotate_neighbours(q_rot), sin))
    k_embed = ops.add(ops.mul(k_rot, cos), ops.mul(rotate_neighbours(k_rot), sin))
    q_embed = ops.cat((q_embed, q_pass))
    k_embed = ops.cat((k_embed, k_pass))
    return q_embed, k_embed


class Glm4DecoderLayer(CheckpointedLayer):
    """Norms before and behind attention and MLP."""

    def __init__(self, build: Build, config: Config, self_attn: LlamaAttention) -> None:
        h = config.hidden_size
        self.self_attn = self_attn
        self.mlp = FusedGatedMLP(build, config)
        self.input_layernorm = RMSNorm(build, h)
        self.post_attention_layernorm = RMSNorm(build, h)
        self.post_self_attn_layernorm = RMSNorm(build, h)
        self.post_mlp_layernorm = RMSNorm(build, h)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_embeddings)
        hidden_states = self.post_self_attn_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_mlp_layernorm(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


def _attention(build: Build, config: Config, run: Run) -> LlamaAttention:
    return LlamaAttention(build, config, run, bias=config.attention_bias, rotary=apply_rotary_pos_emb)


def _glm(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> LlamaDecoderLayer:
        return LlamaDecoderLayer(build, config, _attention(build, config, run), FusedGatedMLP(build, config))

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _glm4(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(_: int) -> Glm4DecoderLayer:
        return Glm4DecoderLayer(build, config, _attention(build, config, run))

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


_LINEAR = (*ATTENTION, "gate_up_proj", "down_proj")
FAMILIES = (
    Family("glm", _glm, {}, _LINEAR, ATTENTION),
    Family("glm4", _glm4, {}, _LINEAR, ATTENTION),
)
