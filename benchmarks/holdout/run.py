"""Drawn runs beside their measurement: ``python -m benchmarks.holdout.run``; prints Markdown.

Two tables of the same runs: what the planner said before any of them was measured (`data/predictions.jsonl`, which no later change
touches), and what it says today. Errors are predicted / measured - 1 in percent; sums are of their sizes.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.holdout.predict import predict
from llmcheck.units import GIB

DATA = Path(__file__).parent / "data"
MEASURED = DATA / "measured-h100-2026-11.jsonl"
PREDICTIONS = DATA / "predictions.jsonl"
RUNS = DATA / "runs.jsonl"
QUANTITIES = ("allocated", "reserved", "process")


class Result(NamedTuple):
    """One run. Errors in percent; `inside`: reserved memory is in the plan's interval."""

    measured: dict[str, Any]
    errors: dict[str, float]
    inside: bool


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A data file's lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def process_bytes(measured: dict[str, Any]) -> int | None:
    """The most that the driver saw of the process: its memory at the end, with the allocator's part at its peak. None: it shared the GPU.

    DeepSpeed empties the allocator's cache while it initialises, so at the end less may be reserved than before.
    """
    if "nvml_proc" not in measured:
        return None
    found: int = measured["nvml_proc"] - measured["reserved_at_end"] + measured["peak_reserved"]
    return found


def compare(predicted: dict[str, Any], measured: dict[str, Any]) -> Result:
    """A prediction (a line of predictions.jsonl) beside its measurement."""
    pairs = {
        "allocated": (predicted["peak_alloc_train"], measured["peak_alloc_train"]),
        "reserved": (predicted["peak_reserved"], measured["peak_reserved"]),
        "process": (predicted["process"], process_bytes(measured)),
    }
    errors = {name: 100 * (said / seen - 1) for name, (said, seen) in pairs.items() if seen is not None}
    inside = predicted["peak_reserved_low"] <= measured["peak_reserved"] <= predicted["peak_reserved_high"]
    return Result(measured, errors, inside)


def sums(results: list[Result]) -> list[str]:
    """Mean, 90th percentile (nearest rank) and worst of the errors' sizes, and how many are a hundredth of a percent at most."""
    lines = ["| quantity | runs | mean, % | p90, % | worst, % | within 0.01 % |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name in QUANTITIES:
        values = sorted(abs(result.errors[name]) for result in results if name in result.errors)
        p90 = values[math.ceil(0.9 * len(values)) - 1]
        close = sum(value <= 0.01 for value in values)
        lines.append(f"| {name} | {len(values)} | {statistics.mean(values):.3f} | {p90:.3f} | {values[-1]:.3f} | {close} |")
    return lines


def settings(measured: dict[str, Any]) -> str:
    """The run's recipe in words."""
    words = [f"{measured['method']} z{measured['zero']} w{measured['world']} b{measured['mbs']} s{measured['seq']}"]
    words += [measured["dtype"]] if measured["dtype"] != "bf16" else []
    words += [measured["optimizer"]] if measured["optimizer"] != "fused" else []
    words += [measured["attn"]] if measured["attn"] != "sdpa" else []
    words += ["nc"] if not measured["ckpt"] else []
    words += [f"ga{measured['accum']}"] if measured["accum"] > 1 else []
    words += ["exp"] if measured.get("alloc_conf") else []
    return " ".join(words + sorted(measured["ds"].get("zero_optimization", ())))


def table(blind: list[Result], today: list[Result]) -> list[str]:
    """A line for each run: the errors then and now."""
    lines = ["| run | settings | peak allocated, GiB | allocated, % | reserved, % | process, % | today: allocated | reserved | process |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for then, now in zip(blind, today, strict=True):
        seen = then.measured
        cells = [f"{result.errors[name]:+.3f}" if name in result.errors else "" for result in (then, now) for name in QUANTITIES]
        lines.append(f"| {seen['id']} | {settings(seen)} | {seen['peak_alloc_train'] / GIB:.3f} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Print the sums then and now, and every run."""
    measured = sorted(lines_of(MEASURED), key=lambda row: str(row["id"]))
    predictions = {line["id"]: line for line in lines_of(PREDICTIONS)}
    runs = {line["id"]: line for line in lines_of(RUNS)}
    blind = [compare(predictions[row["id"]], row) for row in measured]
    today = [compare(predict(runs[row["id"]]), row) for row in measured]
    missing = ", ".join(sorted(set(runs) - {row["id"] for row in measured}))
    commits = ", ".join(sorted({line["commit"][:7] for line in predictions.values()}))
    print(f"{len(measured)} of {len(runs)} runs of {len({row['model'] for row in measured})} families; not measured: {missing}.")
    for words, results in (("Predicted before they were measured, at " + commits, blind), ("Today's planner", today)):
        outside = sum(not result.inside for result in results)
        print(f"\n{words} (reserved memory is outside the plan's interval in {outside}):\n")
        print("\n".join(sums(results)))
    print("\n" + "\n".join(table(blind, today)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
