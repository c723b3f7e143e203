"""What rig.Ranks can be asked to do; runs on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmcheck.errors import UserError

LIMIT_BYTES = 20_000  # more than the log has in a test, less than a checkpoint's files and a tiny model


@contextmanager
def replaced(place: Any, name: str, new: Any) -> Iterator[None]:
    """`place.name` is `new` for a while."""
    original = getattr(place, name)
    setattr(place, name, new)
    try:
        yield
    finally:
        setattr(place, name, original)


def train(argv: list[str]) -> dict[str, Any]:
    """The trainer, without its process's end."""
    from llmcheck import planfile
    from llmcheck_trainer import export, loop, settings

    original, logits = export.export, []

    def look_first(engine: Any, *args: Any) -> Any:
        logits.extend(logits_of(engine.module))
        return original(engine, *args)

    try:
        path, found = settings.parse(argv)
        with replaced(export, "export", look_first):
            return {"exit": loop.run(planfile.read(path), path, found), "code": None, "logits": logits}
    except UserError as error:
        return {"exit": error.exit_code, "code": error.code, "what": error.what, "why": error.why, "hint": error.hint}


def logits_of(module: Any) -> list[list[float]]:
    """What the model says of SAMPLE, as it is in memory."""
    import torch
    from rig import SAMPLE

    module.eval()
    with torch.no_grad():
        found = module(input_ids=torch.tensor(SAMPLE)[None], use_cache=False).logits[0].float().tolist()
    module.train()
    return found


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

    with replaced(receipt.Meter, "step_done", step_done):
        return train(argv)


def train_on_a_disk_that_refuses(argv: list[str], rank: int, first: int, last: int) -> dict[str, Any]:
    """The trainer while the system refuses `rank` to write beyond LIMIT_BYTES of a file, from step `first` to step `last` of this call."""
    import os

    from llmcheck_trainer import receipt

    original = receipt.Meter.step_done

    def step_done(self: Any) -> None:
        original(self)
        if int(os.environ["RANK"]) == rank and self.step in (first, last + 1):
            limit_files(LIMIT_BYTES if self.step == first else None)

    try:
        with replaced(receipt.Meter, "step_done", step_done):
            return train(argv)
    finally:
        limit_files(None)


def train_and_refuse_the_export(argv: list[str]) -> dict[str, Any]:
    """The trainer with no room for the trained model's files."""
    from llmcheck_trainer import export

    original = export._empty

    def empty(folder: str) -> None:
        original(folder)
        limit_files(LIMIT_BYTES)

    try:
        with replaced(export, "_empty", empty):
            return train(argv)
    finally:
        limit_files(None)


def limit_files(size: int | None) -> None:
    """Let no file of this process grow beyond `size` bytes: the system then refuses as a full disk or a quota does, with another number."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def train_with_free_bytes(argv: list[str], free: list[int]) -> dict[str, Any]:
    """The trainer on a disk that has `free` bytes, one number a look, the last one for ever."""
    from collections import namedtuple

    from llmcheck_trainer import checkpoint

    usage = namedtuple("usage", "total used free")
    left = list(free)

    def disk_usage(path: str) -> Any:
        return usage(10**13, 0, left.pop(0) if len(left) > 1 else left[0])

    with replaced(checkpoint.shutil, "disk_usage", disk_usage):
        return train(argv)


def train_with_other_data_on(argv: list[str], rank: int, nodes: list[int]) -> dict[str, Any]:
    """The trainer with each rank on the node in `nodes`, and data on that of `rank` that is not whole; and which folders were read here.

    The reading takes longer than a rank waits at a time.
    """
    import os
    import time

    from llmcheck_trainer import whole
    from llmcheck_trainer.dataprep import store

    own, read = int(os.environ["RANK"]), []
    before = os.environ["LOCAL_RANK"]
    original = store.is_whole

    def is_whole(path: str, manifest: Any) -> bool:
        read.append(os.path.basename(path))
        time.sleep(1.0 + 0.2 * own)  # longer than building the tiny model, too
        return nodes[own] != nodes[rank] and original(path, manifest)

    os.environ["LOCAL_RANK"] = str(nodes[:own].count(nodes[own]))
    try:
        with replaced(store, "is_whole", is_whole), replaced(whole, "WAIT_S", 0.1):
            return {**train(argv), "read": read}
    finally:
        os.environ["LOCAL_RANK"] = before


def train_with_bad_gradients(argv: list[str], first: int, last: int) -> dict[str, Any]:
    """The trainer with NaN in the gradients, but not in the loss, from step `first` to step `last` of this call."""
    from llmcheck_trainer import loop

    original, number = loop.train_step, 0

    def train_step(engine: Any, batches: Any, num_supervised: float, **more: Any) -> None:
        nonlocal number
        number += 1
        original(engine, batches, float("nan") if first <= number <= last else num_supervised, **more)  # type: ignore[arg-type]

    with replaced(loop, "train_step", train_step):
        return train(argv)


def train_with_tracker(argv: list[str], fails_in: str) -> dict[str, Any]:
    """The trainer with a tracker in tensorboard's place whose method `fails_in` raises; and how often it was told of a step."""
    from accelerate import tracking

    number = 0

    class Tracker:
        requires_logging_directory = False

        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            self._fail("start")

        def store_init_configuration(self, config: dict[str, Any]) -> None:
            assert config["trackers"] == "tensorboard"

        def log(self, values: dict[str, Any], step: int) -> None:
            nonlocal number
            number += 1
            self._fail("log")

        def finish(self) -> None:
            self._fail("finish")

        def _fail(self, where: str) -> None:
            if where == fails_in:
                raise ConnectionError("no network\nand much more")

    with (
        replaced(tracking, "LOGGER_TYPE_TO_CLASS", {"tensorboard": Tracker}),
        replaced(tracking, "get_available_trackers", lambda: ["tensorboard"]),
    ):
        return {**train(argv), "told": number}


def train_with_buffer(argv: list[str], kind: str) -> dict[str, Any]:
    """The trainer with a model that has a saved buffer of the type `kind`; what it says, and whether a step was taken."""
    import torch

    from llmcheck_trainer import loop

    original, number = loop.model.build_model, 0
    train_step = loop.train_step

    def build_model(*args: Any, **more: Any) -> Any:
        net = original(*args, **more)
        net.register_buffer("turns", torch.arange(5).to(getattr(torch, kind)))
        return net

    def step(*args: Any, **more: Any) -> None:
        nonlocal number
        number += 1
        train_step(*args, **more)

    with replaced(loop.model, "build_model", build_model), replaced(loop, "train_step", step):
        return {**train(argv), "num_steps": number}


def train_in_4_bits(argv: list[str]) -> dict[str, Any]:
    """The trainer with bitsandbytes' layers as on a GPU: some CPUs' would pack their weights anew for what is not training."""
    from bitsandbytes.nn import modules

    with replaced(modules, "has_avx512bf16", lambda: False):
        return train(argv)


def train_and_lose_the_scale(argv: list[str]) -> dict[str, Any]:
    """The trainer as DeepSpeed's loss scaling ends it."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from llmcheck_trainer import loop

    def train_step(*args: Any, **kwargs: Any) -> None:
        at_its_minimum = {"init_scale": 1, "min_scale": 1, "scale_window": 1000, "delayed_shift": 1}
        DynamicLossScaler(**at_its_minimum, consecutive_hysteresis=False, dtype=torch.half).update_scale(True)

    with replaced(loop, "train_step", train_step):
        return train(argv)


def train_and_kill_the_conversion(argv: list[str]) -> dict[str, Any]:
    """The trainer whose converter of checkpoints is killed without a word, as by a system that wants memory."""
    import subprocess
    import sys

    from llmcheck_trainer import checkpoint

    def run(command: list[str], **more: Any) -> Any:
        return subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **more)  # noqa: PLW1510 - given

    with replaced(checkpoint, "subprocess", type("subprocess", (), {"run": staticmethod(run)})):
        return train(argv)


def train_without_patience(argv: list[str]) -> dict[str, Any]:
    """The trainer, waiting hardly any time for another run's ranks to end."""
    from llmcheck_trainer import claim

    with replaced(claim, "RANKS_END_S", 0.2):
        return train(argv)


_kept: dict[str, Any] = {}  # from one call to the next


def prepare(plan: str) -> None:
    """Everything that is imported or begun once, so that what follows is the model's memory only."""
    import peft  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM

    from llmcheck import planfile
    from llmcheck_trainer import export, model  # noqa: F401
    from llmcheck_trainer.engine import start_process_group

    found = planfile.read(plan).plan
    _kept["device"] = start_process_group()
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(model.build_config(found.model, found.recipe, None))


def load(plan: str, folder: str) -> None:
    """The plan's model with the weights of `folder`."""
    from llmcheck import planfile
    from llmcheck_trainer.model import build_model

    _kept["plan"], _kept["folder"] = planfile.read(plan).plan, folder
    _kept["model"] = build_model(_kept["plan"].model, _kept["plan"].recipe, _kept["device"], folder=folder)


def build() -> None:
    """The engine of the loaded model."""
    from llmcheck_trainer.engine import build_engine

    _kept["engine"] = build_engine(_kept["model"], _kept["plan"].recipe, _kept["device"], lr=1e-4)


def export(output: str) -> None:
    """The built engine's model as files under `output`."""
    from llmcheck.types import TrainSettings
    from llmcheck_trainer.export import export as write

    kind: Any = "model" if _kept["plan"].recipe.lora is None else "merged"
    write(_kept["engine"], _kept["plan"].recipe, TrainSettings(data="", output=output, export=kind), _kept["folder"])


def train_out_of_memory(argv: list[str]) -> dict[str, Any]:
    """The trainer with a device that has no room for the first forward."""
    import torch

    from llmcheck_trainer import loop

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with replaced(loop, "train_step", no_room):
        return train(argv)


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
        before = [getattr(p, "ds_tensor", p).detach().clone() for p in net.parameters()]
        engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss * factor)
        engine.step()
        after = [getattr(p, "ds_tensor", p) for p in net.parameters()]
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        found.append({"moved": moved, "norm": float(engine.get_global_grad_norm())})
    return found


def traces_of_a_nan_step(model: str, plan: str) -> list[str]:
    """What a step with NaN leaves behind: the weights, moments and counts that differ after good, NaN, good from those after good, good."""
    import torch

    from llmcheck import planfile
    from llmcheck_trainer.engine import build_engine, start_process_group
    from llmcheck_trainer.model import build_model

    device = start_process_group()
    spec = planfile.read(plan).plan
    ids = torch.arange(2 * 16).view(2, 16)

    def after(*factors: float) -> dict[str, Any]:
        net = build_model(spec.model, spec.recipe, device, folder=model)
        engine = build_engine(net, spec.recipe, device, lr=1e-2)
        for factor in factors:
            engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss * factor)
            engine.step()
        found = {f"weights {name}": getattr(p, "ds_tensor", p).detach().clone() for name, p in net.named_parameters()}
        states = getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()  # DeepSpeed's wrapper has the optimizer inside
        found |= {f"{key} {i}": torch.as_tensor(value).clone() for i, state in enumerate(states) for key, value in state.items()}
        assert any(name.startswith("step ") for name in found)
        return found

    plain, other = after(1.0, 1.0), after(1.0, float("nan"), 1.0)
    assert plain.keys() == other.keys()
    return sorted(name for name, value in plain.items() if not torch.equal(value, other[name]))


def flat_copies_between_steps(model: str, plan: str) -> int:
    """After two steps: how many pieces of memory of the size of all weights in bf16 are in use."""
    import gc

    import torch

    from llmcheck import planfile
    from llmcheck_trainer.engine import build_engine, start_process_group
    from llmcheck_trainer.model import build_model

    device = start_process_group()
    spec = planfile.read(plan).plan
    gc.collect()
    older = {t.untyped_storage().data_ptr() for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    net = build_model(spec.model, spec.recipe, device, folder=model)
    engine = build_engine(net, spec.recipe, device, lr=1e-2)
    ids = torch.arange(2 * 16).view(2, 16)
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
        engine.step()
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in net.parameters())
    gc.collect()
    found = {}
    for t in gc.get_objects():
        if isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 and t.untyped_storage().data_ptr() not in older:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(weights <= size // 2 < 1.1 * weights for size in found.values())


def optimizer_groups(model: str, plan: str, weight_decay: float) -> list[dict[str, Any]]:
    """The settings of an engine's optimizer."""
    from llmcheck import planfile
    from llmcheck_trainer.engine import build_engine, start_process_group
    from llmcheck_trainer.model import build_model

    device = start_process_group()
    spec = planfile.read(plan).plan
    net = build_model(spec.model, spec.recipe, device, folder=model)
    engine = build_engine(net, spec.recipe, device, lr=1e-2, weight_decay=weight_decay)
    return [{name: value for name, value in group.items() if name in ("weight_decay", "betas")} for group in engine.optimizer.param_groups]


def collectives_of_one() -> dict[str, bool]:
    """Whether each collective of a group of one gives what it was given: PyTorch's functions, and the group's methods of older releases."""
    import torch
    import torch.distributed as dist
    from torch._C import _distributed_c10d as c10d

    from llmcheck_trainer.engine import start_process_group

    start_process_group()
    group: Any = dist.new_group([0])
    given = torch.arange(6.0).view(2, 3)
    found = {}

    def look(name: str, function: Any, *, made: bool = False) -> None:
        """Call `function` with a tensor that it leaves as it is, or (`made`) fills."""
        place = torch.zeros(2, 3) if made else given.clone()
        work = function(place)
        if work is not None:
            work.wait()
        found[name] = torch.equal(place, given)

    for async_op in (False, True):
        more: dict[str, Any] = {"group": group, "async_op": async_op}
        kind = " later" if async_op else ""
        look("all_reduce" + kind, lambda t, more=more: dist.all_reduce(t, **more))
        look("broadcast" + kind, lambda t, more=more: dist.broadcast(t, 0, **more))
        look("reduce" + kind, lambda t, more=more: dist.reduce(t, 0, **more))
        look("all_gather" + kind, lambda t, more=more: dist.all_gather([t], given, **more), made=True)
        look("gather" + kind, lambda t, more=more: dist.gather(given, [t], 0, **more), made=True)
        look("scatter" + kind, lambda t, more=more: dist.scatter(t, [given], 0, **more), made=True)
        look("reduce_scatter" + kind, lambda t, more=more: dist.reduce_scatter(t, [given], **more), made=True)
        look("all_to_all" + kind, lambda t, more=more: dist.all_to_all([t], [given], **more), made=True)
        look("all_to_all_single" + kind, lambda t, more=more: dist.all_to_all_single(t, given, **more), made=True)
        look("all_gather_into_tensor" + kind, lambda t, more=more: dist.all_gather_into_tensor(t, given, **more), made=True)
        look("reduce_scatter_tensor" + kind, lambda t, more=more: dist.reduce_scatter_tensor(t, given, **more), made=True)
        look("barrier" + kind, lambda t, more=more: dist.barrier(**more))
    for name, call in (("all_gather_into_tensor", dist.all_gather_into_tensor), ("reduce_scatter_tensor", dist.reduce_scatter_tensor)):

        def together(place: Any, call: Any = call) -> None:
            with dist.distributed_c10d._coalescing_manager(group=group, device=torch.device("cpu")):
                call(place, given, group=group)
                call(torch.zeros(2, 3), given, group=group)

        look(name + " together", together, made=True)
    # as distributed_c10d.py of torch 2.11 calls the group
    look("_allgather_base", lambda t: group._allgather_base(t, given, c10d.AllgatherOptions()), made=True)
    look("_reduce_scatter_base", lambda t: group._reduce_scatter_base(t, given, c10d.ReduceScatterOptions()), made=True)
    look("alltoall_base", lambda t: group.alltoall_base(t, given, [], [], c10d.AllToAllOptions()), made=True)
    look("allgather_into_tensor_coalesced", lambda t: group.allgather_into_tensor_coalesced([t], [given]), made=True)
    look(
        "reduce_scatter_tensor_coalesced",
        lambda t: group.reduce_scatter_tensor_coalesced([t], [given], c10d.ReduceScatterOptions()),
        made=True,
    )
    objects: list[Any] = [None]
    dist.all_gather_object(objects, {"a": 1}, group=group)
    found["all_gather_object"] = objects == [{"a": 1}]
    try:
        dist.send(given, 0, group=group)
        found["send is refused"] = False
    except (ValueError, RuntimeError):
        found["send is refused"] = True
    dist.destroy_process_group(group)
    return found
