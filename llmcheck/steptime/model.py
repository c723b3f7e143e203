"""Step time of a recipe on a cluster: per phase the longer of GPU and CPU, plus what communication and offload do not hide."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from llmcheck.shadow.pace import constants
from llmcheck.steptime import hostside
from llmcheck.steptime.collectives import collective_s
from llmcheck.steptime.flops import (
    Batch,
    Variant,
    Work,
    adapter_params,
    ends_backward,
    ends_forward,
    layer_backward,
    layer_forward,
    model_flops_per_token,
    trained_embeddings,
)
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates, gpu_s
from llmcheck.steptime.reading import read_shape
from llmcheck.steptime.shape import Shape
from llmcheck.types import ClusterSpec, ModelSpec, StepTime, TrainingRecipe
from llmcheck.units import ceil_div

_DEFAULT_BUCKET = 500_000_000  # reduce_bucket_size, elements: DeepSpeed 0.19.8 runtime/zero/config.py


class Trained(NamedTuple):
    """What the optimizer owns: parameters and tensors with a gradient, and the parameters that stay frozen."""

    params: int
    tensors: int
    frozen_params: int

    @staticmethod
    def of(model: ModelSpec, shape: Shape, recipe: TrainingRecipe) -> Trained:
        """Trained and frozen parameters of `recipe`."""
        if recipe.method == "full":
            return Trained(params=model.num_params, tensors=shape.num_tensors, frozen_params=0)
        params, tensors = adapter_params(shape, recipe.lora)
        frozen = model.num_params
        embeddings = trained_embeddings(shape, recipe.lora)
        params, tensors, frozen = params + embeddings.params, tensors + embeddings.tensors, frozen - embeddings.unfrozen
        return Trained(params=params, tensors=tensors, frozen_params=frozen)


class Phases(NamedTuple):
    """Seconds of one optimizer step, phase by phase; forward and backward are those of one micro-step."""

    forward_gpu_s: float
    forward_host_s: float
    backward_gpu_s: float
    backward_host_s: float
    communication_micro_s: float  # exposed, per micro-step
    communication_step_s: float  # exposed, per step
    optimizer_gpu_s: float
    optimizer_host_s: float
    optimizer_wait_s: float  # neither hides the other
    offload_micro_s: float
    offload_step_s: float


class _Micro(NamedTuple):
    """Work of one micro-step and the GPU's seconds for it. `early` is a recomputation that stops at the last saved tensor."""

    forward: Work
    recompute: Work
    early: Work
    backward: Work
    forward_s: float
    recompute_s: float
    early_s: float
    backward_s: float


@lru_cache(maxsize=1024)
def _micro(shape: Shape, batch: Batch, variant: Variant, rates: GpuRates) -> _Micro:
    """A search asks for the same micro-step under many ZeRO stages and offloads."""
    forward, recompute, early, backward = Work(), Work(), Work(), Work()
    for layer, count in shape.layers:
        forward.plus(layer_forward(layer, batch, variant, shape), count)
        early.plus(layer_forward(layer, batch, variant, shape, until_last_saved=True), count)
        backward.plus(layer_backward(layer, batch, variant, shape), count)
    recompute.plus(forward)
    forward.plus(ends_forward(shape, batch, variant))
    backward.plus(ends_backward(shape, batch, variant))
    seconds = [gpu_s(work, rates, batch.element_bytes) for work in (forward, recompute, early, backward)]
    return _Micro(forward, recompute, early, backward, *seconds)


def _zero_option(recipe: TrainingRecipe, name: str, default: Any) -> Any:
    section = recipe.deepspeed.get("zero_optimization", {})
    value = section.get(name) if isinstance(section, Mapping) else None
    return default if value is None or value == "auto" else value


def phases(
    model: ModelSpec,
    recipe: TrainingRecipe,
    cluster: ClusterSpec,
    rates: GpuRates,
    host: HostRates,
    shape: Shape | None = None,
    *,
    alone: bool = False,
) -> Phases:
    """Seconds of each phase of a step. Pure arithmetic. `alone`: as :func:`estimate` has it."""
    shape = shape or read_shape(model)
    element = 4 if recipe.precision == "fp32" else 2
    batch = Batch(size=recipe.micro_batch_size, seq_len=recipe.seq_len, element_bytes=element)
    trained = Trained.of(model, shape, recipe)
    stage = recipe.zero_stage
    micro = _micro(shape, batch, Variant.of(recipe), rates)
    gathers = sum(layer.num_large_tensors * count for layer, count in shape.layers) + (1 if shape.tied else 2)
    copies = _gradient_copy_bytes(trained, recipe, cluster, element) / rates.memory_bytes_per_s
    # a gathered flat buffer is copied out parameter by parameter, in forward and in backward
    unflatten = (
        2.0 * element * (trained.frozen_params + trained.params) / rates.memory_bytes_per_s if stage == 3 and cluster.num_gpus > 1 else 0.0
    )
    gpu_f = micro.forward_s + unflatten
    gpu_b = micro.backward_s + copies + unflatten
    ranks, segments = cluster.num_gpus, shape.num_layers if recipe.checkpointing else 0
    host_f = host.micro_s + hostside.forward_s(micro.forward, host, stage, gathers, ranks)
    host_b = hostside.backward_s(micro.backward, host, stage, gathers, trained.tensors, ranks, segments)
    if recipe.checkpointing:
        # the last projection's output is not needed again, except where its input is saved by a Python function (ZeRO-3, adapters)
        stops_early = stage < 3 and recipe.method == "full"
        gpu_b += micro.early_s if stops_early else micro.recompute_s
        host_b += hostside.forward_s(micro.early if stops_early else micro.recompute, host, stage, 0.0)
    comm_micro, comm_step = 0.0, 0.0
    if not alone:
        comm_micro, comm_step = _communication(recipe, cluster, rates, trained, element, gpu_f + gpu_b, host_f + host_b, gathers)
    step_gpu, step_host = _optimizer(recipe, cluster, rates, host, trained)
    offload_micro, offload_step = _offload(recipe, cluster, rates, trained, element, alone)
    return Phases(
        forward_gpu_s=gpu_f,
        forward_host_s=host_f,
        backward_gpu_s=gpu_b,
        backward_host_s=host_b,
        communication_micro_s=comm_micro,
        communication_step_s=comm_step,
        optimizer_gpu_s=step_gpu,
        optimizer_host_s=step_host,
        optimizer_wait_s=host.step_s,
        offload_micro_s=offload_micro,
        offload_step_s=offload_step,
    )


def _gradient_copy_bytes(trained: Trained, recipe: TrainingRecipe, cluster: ClusterSpec, element: int) -> float:
    """Copies of gradients into reduction buckets (read and write); with several ranks also the division and the joined slices."""
    if recipe.zero_stage == 0:
        return 0.0
    return (1.0 if cluster.num_gpus == 1 else 3.0) * 2.0 * element * trained.params


def _partition(trained: Trained, recipe: TrainingRecipe, cluster: ClusterSpec) -> float:
    return trained.params / cluster.num_gpus if recipe.zero_stage > 0 else float(trained.params)


# Bytes moved per parameter of the partition by the optimizer kernels: fp32 weight read and written, two moments read and
# written, fp32 gradient read, 16-bit weight written. The 8-bit optimizer keeps moments of one byte (bitsandbytes, block-wise);
# adam-bf16 has everything in two.
_OPTIMIZER_BYTES = {
    "fused-adam": 4 * 2 + 8 * 2 + 4 + 2,
    "adamw": 4 * 2 + 8 * 2 + 4 + 2,
    "adam-8bit": 4 * 2 + 2 * 2 + 4 + 2,
    "adam-bf16": 2 * 2 + 4 * 2 + 2,
    "cpu-adam": 30,
}
# DeepSpeed around it, per parameter of the partition: fp64 copy for the norm (2 + 8 + 8), flattening (4), fp32 gradient (6),
# clipping in place (8), 16-bit copy of the new weights (read 4, write 2). Source: stage_1_and_2.py, stage3.py step().
_STEP_BYTES = 18 + 4 + 6 + 8 + 6
_BF16_STEP_BYTES = 18 + 4 + 4 + 4  # no conversions; the norm, flattening, clipping, and the weights copied onto themselves


def _optimizer(recipe: TrainingRecipe, cluster: ClusterSpec, rates: GpuRates, host: HostRates, trained: Trained) -> tuple[float, float]:
    own = _partition(trained, recipe, cluster)
    share = own / trained.params if trained.params else 0.0
    tensors = trained.tensors if recipe.zero_stage == 3 else max(1.0, trained.tensors * share)
    host_s = hostside.optimizer_s(host, tensors)
    if recipe.offload != "none" or recipe.optimizer == "cpu-adam":
        return 0.0, host_s
    around = _STEP_BYTES
    if recipe.optimizer == "adam-bf16":
        around = 2 if recipe.zero_stage == 0 else _BF16_STEP_BYTES  # stage 0: the norm reads the gradients, clipping is in the kernel
    return own * (_OPTIMIZER_BYTES[recipe.optimizer] + around) / rates.memory_bytes_per_s, host_s


def _communication(
    recipe: TrainingRecipe, cluster: ClusterSpec, rates: GpuRates, trained: Trained, element: int, gpu: float, cpu: float, gathers: float
) -> tuple[float, float]:
    """Exposed seconds of communication: per micro-step, per step. `gpu`, `cpu`: seconds of a micro-step without it.

    Collectives run on the GPU, so what the GPU idles while the CPU issues work hides them as well.
    """
    if cluster.num_gpus < 2:
        return 0.0, 0.0
    stage = recipe.zero_stage
    grads = float(element * trained.params)
    buckets = ceil_div(trained.params, int(_zero_option(recipe, "reduce_bucket_size", _DEFAULT_BUCKET)))
    overlap = bool(_zero_option(recipe, "overlap_comm", stage == 3))
    if stage == 3:
        weights = float(element * (trained.params + trained.frozen_params))
        # prefetch coalesces the gathers of a layer into a few calls
        gather = collective_s("all-gather", weights, gathers / 3, cluster, rates)
        reduce = collective_s("reduce-scatter", grads, buckets, cluster, rates)
        return _exposed(2 * gather + reduce, gpu, cpu, gpu if overlap else 0.0, rates), 0.0
    # DeepSpeed reduces a bucket by all-reduce and keeps its slice (use_multi_rank_bucket_allreduce, the default)
    scatter = not bool(_zero_option(recipe, "use_multi_rank_bucket_allreduce", True)) and bool(_zero_option(recipe, "reduce_scatter", True))
    reduce = collective_s("reduce-scatter" if scatter and stage else "all-reduce", grads, buckets, cluster, rates)
    gather = collective_s("all-gather", grads, max(1, trained.params // _DEFAULT_BUCKET), cluster, rates) if stage else 0.0
    if stage == 2:
        beside = _BACKWARD_SHARE * gpu if overlap else 0.0
        # the last bucket is reduced when nothing is left to compute
        return max(reduce / max(1, buckets), _exposed(reduce, gpu, cpu, beside, rates)), gather
    return 0.0, reduce + gather


_BACKWARD_SHARE = 0.6  # of forward and backward: two products for one, with checkpointing three for one of 1 + 3


def _exposed(total: float, gpu: float, cpu: float, beside: float, rates: GpuRates) -> float:
    """Seconds by which `total` seconds of collectives lengthen `gpu` and `cpu`, where `beside` seconds of the GPU's work run beside them.

    What runs beside a collective has fewer processors: each channel is a block of threads that holds one (NCCL's ``src/enqueue.cc``).
    """
    if total <= 0:
        return 0.0
    shared = min(total, beside)
    channels: int = constants()["collectives"]["channels"]
    taken = shared * min(0.5, channels / rates.num_sms)
    return max(gpu + total - shared + taken, cpu) - max(gpu, cpu)


# Host memory that the step passes through, bytes per parameter of the partition: gradients unscaled in place (read, write), CPU Adam
# (weight and both moments read and written, gradient read), weights converted (read 4, write 2). DeepSpeed 0.19.8, step() of
# stage_1_and_2.py and stage3.py.
_UNSCALE_BYTES, _CPU_ADAM_BYTES, _CONVERT_BYTES = 8, 28, 6


def _offload(
    recipe: TrainingRecipe, cluster: ClusterSpec, rates: GpuRates, trained: Trained, element: int, alone: bool
) -> tuple[float, float]:
    """Seconds of transfers and of the CPU optimizer that the GPU waits for: per micro-step, per step."""
    on_cpu = recipe.optimizer == "cpu-adam" or recipe.offload != "none"
    if not on_cpu:
        return 0.0, 0.0
    table = constants()["offload"]
    own = _partition(trained, recipe, cluster)
    section = _zero_option(recipe, "offload_optimizer", {})
    pinned = bool(section.get("pin_memory", True)) if isinstance(section, Mapping) else True
    pcie = rates.pcie_bytes_per_s
    copy = pcie if pinned else pcie * table["pageable_factor"]
    local = 1 if alone else cluster.gpus_per_node
    memory = min(table["memory_bytes_per_s"], table["node_memory_bytes_per_s"] / local)
    # each gradient goes down in fp32 and the backward waits for it; stage 3 first takes it down, and up again, in the training's format
    micro = own * (4 + (2 * element if recipe.zero_stage == 3 else 0)) / copy
    step = own * (_UNSCALE_BYTES + _CPU_ADAM_BYTES) / memory
    if recipe.zero_stage == 3 and recipe.offload != "params":
        # the weights are on the GPU, so torch converts them into fresh memory, whose pages it touches first, and copies from there
        fresh = min(table["fresh_bytes_per_s"], table["node_memory_bytes_per_s"] / local)
        step += own * (_CONVERT_BYTES / fresh + element / (pcie * table["fresh_factor"]))
    else:
        step += own * _CONVERT_BYTES / memory
    if recipe.zero_stage < 3:
        step += own * element / copy
    if recipe.offload == "params":
        frozen = trained.frozen_params / cluster.num_gpus if recipe.zero_stage == 3 else 0.0
        micro += 2 * (own + frozen) * element / pcie  # each gather starts with the partition's way to the GPU
    if recipe.offload_device == "nvme":
        step += own * 24 * local / table["nvme_bytes_per_s"]  # weight and moments in and out, all ranks of the node on its disks
    return micro, step


def estimate(
    model: ModelSpec,
    recipe: TrainingRecipe,
    cluster: ClusterSpec,
    *,
    rates: GpuRates | None = None,
    host: HostRates | None = None,
    num_samples: int | None = None,
    num_tokens: int | None = None,
    shape: Shape | None = None,
    alone: bool = False,
) -> StepTime:
    """Seconds of one optimizer step of `recipe` on `cluster`, throughput, MFU, and hours and cost for samples or tokens.

    `alone`: of a rank that runs by itself, as `llmcheck probe` has it: collectives are left out, and no other rank uses the host's memory.
    """
    rates = rates or GpuRates.from_spec(cluster.gpu, recipe.precision)
    host = host or HostRates.reference()
    shape = shape or read_shape(model)
    p = phases(model, recipe, cluster, rates, host, shape, alone=alone)
    micro = recipe.grad_accum_steps
    forward = max(p.forward_gpu_s, p.forward_host_s)
    backward = max(p.backward_gpu_s, p.backward_host_s)
    optimizer = max(p.optimizer_gpu_s, p.optimizer_host_s) + p.optimizer_wait_s
    communication = micro * p.communication_micro_s + p.communication_step_s
    offload = micro * p.offload_micro_s + p.offload_step_s
    step = micro * (forward + backward) + optimizer + communication + offload
    gpu = micro * (p.forward_gpu_s + p.backward_gpu_s) + p.optimizer_gpu_s
    cpu = micro * (p.forward_host_s + p.backward_host_s) + p.optimizer_host_s + p.optimizer_wait_s
    tokens = recipe.micro_batch_size * recipe.seq_len * micro * cluster.num_gpus
    tokens_per_s = tokens / step
    mfu = model_flops_per_token(shape, recipe.seq_len, Variant.of(recipe)) * tokens_per_s / cluster.num_gpus / rates.peak_flops_per_s
    host_bound = step - gpu - communication - offload > 0.1 * step
    total = None
    if num_tokens is not None:
        total = num_tokens / tokens_per_s
    elif num_samples is not None:
        total = num_samples * recipe.seq_len / tokens_per_s
    price = cluster.gpu.usd_per_hour
    cost = None if total is None or price is None else total / 3600 * price * cluster.num_gpus
    return StepTime(
        step_s=step,
        compute_s=micro * (p.forward_gpu_s + p.backward_gpu_s),
        communication_exposed_s=communication,
        optimizer_s=optimizer,
        offload_s=offload,
        host_s=cpu,
        host_bound=host_bound,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / cluster.num_gpus,
        mfu=mfu,
        error_fraction=_error_fraction(recipe, cluster, host_bound, model, shape),
        assumptions=_assumptions(recipe, cluster, host_bound),
        total_s=total,
        cost=cost,
    )


def _error_fraction(recipe: TrainingRecipe, cluster: ClusterSpec, host_bound: bool, model: ModelSpec, shape: Shape) -> float:
    """Half-width of the band, by regime: the 90th percentile of the errors seen in benchmarks/steptime."""
    bands = constants()["bands"]
    band: float = bands["host_bound"] if host_bound else bands["gpu_bound"]
    if recipe.offload != "none" or recipe.optimizer == "cpu-adam":
        band = max(band, bands["offload"])
    if cluster.num_nodes > 1:
        band = max(band, bands["multi_node"])
    if cluster.gpu.compute_capability not in ((9, 0), (8, 0)):
        band = max(band, bands["other_gpu"])
    # a shape that does not add up to the model's parameters has layers that are not read here (linear attention, convolutions)
    misread = abs(shape.num_params - model.num_params) > 0.01 * model.num_params
    if not model.family_known or misread or any(layer.experts for layer, _ in shape.layers):
        band = max(band, bands["unmeasured_family"])
    return band


def _assumptions(recipe: TrainingRecipe, cluster: ClusterSpec, host_bound: bool) -> tuple[str, ...]:
    out = ["eager PyTorch, no torch.compile; sequences full (no padding); data loading hidden"]
    if host_bound:
        out.append("bound by Python and kernel launches, at the rates of our H100 machine's CPU; a slower one is slower in proportion")
    if cluster.num_nodes > 1:
        out.append(f"network {cluster.inter_node_bytes_per_s * 8 / 1e9:.0f} Gbit/s per node, rings of all GPUs")
    if recipe.offload != "none":
        out.append("host memory bandwidth and CPU Adam shared by the node's ranks")
    if recipe.offload_device == "nvme" and recipe.offload != "none":
        out.append(f"NVMe {constants()['offload']['nvme_bytes_per_s'] / 1e9:.0f} GB/s per node")
    return tuple(out)
