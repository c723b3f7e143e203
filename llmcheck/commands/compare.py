"""``llmcheck compare``: what a plan predicted beside what its run measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from llmcheck import planfile
from llmcheck.commands.values import choice
from llmcheck.console import emit, terminal
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.jsonfile import load_object
from llmcheck.planner import receipt
from llmcheck.planner.measured import Row
from llmcheck.planner.plan import Plan
from llmcheck.planner.receipt import RankMeasured, Receipt
from llmcheck.render.draw import Pen, clean, table
from llmcheck.units import gib

SCHEMA = "llmcheck.compare/1"
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
    """Print the table; returns 1 when a measurement is outside the plan's band, or memory ran out that the plan said would do.

    Raises UserError when the run is not of the plan.
    """
    plan_file = planfile.read(args.plan)
    found = receipt.of(load_object(args.run, what=_WHAT), where=args.run)
    if found.plan_digest != plan_file.digest:
        raise UserError(
            "the run is of another plan",
            code="other-plan",
            where=f"{args.plan}, {args.run}",
            why=f"the plan's digest is {plan_file.digest}, the run's {found.plan_digest[:80]!r}",
            hint="give the plan that was run; `llmcheck train --model` writes it into --output, as plan.json",
        )
    rows, notes = compare(plan_file.plan, found)
    if not rows and found.outcome != receipt.OUT_OF_MEMORY:
        raise CouldNotCheckError(
            "the run measured nothing that the plan predicts",
            code="nothing-measured",
            where=args.run,
            why="; ".join(notes),
            hint="compare a run on the GPUs that the plan is for",
        )
    surprised = found.outcome == receipt.OUT_OF_MEMORY and plan_file.plan.verdict != "does-not-fit"
    inside = not surprised and all(row.within is not False for row in rows)
    emit(_json(rows, notes, found.outcome, inside) if args.format == "json" else _text(rows, notes, surprised, inside))
    return 0 if inside else 1


def compare(plan: Plan, run: Receipt) -> tuple[list[Row], list[str]]:
    """The figures that both have, rank 0 first, and what could not be compared."""
    rank = next((rank for rank in run.ranks if rank.rank == 0), run.ranks[0])
    notes = ["the plan was edited after planning: its estimate does not apply"] if run.plan_edited else []
    rows: list[Row] = []
    if rank.peak_allocated_bytes is None:
        notes.append("memory was not measured: the run had no GPU")
    else:
        rows += _memory_rows(plan, rank, run.ranks)
    if run.outcome == receipt.OUT_OF_MEMORY:
        # The peak that the run was on its way to was never reached, and no band is for what came before.
        rows = [replace(row, low=None, high=None) for row in rows]
        notes.append(f"memory ran out on rank {rank.rank}: what was measured is what there was until then")
    if rank.rank != 0:
        notes.append(f"rank {rank.rank} is compared with the plan's rank 0")
    steps = [each.step_s for each in run.ranks if each.step_s is not None]
    planned = plan.cluster.gpu.memory_bytes
    memory = rank.device_memory_bytes
    if not steps:
        notes.append("no step was timed")
    elif memory is None or abs(memory - planned) > _SAME_MEMORY_FRACTION * planned:
        notes.append(f"step times are not compared: the run was on {rank.device}, the plan is for {plan.cluster.gpu.name}")
    else:
        band = plan.time.error_fraction
        rows.append(_row("step time", "s", plan.time.step_s, max(steps), plan.time.step_s, plan.time.step_s, band))
    return rows, notes


def _memory_rows(plan: Plan, rank: RankMeasured, ranks: Sequence[RankMeasured]) -> list[Row]:
    estimate, band = plan.memory.rank0, plan.memory.error_fraction
    peak, reserved = estimate.peak_allocated_bytes, estimate.peak_reserved_bytes
    assert rank.peak_allocated_bytes is not None
    assert rank.peak_reserved_bytes is not None
    rows = [
        _row("peak allocated", "bytes", peak, rank.peak_allocated_bytes, peak, peak, band),
        _row(
            "peak reserved",
            "bytes",
            reserved,
            rank.peak_reserved_bytes,
            estimate.peak_reserved_low_bytes,
            estimate.peak_reserved_high_bytes,
            band,
        ),
    ]
    if rank.process_bytes is not None:
        process = estimate.process_bytes + estimate.nccl_bytes
        beyond, doubt = process - reserved, round(_NCCL_DOUBT * estimate.nccl_bytes)
        low = estimate.peak_reserved_low_bytes + beyond - doubt
        high = estimate.peak_reserved_high_bytes + beyond + doubt
        rows.append(_row("process (driver)", "bytes", process, rank.process_bytes, low, high, band))
    if len(ranks) > 1:
        worst = plan.memory.worst.peak_allocated_bytes
        measured = max(each.peak_allocated_bytes for each in ranks if each.peak_allocated_bytes is not None)
        rows.append(_row("peak allocated, worst rank", "bytes", worst, measured, worst, worst, band))
    measured_phases = {phase.name: phase.peak_allocated_bytes for phase in rank.phases}
    for phase in estimate.phases:
        if phase.name in measured_phases:
            at = phase.peak_allocated_bytes
            rows.append(Row(name=phase.name, unit="bytes", predicted=at, measured=measured_phases[phase.name]))
    return rows


def _row(name: str, unit: str, predicted: float, measured: float, low: float, high: float, band: float) -> Row:
    return Row(name=name, unit=unit, predicted=predicted, measured=measured, low=low * (1 - band), high=high * (1 + band))


def _text(rows: list[Row], notes: list[str], surprised: bool, inside: bool) -> str:
    pen = Pen(terminal(sys.stdout))
    lines = [("", "predicted", "measured", "error", "within the plan's band")]
    for row in rows:
        shown = [gib(value) if row.unit == "bytes" else f"{value:.3f} s" for value in (row.predicted, row.measured)]
        verdict = {None: "", True: "yes", False: "NO"}[row.within]
        lines.append((clean(row.name), shown[0], shown[1], f"{100 * row.error_fraction:+.2f} %", verdict))
    head, *rest = table(lines, (False, True, True, True, False), pen.terminal.columns, pen)
    judged = any(row.within is not None for row in rows)
    good = "every measurement is within the plan's band" if judged else "the plan promises nothing of what was measured"
    ending = good if inside else "a measurement is outside the plan's band"
    if surprised:
        ending = "memory ran out, and the plan said that the run fits: the plan's `unchecked` says what it leaves out; plan with a margin"
    return "\n".join([pen.bold(head), *rest, "", *[f"note: {clean(note)}" for note in notes], ending, ""])


def _json(rows: list[Row], notes: list[str], outcome: str, inside: bool) -> str:
    items = [{**asdict(row), "error_fraction": row.error_fraction, "within": row.within} for row in rows]
    return (
        json.dumps({"schema": SCHEMA, "outcome": outcome, "within": inside, "rows": items, "notes": notes}, indent=2, allow_nan=False)
        + "\n"
    )
