"""What rig.Ranks can be asked to do; runs on every rank."""

from __future__ import annotations

from typing import Any

from llmcheck.errors import UserError


def train(argv: list[str]) -> dict[str, Any]:
    """The trainer, without its process's end."""
    from llmcheck import planfile
    from llmcheck_trainer import loop, settings

    try:
        path, found = settings.parse(argv)
        return {"exit": loop.run(planfile.read(path), path, found), "code": None}
    except UserError as error:
        return {"exit": error.exit_code, "code": error.code, "what": error.what, "why": error.why, "hint": error.hint}


def train_until(argv: list[str], step: int) -> dict[str, Any]:
    """The trainer, asked to stop during step `step` and so saving after the next."""
    import signal

    return train_and_signal(argv, step - 1, int(signal.SIGTERM))


def train_and_signal(argv: list[str], step: int, number: int) -> dict[str, Any]:
    """The trainer with a signal to this process once `step` steps are done."""
    import os

    from llmcheck_trainer import receipt

    original = receipt.Meter.step_done

    def step_done(self: Any) -> None:
        original(self)
        if self.step == step:
            os.kill(os.getpid(), number)

    receipt.Meter.step_done = step_done  # type: ignore[method-assign]
    try:
        return train(argv)
    finally:
        receipt.Meter.step_done = original  # type: ignore[method-assign]


def train_with_free_bytes(argv: list[str], free: list[int]) -> dict[str, Any]:
    """The trainer on a disk that has `free` bytes, one number a look, the last one for ever."""
    from collections import namedtuple

    from llmcheck_trainer import checkpoint

    usage = namedtuple("usage", "total used free")
    original = checkpoint.shutil.disk_usage
    left = list(free)

    def disk_usage(path: str) -> Any:
        return usage(10**13, 0, left.pop(0) if len(left) > 1 else left[0])

    checkpoint.shutil.disk_usage = disk_usage  # type: ignore[assignment]
    try:
        return train(argv)
    finally:
        checkpoint.shutil.disk_usage = original


def train_out_of_memory(argv: list[str]) -> dict[str, Any]:
    """The trainer with a device that has no room for the first forward."""
    import torch

    from llmcheck_trainer import loop

    original = loop.train_step

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    loop.train_step = no_room
    try:
        return train(argv)
    finally:
        loop.train_step = original


def nan_steps(model: str, plan: str) -> list[dict[str, Any]]:
    """Steps with a good loss, a NaN one and a good one: whether each moved the weights, and the norm of its gradients."""
    import torch

    from llmcheck import planfile
    from llmcheck_trainer.engine import build_engine, start_process_group
    from llmcheck_trainer.model import build_model

    device = start_process_group()
    spec = planfile.read(plan).plan
    net = build_model(spec.model, spec.recipe, device, folder=model)
    engine = build_engine(net, spec.recipe, device, lr=1e-2)
    ids = torch.arange(2 * 16).view(2, 16)
    found = []
    for factor in (1.0, float("nan"), 1.0):
        before = [p.detach().clone() for p in net.parameters()]
        engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss * factor)
        engine.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        found.append({"moved": moved, "norm": float(engine.get_global_grad_norm())})
    return found
