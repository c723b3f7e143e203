"""Compare the simulation with the measured runs: ``python -m benchmarks.accuracy.run [peaks boundary ...]``.

Prints one line a run and the sums per group; writes ``results.json`` beside itself.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rows import Row, cap_bytes, rows
from llmcheck import __version__
from llmcheck.errors import UserError
from llmcheck.shadow.run import simulate_rank

HERE = Path(__file__).parent


def measure(row: Row) -> dict[str, Any]:
    """Errors of one run in percent, and the CPU seconds that the estimate took."""
    start = time.process_time()
    estimate = simulate_rank(row.model, row.recipe, row.cluster, rank=row.rank, cap_bytes=cap_bytes(row))
    cpu_s = time.process_time() - start
    raw = row.raw
    out: dict[str, Any] = {"label": row.label, "cpu_s": round(cpu_s, 3)}
    if "cap_gib" in raw:
        out["cap_gib"] = raw["cap_gib"]
        out["measured"] = raw["outcome"]
        out["predicted"] = "oom" if estimate.out_of_memory is not None else "ok"
        out["retries"] = (raw.get("num_alloc_retries"), estimate.num_alloc_retries)
        return out
    out["allocated_bytes"] = raw["peak_alloc_train"]
    for key, got, want in (
        ("allocated", estimate.peak_allocated_bytes, raw["peak_alloc_train"]),
        ("reserved", estimate.peak_reserved_bytes, raw["peak_reserved"]),
        ("process", estimate.process_bytes, raw["nvml_proc"]),
    ):
        out[f"{key}_error_pct"] = round(100 * (got / want - 1), 4)
    return out


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst absolute errors, and wrong verdicts."""
    out: dict[str, Any] = {}
    runs = [r for r in results if "allocated_error_pct" in r]
    if runs:
        out["num_runs"] = len(runs)
        for key in ("allocated", "reserved", "process"):
            errors = [abs(r[f"{key}_error_pct"]) for r in runs]
            out[f"{key}_mean_pct"] = round(statistics.mean(errors), 4)
            out[f"{key}_worst_pct"] = round(max(errors), 4)
        out["byte_exact_allocated_to_1e-4"] = sum(abs(r["allocated_error_pct"]) <= 0.01 for r in runs)
    verdicts = [r for r in results if "predicted" in r]
    if verdicts:
        out["num_verdicts"] = len(verdicts)
        out["wrong_verdicts"] = sum(r["predicted"] != r["measured"] for r in verdicts)
        out["dangerous_fits"] = sum(r["predicted"] == "ok" and r["measured"] == "oom" for r in verdicts)
    return out


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
            if "error" in row.raw and "outcome" not in row.raw:
                continue
            try:
                result = measure(row)
            except UserError as error:
                result = {"label": row.label, "not_modelled": error.what}
            results.append(result)
            if "predicted" in result:
                mark = "" if result["predicted"] == result["measured"] else "  <-- wrong"
                print(f"{result['label']:58} cap {result['cap_gib']:5} measured {result['measured']:4} predicted {result['predicted']}{mark}")
            elif "allocated_error_pct" in result:
                print(
                    f"{result['label']:58} {result['allocated_bytes'] / 2**30:8.3f} GiB  allocated {result['allocated_error_pct']:+9.4f} %  "
                    f"reserved {result['reserved_error_pct']:+8.3f} %  process {result['process_error_pct']:+8.3f} %  {result['cpu_s']:.2f} s"
                )
            else:
                print(f"{result['label']:58} not modelled: {result['not_modelled']}")
        total = summary(results)
        everything["groups"][name] = {"summary": total, "rows": results}
        print(json.dumps(total), "\n")
    (HERE / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or sorted(p.stem for p in (HERE / "data").glob("*.jsonl"))))
