"""The simulation against runs drawn at random and measured on an H100 (``benchmarks/holdout/data``).

What the planner said before they were measured is in ``predictions.jsonl``; these tests hold what it says today.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from benchmarks.holdout.predict import predict
from benchmarks.holdout.run import MEASURED, PREDICTIONS, RUNS, compare, lines_of

ALLOCATED_TOLERANCE_PCT = 0.02
PAGE_BYTES = 2 << 20  # a segment of the small pool: what the simulation leaves out (scalars, statistics of a norm) may fill one more
PROCESS_TOLERANCE_PCT = 0.5

UNEXPLAINED = {"h21-stablelm"}  # 18 MiB of 5930 too much, from the first backward pass on
UNEXPLAINED_TOLERANCE_PCT = 0.5

ROWS = {str(row["id"]): row for row in lines_of(MEASURED)}


@cache
def _predicted(name: str) -> dict[str, Any]:
    runs = {line["id"]: line for line in lines_of(RUNS)}
    return predict(runs[name])


@pytest.mark.parametrize("name", ROWS)
def test_allocated_memory_and_the_process_are_the_measured_ones(name: str) -> None:
    errors = compare(_predicted(name), ROWS[name]).errors

    assert abs(errors["allocated"]) <= ALLOCATED_TOLERANCE_PCT
    assert abs(errors.get("process", 0.0)) <= PROCESS_TOLERANCE_PCT


@pytest.mark.parametrize("name", [name for name in ROWS if name not in UNEXPLAINED])
def test_reserved_memory_is_the_measured_one_to_a_page(name: str) -> None:
    assert abs(_predicted(name)["peak_reserved"] - ROWS[name]["peak_reserved"]) <= PAGE_BYTES


@pytest.mark.parametrize("name", sorted(UNEXPLAINED))
def test_reserved_memory_is_close_where_the_difference_is_not_explained(name: str) -> None:
    assert abs(compare(_predicted(name), ROWS[name]).errors["reserved"]) <= UNEXPLAINED_TOLERANCE_PCT


def test_the_predictions_are_those_from_before_the_measurement() -> None:
    lines = PREDICTIONS.read_text().splitlines()

    assert {json.loads(line)["commit"] for line in lines} == {"99c2dfde766492d5568f2df6a3bed6bbe79603f6"}
    assert {json.loads(line)["id"] for line in lines} >= set(ROWS)
