"""Measure drawn runs on a GPU: ``python -m benchmarks.holdout.measure RUNS.jsonl PREDICTIONS.jsonl OUT.jsonl SECONDS``.

Each run has a process of its own, forked from one that has imported everything and has no CUDA context. Runs whose reserved memory depends
on how far the CPU is ahead of the GPU (ZeRO-3, and overlapped communication) run alone; of the others several share the GPU, and those
repeat alone while time is left, for the driver's figure of the process. A line goes to OUT as soon as it is there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.holdout import job

NUM_WORKERS = 4
TOGETHER_BYTES = 70 * 2**30  # of the processes that share the GPU, as predicted
LIMIT_S = 45.0  # of one run
DEVICE = os.environ.get("HOLDOUT_DEVICE", "cuda")


def child(case: dict[str, Any], alone: bool, out: Path) -> None:
    """Measure one run; the result, or what went wrong, into `out`."""
    try:
        found = job.run(case, alone=alone, device=DEVICE)
    except BaseException as error:
        words = f"{type(error).__name__}: {error}"[:600]
        found = {**case, "error": words, "traceback": traceback.format_exc()[-2500:]}
    found["alone"] = alone
    out.write_text(json.dumps(found))


class Worker:
    """A forked process that measures one run."""

    def __init__(self, case: dict[str, Any], alone: bool, scratch: Path, predicted_bytes: int) -> None:
        self.case, self.alone, self.predicted_bytes = case, alone, predicted_bytes
        self.out, self.began = scratch / f"{case['id']}.json", time.monotonic()
        self.log = self.out.with_suffix(".log")
        self.out.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            child(case, alone, self.out)
            os._exit(0)

    def result(self, deadline: float) -> dict[str, Any] | None:
        """The result once it is there; a run past its limit is ended."""
        late = time.monotonic() > min(self.began + LIMIT_S, deadline)
        if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if not late:
                return None
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            return {**self.case, "alone": self.alone, "error": "past its limit", "log": self.log.read_text(errors="replace")[-500:]}
        if not self.out.exists():
            return {**self.case, "alone": self.alone, "error": "no result", "log": self.log.read_text(errors="replace")[-500:]}
        found: dict[str, Any] = json.loads(self.out.read_text())
        found["process_s"] = round(time.monotonic() - self.began, 1)
        return found


class Session:
    """Runs until a deadline; results go to a file."""

    def __init__(self, out: Path, scratch: Path, deadline: float, predicted: dict[str, int]) -> None:
        self.out, self.scratch, self.deadline, self.predicted = out, scratch, deadline, predicted
        self.running: list[Worker] = []

    def measure(self, cases: Iterable[dict[str, Any]], workers: int, spare_s: float) -> list[dict[str, Any]]:
        """Start each case when there is room for it; the cases that time was too short for."""
        waiting = list(cases)
        while waiting or self.running:
            if time.monotonic() > self.deadline - spare_s and not self.running:
                return waiting
            if time.monotonic() <= self.deadline - spare_s:
                self._start(waiting, workers)
            for worker in list(self.running):
                found = worker.result(self.deadline)
                if found is not None:
                    self.running.remove(worker)
                    self._keep(found)
            time.sleep(0.05)
        return []

    def _start(self, waiting: list[dict[str, Any]], workers: int) -> None:
        for case in list(waiting):
            if len(self.running) >= workers:
                return
            need = self.predicted[case["id"]]
            if self.running and need + sum(w.predicted_bytes for w in self.running) > TOGETHER_BYTES:
                continue
            waiting.remove(case)
            self.running.append(Worker(case, workers == 1, self.scratch, need))

    def _keep(self, found: dict[str, Any]) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
        words = (
            f"allocated {found.get('peak_alloc_train', 0) / 2**30:.3f} reserved {found.get('peak_reserved', 0) / 2**30:.3f} GiB "
            f"skipped {found['skipped']} step {found['step_s']} s"
            if "error" not in found
            else str(found["error"]).partition("\n")[0]
        )
        print(found["id"], "alone" if found["alone"] else "shared", words, f"in {found.get('process_s', '?')} s", flush=True)


def timed(case: dict[str, Any]) -> bool:
    """Whether reserved memory depends on the clock."""
    return case["zero"] == 3 or bool(case["ds"].get("zero_optimization", {}).get("overlap_comm"))


def main(argv: list[str]) -> int:
    """Measure all; 1 where time was too short for one."""
    deadline = time.monotonic() + float(argv[3])
    cases = [json.loads(line) for line in Path(argv[0]).read_text().splitlines()]
    predicted = {p["id"]: p["process"] for p in map(json.loads, Path(argv[1]).read_text().splitlines())}
    out, scratch = Path(argv[2]), Path(tempfile.mkdtemp())
    began = time.monotonic()
    if DEVICE == "cuda":
        pid = os.fork()
        if pid == 0:
            job.prepare()
            os._exit(0)
        os.waitpid(pid, 0)
        print(f"FusedAdam compiled in {time.monotonic() - began:.0f} s", flush=True)
        assert not torch.cuda.is_initialized(), "a process that has seen the GPU cannot fork"
    session = Session(out, scratch, deadline, predicted)
    together, alone = [c for c in cases if not timed(c)], [c for c in cases if timed(c)]
    left = session.measure(together, NUM_WORKERS, 30)
    print(f"{len(together)} shared the GPU, after {time.monotonic() - began:.0f} s", flush=True)
    left += session.measure(alone, 1, 15)
    print(f"{len(alone)} alone, after {time.monotonic() - began:.0f} s", flush=True)
    again = session.measure(together, 1, 12)
    print(f"{len(together) - len(again)} again alone, after {time.monotonic() - began:.0f} s; not measured: {[c['id'] for c in left]}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
