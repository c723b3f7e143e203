"""What the planner says of drawn runs, before anyone measures them: ``python -m benchmarks.holdout.predict RUNS.jsonl OUT.jsonl``.

Each line has the commit that it was computed with; the working tree must be clean but for the two files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rows import to_row
from llmcheck.shadow.run import simulate_rank


def predict(raw: dict[str, Any]) -> dict[str, Any]:
    """The planner's figures for one run, in bytes."""
    row = to_row(raw, "holdout")
    found = simulate_rank(row.model, row.recipe, row.cluster, rank=row.rank)
    return {
        "id": raw["id"],
        "n_params": row.model.num_params,
        "peak_alloc_train": found.peak_allocated_bytes,
        "peak_alloc_init": found.init_peak_allocated_bytes,
        "peak_reserved": found.peak_reserved_bytes,
        "peak_reserved_low": found.peak_reserved_low_bytes,
        "peak_reserved_high": found.peak_reserved_high_bytes,
        "process": found.process_bytes,
        "num_alloc_retries": found.num_alloc_retries,
        "verdict": "ok" if found.out_of_memory is None else "oom",
        "phases": {
            p.name: {"alloc": p.allocated_bytes, "peak": p.peak_allocated_bytes, "reserved": p.reserved_bytes} for p in found.phases
        },
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


def main(argv: list[str]) -> int:
    """Predict every run; 1 where the code differs from its commit."""
    changed = _git("status", "--porcelain", "--", "llmcheck", "benchmarks/accuracy", "benchmarks/holdout/*.py")
    if changed:
        print(f"not committed:\n{changed}")
        return 1
    commit = _git("rev-parse", "HEAD")
    lines = [json.dumps({"commit": commit, **predict(json.loads(line))}) for line in Path(argv[0]).read_text().splitlines()]
    Path(argv[1]).write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} predictions at {commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
