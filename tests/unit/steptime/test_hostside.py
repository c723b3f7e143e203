"""CPU seconds of a step."""

from __future__ import annotations

import pytest

from llmcheck.steptime import hostside
from llmcheck.steptime.flops import Work
from llmcheck.steptime.hostside import HostRates

RATES = HostRates.reference()


def work() -> Work:
    out = Work()
    out.add(0.0, 100, 40)
    out.visits = 13
    return out


def test_every_event_costs() -> None:
    assert all(getattr(RATES, name) > 0 for name in HostRates.__dataclass_fields__)


def test_forward_is_the_sum_of_its_events() -> None:
    assert hostside.forward_s(work(), RATES, 2, 7) == 100 * RATES.op_s + 40 * RATES.view_s + 13 * RATES.visit_s


def test_stage_3_pays_for_every_module_and_gather() -> None:
    plain, sharded = (hostside.forward_s(work(), RATES, stage, 7) for stage in (2, 3))
    assert sharded - plain == pytest.approx(13 * RATES.zero3_visit_s + 7 * RATES.zero3_gather_s)


def test_stage_0_has_no_gradient_hooks() -> None:
    without, hooked = (hostside.backward_s(work(), RATES, stage, 0, 9) for stage in (0, 2))
    assert hooked - without == pytest.approx(9 * RATES.gradient_s)


def test_the_step_grows_with_its_tensors() -> None:
    assert hostside.optimizer_s(RATES, 10) - hostside.optimizer_s(RATES, 4) == pytest.approx(6 * RATES.step_tensor_s)
