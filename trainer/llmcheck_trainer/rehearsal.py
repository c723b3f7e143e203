"""The first steps of a plan as one rank of its cluster, on one GPU and without the other ranks: the memory and the time that they take.

Collectives go to PyTorch's fake process group, so DeepSpeed partitions as among all ranks while nothing is sent: memory is this rank's own
(without NCCL's buffers), times lack the communication. Weights and tokens are random; model, engine and step are the trainer's. Where all
ranks are there, started by a launcher, the same is measured with real collectives.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.planfile import PlanFile
from llmcheck.types import TrainingRecipe
from llmcheck_trainer import guard, model, receipt, varlen
from llmcheck_trainer.data import MicroBatch
from llmcheck_trainer.engine import build_engine, set_lr, start_process_group, train_step
from llmcheck_trainer.loop import DEFAULT_LR
from llmcheck_trainer.loss import IGNORED
from llmcheck_trainer.placement import Placement, choose_packing, placement_of

PACKED_ROWS = 4  # of equal length in a packed sequence; their number decides no memory
FP16_SCALE_POWER = 4  # small enough that no step overflows: a skipped step makes no optimizer state
WEIGHT_DEVIATION = 0.02  # the usual `initializer_range`


def measure(plan_file: PlanFile, *, rank: int = 0, steps: int = 6, on_cpu: bool = False, alone: bool = True) -> dict[str, Any]:
    """Run `steps` steps as `rank`; what was measured, memory in bytes. Call it once in a process: it joins a process group.

    The first steps wait at the end of each phase to read memory; the later ones are timed. `on_cpu` is for tests: times, no memory.
    `alone`: the other ranks are not there; else a launcher started them all, and this one has its place in the environment.
    Raises CouldNotCheckError without a GPU, UserError for a plan that cannot run.
    """
    cluster = plan_file.plan.cluster
    if not 0 <= rank < cluster.num_gpus:
        why = f"the plan has ranks 0 to {cluster.num_gpus - 1}"
        raise UserError(f"there is no rank {rank}", code="usage", where="--rank", why=why, hint="leave --rank out for the first")
    if not on_cpu and not torch.cuda.is_available():
        raise CouldNotCheckError(
            "PyTorch sees no GPU here",
            code="no-gpu",
            where="llmcheck probe",
            why=f"torch {torch.__version__} was built " + (f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
            hint="run it on one GPU of the kind that the plan is for; `llmcheck doctor` says what is wrong with the installation",
        )
    before = used_bytes()
    device = join(rank, cluster.num_gpus) if alone else start_process_group()
    phase = ["loading the model"]
    meter = receipt.Meter(device)
    outcome = "measured"
    try:
        timed = _run(plan_file, device, meter, steps, phase)
    except Exception as error:
        if not guard.is_out_of_memory(error):
            raise
        outcome, timed = "out-of-memory", _Timed(None, 0, None)
    record = meter.record()
    if device.type == "cuda":
        record["process_bytes"] = _most_of_the_process(device, before, record["peak_reserved_bytes"])
    record.update(outcome=outcome, world_size=cluster.num_gpus, versions=receipt.versions(), steps=steps, **timed.__dict__)
    if outcome == "out-of-memory":
        record["phase"] = phase[0]
    return record


class _Timed:
    """Seconds of a step (None: none was timed), how many were, and how many steps fp16's loss scaling skipped."""

    def __init__(self, step_s: float | None, num_steps_timed: int, num_skipped: int | None) -> None:
        self.step_s, self.num_steps_timed, self.num_skipped = step_s, num_steps_timed, num_skipped


def join(rank: int, world: int) -> torch.device:
    """Become `rank` of `world` ranks that are not there; the device, always the first one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world))
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    if rank:
        _trust_rank_0()
    return start_process_group()


def _trust_rank_0() -> None:
    """ZeRO-3 compares its order of modules with rank 0's, which sends none here."""
    from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3

    for module in (partition_parameters, partitioned_param_coordinator, stage3):
        module.assert_ints_same_as_other_ranks = lambda *_args: None


def _run(plan_file: PlanFile, device: torch.device, meter: receipt.Meter, steps: int, phase: list[str]) -> _Timed:
    spec, recipe = plan_file.plan.model, plan_file.plan.recipe
    config = model.build_config(spec, recipe, None)
    packing = choose_packing("auto", spec, recipe, config)
    placement = placement_of(spec, recipe, device, model.DTYPES[recipe.precision], packing=packing, config=config)
    torch.manual_seed(0)
    net = model.build_model(spec, recipe, device, folder=None)
    if placement.rows:
        varlen.install(net)
    meter.mark("model")
    fill(net)
    phase[0] = "deepspeed.initialize"
    more: dict[str, Any] = (
        {"fp16": {**recipe.deepspeed["fp16"], "initial_scale_power": FP16_SCALE_POWER}} if recipe.precision == "fp16" else {}
    )
    lr = DEFAULT_LR[recipe.method]
    engine = build_engine(net, recipe, device, lr=lr, **more)
    del net
    meter.mark("init")
    total = torch.zeros((), dtype=torch.float32, device=device)
    vocab = config.get_text_config().vocab_size
    num_supervised = recipe.micro_batch_size * recipe.grad_accum_steps * dist.get_world_size() * (recipe.seq_len - 1)
    gc.collect()
    began, first_timed = 0.0, receipt.NUM_STEPS_BY_PHASE + 1  # the step after the phases still lacks the lead that the CPU has later
    for step in range(steps):
        phase[0] = f"step {step + 1}"
        if step == first_timed:
            _wait(device)
            began = time.perf_counter()
        _step(engine, _batches(recipe, vocab, placement), placement, num_supervised, total, lr, meter)
        meter.step_done()
    _wait(device)
    num_timed = steps - first_timed
    skipped = getattr(engine, "skipped_steps", None)
    if num_timed > 0:
        return _Timed((time.perf_counter() - began) / num_timed, num_timed, skipped)
    return _Timed(meter.step_s[-1] if meter.step_s else None, min(1, len(meter.step_s)), skipped)


def _step(
    engine: Any,
    batches: Iterator[MicroBatch],
    placement: Placement,
    num_supervised: int,
    total: torch.Tensor,
    lr: float,
    meter: receipt.Meter,
) -> None:
    """What the training loop does on the device in a step."""
    set_lr(engine, lr)
    total.zero_()
    train_step(engine, map(placement.put, batches), num_supervised, total=total, mark=meter.mark)
    values = torch.stack((total, torch.full_like(total, 0.0)))
    dist.all_reduce(values)
    engine.get_global_grad_norm()
    if values.device.type == "cuda":
        values.to("cpu", non_blocking=True)


def _batches(recipe: TrainingRecipe, vocab: int, placement: Placement) -> Iterator[MicroBatch]:
    """A step's micro-batches of random tokens, every sequence full."""
    shape = recipe.micro_batch_size, recipe.seq_len
    for _ in range(recipe.grad_accum_steps):
        ids = torch.randint(0, vocab, shape)
        labels = ids.clone()
        labels[:, 0] = IGNORED
        inputs = {"input_ids": ids, "labels": labels}
        if placement.packing:
            row = max(1, recipe.seq_len // PACKED_ROWS)
            inputs["position_ids"] = (torch.arange(recipe.seq_len) % row).repeat(recipe.micro_batch_size, 1)
        yield MicroBatch(inputs, (), ids.numel(), ids.numel())


def fill(net: torch.nn.Module) -> None:
    """Random numbers in every floating-point weight: memory as it comes may hold NaN, with which experts are not chosen evenly."""
    for parameter in net.parameters():
        part = getattr(parameter, "ds_tensor", parameter).data
        if not part.is_floating_point() or part.device.type == "meta" or part.numel() == 0:
            continue
        if part.device.type == "cpu":  # offloaded: filling billions of them would take minutes
            part.zero_()
        else:
            part.normal_(0.0, WEIGHT_DEVIATION)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Place = tuple[int, int, int]  # PCI domain, bus, device


def used_bytes() -> dict[Place, int]:
    """Memory in use on each GPU as the driver sees it; empty where it cannot be asked. Makes no CUDA context."""
    found: dict[Place, int] = {}
    try:
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pci = pynvml.nvmlDeviceGetPciInfo(handle)
            found[pci.domain, pci.bus, pci.device] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except Exception:  # no library, no driver, no permission: the figure is left out then
        return {}
    return found


def _most_of_the_process(device: torch.device, before: dict[Place, int], peak_reserved_bytes: int) -> int | None:
    """The most that this process had on the device: what it has now beyond the allocator's memory, and the most of that."""
    now = _process_bytes(device, before)
    return None if now is None else now - torch.cuda.memory_reserved(device) + peak_reserved_bytes


def _process_bytes(device: torch.device, before: dict[Place, int]) -> int | None:
    """What this process has on the device: as the driver lists it, else what the device's use grew by (other processes may change it)."""
    listed = receipt.process_bytes(device)
    if listed is not None:
        return listed
    properties = torch.cuda.get_device_properties(device)
    place = properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
    now = used_bytes().get(place)
    return None if now is None or place not in before else now - before[place]
