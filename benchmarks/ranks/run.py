"""The plan beside real ranks and beside the probe of the same plan: ``python -m benchmarks.ranks.run``; prints Markdown, needs no GPU.

Errors are predicted / measured - 1 in percent. The process is compared without and with what the plan has for NCCL.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.ranks.cases import plans
from llmcheck.planner.plan import Plan
from llmcheck.units import GIB, MIB

DATA = Path(__file__).parent / "data"
SHARED = DATA / "h100-shared-2026-11.jsonl"
WITH_NCCL, ALONE = DATA / "train-h100-2026-11.jsonl", DATA / "train-alone-h100-2026-11.jsonl"  # before and after llmcheck_trainer.alone
GPU, NUM_GPUS = "h100", 2


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _percent(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.3f}"


def ranks_table(planned: dict[str, Plan], lines: list[dict[str, Any]]) -> list[str]:
    """A line for each rank that ran: against the plan, and against the probe of the same plan."""
    out = [
        "| case | rank | allocated, GiB | plan, % | probe, % | reserved, GiB | plan, % | process, GiB | beyond the probe's, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    probes = {line["id"]: line["probe"] for line in lines if "probe" in line}
    for line in lines:
        if line["id"] not in planned or "ranks" not in line:
            continue
        probe, memory = probes[line["id"]], planned[line["id"]].memory
        for rank, found in enumerate(line["ranks"]):
            if "failed" in found:
                out.append(f"| {line['id']} | {rank} | failed | | | | | | |")
                continue
            estimate = memory.rank0 if rank == 0 else memory.worst
            peak, reserved, process = (found[name] for name in ("peak_allocated_bytes", "peak_reserved_bytes", "process_bytes"))
            more = (process - reserved) - (probe["process_bytes"] - probe["peak_reserved_bytes"])
            cells = [
                line["id"], str(rank),
                f"{peak / GIB:.3f}", _percent(estimate.peak_allocated_bytes, peak), _percent(probe["peak_allocated_bytes"], peak),
                f"{reserved / GIB:.3f}", _percent(estimate.peak_reserved_bytes, reserved), f"{process / GIB:.3f}", f"{more / MIB:.0f}",
            ]  # fmt: skip
            out.append("| " + " | ".join(cells) + " |")
    return out


def trained_table(lines: list[dict[str, Any]]) -> list[str]:
    """What `llmcheck train` had on one GPU, beside the plan that it ran."""
    out = [
        "| case | allocated, GiB | plan, % | reserved, % | process, % | beside the allocator, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        said, found = line["predicted"], line["measured"]
        peak = _percent(said["peak_allocated_bytes"], found["peak_allocated_bytes"])
        reserved = _percent(said["peak_reserved_bytes"], found["peak_reserved_bytes"])
        process = _percent(said["process_bytes"], found["process_bytes"])
        beside = (found["process_bytes"] - found["peak_reserved_bytes"]) / MIB
        out.append(f"| {line['id']} | {found['peak_allocated_bytes'] / GIB:.3f} | {peak} | {reserved} | {process} | {beside:.0f} |")
    return out


def main() -> int:
    """Print the tables."""
    planned = dict(plans(GPU, NUM_GPUS))
    print("Two real ranks through NCCL on one H100, host ids apart, over sockets:\n")
    print("\n".join(ranks_table(planned, _lines(SHARED))))
    print("\n`llmcheck train` on one H100, from rows to the receipt:\n")
    print("\n".join(trained_table(_lines(ALONE))))
    print("\nThe same before one rank had a process group of its own, when NCCL was started for it (plans of the day, without it):\n")
    print("\n".join(trained_table(_lines(WITH_NCCL))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
