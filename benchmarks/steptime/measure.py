"""What a step is made of, on one H100: ``python -m benchmarks.steptime.measure OUT.jsonl [--limit SECONDS] [ID ...]``.

For each recipe of ``data/phase-cases.jsonl``, rank 0 of N with the bundled trainer's engine and step (as benchmarks.probe does, collectives
going to PyTorch's fake process group):

- `steps_s`: steps as the trainer runs them, nothing waits for the device but what DeepSpeed does itself;
- `issue_s`: when the host had issued forward, backward and step in those steps (medians);
- `phases_s`: forward, backward and step when the device is waited for after each, as in the ground truth of issue 2;
- `kernels`: one step's kernels by the device's clock: name, microseconds, number; `busy_s` is their sum, `num_kernels` their number.

The first line is the host: what an operator costs it, its memory bandwidth, copies to and from the device (pinned, pageable, fresh),
DeepSpeedCPUAdam by number of elements. Each case runs in a fork of a process that has imported everything and has no CUDA context yet.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(PYTORCH_NVML_BASED_CUDA_CHECK="1", TOKENIZERS_PARALLELISM="false")

import deepspeed  # noqa: F401 - imported once, for all forks
import torch
import torch.distributed as dist

from benchmarks.forked import in_fork
from benchmarks.probe.cases import Case, cases
from llmcheck_trainer import calibrate, model, rehearsal, varlen
from llmcheck_trainer.engine import build_engine, set_lr, train_step
from llmcheck_trainer.placement import choose_packing, placement_of

CASES = Path(__file__).parent / "data" / "phase-cases.jsonl"
LIMIT_S = 60.0  # of one case
WARM, TIMED, SYNCED = 3, 5, 3  # steps
ELEMENTS = 1 << 27  # of the host's measurements
FEW_ELEMENTS = 1 << 24
NUM_KERNELS = 45  # names that are kept
NAME = 90  # characters of a kernel's name

Marks = list[tuple[str, float]]


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """The shortest of a few calls after one, the device waited for."""
    found = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def host() -> dict[str, Any]:
    """The host of this machine; bytes a second, seconds."""
    torch.zeros(1, device="cuda")
    fp32 = torch.zeros(ELEMENTS)
    half = torch.zeros(ELEMENTS, dtype=torch.bfloat16)
    on_device, on_device_half = torch.zeros(ELEMENTS, device="cuda"), torch.zeros(ELEMENTS, device="cuda", dtype=torch.bfloat16)
    pinned = torch.zeros(ELEMENTS, pin_memory=True)
    pinned_half = torch.zeros(ELEMENTS, dtype=torch.bfloat16, pin_memory=True)
    result: dict[str, Any] = {
        "id": "host",
        "num_threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "op_s": calibrate._op(),
        "kernel_s": calibrate._kernel(),
        "mul_s": seconds(lambda: fp32.mul_(1.0)),  # 8 bytes an element
        "mul_tensor_s": seconds(lambda: fp32.mul_(torch.ones(()))),
        "to_half_s": seconds(lambda: half.copy_(fp32)),
        "to_half_fresh_s": seconds(lambda: fp32.to(torch.bfloat16)),
        "down_pinned_s": seconds(lambda: pinned.copy_(on_device, non_blocking=True)),
        "down_pageable_s": seconds(lambda: fp32.copy_(on_device, non_blocking=True)),
        "up_pinned_half_s": seconds(lambda: on_device_half.copy_(pinned_half, non_blocking=True)),
        "up_pageable_half_s": seconds(lambda: on_device_half.copy_(half)),
        "up_fp32_to_half_s": seconds(lambda: on_device_half.copy_(fp32)),  # converted on the host into fresh memory
        "up_pinned_fp32_to_half_s": seconds(lambda: on_device_half.copy_(pinned)),
    }
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    for elements in (ELEMENTS, FEW_ELEMENTS):
        for name, place in (("pinned", pinned), ("pageable", fp32)):
            parameter = torch.nn.Parameter(place[:elements])
            parameter.grad = torch.zeros(elements, pin_memory=name == "pinned")
            optimizer = DeepSpeedCPUAdam([parameter], lr=1e-5, adamw_mode=True)
            result[f"adam_{name}_{elements}_s"] = seconds(optimizer.step)
            del optimizer, parameter
    result["elements"] = ELEMENTS
    return result


class Run:
    """One case: its engine and a step of it."""

    def __init__(self, case: Case) -> None:
        spec, recipe = case.model, case.recipe
        self.recipe = recipe
        self.device = rehearsal.join(case.rank, case.cluster.num_gpus)
        config = model.build_config(spec, recipe, None)
        packing = choose_packing("auto", spec, recipe, config)
        self.placement = placement_of(spec, recipe, self.device, model.DTYPES[recipe.precision], packing=packing, config=config)
        torch.manual_seed(0)
        net = model.build_model(spec, recipe, self.device, folder=None)
        if self.placement.rows:
            varlen.install(net)
        rehearsal.fill(net)
        fp16 = {**recipe.deepspeed.get("fp16", {}), "initial_scale_power": rehearsal.FP16_SCALE_POWER}
        more: dict[str, Any] = {"fp16": fp16} if recipe.precision == "fp16" else {}
        self.engine = build_engine(net, recipe, self.device, lr=1e-5, **more)
        self.total = torch.zeros((), dtype=torch.float32, device=self.device)
        self.vocab = config.get_text_config().vocab_size
        self.supervised = recipe.micro_batch_size * recipe.grad_accum_steps * dist.get_world_size() * (recipe.seq_len - 1)
        gc.collect()

    def step(self, mark: Callable[[str], None]) -> None:
        """What the training loop does on the device in a step."""
        set_lr(self.engine, 1e-5)
        self.total.zero_()
        batches = rehearsal._batches(self.recipe, self.vocab, self.placement)
        train_step(self.engine, map(self.placement.put, batches), self.supervised, total=self.total, mark=mark)
        dist.all_reduce(torch.stack((self.total, torch.zeros_like(self.total))))
        self.engine.get_global_grad_norm()

    def timed(self, number: int, *, wait: bool) -> dict[str, Any]:
        """`number` steps: seconds of each, and from one mark to the next; `wait` for the device at each."""
        rows: list[Marks] = []
        torch.cuda.synchronize()
        for _ in range(number):
            marks: Marks = [("begin", time.perf_counter())]

            def mark(name: str, marks: Marks = marks) -> None:
                if wait:
                    torch.cuda.synchronize()
                marks.append((name, time.perf_counter()))

            self.step(mark)
            rows.append(marks)
        torch.cuda.synchronize()
        end = time.perf_counter()
        spans: dict[str, list[float]] = {}
        for marks in rows:
            for (_, before), (name, after) in itertools.pairwise(marks):
                spans.setdefault(name, []).append(after - before)
        starts = [marks[0][1] for marks in rows] + [end]
        return {
            "steps_s": [b - a for a, b in itertools.pairwise(starts)],
            "mean_s": (end - starts[0]) / number,
            "spans_s": {name: statistics.median(values) for name, values in spans.items()},
        }

    def kernels(self) -> dict[str, Any]:
        """The kernels of one step."""
        from torch.profiler import ProfilerActivity, profile

        try:
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                self.step(lambda _: None)
                torch.cuda.synchronize()
        except (RuntimeError, AssertionError) as error:  # no access to the device's counters: the times stay
            return {"no_kernels": str(error)[:200]}
        rows = [row for row in found.key_averages() if row.self_device_time_total > 0]
        rows.sort(key=lambda row: -row.self_device_time_total)
        return {
            "busy_s": sum(row.self_device_time_total for row in rows) / 1e6,
            "num_kernels": sum(row.count for row in rows),
            "kernels": [[row.key[:NAME], round(row.self_device_time_total), row.count] for row in rows[:NUM_KERNELS]],
        }


def measure(case: Case) -> dict[str, Any]:
    """One case."""
    if case.recipe.allocator == "expandable":
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    run = Run(case)
    for _ in range(WARM):
        run.step(lambda _: None)
    free = run.timed(TIMED, wait=False)
    held = run.timed(SYNCED, wait=True)
    return {
        **case.raw,
        "steps_s": free["steps_s"],
        "step_s": free["mean_s"],
        "issue_s": free["spans_s"],
        "phases_s": held["spans_s"],
        "synced_step_s": min(held["steps_s"]),
        "num_skipped": getattr(run.engine, "skipped_steps", None),
        **run.kernels(),
    }


def main(argv: list[str]) -> int:
    """Measure the host and the cases named, or all, within the limit; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds in all")
    args = parser.parse_args(argv)
    until = time.monotonic() + args.limit
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [("host", host)]
    jobs += [(case.label, partial(measure, case)) for case in cases(CASES)]
    failed = 0
    for name, call in jobs:
        if args.ids and name not in args.ids:
            continue
        left = until - time.monotonic()
        if left < 3:
            print(f"no time left for {name}", flush=True)
            continue
        began = time.monotonic()
        found = in_fork(call, args.out.with_suffix(".part"), min(LIMIT_S, left))
        failed += "error" in found
        with args.out.open("a") as file:
            file.write(json.dumps({"id": name, **found}) + "\n")
        print(name, f"{time.monotonic() - began:.1f} s", found.get("error") or f"step {found.get('step_s')}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
