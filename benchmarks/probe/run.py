"""What the plan says beside what the bundled trainer took on an H100: ``python -m benchmarks.probe.run``; prints Markdown.

Errors are predicted / measured - 1 in percent. Steps were timed only where a run had the GPU for itself.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.probe.cases import MEASURED, Case, case_of
from llmcheck.shadow.run import simulate_rank
from llmcheck.steptime.kernels import GpuRates
from llmcheck.steptime.model import estimate
from llmcheck.steptime.profile import Profile, host_of, profile_of, rates_of
from llmcheck.units import GIB

PROFILE = Path(__file__).parent / "data" / "profile-h100-2026-11.json"
QUANTITIES = ("allocated", "reserved", "process")


class Result(NamedTuple):
    """One row. Errors in percent; `outside`: reserved memory is outside the plan's interval."""

    case: Case
    allocated_bytes: int
    errors: dict[str, float]
    step_s: float | None
    step_errors: tuple[float, float] | None  # without and with a measured profile


def measure(case: Case, profile: Profile) -> Result:
    """The prediction beside the measurement."""
    found: dict[str, Any] = case.raw["measured"]
    rank = simulate_rank(case.model, case.recipe, case.cluster, rank=case.rank)
    pairs = {
        "allocated": (rank.peak_allocated_bytes, found["peak_allocated_bytes"]),
        "reserved": (rank.peak_reserved_bytes, found["peak_reserved_bytes"]),
        "process": (rank.process_bytes, found["process_bytes"]),
    }
    errors = {name: 100 * (predicted / seen - 1) for name, (predicted, seen) in pairs.items()}
    if found["step_s"] is None:
        return Result(case, found["peak_allocated_bytes"], errors, None, None)
    rates = rates_of(profile, GpuRates.from_spec(case.cluster.gpu, case.recipe.precision), case.recipe.precision)
    times = (
        estimate(case.model, case.recipe, case.cluster, alone=True),
        estimate(case.model, case.recipe, case.cluster, rates=rates, host=host_of(profile), alone=True),
    )
    plain, profiled = (100 * (time.step_s / found["step_s"] - 1) for time in times)
    return Result(case, found["peak_allocated_bytes"], errors, found["step_s"], (plain, profiled))


def table(results: list[Result]) -> list[str]:
    """A line for each run."""
    lines = ["| recipe | peak allocated, GiB | allocated, % | reserved, % | process, % | step, s | step, % |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for result in results:
        shares = " | ".join(f"{result.errors[name]:+.3f}" for name in QUANTITIES)
        peak = result.allocated_bytes / GIB
        step = f"{result.step_s:.3f} | {result.step_errors[0]:+.0f}" if result.step_s and result.step_errors else " | "
        lines.append(f"| {result.case.label} | {peak:.3f} | {shares} | {step} |")
    return lines


def sums(results: list[Result]) -> list[str]:
    """Mean and worst of the errors' sizes."""
    lines = ["| quantity | runs | mean, % | worst, % |", "| --- | ---: | ---: | ---: |"]
    columns = [(name, [abs(result.errors[name]) for result in results]) for name in QUANTITIES]
    timed = [result.step_errors for result in results if result.step_errors]
    columns.append(("step without communication", [abs(plain) for plain, _ in timed]))
    columns.append(("the same with a measured profile", [abs(profiled) for _, profiled in timed]))
    for name, values in columns:
        lines.append(f"| {name} | {len(values)} | {statistics.mean(values):.3f} | {max(values):.3f} |")
    return lines


def main() -> int:
    """Print both tables."""
    profile = profile_of(json.loads(PROFILE.read_text()), PROFILE.name)
    rows = [case_of(json.loads(line)) for line in MEASURED.read_text().splitlines()]
    results = [measure(case, profile) for case in rows]
    families = sorted({result.case.model.family for result in results})
    print(f"{len(results)} recipes of {len(families)} families: {', '.join(families)}.\n")
    print("\n".join([*sums(results), "", *table(results)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
