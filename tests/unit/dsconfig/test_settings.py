from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.dsconfig import ZeroSettings, complete
from llmcheck.types import TrainingRecipe

RECORD = json.loads((Path(__file__).parent / "deepspeed_0_19_8.json").read_text())

# Our field -> DeepSpeed's, where the name differs by more than "stage3_" in front.
NAMES = {
    "quantized_weights": "zero_quantized_weights",
    "quantized_nontrainable_weights": "zero_quantized_nontrainable_weights",
    "quantized_gradients": "zero_quantized_gradients",
}
WRAPPERS = {
    "zero-1-2": "DeepSpeedZeroOptimizer",
    "zero-3": "DeepSpeedZeroOptimizer_Stage3",
    "bf16-optimizer": "BF16_Optimizer",
    "fp16-unfused": "FP16_UnfusedOptimizer",
    "none": "AdamW",
}


def settings(**config: Any) -> ZeroSettings:
    return ZeroSettings.from_config(config, 8)


@pytest.mark.parametrize("case", RECORD["taken"], ids=range(len(RECORD["taken"])))
def test_the_numbers_are_those_that_deepspeed_reads(case: dict[str, Any]) -> None:
    found, zero = ZeroSettings.from_config(case["config"], 1), case["read"]["zero"]
    theirs = {key.removeprefix("stage3_"): value for key, value in zero.items()}
    for field in ZeroSettings.__dataclass_fields__:
        name = NAMES.get(field, field)
        if name in theirs and field not in ("offload_optimizer", "offload_param", "contiguous_gradients"):
            assert (field, getattr(found, field)) == (field, theirs[name])
    for field in ("offload_optimizer", "offload_param"):
        theirs_offload = theirs.get(field) or {"device": "none"}
        assert getattr(found, field).device == theirs_offload["device"]
        if theirs_offload["device"] != "none":
            ours = getattr(found, field)._asdict()
            assert {k: v for k, v in ours.items() if k in theirs_offload} == {k: v for k, v in theirs_offload.items() if k in ours}
    read = case["read"]
    assert (found.micro_batch_size, found.grad_accum_steps) == (read["micro_batch_size"], read["grad_accum_steps"])
    assert found.gradient_clipping == read["gradient_clipping"]


@pytest.mark.parametrize("case", RECORD["wrappers"], ids=lambda c: f"{c['stage']}-{c['precision']}-{c['grad_accum_dtype']}")
def test_the_wrapper_is_the_one_that_the_engine_chose(case: dict[str, Any]) -> None:
    config: dict[str, Any] = {"zero_optimization": {"stage": case["stage"]}, "bf16": {"enabled": case["precision"] == "bf16"}}
    if case["grad_accum_dtype"]:
        config["data_types"] = {"grad_accum_dtype": case["grad_accum_dtype"]}
    found = ZeroSettings.from_config(config, 1, "adamw")
    if case["wrapper"] is not None:  # None: refused by DeepSpeed, and before this by `resolve`
        assert WRAPPERS[found.wrapper] == case["wrapper"]


def test_stage_0_with_fused_adam_keeps_flat_master_weights() -> None:
    assert ZeroSettings.from_config({"bf16": {"enabled": True}}, 8, "fused-adam").wrapper == "fp16-fused"


def test_cpu_offload_keeps_the_bf16_optimizer_away() -> None:
    base = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    assert settings(**base, zero_optimization={"stage": 1}).wrapper == "bf16-optimizer"
    assert settings(**base, zero_optimization={"stage": 1, "offload_optimizer": {"device": "cpu"}}).wrapper == "zero-1-2"


def test_an_empty_configuration_is_deepspeeds_defaults() -> None:
    found = settings()
    assert (found.stage, found.precision, found.reduce_bucket_size, found.overlap_comm) == (0, "fp32", 500_000_000, False)


def test_offload_forces_contiguous_gradients() -> None:
    zero = {"stage": 2, "contiguous_gradients": False, "offload_optimizer": {"device": "cpu"}}
    assert settings(zero_optimization=zero).contiguous_gradients is True
    assert settings(zero_optimization={**zero, "stage": 3}).contiguous_gradients is False


def test_sequential_gathering_prefetches_one_by_one() -> None:
    assert settings(zero_optimization={"stage": 3, "stage3_allgather_sequential": True}).prefetch_bucket_size == 1


@pytest.mark.parametrize(("stage", "swaps"), [(1, False), (2, False), (3, True)])
def test_states_go_to_nvme_in_stage_3_only(stage: int, swaps: bool) -> None:
    assert settings(zero_optimization={"stage": stage, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}).swaps_optimizer is swaps


@pytest.mark.parametrize(
    ("config", "dtypes"),
    [
        ({"bf16": {"enabled": True}}, ("fp32", "fp32")),
        ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, ("bf16", "fp32")),
        ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}, ("bf16", "bf16")),
        ({"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}}, ("fp16", "fp32")),
    ],
)
def test_master_weights_and_moments_have_their_dtypes(config: dict[str, Any], dtypes: tuple[str, str]) -> None:
    found = settings(**config)
    assert (found.master_dtype, found.optimizer_state_dtype) == dtypes


def test_without_fp32_copies_stage_0_has_no_wrapper() -> None:
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}
    found = ZeroSettings.from_config(config, 2, "adam-bf16")
    assert (found.wrapper, found.precision, found.master_dtype, found.optimizer_state_dtype) == ("none", "bf16", "bf16", "bf16")


def test_communication_defaults_to_the_precision() -> None:
    assert settings(fp16={"enabled": True}).communication_dtype == "fp16"
    assert settings(fp16={"enabled": True}, communication_data_type="FP32").communication_dtype == "fp32"


@pytest.mark.parametrize(
    ("fp16", "scale", "dynamic"),
    [({}, 2.0**16, True), ({"initial_scale_power": 2}, 4.0, True), ({"loss_scale": 128}, 128.0, False)],
)
def test_the_first_loss_scale(fp16: dict[str, Any], scale: float, dynamic: bool) -> None:
    found = settings(fp16={"enabled": True, **fp16})
    assert (found.fp16_initial_loss_scale, found.fp16_dynamic_loss_scale) == (scale, dynamic)


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_large_sizes_written_as_floats_are_exact(bucket: int, threshold: int) -> None:
    user = {"zero_optimization": {"stage": 3, "reduce_bucket_size": float(bucket), "stage3_param_persistence_threshold": threshold}}
    found = ZeroSettings.from_config(complete(TrainingRecipe(zero_stage=3), user, world_size=8), 8)
    assert (found.reduce_bucket_size, found.param_persistence_threshold) == (bucket, threshold)
