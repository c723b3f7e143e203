"""The simulation against what the bundled trainer took on an H100 (``benchmarks/probe/data``), phase by phase."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from benchmarks.accuracy.harness import forget
from benchmarks.probe.cases import CASES, DATA, MEASURED, case_of
from llmcheck.planner.measured import compare
from llmcheck.shadow import execute
from llmcheck.shadow.run import simulate_rank

ALLOCATED_TOLERANCE = 0.0005
RESERVED_TOLERANCE = 0.02
PROCESS_TOLERANCE = 0.02

MASKED = [json.loads(line) for line in (DATA / "masked-h100-2026-11.jsonl").read_text().splitlines()]
ROWS = [json.loads(line) for line in MEASURED.read_text().splitlines()]


@pytest.fixture
def masks_for_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulation of a GPU whose flash kernel takes no rows: packed rows have a mask, as these runs had."""
    monkeypatch.setattr(execute, "ROW_FAMILIES", frozenset())
    forget()
    yield
    forget()


def ids(rows: list[dict[str, object]]) -> list[str]:
    return [str(row["id"]) for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
def test_the_trainers_memory_is_the_simulated_one(row: dict[str, object]) -> None:
    case, measured = case_of(row), row["measured"]
    assert isinstance(measured, dict)
    estimate = simulate_rank(case.model, case.recipe, case.cluster, rank=case.rank)

    assert estimate.peak_allocated_bytes == pytest.approx(measured["peak_allocated_bytes"], rel=ALLOCATED_TOLERANCE)
    assert estimate.peak_reserved_bytes == pytest.approx(measured["peak_reserved_bytes"], rel=RESERVED_TOLERANCE)
    assert estimate.process_bytes == pytest.approx(measured["process_bytes"], rel=PROCESS_TOLERANCE)
    found = compare(estimate, measured, band=0.02)
    # Between model and init Python's collector decides when the part of a tied head, dropped with ZeRO-3, goes.
    phases = found.phases[1:] if case.recipe.zero_stage == 3 and case.model.config.get("tie_word_embeddings", True) else found.phases
    assert [(name, row) for name, rows in phases for row in rows if row.within is False] == []


@pytest.mark.usefixtures("masks_for_all")
@pytest.mark.parametrize("row", MASKED, ids=ids(MASKED))
def test_packed_rows_with_a_mask_take_the_simulated_memory(row: dict[str, object]) -> None:
    case, measured = case_of(row), row["measured"]
    assert isinstance(measured, dict)
    estimate = simulate_rank(case.model, case.recipe, case.cluster, rank=case.rank)

    assert estimate.peak_allocated_bytes == pytest.approx(measured["peak_allocated_bytes"], rel=ALLOCATED_TOLERANCE)
    assert estimate.peak_reserved_bytes == pytest.approx(measured["peak_reserved_bytes"], rel=RESERVED_TOLERANCE)


def test_every_case_was_measured() -> None:
    assert ids(ROWS) == ids([json.loads(line) for line in CASES.read_text().splitlines()])
