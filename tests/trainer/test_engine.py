"""The engine: a step with NaN in its gradients changes nothing, although only their norm is looked at."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rig import Ranks, make_model, make_plan


@pytest.mark.parametrize(
    ("zero", "optimizer"),
    [
        ("1", "fused-adam"),
        ("2", "fused-adam"),
        ("0", "adam-bf16"),
        ("1", "adam-bf16"),
        ("2", "adam-bf16"),
    ],
)
def test_a_step_with_nan_is_left_out(one: Ranks, tmp_path: Path, zero: str, optimizer: str) -> None:
    """Below stage 3, where DeepSpeed looks for it in fp16 alone."""
    model = make_model(tmp_path / "model", "llama")
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, "--precision", "bf16", "--optimizer", optimizer, gpus=1)

    (steps,) = one.call("nan_steps", str(model), str(plan))

    assert [step["moved"] for step in steps] == [True, False, True]
    assert math.isinf(steps[1]["norm"])
    assert math.isfinite(steps[2]["norm"])
