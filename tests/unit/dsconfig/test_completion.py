from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.dsconfig import ZeroSettings, complete, hidden_size_of, recipe_overrides, resolve
from llmcheck.errors import UserError
from llmcheck.types import ModelSpec, Optimizer, TrainingRecipe

RECORD = json.loads((Path(__file__).parent / "deepspeed_0_19_8.json").read_text())
TAKEN = RECORD["taken"]

# The shape that Hugging Face's documentation gives for stage 3, "auto" wherever it allows it.
HF_STAGE_3: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": "auto",
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


@st.composite
def recipes(draw: st.DrawFn) -> TrainingRecipe:
    stage = draw(st.sampled_from([0, 1, 2, 3]))
    offload = draw(st.sampled_from(["none"] if stage == 0 else ["none", "optimizer", "params"] if stage == 3 else ["none", "optimizer"]))
    return TrainingRecipe(
        precision=draw(st.sampled_from(["bf16", "fp16", "fp32"])),
        optimizer=draw(st.sampled_from(["fused-adam", "adamw", "adam-8bit"])) if offload == "none" else "cpu-adam",
        zero_stage=stage,
        offload=offload,
        offload_device=draw(st.sampled_from(["cpu", "nvme"])),
        micro_batch_size=draw(st.integers(1, 64)),
        grad_accum_steps=draw(st.integers(1, 64)),
        gradient_clipping=draw(st.sampled_from([0.0, 1.0, 0.3])),
    )


def autos(node: Any) -> bool:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return node == "auto" or any(map(autos, children))


@pytest.mark.parametrize("case", TAKEN, ids=range(len(TAKEN)))
def test_a_completed_configuration_is_the_one_that_deepspeed_took(case: dict[str, Any]) -> None:
    assert complete(TrainingRecipe(**case["recipe"]), case["user"], world_size=1, hidden_size=RECORD["hidden_size"]) == case["config"]


@given(recipes(), st.integers(1, 512))
def test_a_completed_configuration_completes_to_itself(recipe: TrainingRecipe, world_size: int) -> None:
    config = complete(recipe, None, world_size=world_size)
    assert complete(recipe, config, world_size=world_size) == config


@given(recipes(), st.integers(1, 512))
def test_a_completed_configuration_survives_json(recipe: TrainingRecipe, world_size: int) -> None:
    config = complete(recipe, None, world_size=world_size)
    assert json.loads(json.dumps(config)) == config


@given(recipes(), st.integers(1, 512))
def test_the_batch_identity_holds(recipe: TrainingRecipe, world_size: int) -> None:
    config = complete(recipe, None, world_size=world_size)
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * world_size
    assert config["train_batch_size"] == product


@given(recipes(), st.integers(1, 512))
def test_a_completed_configuration_fixes_its_own_recipe(recipe: TrainingRecipe, world_size: int) -> None:
    fixed = recipe_overrides(complete(recipe, None, world_size=world_size))
    assert (fixed.zero_stage, fixed.precision, fixed.micro_batch_size, fixed.grad_accum_steps, fixed.gradient_clipping) == (
        recipe.zero_stage,
        recipe.precision,
        recipe.micro_batch_size,
        recipe.grad_accum_steps,
        recipe.gradient_clipping,
    )
    assert fixed.offload == (None if recipe.offload == "none" else recipe.offload)


def test_no_auto_is_left() -> None:
    assert not autos(complete(TrainingRecipe(zero_stage=3), HF_STAGE_3, world_size=8, hidden_size=4096))


def test_auto_bucket_sizes_are_what_hugging_face_writes() -> None:
    zero = complete(TrainingRecipe(zero_stage=3), HF_STAGE_3, world_size=8, hidden_size=4096)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096 * 4096
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 4096 * 4096)
    assert zero["stage3_param_persistence_threshold"] == 10 * 4096


def test_below_stage_3_auto_prefetch_is_left_to_deepspeed() -> None:
    user = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}}
    zero = complete(TrainingRecipe(), user, world_size=8, hidden_size=1024)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1024 * 1024
    assert "stage3_prefetch_bucket_size" not in zero


def test_auto_bucket_sizes_need_the_models_width() -> None:
    with pytest.raises(UserError, match='reduce_bucket_size: "auto" needs the model\'s hidden_size'):
        complete(TrainingRecipe(), {"zero_optimization": {"reduce_bucket_size": "auto"}}, world_size=8)


def test_every_auto_reading_is_said() -> None:
    notes = " | ".join(resolve(TrainingRecipe(zero_stage=3), HF_STAGE_3, world_size=8, hidden_size=4096).notes)
    assert 'reduce_bucket_size: "auto" is 16,777,216 (hidden_size²' in notes
    assert 'optimizer.params.lr: "auto" is 5e-05 (TrainingArguments\' default)' in notes
    assert "scheduler left to the trainer: its warmup_num_steps" in notes
    assert "DeepSpeed's default: zero_optimization.stage3_gather_16bit_weights_on_model_save" in notes


def test_auto_batch_sizes_are_the_recipes() -> None:
    recipe = TrainingRecipe(zero_stage=3, micro_batch_size=4, grad_accum_steps=2)
    config = complete(recipe, HF_STAGE_3, world_size=8, hidden_size=4096)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_batch_size"] == 64


def test_auto_precision_is_the_recipes() -> None:
    config = complete(TrainingRecipe(zero_stage=3, precision="fp16"), HF_STAGE_3, world_size=8, hidden_size=4096)
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (False, True)


def test_a_users_values_stay_as_written() -> None:
    user = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 2e8, "overlap_comm": True, "round_robin_gradients": True},
        "communication_data_type": "FP32",
        "steps_per_print": 10,
        "tensorboard": {"enabled": True, "output_path": "runs"},
    }
    config = complete(TrainingRecipe(), user, world_size=4)
    assert {k: config["zero_optimization"][k] for k in user["zero_optimization"]} == user["zero_optimization"]
    assert {k: config[k] for k in user if k != "zero_optimization"} == {k: v for k, v in user.items() if k != "zero_optimization"}


def test_a_users_file_is_not_changed() -> None:
    before = json.dumps(HF_STAGE_3)
    complete(TrainingRecipe(zero_stage=3), HF_STAGE_3, world_size=8, hidden_size=4096)
    assert json.dumps(HF_STAGE_3) == before


def test_the_users_offload_stands_alone() -> None:
    # DeepSpeed can keep parameters in host memory and the optimizer's states on the GPU; the recipe's "params" means both.
    user = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    recipe = TrainingRecipe(zero_stage=3, offload="params")
    assert "offload_optimizer" not in complete(recipe, user, world_size=8)["zero_optimization"]


def test_overlap_follows_the_stage() -> None:
    overlap = [complete(TrainingRecipe(zero_stage=s), None, world_size=2)["zero_optimization"]["overlap_comm"] for s in (0, 1, 2, 3)]
    assert overlap == [False, False, False, True]


def test_an_8_bit_optimizer_is_declared_untested() -> None:
    assert complete(TrainingRecipe(optimizer="adam-8bit"), None, world_size=2)["zero_allow_untested_optimizer"] is True


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_without_fp32_copies_deepspeed_is_told_so_where_it_knows_the_word(stage: int) -> None:
    found = resolve(TrainingRecipe(optimizer="adam-bf16", zero_stage=stage), None, world_size=2)
    bf16 = found.config["bf16"]
    assert bf16["enabled"] is True
    assert bf16["bf16_master_weights_and_grads"] is bf16["bf16_optimizer_states"] is (stage > 0)
    assert found.config["zero_allow_untested_optimizer"] is (stage > 0)
    assert any("no other loop" in note for note in found.notes)


@pytest.mark.parametrize("optimizer", ["adam-8bit", "adam-bf16"])
def test_an_optimizer_that_deepspeed_calls_untested_must_be_allowed(optimizer: Optimizer) -> None:
    user = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": False}
    with pytest.raises(UserError, match=f"must be true for --optimizer {optimizer}") as caught:
        resolve(TrainingRecipe(optimizer=optimizer, zero_stage=2), user, world_size=2)
    assert caught.value.hint == "leave it out"


def test_old_names_are_read_and_said() -> None:
    user = {"zero_optimization": {"stage": 2, "cpu_offload": True}, "bfloat16": {"enabled": True}}
    found = resolve(TrainingRecipe(offload="optimizer", optimizer="cpu-adam"), user, world_size=2)
    assert found.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found.config["bf16"]["enabled"] is True
    assert any("cpu_offload is the old way" in note for note in found.notes)


def test_what_no_estimate_follows_is_named() -> None:
    user = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True}}
    found = resolve(TrainingRecipe(zero_stage=3), user, world_size=8).not_modelled
    assert found == ("zero_optimization.zero_hpz_partition_size (8)", "zero_optimization.zero_quantized_weights")


def test_nothing_is_unmodelled_by_default() -> None:
    for stage in (0, 1, 2, 3):
        assert resolve(TrainingRecipe(zero_stage=stage), None, world_size=8).not_modelled == ()


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_stage", 3),
        ({"zero_optimization": True}, "zero_stage", 1),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "zero_stage", 3),
        ({"zero_optimization": {"stage": "auto"}}, "zero_stage", None),
        ({"bf16": {"enabled": True}}, "precision", "bf16"),
        ({"bf16": {"enabled": "auto"}}, "precision", None),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, "precision", "fp32"),
        ({"fp16": {"enabled": False}}, "precision", None),
        ({"train_batch_size": 128}, "global_batch_size", 128),
        ({"train_micro_batch_size_per_gpu": 2.0}, "micro_batch_size", 2),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload", "optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"device": "none"}}}, "offload", "none"),
        ({"zero_optimization": {"stage": 2}}, "offload", None),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}}, "offload_device", "nvme"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", 0.5),
        ({"optimizer": {"type": "Adam"}}, "optimizer", None),
        ({"optimizer": {"type": "Adam"}, "zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "optimizer", "cpu-adam"),
        ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}, "optimizer", "adamw"),
    ],
)
def test_what_a_file_fixes(config: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(recipe_overrides(config), field) == value


def test_no_file_fixes_nothing() -> None:
    assert set(recipe_overrides(None)) == {None}


@pytest.mark.parametrize(
    ("config", "width"), [({"hidden_size": 4096}, 4096), ({"n_embd": 1600}, 1600), ({}, None), ({"hidden_size": True}, None)]
)
def test_the_width_has_several_names(config: dict[str, Any], width: int | None) -> None:
    assert hidden_size_of(ModelSpec(name="m", family="x", config=config, source="", num_params=1)) == width


@given(recipes(), st.integers(1, 64))
def test_settings_are_read_from_every_completed_configuration(recipe: TrainingRecipe, world_size: int) -> None:
    settings = ZeroSettings.from_config(complete(recipe, None, world_size=world_size), world_size, recipe.optimizer)
    assert (settings.stage, settings.precision, settings.world_size) == (recipe.zero_stage, recipe.precision, world_size)
    assert settings.offload_optimizer.enabled == (recipe.offload != "none")
    assert settings.offload_param.enabled == (recipe.offload == "params")
