"""GLM-4.5 and its relatives: half of each head turned, routed experts beside shared ones.

Written along ``transformers/models/glm4_moe/modeling_glm4_moe.py`` (5.17). The router is DeepSeek-V3's.
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.deepseek import DeepseekMoe, DeepseekV3Router
from llmcheck.shadow.families.llama import ATTENTION, GatedMLP, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel, rotate_half
from llmcheck.shadow.families.llama_variants import EarlyNormAttention
from llmcheck.shadow.module import Build, Module, RMSNorm
from llmcheck.shadow.tensor import Tensor


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The first elements of each head are turned, as many as `cos` has; the rest is put behind them even if there is none."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    rotary_dim, head_dim = cos.shape[-1], q.shape[-1]
    q_rot, q_pass = ops.narrow(q, -1, rotary_dim), ops.narrow(q, -1, head_dim - rotary_dim)
    k_rot, k_pass = ops.narrow(k, -1, rotary_dim), ops.narrow(k, -1, head_dim - rotary_dim)
    q_embed = ops.add(ops.mul(q_rot, cos), ops.mul(rotate_half(q_rot), sin))
    k_embed = ops.add(ops.mul(k_rot, cos), ops.mul(rotate_half(k_rot), sin))
    q_embed = ops.cat((q_embed, q_pass))
    k_embed = ops.cat((k_embed, k_pass))
    return q_embed, k_embed


class Glm4MoeAttention(EarlyNormAttention):
    """On request each head's query and key are normed."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        super().__init__(build, config, run, bias=config.attention_bias, qk_norm=config.use_qk_norm, rotary=apply_rotary_pos_emb)


def _glm4_moe(build: Build, config: Config, run: Run) -> CausalLM:
    def layer(index: int) -> LlamaDecoderLayer:
        attention = Glm4MoeAttention(build, config, run)
        mlp: Module
        if index >= config.first_k_dense_replace:
            mlp = DeepseekMoe(build, config, DeepseekV3Router, False)
        else:
            mlp = GatedMLP(build, config.hidden_size, config.intermediate_size, act=config.hidden_act)
        return LlamaDecoderLayer(build, config, attention, mlp, RMSNorm)

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


# peft (0.21) takes gate_proj, up_proj and down_proj for the experts' parameters and refuses them with adapter dropout: see moe.py
FAMILIES = (Family("glm4_moe", _glm4_moe, {}, ATTENTION, ATTENTION),)
