"""Compare the simulation with the measured runs: ``python -m benchmarks.accuracy.run [peaks boundary campaign]``.

Prints one line a run, with the set that it belongs to, and a table of the sums per set; writes ``results.json`` beside itself.
Errors are estimate / measured - 1 in percent; mean, 90th percentile (nearest rank) and worst are of their sizes.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy.harness import harness_of
from benchmarks.accuracy.rows import SETS, Row, cap_bytes, rows
from llmcheck import __version__
from llmcheck.errors import UserError
from llmcheck.shadow.run import simulate_rank

HERE = Path(__file__).parent
QUANTITIES = ("allocated", "reserved", "process")


def measure(row: Row) -> dict[str, Any]:
    """Errors of one run in percent, and the CPU seconds that the estimate took."""
    start = time.process_time()
    with harness_of(row):
        estimate = simulate_rank(row.model, row.recipe, row.cluster, rank=row.rank, cap_bytes=cap_bytes(row))
    cpu_s = time.process_time() - start
    raw = row.raw
    out: dict[str, Any] = {"set": row.group, "label": row.label, "cpu_s": round(cpu_s, 3)}
    if row.verdict is not None:
        out["cap_gib"] = raw["cap_gib"]
        out["measured"] = row.verdict
        out["predicted"] = "oom" if estimate.out_of_memory is not None else "ok"
        out["retries"] = (raw.get("num_alloc_retries"), estimate.num_alloc_retries)
        return out
    out["allocated_bytes"] = raw["peak_alloc_train"]
    if not row.model.family_known:
        out["stand_in"] = True  # an upper bound, kept out of the errors
    for key, got, want in (
        ("allocated", estimate.peak_allocated_bytes, raw["peak_alloc_train"]),
        ("reserved", estimate.peak_reserved_bytes, raw["peak_reserved"]),
        ("process", estimate.process_bytes, raw.get("nvml_proc")),
    ):
        if want is not None:  # the driver's figure is missing where several runs shared the GPU
            out[f"{key}_error_pct"] = round(100 * (got / want - 1), 4)
    return out


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, 90th percentile and worst absolute errors, and wrong verdicts."""
    out: dict[str, Any] = {}
    runs = [r for r in results if "allocated_error_pct" in r and "stand_in" not in r]
    if runs:
        out["num_runs"] = len(runs)
        for key in QUANTITIES:
            errors = [abs(r[f"{key}_error_pct"]) for r in runs if f"{key}_error_pct" in r]
            out[f"{key}_num"] = len(errors)
            if errors:
                out[f"{key}_mean_pct"] = round(statistics.mean(errors), 4)
                out[f"{key}_p90_pct"] = round(_percentile(errors, 0.9), 4)
                out[f"{key}_worst_pct"] = round(max(errors), 4)
        out["byte_exact_allocated_to_1e-4"] = sum(abs(r["allocated_error_pct"]) <= 0.01 for r in runs)
    verdicts = [r for r in results if "predicted" in r]
    if verdicts:
        out["num_verdicts"] = len(verdicts)
        out["wrong_verdicts"] = sum(r["predicted"] != r["measured"] for r in verdicts)
        out["dangerous_fits"] = sum(r["predicted"] == "ok" and r["measured"] == "oom" for r in verdicts)
    return out


def _line(result: dict[str, Any]) -> str:
    head = f"{result['set']:8} {result['label']:58}"
    if "predicted" in result:
        mark = "" if result["predicted"] == result["measured"] else "  <-- wrong"
        return f"{head} cap {result['cap_gib']:5} GiB  measured {result['measured']:3}  predicted {result['predicted']}{mark}"
    if "not_modelled" in result:
        return f"{head} not modelled: {result['not_modelled']}"
    errors = "  ".join(
        f"{key} {result[f'{key}_error_pct']:+9.4f} %" if f"{key}_error_pct" in result else f"{key}         - %" for key in QUANTITIES
    )
    mark = "  (stand-in, not in the sums)" if "stand_in" in result else ""
    return f"{head} {result['allocated_bytes'] / 2**30:8.3f} GiB  {errors}  {result['cpu_s']:.2f} s{mark}"


def _sums(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the sums: a line for each set and quantity, and one for each set with verdicts."""
    lines = [f"{'set':10} {'quantity':10} {'runs':>5} {'mean %':>9} {'p90 %':>9} {'worst %':>9}"]
    for name, total in summaries.items():
        for key in QUANTITIES:
            if total.get(f"{key}_num"):
                numbers = " ".join(f"{total[f'{key}_{what}_pct']:9.4f}" for what in ("mean", "p90", "worst"))
                lines.append(f"{name:10} {key:10} {total[f'{key}_num']:5} {numbers}")
        if "num_verdicts" in total:
            wrong = f"wrong {total['wrong_verdicts']}, of them said to fit {total['dangerous_fits']}"
            lines.append(f"{name:10} {'verdict':10} {total['num_verdicts']:5} {wrong}")
    return lines


def main(names: list[str]) -> int:
    everything: dict[str, Any] = {
        "llmcheck": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "groups": {},
    }
    for name in names:
        results: list[dict[str, Any]] = []
        print(f"== {name}")
        for row in rows(name):
            try:
                result = measure(row)
            except UserError as error:
                result = {"set": row.group, "label": row.label, "not_modelled": error.what}
            results.append(result)
            print(_line(result))
        everything["groups"][name] = {"summary": summary(results), "rows": results}
        print()
    summaries = {name: group["summary"] for name, group in everything["groups"].items()}
    if len(summaries) > 1:
        summaries["all"] = summary([row for group in everything["groups"].values() for row in group["rows"]])
    print("\n".join(_sums(summaries)))
    (HERE / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in SETS]
    if unknown:
        sys.exit(f"no such set: {', '.join(unknown)}; there are {', '.join(SETS)}")
    sys.exit(main(sys.argv[1:] or list(SETS)))
