"""Which layers of a mixture of experts get adapters: the planner, the step time and the trainer say the same, and peft does it."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.familydata import family_data
from llmcheck.errors import UserError
from llmcheck.shadow import lora
from llmcheck.shadow.parameters import trainable_numels
from llmcheck.steptime.flops import adapter_params
from llmcheck.steptime.reading import read_shape
from llmcheck.types import LoraSpec, TrainingRecipe
from llmcheck_trainer.model import _adapted, target_names

BASE = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
# dense layers and shared experts wherever the family can have them
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, "mlp_only_layers": [0]},
    "olmoe": {"num_experts": 4},
    "deepseek_v2": {**LATENT, "first_k_dense_replace": 1},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 1},
    "glm4_moe": {
        "n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8, "n_group": 1,
        "topk_group": 1,
    },
    "glm4_moe_lite": LATENT,
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4, "head_dim": 8},
}  # fmt: skip
NAMED_LIKE_EXPERTS = ("qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite")


def model_of(family: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(BASE | MIXTURES[family])))


def adapted_numels(family: str, recipe: TrainingRecipe) -> list[int]:
    """Elements of the adapters that the trainer makes."""
    assert recipe.lora is not None
    model = _adapted(model_of(family), recipe.lora, recipe, torch.device("meta"))
    return [p.numel() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("dropout", [0.05, 0.0])
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("family", MIXTURES)
def test_planner_and_trainer_make_the_same_adapters(family: str, targets: str, dropout: float) -> None:
    spec = LoraSpec(rank=4, dropout=dropout, targets=targets)
    recipe = TrainingRecipe(method="lora", lora=spec, zero_stage=2)
    planned = spec_of_config({"model_type": family, **BASE, **MIXTURES[family]}, name=family, source="tests", where=family)
    made = adapted_numels(family, recipe)

    assert trainable_numels(planned, recipe) == made


@pytest.mark.parametrize("family", NAMED_LIKE_EXPERTS)
def test_the_step_time_counts_them_too(family: str) -> None:
    spec = LoraSpec(rank=4)
    recipe = TrainingRecipe(method="lora", lora=spec, zero_stage=2)
    planned = spec_of_config({"model_type": family, **BASE, **MIXTURES[family]}, name=family, source="tests", where=family)
    made = adapted_numels(family, recipe)

    assert adapter_params(read_shape(planned), spec) == (sum(made), len(made))


@pytest.mark.parametrize("family", NAMED_LIKE_EXPERTS)
def test_peft_takes_the_name_for_the_experts(family: str) -> None:
    # why the name is refused: with this peft it is not the linear layer of that name that would be adapted
    data = family_data(family)
    assert data is not None
    for name in sorted(lora.EXPERT_NAMES.difference(data.linear_targets)):
        assert any(key.endswith(name) for key, m in model_of(family).named_modules() if isinstance(m, torch.nn.Linear))
    with pytest.raises(ValueError, match="ParamWrapper"):
        peft.get_peft_model(model_of(family), peft.LoraConfig(r=4, lora_dropout=0.05, target_modules=sorted(lora.EXPERT_NAMES)))


@pytest.mark.parametrize("family", NAMED_LIKE_EXPERTS)
def test_a_name_that_means_experts_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(UserError, match="cannot have adapters") as found:
        target_names(model_of(family), "o_proj,mlp.down_proj")

    assert (found.value.code, found.value.where) == ("lora-targets", "recipe.lora.targets")
    assert "o_proj" in str(found.value.hint)


def test_shared_experts_that_peft_leaves_alone_are_adapted_by_name() -> None:
    assert target_names(model_of("qwen2_moe"), "gate_proj,down_proj") == ["gate_proj", "down_proj"]
