"""``llmcheck compare``: what a plan predicted beside what its run measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmcheck import planfile
from llmcheck.commands.values import choice
from llmcheck.console import emit, terminal
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.jsonfile import load_object
from llmcheck.planner.measured import Row
from llmcheck.planner.plan import Plan
from llmcheck.render.draw import Pen, clean, table
from llmcheck.units import gib

SCHEMA = "llmcheck.compare/1"
RUN_SCHEMA = "llmcheck.run/1"
_WHAT = "run receipt"
_SAME_MEMORY_FRACTION = 0.02  # two figures of one GPU's memory, torch's and a maker's, differ by less; two GPUs' by more
# Share of NCCL's memory by which the process may be off: over NVLink its buffers are read from sources, not measured
# (benchmarks/results/nccl-memory-predicted-2026-11-24.md).
_NCCL_DOUBT = 0.4


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument("plan", metavar="PLAN", help="plan file")
    parser.add_argument("run", metavar="RUN", help="run.json that the trainer wrote")
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; returns 1 when a measurement is outside the plan's band. Raises UserError when the run is not of the plan."""
    plan_file = planfile.read(args.plan)
    receipt = load_object(args.run, what=_WHAT)
    _check(plan_file, receipt, args)
    rows, notes = compare(plan_file.plan, receipt)
    if not rows:
        raise CouldNotCheckError(
            "the run measured nothing that the plan predicts",
            code="nothing-measured",
            where=args.run,
            why="; ".join(notes),
            hint="run it on GPUs, as it was planned, for more than its first steps",
        )
    inside = all(row.within is not False for row in rows)
    emit(_json(rows, notes, inside) if args.format == "json" else _text(rows, notes, inside))
    return 0 if inside else 1


def _check(plan_file: planfile.PlanFile, receipt: Mapping[str, Any], args: argparse.Namespace) -> None:
    if receipt.get("schema") != RUN_SCHEMA:
        raise UserError(
            f"{args.run} is not a run receipt",
            code="run-schema",
            where=args.run,
            why=f"its schema is {str(receipt.get('schema'))[:60]!r}, and a receipt's is {RUN_SCHEMA!r}",
            hint="give the run.json of the folder that `llmcheck train --output` wrote to",
        )
    if receipt.get("plan_digest") != plan_file.digest:
        raise UserError(
            "the run is of another plan",
            code="other-plan",
            where=f"{args.plan}, {args.run}",
            why=f"the plan's digest is {plan_file.digest}, the run's {str(receipt.get('plan_digest'))[:80]!r}",
            hint="give the plan file that the run was started with",
        )


def compare(plan: Plan, receipt: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """The figures that both have, rank 0 first, and what could not be compared. Raises UserError for a damaged receipt."""
    try:
        ranks = [dict(rank) for rank in receipt["ranks"]]
        return _compare(plan, ranks, bool(receipt["plan_edited"]))
    except (KeyError, TypeError, ValueError, IndexError) as reason:
        why, hint = f"{type(reason).__name__}: {str(reason)[:200]}", "copy it again from the folder of the run"
        raise UserError("the run receipt is damaged", code="run-invalid", where="RUN", why=why, hint=hint) from reason


def _compare(plan: Plan, ranks: list[dict[str, Any]], edited: bool) -> tuple[list[Row], list[str]]:
    rank0 = {rank["rank"]: rank for rank in ranks}[0]
    notes = ["the plan was edited after planning: its estimate does not apply"] if edited else []
    rows: list[Row] = []
    if rank0["peak_allocated_bytes"] is None:
        notes.append("memory was not measured: the run had no GPU")
    else:
        rows += _memory_rows(plan, rank0, ranks)
    memory = rank0.get("device_memory_bytes")
    planned = plan.cluster.gpu.memory_bytes
    if rank0["step_s"] is None:
        notes.append("no step was timed")
    elif memory is None or abs(memory - planned) > _SAME_MEMORY_FRACTION * planned:
        notes.append(f"step times are not compared: the run was on {rank0['device']}, the plan is for {plan.cluster.gpu.name}")
    else:
        band = plan.time.error_fraction
        slowest = max(rank["step_s"] for rank in ranks)
        rows.append(_row("step time", "s", plan.time.step_s, slowest, plan.time.step_s, plan.time.step_s, band))
    return rows, notes


def _memory_rows(plan: Plan, rank0: Mapping[str, Any], ranks: list[dict[str, Any]]) -> list[Row]:
    estimate, band = plan.memory.rank0, plan.memory.error_fraction
    peak, reserved = estimate.peak_allocated_bytes, estimate.peak_reserved_bytes
    rows = [
        _row("peak allocated", "bytes", peak, rank0["peak_allocated_bytes"], peak, peak, band),
        _row(
            "peak reserved",
            "bytes",
            reserved,
            rank0["peak_reserved_bytes"],
            estimate.peak_reserved_low_bytes,
            estimate.peak_reserved_high_bytes,
            band,
        ),
    ]
    if rank0["process_bytes"] is not None:
        process = estimate.process_bytes + estimate.nccl_bytes
        beyond, doubt = process - reserved, round(_NCCL_DOUBT * estimate.nccl_bytes)
        low = estimate.peak_reserved_low_bytes + beyond - doubt
        high = estimate.peak_reserved_high_bytes + beyond + doubt
        rows.append(_row("process (driver)", "bytes", process, rank0["process_bytes"], low, high, band))
    if len(ranks) > 1:
        worst, measured = plan.memory.worst.peak_allocated_bytes, max(rank["peak_allocated_bytes"] for rank in ranks)
        rows.append(_row("peak allocated, worst rank", "bytes", worst, measured, worst, worst, band))
    measured_phases = {phase["name"]: phase for phase in rank0["phases"]}
    for phase in estimate.phases:
        if phase.name in measured_phases:
            at = phase.peak_allocated_bytes
            rows.append(Row(name=phase.name, unit="bytes", predicted=at, measured=measured_phases[phase.name]["peak_allocated_bytes"]))
    return rows


def _row(name: str, unit: str, predicted: float, measured: float, low: float, high: float, band: float) -> Row:
    return Row(name=name, unit=unit, predicted=predicted, measured=measured, low=low * (1 - band), high=high * (1 + band))


def _text(rows: list[Row], notes: list[str], inside: bool) -> str:
    pen = Pen(terminal(sys.stdout))
    lines = [("", "predicted", "measured", "error", "within the plan's band")]
    for row in rows:
        shown = [gib(value) if row.unit == "bytes" else f"{value:.3f} s" for value in (row.predicted, row.measured)]
        verdict = {None: "", True: "yes", False: "NO"}[row.within]
        lines.append((clean(row.name), shown[0], shown[1], f"{100 * row.error_fraction:+.2f} %", verdict))
    head, *rest = table(lines, (False, True, True, True, False), pen.terminal.columns, pen)
    ending = "every measurement is within the plan's band" if inside else "a measurement is outside the plan's band"
    return "\n".join([pen.bold(head), *rest, "", *[f"note: {clean(note)}" for note in notes], ending, ""])


def _json(rows: list[Row], notes: list[str], inside: bool) -> str:
    items = [{**asdict(row), "error_fraction": row.error_fraction, "within": row.within} for row in rows]
    return json.dumps({"schema": SCHEMA, "within": inside, "rows": items, "notes": notes}, indent=2, allow_nan=False) + "\n"
