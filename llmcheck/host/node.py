"""Host memory of a node and disk of a run, from the simulation of each of its ranks."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from llmcheck.dsconfig import ZeroSettings, complete, hidden_size_of
from llmcheck.dsconfig.settings import DTYPE_BYTES
from llmcheck.host.memory import HostMemory, Snapshot
from llmcheck.host.offload import COPIES, PROCESS, Parameter, RankHost, simulate
from llmcheck.types import ClusterSpec, HostEstimate, ModelSpec, Optimizer, TrainingRecipe
from llmcheck.units import MIB, ceil_div

# One process: Python, torch, transformers, DeepSpeed, and the host side of CUDA. Measured on an H100 (torch 2.11, driver 580,
# transformers 5.17, DeepSpeed 0.19.8): resident 0.83 GiB when ZeRO-3 initialises a LLaMA, Mistral or Qwen (0.71 BLOOM), and a
# median of 1.47 GiB (1.37 to 1.55) as the peak of 50 runs of ZeRO-0 to 2 that keep nothing else in host memory.
PROCESS_INIT_BYTES = 850 * MIB
PROCESS_BYTES = 1505 * MIB
# Of it, pages of libraries that all processes of a node share (RssFile of the same runs, 0.21 to 0.22 GiB).
PROCESS_SHARED_BYTES = 215 * MIB

FILE_BYTES_PER_PARAM = 2  # published weights are 16-bit
ADAM_8BIT_BYTES = 2 * (1 + 4 / 256)  # per parameter: two 8-bit moments, one fp32 scale per block of 256 (bitsandbytes 0.50)

_ASSUMPTIONS = (
    "a rank's process is as large as measured on an H100; launcher, data-loader workers and NCCL's host buffers are not in it",
    "weights are read from memory-mapped safetensors, tensor by tensor: one reclaimable copy per node, shared by its ranks",
    "training data are memory-mapped and take no host memory of their own",
)


class HostDetail(NamedTuple):
    """The estimate, and what it leaves unsaid. `naive_load_peak_bytes_per_node`: every rank reads the whole checkpoint."""

    estimate: HostEstimate
    peak_phase: str
    naive_load_peak_bytes_per_node: int
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, num_checkpoints: int = 1) -> HostEstimate:
    """Host memory per node and disk of the run, with `num_checkpoints` checkpoints kept; see :func:`detail`."""
    return detail(model, recipe, cluster, num_checkpoints=num_checkpoints).estimate


def detail(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, num_checkpoints: int = 1) -> HostDetail:
    """Like :func:`estimate`, with the phase of the peak, the assumptions, and what DeepSpeed would stumble over."""
    return of_parameters(parameters_of(model, recipe), recipe, cluster, num_checkpoints=num_checkpoints, hidden_size=hidden_size_of(model))


def of_parameters(
    parameters: tuple[Parameter, ...],
    recipe: TrainingRecipe,
    cluster: ClusterSpec,
    *,
    num_checkpoints: int = 1,
    hidden_size: int | None = None,
) -> HostDetail:
    """The same from the parameters' sizes in order of construction (adapters included, tied ones once)."""
    world = cluster.num_gpus
    config = recipe.deepspeed or complete(recipe, world_size=world, hidden_size=hidden_size)
    settings = ZeroSettings.from_config(config, world, recipe.optimizer)
    weights_bytes = sum(p.numel for p in parameters) * DTYPE_BYTES[settings.precision]
    free_device = cluster.gpu.memory_bytes - cluster.gpu.context_bytes - weights_bytes
    ranks = [
        simulate(
            parameters,
            settings,
            rank=rank,
            memory=HostMemory(),
            free_device_bytes=free_device,
            adam_on_host=recipe.optimizer == "cpu-adam" or settings.offload_optimizer.enabled,
            process_bytes=PROCESS_INIT_BYTES,
            process_growth_bytes=PROCESS_BYTES - PROCESS_INIT_BYTES,
        )
        for rank in (range(cluster.gpus_per_node) if _ranks_differ(settings) else range(1))
    ]
    copies = cluster.gpus_per_node // len(ranks)
    peaks = [_node_peak([rank.memory for rank in ranks], phase, copies) for phase in ("model", "init", "train")]
    peaks.append(_saving(peaks[-1], ranks, parameters, settings, copies))
    peak = max(peaks, key=lambda s: s.total_bytes)
    pinned = max(s.pinned_bytes for s in peaks)
    load, naive_load = _loading(peaks[0], parameters, settings, cluster.gpus_per_node)
    nvme = sum(rank.nvme_bytes for rank in ranks) * copies
    checkpoint = checkpoint_bytes(parameters, settings, recipe.optimizer)
    return HostDetail(
        estimate=HostEstimate(
            host_bytes_per_node=peak.total_bytes,
            pinned_bytes_per_node=pinned,
            load_peak_bytes_per_node=load,
            disk_bytes=num_checkpoints * checkpoint + nvme,
            nvme_bytes_per_node=nvme,
            checkpoint_bytes=checkpoint,
            terms=peak.terms,
        ),
        peak_phase=peak.phase,
        naive_load_peak_bytes_per_node=naive_load,
        assumptions=(*_ASSUMPTIONS, f"{num_checkpoints} checkpoint{'s' if num_checkpoints != 1 else ''} kept, frozen weights not in it"),
        warnings=tuple(dict.fromkeys(w for rank in ranks for w in rank.warnings)),
    )


def parameters_of(model: ModelSpec, recipe: TrainingRecipe) -> tuple[Parameter, ...]:
    """The parameters of `model` under `recipe`, LoRA adapters included. A family without a shadow counts as one parameter."""
    from llmcheck.shadow.parameters import parameters  # only here: `of_parameters` needs no model

    try:
        return tuple(Parameter(numel, trainable) for numel, trainable in parameters(model, recipe))
    except KeyError:
        return (Parameter(model.num_params, recipe.lora is None),)


def checkpoint_bytes(parameters: tuple[Parameter, ...], settings: ZeroSettings, optimizer: Optimizer = "fused-adam") -> int:
    """One checkpoint on disk, over all ranks: trained weights in the run's precision, master weights and both moments.

    Stage 3 writes the masters alone (zero_to_fp32 makes weights of them); where there are none, the weights.
    """
    trained = sum(p.numel for p in parameters if p.trainable)
    moments = ADAM_8BIT_BYTES if optimizer == "adam-8bit" else 2 * DTYPE_BYTES[settings.optimizer_state_dtype]
    weights = 0 if settings.stage == 3 else DTYPE_BYTES[settings.precision]
    masters = 0 if settings.wrapper == "none" else DTYPE_BYTES[settings.master_dtype]
    return trained * (weights + masters) + int(trained * moments)


def _ranks_differ(settings: ZeroSettings) -> bool:
    """Only where gradients accumulate in host memory parameter by parameter: stage 2 with offload."""
    return settings.stage == 2 and settings.offload_optimizer.enabled and settings.grad_accum_steps > 1


def _node_peak(memories: list[HostMemory], phase: str, copies: int) -> Snapshot:
    """All ranks of a node at their peak of `phase` together: they run in step."""
    found = [memory.peak_of(phase) for memory in memories]
    terms: Counter[str] = Counter()
    for snapshot in found:
        terms.update({k: v * copies for k, v in snapshot.terms.items()})
    terms[PROCESS] -= _shared_bytes(len(memories) * copies)
    return Snapshot(phase, sum(terms.values()), sum(s.pinned_bytes for s in found) * copies, dict(terms))


def _shared_bytes(num_ranks: int) -> int:
    return (num_ranks - 1) * PROCESS_SHARED_BYTES


def _saving(trained: Snapshot, ranks: list[RankHost], parameters: tuple[Parameter, ...], settings: ZeroSettings, copies: int) -> Snapshot:
    """engine.save_checkpoint: torch.save brings one storage after the other from the GPU into host memory.

    First rank 0 writes the model (stages 0 to 2: the flat buffer is one storage), then every rank its optimizer states. With
    stage3_gather_16bit_weights_on_model_save rank 0 also gathers all 16-bit weights on the CPU.
    """
    item, master = DTYPE_BYTES[settings.precision], DTYPE_BYTES[settings.master_dtype]
    flat = sum(p.numel for p in parameters if p.trainable)
    held: Counter[str] = Counter()
    for rank in ranks:
        held.update({k: v * copies for k, v in rank.memory.terms.items() if v})
    num_ranks = len(ranks) * copies
    held[PROCESS] -= _shared_bytes(num_ranks)
    states = 0 if settings.offload_optimizer.enabled else num_ranks * master * ceil_div(flat, settings.partitions)
    if settings.stage == 3:
        states = min(states, num_ranks * master * settings.sub_group_size) if settings.sub_group_size else states
        model = item * sum(p.numel for p in parameters) if settings.gather_16bit_weights_on_model_save else 0
    else:
        model = item * flat
    held[COPIES] += max(model, states)
    total = sum(held.values())
    return Snapshot("checkpoint", total, trained.pinned_bytes, {k: v for k, v in held.items() if v})


def _loading(start: Snapshot, parameters: tuple[Parameter, ...], settings: ZeroSettings, gpus_per_node: int) -> tuple[int, int]:
    """(one shared copy of the file and one tensor per rank, a whole copy per rank), bytes per node."""
    item = DTYPE_BYTES[settings.precision]
    base = sum(p.numel for p in parameters)
    largest = max((p.numel for p in parameters), default=0)
    ours = start.total_bytes + FILE_BYTES_PER_PARAM * base + gpus_per_node * item * largest
    naive = start.terms.get(PROCESS, 0) + gpus_per_node * max(item, FILE_BYTES_PER_PARAM) * base
    return ours, naive
