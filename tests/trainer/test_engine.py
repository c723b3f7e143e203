"""The engine: a step with NaN in its gradients changes nothing, although only their norm is looked at."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rig import Ranks, make_model, make_plan


@pytest.mark.parametrize("zero", ["1", "2"])
def test_a_step_with_nan_is_left_out(one: Ranks, tmp_path: Path, zero: str) -> None:
    model = make_model(tmp_path / "model", "llama")
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, "--precision", "bf16", gpus=1)

    (steps,) = one.call("nan_steps", str(model), str(plan))

    assert [step["moved"] for step in steps] == [True, False, True]
    assert math.isinf(steps[1]["norm"])
    assert math.isfinite(steps[2]["norm"])
