"""CPU time of whole `llmcheck` processes: ``python -m benchmarks.speed.run [--llmcheck PYTHON]``.

Explicit recipes, automatic searches, the help. Models are the catalogue's; there is no network. Writes
``benchmarks/results/speed-DATE.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.run import environment, timed
from benchmarks.report import header, table, write
from llmcheck import __version__

_7B = "--model llama-2-7b --gpus 8 --gpu A100-80G --micro-batch 1 --seq-len 2048"


class Case(NamedTuple):
    """A command and the CPU seconds that it may take."""

    what: str
    words: str
    bar_s: float


CASES = (
    Case("help", "--help", 0.15),
    Case("7B, full, ZeRO-2, checkpointing", f"plan {_7B} --method full --zero 2 --checkpointing on", 0.4),
    Case("7B, full, ZeRO-3, checkpointing", f"plan {_7B} --method full --zero 3 --checkpointing on", 0.4),
    Case("7B, LoRA, ZeRO-2, no checkpointing", f"plan {_7B} --method lora --zero 2 --checkpointing off", 0.4),
    Case("7B, LoRA, ZeRO-3, checkpointing", f"plan {_7B} --method lora --zero 3 --checkpointing on", 0.4),
    Case("search, 7B", "plan --model bloomz-7b1 --gpus 8", 2.0),
    Case("search, 13B", "plan --model llama-2-13b --gpus 8", 2.0),
    Case("search, 8x7B", "plan --model mixtral-8x7b --gpus 8 --gpu A100-80G", 2.0),
    Case("search, 70B", "plan --model llama-3-70b --gpus 8 --gpu A100-80G", 2.0),
    Case("search, 70B, ZeRO-3", "plan --model llama-3-70b --gpus 8 --gpu A100-80G --zero 3", 2.0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Time every case and write the results file; 1 where one takes longer than its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.run", description="CPU time of whole llmcheck processes.")
    parser.add_argument("--llmcheck", default=sys.executable, metavar="PYTHON", help="the interpreter whose llmcheck is timed")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    body: list[tuple[object, ...]] = []
    late = 0
    with tempfile.TemporaryDirectory(prefix="llmcheck-speed-") as name:
        env = environment(Path(name))
        for case in CASES:
            spent = timed([args.llmcheck, "-m", "llmcheck", *case.words.split()], env, args.repeats)
            late += spent.cpu_s > case.bar_s
            print(f"{case.what:36} {spent.cpu_s:7.3f} CPU s (bar {case.bar_s})", flush=True)
            body.append((case.what, f"{spent.cpu_s:.3f}", case.bar_s, f"{spent.wall_s:.3f}", f"{spent.peak_bytes / 2**20:.0f}"))
    lines = [
        *header("Speed of llmcheck", "python -m benchmarks.speed.run", [f"llmcheck {__version__}"]),
        f"Median of {args.repeats} runs after one that is not counted; CPU is user + system of the whole process. 8 GPUs everywhere.",
        "",
        *table(("what", "CPU s", "bar", "wall s", "resident MiB"), body),
    ]
    print(f"wrote {write('speed', lines).name}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
