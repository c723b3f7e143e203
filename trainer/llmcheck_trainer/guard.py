"""What stops or warns a run: NaN and loss spikes (with the rows that were in the step), memory that ran out, requests to stop."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from llmcheck.errors import UserError
from llmcheck.planfile import PlanFile
from llmcheck.units import gib

WINDOW = 50  # steps that a spike is judged by
MIN_HISTORY = 10
SPIKE_DEVIATIONS = 8.0
SPIKE_MIN_RATIO = 1.5  # of the window's mean: smooth runs have tiny deviations
MAX_LEFT_OUT = 10  # steps in a row: DeepSpeed leaves out those whose gradients are not numbers, and a run of only such learns nothing


class RunFailedError(UserError):
    """The run had to stop; the input may be right. Exit code 1."""

    exit_code = 1


class LossGuard:
    """Watches loss and gradients. `output` gets bad_steps.jsonl with the rows of each bad step.

    `scaled`: fp16, whose loss scaling finds its factor by steps that it leaves out, which is then nothing to speak of.
    """

    def __init__(self, output: str, *, stop_at_nan: bool, scaled: bool = False) -> None:
        self.path = os.path.join(output, "bad_steps.jsonl")
        self.stop_at_nan, self.scaled = stop_at_nan, scaled
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.num_left_out = 0

    def look(self, step: int, loss: float, norm: float | None, rows: Callable[[], list[dict[str, Any]]], *, write: bool) -> str:
        """ "" or what is wrong with `step`. `rows` tells what was in it; `write` on one rank. Raises RunFailedError for NaN."""
        kind = self._kind(loss, norm)
        self.num_left_out = self.num_left_out + 1 if kind == "gradient" else 0
        if kind and write:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, "loss": repr(loss), "rows": rows()}) + "\n")
        if kind != "nan":
            self.recent.append(loss)
        if not self.stop_at_nan:
            return kind
        if kind == "nan":
            raise self._stopped(f"the loss is {loss} at step {step}", "the rows of the step are listed there")
        if self.num_left_out == MAX_LEFT_OUT:
            what = f"the gradients of {MAX_LEFT_OUT} steps in a row are not numbers, up to step {step}"
            raise self._stopped(what, "the rows of the steps are listed there; nothing was learned from them")
        return kind

    def _stopped(self, what: str, why: str) -> RunFailedError:
        return RunFailedError(
            what,
            code="nan",
            where=self.path,
            why=why + "; every checkpoint is from before it",
            hint="look at those rows; a lower --lr or bf16 instead of fp16 often helps; --on-nan continue goes on",
        )

    def _kind(self, loss: float, norm: float | None) -> str:
        if not math.isfinite(loss):
            return "nan"
        if norm is not None and not math.isfinite(norm) and not self.scaled:
            return "gradient"
        return "spike" if self._is_spike(loss) else ""

    def _is_spike(self, loss: float) -> bool:
        if len(self.recent) < MIN_HISTORY:
            return False
        mean, deviation = statistics.fmean(self.recent), statistics.pstdev(self.recent)
        return loss > max(mean + SPIKE_DEVIATIONS * deviation, SPIKE_MIN_RATIO * mean)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory: PyTorch says so in several ways."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "CUDA out of memory" in str(error)
        or "NCCL WARN Cuda failure 'out of memory'" in str(error)
    )


def is_lost_scale(error: BaseException) -> bool:
    """Whether fp16's loss scaling has given up (deepspeed/runtime/fp16/loss_scaler.py, 0.19.8)."""
    return "loss scale already at minimum" in str(error)


def lost_scale(output: str, phase: str) -> RunFailedError:
    """The error of a run in fp16 whose gradients overflow, or are not numbers, whatever the loss is scaled by."""
    return RunFailedError(
        f"the gradients are not numbers, whatever the loss is scaled by, in {phase}",
        code="nan",
        where=output,
        why="fp16's loss scaling has halved its factor to the minimum, and left out each of these steps",
        hint="plan with --precision bf16; a lower --lr often helps; the same command goes on from the newest checkpoint",
    )


def is_lost_rank(error: BaseException) -> bool:
    """Whether the ranks can no longer reach each other: NCCL, the store and gloo say so in different ways."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and "gloo" in text
        and any(word in text for word in ("peer", "imed out", "Read error", "Write error"))
    )


def lost_rank(output: str, phase: str, newest: str | None, error: BaseException) -> RunFailedError:
    """The error of a rank whose collective failed because another is gone. `newest`: the checkpoint to go on from."""
    text = str(error).strip()
    return RunFailedError(
        f"another rank is gone, or cannot be reached, in {phase}",
        code="rank-lost",
        where=output,
        why=text.splitlines()[0][:300] if text else type(error).__name__,
        hint="its own error or its exit code in the launcher's lines says why: -9 is often the system for want of host memory (dmesg); "
        + (f"the same command goes on from {os.path.basename(newest)}" if newest else "no checkpoint had been saved"),
    )


def file_error(phase: str, error: OSError) -> RunFailedError:
    """The error to end with where the system refuses a file."""
    return RunFailedError(
        f"{error.strerror}, in {phase}",
        code="files",
        where=os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else "--output",
        why=f"{type(error).__name__}, errno {error.errno}",
        hint="mend that, and start the same command again: it goes on from the newest whole checkpoint",
    )


def out_of_memory(plan_file: PlanFile, phase: str, device: torch.device, error: BaseException) -> RunFailedError:
    """The error to end with: what was measured against what was planned, the plan's parts, and its levers in order of what they free."""
    plan = plan_file.plan
    rank = plan.memory.worst
    lines = [str(error).splitlines()[0][:300] if str(error) else type(error).__name__]
    if device.type == "cuda":
        lines.append(
            f"measured peak {gib(torch.cuda.max_memory_allocated(device))} allocated, "
            f"{gib(torch.cuda.max_memory_reserved(device))} reserved of "
            f"{gib(torch.cuda.get_device_properties(device).total_memory)}; planned {gib(rank.peak_allocated_bytes)} allocated, "
            f"{gib(rank.required_bytes)} required"
        )
    parts = sorted(rank.breakdown.items(), key=lambda part: -part[1])
    lines.append("planned parts at the peak: " + ", ".join(f"{name.replace('_', ' ')} {gib(size)}" for name, size in parts if size))
    levers = sorted((lever for lever in plan.what_if if lever.delta_bytes < 0), key=lambda lever: lever.delta_bytes)
    ways = [f"{' '.join(lever.flags)} ({gib(lever.delta_bytes)}, {lever.speed_ratio:.2f}x speed)" for lever in levers]
    return RunFailedError(
        f"out of memory in {phase}",
        code="out-of-memory",
        where=f"plan {plan_file.digest[:19]}, {plan.model.name} on {plan.cluster.num_gpus} x {plan.cluster.gpu.name}",
        why="; ".join(lines),
        hint="plan again with " + "; or ".join(ways) if ways else "plan again for this GPU: `llmcheck plan`; is another process on it?",
    )
