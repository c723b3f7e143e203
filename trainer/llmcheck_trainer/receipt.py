"""What a run really took: memory of each rank by phase, step times, versions; written beside what the plan said as run.json."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from llmcheck.planfile import PlanFile
from llmcheck.types import PhaseStats, TrainSettings

SCHEMA = "llmcheck.run/1"
NUM_STEPS_BY_PHASE = 3  # the third step is like all later ones
NUM_WARM_STEPS = 2  # left out of the step time
_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "accelerate", "bitsandbytes", "liger_kernel", "flash_attn")


class Meter:
    """Memory of this rank's device by phase. Reading it waits for the device, so only the first steps have phases."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: list[PhaseStats] = []
        self.step = 0
        self.step_s: list[float] = []
        self._peak_allocated = self._peak_reserved = 0
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """End the phase `name`; within a step, fwd, bwd or step."""
        if self.device.type != "cuda":
            return
        if name in ("fwd", "bwd", "step"):
            if self.step >= NUM_STEPS_BY_PHASE:
                return
            name += str(self.step)
        torch.cuda.synchronize(self.device)
        self.phases.append(
            PhaseStats(
                name=name,
                allocated_bytes=torch.cuda.memory_allocated(self.device),
                peak_allocated_bytes=torch.cuda.max_memory_allocated(self.device),
                reserved_bytes=torch.cuda.memory_reserved(self.device),
                peak_reserved_bytes=torch.cuda.max_memory_reserved(self.device),
            )
        )
        self._remember()
        torch.cuda.reset_peak_memory_stats(self.device)

    def step_done(self) -> None:
        """Count a step and its time, which includes whatever the loop did in it."""
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now
        self.step += 1

    def pause(self) -> None:
        """Leave what came since the last step (evaluation, saving) out of the next step's time."""
        self._last = time.perf_counter()

    def _remember(self) -> None:
        training = not self.phases or self.phases[-1].name not in ("model", "init")
        if training:
            self._peak_allocated = max(self._peak_allocated, torch.cuda.max_memory_allocated(self.device))
        self._peak_reserved = max(self._peak_reserved, torch.cuda.max_memory_reserved(self.device))

    def now(self) -> tuple[int, int]:
        """Bytes allocated now and at the peak of training."""
        if self.device.type != "cuda":
            return 0, 0
        self._remember()
        return torch.cuda.memory_allocated(self.device), self._peak_allocated

    def record(self) -> dict[str, Any]:
        """This rank's part of run.json. Memory is null where there is no GPU."""
        gpu = self.device.type == "cuda"
        if gpu:
            self._remember()
        warm = self.step_s[NUM_WARM_STEPS:] or self.step_s
        return {
            "rank": dist.get_rank(),
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name(self.device) if gpu else "cpu",
            "device_memory_bytes": torch.cuda.get_device_properties(self.device).total_memory if gpu else None,
            "peak_allocated_bytes": self._peak_allocated if gpu else None,
            "peak_reserved_bytes": self._peak_reserved if gpu else None,
            "process_bytes": process_bytes(self.device) if gpu else None,
            "num_alloc_retries": torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0) if gpu else None,
            "host_peak_bytes": _host_peak_bytes(),
            "step_s": statistics.median(warm) if warm else None,
            "num_steps_timed": len(warm),
            "phases": [asdict(phase) for phase in self.phases],
        }


def write(
    output: str,
    plan_file: PlanFile,
    settings: TrainSettings,
    meter: Meter,
    outcome: str,
    progress: dict[str, Any],
    inputs: Mapping[str, Any],
) -> None:
    """Write run.json; all ranks call it. After an out-of-memory error each failing rank cannot count on the others: rank 0 writes alone."""
    own = meter.record()
    ranks: list[Any] = [own]
    if outcome != "out-of-memory":
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
    if dist.get_rank() != 0 and outcome != "out-of-memory":
        return
    plan = plan_file.plan
    document = {
        "schema": SCHEMA,
        "llmcheck_version": _version("llmcheck"),
        "plan_digest": plan_file.digest,
        "plan_edited": plan_file.edited,
        "outcome": outcome,
        "world_size": dist.get_world_size(),
        "versions": versions(),
        "settings": settings._asdict(),
        "allowed": [asdict(each) for each in plan_file.allowed],
        "data": inputs.get("data"),
        "eval_data": inputs.get("eval_data"),
        "progress": progress,
        "predicted": {
            "peak_allocated_bytes": plan.memory.rank0.peak_allocated_bytes,
            "peak_reserved_bytes": plan.memory.rank0.peak_reserved_bytes,
            "process_bytes": plan.memory.rank0.process_bytes,
            "step_s": plan.time.step_s,
            "phases": [asdict(phase) for phase in plan.memory.rank0.phases],
        },
        "ranks": ranks,
    }
    name = "run.json" if dist.get_rank() == 0 else f"run-rank{dist.get_rank()}.json"
    scratch = os.path.join(output, f".{name}.part")
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False)
    os.replace(scratch, os.path.join(output, name))


def versions() -> dict[str, str | None]:
    """Versions of what decides memory and speed; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    return {**found, **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _host_peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_bytes(device: torch.device) -> int | None:
    """What the driver says this process has on the device; None where it does not say (containers hide process ids)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(_bus_id(device))
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return process.usedGpuMemory
    except Exception:  # no library, no driver, no permission: the figure is a courtesy
        return None
    return None


def _bus_id(device: torch.device) -> bytes:
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0".encode()
