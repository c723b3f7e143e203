"""Measured and published step times: the errors of each class of rows, and whether the band that a user is shown holds them.

Ours: one H100, rank 0 of N, 2026-11; published: sources in ``benchmarks/steptime/data/published.csv``.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import lru_cache

import pytest

from benchmarks.steptime import cases
from benchmarks.steptime.run import SAME_KIND, Scored, measure
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates
from llmcheck.steptime.model import phases

# Runs repeated on several machines are 7 % from their own mean, so no class bound by the host comes near its GPU's accuracy.
MOST_MEAN_ERROR = {"GPU": 0.08, "host": 0.15, "offload": 0.10, "training": 0.08, "published": 0.12}
MOST_MEDIAN_ERROR = 0.15  # of all runs of peaks.jsonl
HELD_ROWS = 0.9
KERNEL_ERROR = 0.08


@lru_cache(maxsize=1)
def rows() -> list[Scored]:
    return measure()


def class_of(row: Scored) -> str | None:
    case = row.case
    if not case.without_network:
        return "published" if case.row["group"] in SAME_KIND else None
    if case.row["file"] == "drawn":  # shapes of no model, on the slowest host: shown in the results
        return None
    if case.row["file"] == "training":
        return "training"
    return "offload" if case.recipe.offload != "none" else "host" if row.estimate.host_bound else "GPU"


@pytest.mark.parametrize("name", MOST_MEAN_ERROR)
def test_a_class_of_rows_is_as_near_as_promised(name: str) -> None:
    errors = [abs(row.error) for row in rows() if class_of(row) == name]

    assert len(errors) >= 9
    assert statistics.mean(errors) <= MOST_MEAN_ERROR[name]


def test_the_median_of_the_measured_compute_times() -> None:
    assert statistics.median(abs(row.error) for row in rows() if row.case.row.get("file") == "peaks") <= MOST_MEDIAN_ERROR


def test_the_band_that_is_shown_holds_nine_rows_of_ten() -> None:
    held: dict[str, list[bool]] = defaultdict(list)
    for row in rows():
        name = class_of(row)
        if name is not None:
            held[name].append(abs(row.error) <= row.estimate.error_fraction)

    assert {name: statistics.mean(found) >= HELD_ROWS for name, found in held.items()} == dict.fromkeys(MOST_MEAN_ERROR, True)


@pytest.mark.parametrize(("case", "found"), [pytest.param(c, f, id=c.name) for c, f in cases.phases() if c.recipe.offload == "none"])
def test_the_kernels_of_a_step_take_the_estimated_time(case: cases.Case, found: dict[str, float]) -> None:
    # what the profiler adds up has no gaps between kernels, the estimate has
    rates = GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
    p = phases(case.model, case.recipe, case.cluster, rates, HostRates.reference(), alone=True)
    busy_s = p.forward_gpu_s + p.backward_gpu_s + p.optimizer_gpu_s - found["num_kernels"] * rates.kernel_s

    assert busy_s == pytest.approx(found["busy_s"], rel=KERNEL_ERROR)
