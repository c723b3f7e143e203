"""One case in the trainer: its own model, engine, data stream and step, without weights to load, saving and evaluation."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.trainer import common
from llmcheck import planfile


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, seconds and bytes of the job's plan on its data."""
    import torch
    import torch.distributed as dist

    from llmcheck_trainer import model, receipt, varlen
    from llmcheck_trainer.data import Prepared, Shape, Stream
    from llmcheck_trainer.engine import build_engine, set_lr, start_process_group, train_step
    from llmcheck_trainer.placement import choose_packing, placement_of

    plan = planfile.read(job["plan"]).plan
    recipe = plan.recipe
    device = start_process_group()
    torch.manual_seed(0)
    began = time.perf_counter()
    data = Prepared(job["data"])
    config = model.build_config(plan.model, recipe, None)
    packing = choose_packing("auto", plan.model, recipe, config)
    shape = Shape(recipe.micro_batch_size, recipe.grad_accum_steps, dist.get_world_size(), dist.get_rank())
    stream = Stream(data, recipe.seq_len, shape, packing=packing, seed=0, pad_id=0, full_length=recipe.allocator == "native")
    placement = placement_of(plan.model, recipe, device, model.DTYPES[recipe.precision], packing=packing, config=config)
    net = model.build_model(plan.model, recipe, device, folder=None)
    if placement.rows:
        varlen.install(net)
    common.randomise(net)
    engine = build_engine(net, recipe, device, lr=1e-5)
    meter = receipt.Meter(device)
    window = common.Window(device, job["warm"])
    window.reset_peak()
    built_s = time.perf_counter() - began

    total = torch.zeros((), dtype=torch.float32, device=device)
    position = 0
    events: list[tuple[str, Any]] = []

    def mark(name: str) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append((name, event))

    def step() -> None:
        nonlocal position
        batches, num_supervised, num_tokens = stream.step(position, full_length=window.steps < 2)
        on_device = [placement.put(batch) for batch in batches]
        position += shape.global_batch
        set_lr(engine, 1e-5)
        total.zero_()
        mark("begin")
        train_step(engine, on_device, num_supervised, total=total, mark=mark)
        values = torch.stack((total, torch.zeros_like(total)))
        dist.all_reduce(values)
        window.step(num_tokens, sum(batch.num_padded for batch in batches))
        last[:] = [values, num_supervised]

    last: list[Any] = []
    for _ in range(job["warm"] + job["steps"]):
        step()
        meter.step_done()
    result = window.result()
    result |= {
        "loss": float(last[0][0]) / max(last[1], 1),
        "built_s": built_s,
        "packing": packing,
        "rows_kernel": placement.rows,
        "mfu": plan.time.mfu * result["padded_tokens_per_s"] / plan.time.tokens_per_s,
        "planned_step_s": plan.time.step_s,
        "planned_tokens_per_s": plan.time.tokens_per_s,
        "planned_peak_allocated_bytes": plan.memory.rank0.peak_allocated_bytes,
        "zero_stage": recipe.zero_stage,
        "micro_batch": recipe.micro_batch_size,
        "phases_ms": _phases(events, job["warm"]),
        "versions": receipt.versions(),
    }
    if job.get("profile") and device.type == "cuda":
        result["kernels"] = _profile(step)
    return result


def _phases(events: list[tuple[str, Any]], warm: int) -> dict[str, float]:
    """Mean milliseconds to the end of each marked phase from the mark before, over the measured steps."""
    sums: dict[str, list[float]] = {}
    begins = [i for i, (name, _) in enumerate(events) if name == "begin"]
    for i in range(begins[warm] if len(begins) > warm else len(events), len(events)):
        if i:
            sums.setdefault(events[i][0], []).append(events[i - 1][1].elapsed_time(events[i][1]))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _profile(step: Any) -> list[list[Any]]:
    """The kernels of one step that take the longest: name, milliseconds, calls."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        import torch

        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    return [[row.key[:110], round(row.self_device_time_total / 1000, 2), row.count] for row in rows[:28]]


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import deepspeed  # noqa: F401 - what takes long to import comes before the turn, and leaves the device alone
    import peft  # noqa: F401
    import transformers  # noqa: F401

    common.emit(measure(common.wait_for_turn()))


if __name__ == "__main__":
    main()
