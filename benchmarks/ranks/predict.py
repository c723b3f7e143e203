"""What the plans say of two GPUs of a node, before they are run: ``python -m benchmarks.ranks.predict [--gpu H200]``.

Prints the table of ``benchmarks/results/two-h200-predicted-2026-11-24.md``.
"""

from __future__ import annotations

import argparse

from benchmarks.ranks.cases import plans
from benchmarks.ranks.measure import NUM_RANKS
from llmcheck.units import MIB

NCCL_DOUBT_MIB = -416, 184  # the interval of two H200 around the plan's 1,266 MiB: results/nccl-memory-predicted-2026-11-24.md
HEAD = (
    "case", "allocated, MiB", "reserved, MiB", "process, MiB", "interval, MiB", "step, s", "interval, s", "GPU, s", "CPU, s",
    "communication, s",
)  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h200")
    args = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n| --- |" + " ---: |" * (len(HEAD) - 1))
    for name, plan in plans(args.gpu, NUM_RANKS):
        rank, time = plan.memory.rank0, plan.time
        beyond = rank.process_bytes + rank.nccl_bytes - rank.peak_reserved_bytes
        low, high = (
            (reserved + beyond) // MIB + doubt
            for reserved, doubt in zip((rank.peak_reserved_low_bytes, rank.peak_reserved_high_bytes), NCCL_DOUBT_MIB, strict=True)
        )
        cells = (
            name,
            f"{rank.peak_allocated_bytes / MIB:,.0f}",
            f"{rank.peak_reserved_bytes / MIB:,.0f}",
            f"{(rank.process_bytes + rank.nccl_bytes) / MIB:,.0f}",
            f"{low:,} to {high:,}",
            f"{time.step_s:.3f}",
            f"{time.step_s * (1 - time.error_fraction):.3f} to {time.step_s * (1 + time.error_fraction):.3f}",
            f"{time.compute_s + time.optimizer_s:.3f}",
            f"{time.host_s:.3f}",
            f"{time.communication_exposed_s:.4f}",
        )
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
