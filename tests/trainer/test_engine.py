"""The engine: a step with NaN in its gradients changes nothing, although only their norm is looked at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rig import Ranks, make_model, make_plan


@pytest.mark.parametrize(
    ("zero", "optimizer"),
    [("1", "fused-adam"), ("2", "fused-adam"), ("3", "fused-adam"), *((zero, "adam-bf16") for zero in "0123")],
)
def test_a_step_with_nan_is_left_out(one: Ranks, tmp_path: Path, zero: str, optimizer: str) -> None:
    model = make_model(tmp_path / "model", "llama")
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, "--precision", "bf16", "--optimizer", optimizer, gpus=1)

    (steps,) = one.call("nan_steps", str(model), str(plan))

    assert [step["moved"] for step in steps] == [True, False, True]
    assert math.isinf(steps[1]["norm"])
    assert math.isfinite(steps[2]["norm"])


@pytest.mark.parametrize(
    ("zero", "precision", "optimizer", "clipping"),
    [
        *((zero, "bf16", "fused-adam", 1.0) for zero in "0123"),
        *((zero, "bf16", "adam-bf16", 1.0) for zero in "0123"),
        *((zero, "fp32", "fused-adam", 1.0) for zero in "0123"),
        ("0", "bf16", "adam-bf16", 0.0),
        ("0", "fp32", "fused-adam", 0.0),
        ("2", "fp32", "fused-adam", 0.0),
    ],
)
def test_a_step_with_nan_leaves_no_trace(one: Ranks, tmp_path: Path, zero: str, precision: str, optimizer: str, clipping: float) -> None:
    model = make_model(tmp_path / "model", "llama")
    (tmp_path / "ds.json").write_text(json.dumps({"gradient_clipping": clipping}))
    options = ("--zero", zero, "--precision", precision, "--optimizer", optimizer, "--ds-config", str(tmp_path / "ds.json"))
    plan = make_plan(tmp_path / "plan.json", model, *options, gpus=1)

    assert one.call("traces_of_a_nan_step", str(model), str(plan)) == [[]]


@pytest.mark.parametrize("zero", ["0", "2"])
def test_the_norm_of_the_gradients_is_told_in_fp32_too(one: Ranks, tmp_path: Path, zero: str) -> None:
    model = make_model(tmp_path / "model", "llama")
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, gpus=1)

    (steps,) = one.call("nan_steps", str(model), str(plan))

    assert [step["moved"] for step in steps] == [True, False, True]
    assert steps[0]["norm"] > 0
    assert [math.isfinite(step["norm"]) for step in steps] == [True, False, True]


def test_weight_decay_on_the_command_line_is_heard_where_the_plan_has_an_optimizer(one: Ranks, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    section = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.8, 0.9]}}}
    (tmp_path / "ds.json").write_text(json.dumps(section))
    plan = make_plan(tmp_path / "plan.json", model, "--ds-config", str(tmp_path / "ds.json"), gpus=1)

    (groups,) = one.call("optimizer_groups", str(model), str(plan), 0.3)

    assert [(group["weight_decay"], group["betas"]) for group in groups] == [(0.3, [0.8, 0.9])]


def test_a_rank_alone_gets_from_each_collective_what_it_gave(one: Ranks) -> None:
    """By the names of the newest PyTorch, and by those that 2.11 calls the group by."""
    (found,) = one.call("collectives_of_one")

    assert [name for name, right in found.items() if not right] == []
