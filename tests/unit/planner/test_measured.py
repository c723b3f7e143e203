"""Figures of a rehearsal beside the plan: what has a band, and what is outside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmcheck.planner.measured import SLACK_BYTES, compare
from llmcheck.types import PhaseStats, RankEstimate
from llmcheck.units import GIB


def phase(name: str, allocated: float, peak: float, reserved: float) -> PhaseStats:
    return PhaseStats(
        name=name,
        allocated_bytes=int(allocated * GIB),
        peak_allocated_bytes=int(peak * GIB),
        reserved_bytes=int(reserved * GIB),
        peak_reserved_bytes=int(reserved * GIB),
    )


@pytest.fixture
def estimate(synthetic_plan: Any) -> RankEstimate:
    rank: RankEstimate = synthetic_plan.memory.rank0
    return replace(
        rank,
        peak_allocated_bytes=20 * GIB,
        peak_reserved_bytes=22 * GIB,
        peak_reserved_low_bytes=21 * GIB,
        peak_reserved_high_bytes=24 * GIB,
        process_bytes=23 * GIB,
        phases=(phase("model", 10, 10, 10), phase("init", 14, 18, 18), phase("fwd0", 15, 20, 22)),
    )


def record(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "peak_allocated_bytes": 20 * GIB,
        "peak_reserved_bytes": 22 * GIB,
        "process_bytes": 23 * GIB,
        "step_s": 1.0,
        "phases": [vars(phase("model", 10, 10, 10)), vars(phase("init", 14, 15, 18)), vars(phase("fwd0", 15, 20, 22))],
    }
    return {**base, **changes}


def test_what_is_as_predicted_is_within(estimate: RankEstimate) -> None:
    found = compare(estimate, record(), band=0.02, step_s=1.1, time_band=0.25)

    assert [(row.name, row.within) for row in found.totals] == [
        ("peak allocated", True),
        ("peak reserved", True),
        ("process (driver)", True),
        ("step without communication", True),
    ]
    assert found.within


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_allocated_bytes": int(20.5 * GIB)},
        {"peak_allocated_bytes": int(19.5 * GIB)},
        {"peak_reserved_bytes": 25 * GIB},
        {"process_bytes": 21 * GIB},
        {"step_s": 1.5},
    ],
)
def test_a_figure_beyond_the_band_is_outside(estimate: RankEstimate, changes: dict[str, Any]) -> None:
    assert not compare(estimate, record(**changes), band=0.02, step_s=1.1, time_band=0.25).within


def test_reserved_memory_may_be_anywhere_in_its_interval(estimate: RankEstimate) -> None:
    for reserved in (21 * GIB, 24 * GIB):
        assert compare(estimate, record(peak_reserved_bytes=reserved, process_bytes=reserved + GIB), band=0.02).within


def test_allocated_memory_of_each_phase_has_a_band(estimate: RankEstimate) -> None:
    phases = [*record()["phases"][:2], vars(phase("fwd0", 16, 20, 22))]
    found = compare(estimate, record(phases=phases), band=0.02)

    outside = [(name, row.name) for name, rows in found.phases for row in rows if row.within is False]
    assert outside == [("fwd0", "allocated")]


def test_the_peak_of_initialisation_has_no_band_as_deepspeed_resets_it(estimate: RankEstimate) -> None:
    found = dict(compare(estimate, record(), band=0.02).phases)

    assert [row.within for row in found["init"]] == [True, None, None]


def test_a_segment_more_or_less_is_within_for_the_smallest_model(estimate: RankEstimate) -> None:
    small = replace(estimate, peak_allocated_bytes=SLACK_BYTES, phases=())
    totals = compare(small, record(peak_allocated_bytes=2 * SLACK_BYTES), band=0.02).totals

    assert totals[0].within


def test_what_was_not_measured_or_not_predicted_is_left_out(estimate: RankEstimate) -> None:
    found = compare(estimate, record(process_bytes=None, phases=[vars(phase("other", 1, 1, 1))]), band=0.02)

    assert [row.name for row in found.totals] == ["peak allocated", "peak reserved"]
    assert found.phases == ()
