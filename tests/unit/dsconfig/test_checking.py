from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.dsconfig import recipe_overrides, resolve
from llmcheck.dsconfig.fields import LEAF_MODULE_CLASSES, TOP, ZERO, ZERO_SECOND_NAMES, Field, Section
from llmcheck.errors import UserError
from llmcheck.types import TrainingRecipe

RECORD = json.loads((Path(__file__).parent / "deepspeed_0_19_8.json").read_text())
# Defaults that depend on another key, or that DeepSpeed itself fills in later.
DYNAMIC = {"overlap_comm", "leaf_module", "zenflow", "offload_param", "offload_optimizer", "passes", "prof_ops"}


def section(path: str) -> Section:
    node: Any = TOP
    for key in path.split("."):
        node = node[key]
    return node


def refusal(config: dict[str, Any], **recipe: Any) -> str:
    """Everything that the refusal of `config` says."""
    with pytest.raises(UserError) as caught:
        resolve(TrainingRecipe(**recipe), config, world_size=1, where="ds.json")
    error = caught.value
    assert error.code == "ds-config"
    assert error.where == "ds.json"
    return f"{error.what} {error.why} {error.hint}"


def outcome(recipe: TrainingRecipe, config: dict[str, Any]) -> str:
    """The code of the refusal, or "taken"."""
    try:
        resolve(recipe, config, world_size=1, hidden_size=64)
    except UserError as error:
        return error.code
    return "taken"


def resolve_with_what_it_fixes(config: dict[str, Any]) -> None:
    """As the planner does it: the recipe takes over what the file fixes."""
    fixed = recipe_overrides(config)
    recipe = TrainingRecipe(
        zero_stage=2 if fixed.zero_stage is None else fixed.zero_stage,
        precision=fixed.precision or "bf16",
        micro_batch_size=fixed.micro_batch_size or 1,
    )
    resolve(recipe, config, world_size=1)


@pytest.mark.parametrize("path", RECORD["fields"])
def test_the_keys_of_a_section_are_deepspeeds(path: str) -> None:
    assert set(section(path)) == set(RECORD["fields"][path])


@pytest.mark.parametrize("path", RECORD["fields"])
def test_the_defaults_of_a_section_are_deepspeeds(path: str) -> None:
    ours = {key: field.default for key, field in section(path).items() if isinstance(field, Field) and key not in DYNAMIC}
    assert ours == {key: value for key, value in RECORD["fields"][path].items() if key in ours}


def test_the_leaf_modules_are_deepspeeds() -> None:
    assert list(LEAF_MODULE_CLASSES) == RECORD["leaf_module_classes"]


def test_a_second_name_leads_to_a_key() -> None:
    assert set(ZERO_SECOND_NAMES.values()) <= set(ZERO)


@pytest.mark.parametrize("case", RECORD["refused"], ids=lambda case: json.dumps(case["config"])[-60:])
def test_what_deepspeed_refuses_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        resolve_with_what_it_fixes(case["config"])


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"overlap_com": True}}, "did you mean 'overlap_comm'"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cup"}}}, "did you mean 'cpu'"),
        ({"zero_optimization": {"offload_optimizer": {"pin_memroy": True}}}, "did you mean 'pin_memory'"),
        ({"offload_optimizer": {"device": "cpu"}}, "it belongs in zero_optimization"),
        ({"zero_optimization": {"gradient_clipping": 1.0}}, "it belongs at the top level"),
        ({"zero_optimization": {"stage": "2"}}, "write it without quotes"),
        ({"zero_optimization": {"stage": True}}, "needs a whole number, not true"),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, "needs a whole number"),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "must be at least 1"),
        ({"zero_optimization": {"reduce_bucket_size": 10**30}}, "must be at most"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "needs true or false"),
        ({"zero_optimization": []}, "needs an object, not a list"),
        ({"zero_optimization": None}, "needs an object"),
        ({"train_micro_batch_size_per_gpu": 0}, "must be at least 1"),
        ({"gradient_clipping": float("nan")}, "needs a number"),
        ({"gradient_clipping": 10**400}, "must be at most"),
        ({"gradient_clipping": None}, "needs a number, not null"),
        ({"data_types": {"grad_accum_dtype": "int8"}}, "needs one of fp32, fp16, bf16"),
        ({"amp": {"enabled": True}}, "no longer has this key"),
        ({"optimizer": {"params": {"lr": 1e-5}}}, "needs a type"),
        ({"scheduler": {"params": {}}}, "needs a type"),
        ({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1}}}, "gradient_clipping at the top level"),
        ({"optimizer": {"type": "AdmW"}}, "did you mean"),
        ({"optimizer": {"type": "Lion"}}, "not an optimizer whose memory is simulated"),
        ({"bf16": {}, "bfloat16": {}}, "unknown key"),
        ({"zero_optimization": {"prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2}}, "given twice"),
        ({"sequence_parallel_size": 2}, "sequence parallelism is not planned for"),
        ({"tensor_parallel": {"autotp_size": 4}}, "tensor parallelism is not planned for"),
    ],
)
def test_a_bad_key_or_value_is_named(config: dict[str, Any], names: str) -> None:
    assert names in refusal(config)


@pytest.mark.parametrize(
    ("config", "recipe", "names"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, {}, "fp16 and bf16 are both enabled"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, {"offload": "params", "optimizer": "cpu-adam"}, "needs stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, {"zero_stage": 0}, "needs stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, {"zero_stage": 3}, "needs nvme_path"),
        ({"zero_optimization": {"allgather_bucket_size": 3}}, {}, "must be even"),
        ({"zero_optimization": {"compute_grad_norm": False}}, {}, "excludes gradient_clipping"),
        ({"zero_optimization": {"legacy_stage1": True}}, {}, "no longer has"),
        ({"zero_optimization": {"stage": 3, "elastic_checkpoint": True}}, {"zero_stage": 3}, "raises"),
        ({"prescale_gradients": True}, {}, "excludes zero_optimization.reduce_scatter"),
        ({"gradient_predivide_factor": 2.0}, {}, "must be 1"),
        ({"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}}, {"precision": "fp16"}, "offload_optimizer"),
        ({"data_types": {"param_dtype": "fp16"}}, {}, "the precision is bf16"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, {"zero_stage": 0}, "must be bf16 in ZeRO stage 0"),
        ({"zero_allow_untested_optimizer": False}, {"optimizer": "adam-8bit"}, "must be true"),
        ({"zero_allow_untested_optimizer": False}, {"optimizer": "adam-bf16"}, "must be true"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": False}}, {"optimizer": "adam-bf16"}, "must be true"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, {"optimizer": "adam-bf16", "zero_stage": 1}, "keep fp32 masters"),
        ({"optimizer": {"type": "AdamW"}}, {"optimizer": "adam-bf16"}, "--optimizer says adam-bf16"),
        ({"fp16": {"enabled": True}}, {"optimizer": "adam-bf16", "precision": "fp16"}, "works on bf16 weights"),
    ],
)
def test_a_file_at_odds_with_itself_is_refused(config: dict[str, Any], recipe: dict[str, Any], names: str) -> None:
    assert names in refusal(config, **recipe)


@pytest.mark.parametrize(
    ("config", "recipe", "both"),
    [
        ({"zero_optimization": {"stage": 3}}, {"zero_stage": 2}, ("zero_optimization.stage", "says 3", "--zero says 2")),
        ({"fp16": {"enabled": True}}, {}, ("fp16.enabled", "says fp16", "--precision says bf16")),
        ({"bf16": {"enabled": False}}, {}, ("bf16.enabled", "says false", "--precision says bf16")),
        ({"train_micro_batch_size_per_gpu": 4}, {}, ("train_micro_batch_size_per_gpu", "says 4", "--micro-batch says 1")),
        ({"gradient_accumulation_steps": 4}, {}, ("gradient_accumulation_steps", "says 4", "--grad-accum says 1")),
        ({"train_batch_size": 64}, {"micro_batch_size": 2}, ("train_batch_size", "says 64", "1 GPUs is 2")),
        ({"gradient_clipping": 0.5}, {}, ("gradient_clipping", "says 0.5", "says 1.0")),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, {}, ("offload_optimizer", "--offload says none")),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            {"offload": "optimizer", "optimizer": "cpu-adam"},
            ("says none", "--offload says optimizer"),
        ),
        ({"optimizer": {"type": "AdamW"}}, {"optimizer": "adam-8bit"}, ("says fused-adam", "--optimizer says adam-8bit")),
        ({"optimizer": {"type": "Adam", "params": {"torch_adam": True}}}, {}, ("says adamw", "--optimizer says fused-adam")),
    ],
)
def test_a_file_at_odds_with_a_flag_names_both(config: dict[str, Any], recipe: dict[str, Any], both: tuple[str, ...]) -> None:
    said = refusal(config, **recipe)
    assert [part for part in both if part not in said] == []


def test_all_problems_are_said_at_once() -> None:
    said = refusal({"zero_optimization": {"stage": 9, "overlap_com": True}, "gradient_clipping": "1"})
    assert "3 problems" in said
    assert [key for key in ("stage", "overlap_com", "gradient_clipping") if key not in said] == []


def test_thousands_of_unknown_keys_make_a_short_message() -> None:
    assert len(refusal({f"key_{i}": i for i in range(5000)})) < 2000


@pytest.mark.parametrize("recipe", [{"offload": "optimizer"}, {"optimizer": "cpu-adam"}])
def test_an_optimizer_that_deepspeed_refuses_beside_the_offload_is_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cpu-adam"):
        resolve(TrainingRecipe(**recipe), None, world_size=1)


def test_stage_3_keys_in_a_stage_2_file_are_noted_not_refused() -> None:
    # DeepSpeed-Chat, and so BELLE's first script, writes them at every stage.
    chat = {"zero_optimization": {"stage": 2, "offload_param": {"device": "none"}, "stage3_max_live_parameters": 3e7}}
    (note,) = resolve(TrainingRecipe(), chat, world_size=1).notes
    assert note == "DeepSpeed ignores in stage 2: stage3_max_live_parameters"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["auto", "cpu", "fp16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [key for key, part in TOP.items() if isinstance(part, Field)]


@given(st.dictionaries(st.sampled_from([*KEYS, "zero_optimization", "bf16", "fp16", "optimizer", "aio"]), ANYTHING, max_size=3))
def test_no_top_level_value_breaks_the_check(config: dict[str, Any]) -> None:
    assert outcome(TrainingRecipe(), config) in ("taken", "ds-config")


@given(st.dictionaries(st.sampled_from(sorted(ZERO)), ANYTHING, max_size=3), st.sampled_from([0, 1, 2, 3]))
def test_no_zero_value_breaks_the_check(zero: dict[str, Any], stage: int) -> None:
    assert outcome(TrainingRecipe(zero_stage=stage), {"zero_optimization": zero}) in ("taken", "ds-config")
