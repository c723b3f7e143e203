"""Throughput and memory of the trainer on one GPU, beside TRL's SFTTrainer: ``python -m benchmarks.trainer.run [--only NAME ...]``.

Needs the extra `train`, `trl` and `datasets` for the cases beside it, `liger-kernel` for those with its kernels. Each case is a process of
its own; the next one imports while the one before runs. Results are printed as they come and written as JSON lines to --out;
``python -m benchmarks.trainer.report FILE`` makes ``benchmarks/results/trainer-DATE.md`` of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.trainer import synthetic
from benchmarks.trainer.cases import CASES, WARM, Case
from benchmarks.trainer.common import make_plan
from llmcheck import planfile

NUM_SEQUENCES = 256
ROOT = Path(__file__).resolve().parents[2]


def plan_of(case: Case, folder: Path, gpu: str) -> tuple[Path, dict[str, str]]:
    """The case's plan file, made by `llmcheck plan`, and the environment that it wants."""
    path = folder / f"{case.name}.plan.json"
    words = ["--model", case.model, "--gpus", "1", "--gpu", gpu, "--seq-len", str(case.seq_len), "--allocator", "expandable"]
    words += ["--micro-batch", str(case.micro_batch), "--grad-accum", str(case.grad_accum), "--offload", "none", *case.plan]
    make_plan(words, path)
    return path, dict(planfile.read(str(path)).launch.env)


def data_of(case: Case, folder: Path, vocab_size: int) -> Path:
    """Rows for a case's steps and a few more; where a case takes more, a second epoch begins."""
    place = folder / f"{case.rows}-{vocab_size}-{case.seq_len}"
    if not place.exists():
        synthetic.write(place, synthetic.lengths_of(case.rows, case.seq_len, NUM_SEQUENCES), vocab_size, case.seq_len)
    return place


class Driver:
    """The process of one case: started early, told its job when the device is free."""

    def __init__(self, case: Case, folder: Path, gpu: str) -> None:
        self.case = case
        self.plan, env = plan_of(case, folder, gpu)
        self.data = data_of(case, folder, planfile.read(str(self.plan)).plan.model.config["vocab_size"])
        paths = [str(ROOT), str(ROOT / "rules"), str(ROOT / "trainer"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.trainer.drive_{case.trainer}"],
            env={**os.environ, **env, **case.env, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += self.process.stdout

    def run(self, limit_s: float) -> dict[str, Any]:
        """Its result, or what it said last."""
        job = {**asdict(self.case), "plan": str(self.plan), "data": str(self.data), "warm": WARM}
        began = time.perf_counter()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.close()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)
        answer = {"case": self.case.name, "group": self.case.group, "trainer": self.case.trainer, "wall_s": time.perf_counter() - began}
        found = [line for line in self.lines if line.startswith("RESULT ")]
        if found:
            return {**answer, **json.loads(found[-1][len("RESULT ") :])}
        return {**answer, "failed": "".join(self.lines[-25:])[-2500:]}

    def dismiss(self) -> None:
        """End it without a turn."""
        self.process.kill()
        self.process.wait()


def run(cases: list[Case], gpu: str, out: Path, limit_s: float) -> None:
    """Run the cases within `limit_s` seconds in all."""
    deadline = time.perf_counter() + limit_s
    with tempfile.TemporaryDirectory() as scratch, open(out, "a", encoding="utf-8") as file:
        following = Driver(cases[0], Path(scratch), gpu)
        for i in range(len(cases)):
            current = following
            if i + 1 < len(cases):
                following = Driver(cases[i + 1], Path(scratch), gpu)
            left = deadline - time.perf_counter()
            if left < 15:
                print(f"no time left for {', '.join(c.name for c in cases[i:])}", flush=True)
                current.dismiss()
                if following is not current:
                    following.dismiss()
                break
            result = current.run(left)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(_line(result), flush=True)


def _line(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"{result['case']}: FAILED after {result['wall_s']:.0f} s\n{result['failed']}"
    words = [f"{result['case']}: {result['tokens_per_s']:,.0f} tokens/s, step {result['step_s'] * 1000:.0f} ms, MFU {result['mfu']:.1%}"]
    if result["peak_allocated_bytes"]:
        words.append(f"peak {result['peak_allocated_bytes'] / 2**30:.2f} GiB, reserved {result['peak_reserved_bytes'] / 2**30:.2f}")
    if "planned_step_s" in result:
        words.append(f"planned {result['planned_step_s'] * 1000:.0f} ms, {result['planned_peak_allocated_bytes'] / 2**30:.2f} GiB")
        words.append("phases ms " + " ".join(f"{k}={v:.0f}" for k, v in result["phases_ms"].items()))
    words.append(f"loss {result['loss']:.3f}, wall {result['wall_s']:.0f} s")
    return "; ".join(words)


def _small(case: Case, model: str) -> Case:
    """The case without what needs a GPU."""
    plan = tuple("chunked" if word == "liger" else word for word in case.plan)
    return replace(case, model=model, seq_len=64, micro_batch=2, steps=2, plan=plan, trl={**case.trl, "use_liger_kernel": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases by name or group")
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--out", type=Path, default=Path("trainer-throughput.jsonl"))
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all cases")
    parser.add_argument("--tiny", metavar="MODEL", help="a folder with a small model, for trying the benchmark out on a CPU")
    args = parser.parse_args()
    cases = [case for case in CASES if not args.only or case.name in args.only or case.group in args.only]
    if args.only:
        cases.sort(key=lambda case: min(i for i, name in enumerate(args.only) if name in (case.name, case.group)))
    if args.tiny:
        cases = [_small(case, args.tiny) for case in cases]
    run(cases, args.gpu, args.out, args.limit)


if __name__ == "__main__":
    main()
