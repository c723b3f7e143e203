"""Run the cases on this machine's GPU: ``python -m benchmarks.probe.measure PLANS OUT.jsonl [ID ...]``, PLANS by benchmarks.probe.plans.

Each case runs in a fork of a process that has imported everything and has no CUDA context yet, so that a run takes seconds. It needs what
the trainer needs, and the compiler of FusedAdam at the first case. OUT gets a line for each case as soon as it is done.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(PYTORCH_NVML_BASED_CUDA_CHECK="1", TOKENIZERS_PARALLELISM="false")

import deepspeed  # noqa: F401 - imported once, for all forks
import torch

from benchmarks.forked import in_fork
from llmcheck import planfile
from llmcheck_trainer import rehearsal

LIMIT_S = 180.0  # of one case
KEPT = (
    "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes", "num_alloc_retries", "host_peak_bytes", "step_s", "num_steps_timed",
    "num_skipped", "phases",
)  # fmt: skip


def measure(path: Path, rank: int) -> dict[str, Any]:
    """What the rehearsal of one plan measures."""
    plan_file = planfile.read(str(path))
    torch.cuda.memory._set_allocator_settings(plan_file.launch.env["PYTORCH_CUDA_ALLOC_CONF"])
    return rehearsal.measure(plan_file, rank=rank)


def main(argv: list[str]) -> int:
    """Measure the cases named, or all; 1 where one failed."""
    folder, out, wanted = Path(argv[0]), Path(argv[1]), set(argv[2:])
    failed = 0
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        if wanted and case["id"] not in wanted:
            continue
        found = in_fork(partial(measure, folder / f"{number:03}.json", case.get("rank", 0)), out.with_suffix(".part"), LIMIT_S)
        outcome = found.get("outcome", "error")
        if outcome == "measured":
            with out.open("a") as file:
                file.write(json.dumps({**case, "measured": {key: found[key] for key in KEPT}}) + "\n")
        else:
            failed += 1
        print(case["id"], outcome, found.get("error", ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
