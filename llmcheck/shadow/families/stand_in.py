"""The stand-in for a family whose layer is not modelled: the heaviest common layer of its size.

Llama's layer with biases everywhere, normed queries and keys, a gated MLP and an untied head; with experts where the configuration has
them, shared ones and their gate included. Whoever uses it must say so (`evidence`: "conservative-stand-in").
"""

from __future__ import annotations

from llmcheck.shadow import activations
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import ATTENTION, LINEAR, GatedMLP, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from llmcheck.shadow.families.moe import SharedMoeBlock, SparseMoeBlock
from llmcheck.shadow.module import Build, Module


def _stand_in(build: Build, given: Config, run: Run) -> CausalLM:
    values = {"attention_dropout": 0.0, "rope_parameters": {}, **given.__dict__, "sliding_window": None, "layer_types": None}
    values["hidden_act"] = values["hidden_act"] if activations.is_modelled(values["hidden_act"]) else "silu"
    width = values["moe_intermediate_size"] = values.get("moe_intermediate_size") or values["intermediate_size"]
    values["shared_expert_intermediate_size"] = (
        values.get("shared_expert_intermediate_size") or (values.get("n_shared_experts") or 0) * width
    )
    values["num_experts_per_tok"] = min(values.get("num_experts_per_tok") or 2, values["num_experts"] or 2)
    config = Config(values)

    def mlp() -> Module:
        if not config.num_experts:
            return GatedMLP(build, config.hidden_size, config.intermediate_size, config.mlp_bias, config.hidden_act)
        if config.shared_expert_intermediate_size:
            return SharedMoeBlock(build, config, normalise=True, cast_back=True)
        return SparseMoeBlock(
            build, config, config.num_experts, config.moe_intermediate_size, experts_first=False, normalise=True, cast_back=True
        )

    def layer(_: int) -> LlamaDecoderLayer:
        bias = config.attention_bias
        return LlamaDecoderLayer(build, config, LlamaAttention(build, config, run, bias=bias, out_bias=bias, qk_norm=True), mlp())

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


FAMILIES = (Family("stand-in", _stand_in, {}, LINEAR, ATTENTION, approximate="the layer of this family is not modelled"),)
