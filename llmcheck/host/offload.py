"""What one rank allocates in host memory, in DeepSpeed 0.19.8's order. Each function names the code that it follows.

Sizes are bytes; `numel` and partitions are elements. A parameter group is one: the optimizer gets all trainable parameters together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmcheck.dsconfig.settings import DTYPE_BYTES, ZeroSettings
from llmcheck.host.memory import Block, HostMemory
from llmcheck.units import ceil_div, round_up

PROCESS = "processes"
MASTER = "master weights"
MOMENTS = "Adam moments"
GRADIENTS = "gradients"
WEIGHTS = "16-bit weights"
COPIES = "transient copies"
SWAP = "NVMe buffers"

_ALIGNMENT = 2  # elements; stage_1_and_2.py, nccl_start_alignment_factor
_MIN_SWAP_BYTES = 1 << 20  # swap_tensor/utils.py, MIN_AIO_BYTES
_SWAP_ALIGNMENT_BYTES = 1024  # the same, AIO_ALIGNED_BYTES
_ADAM_MOMENTS = 2


class Parameter(NamedTuple):
    """One parameter in order of construction; tied ones once."""

    numel: int
    trainable: bool = True


class RankHost(NamedTuple):
    """What :func:`simulate` found besides the memory itself."""

    memory: HostMemory
    nvme_bytes: int
    warnings: tuple[str, ...]


def simulate(
    parameters: Sequence[Parameter],
    settings: ZeroSettings,
    *,
    rank: int,
    memory: HostMemory,
    free_device_bytes: int | None = None,
    adam_on_host: bool = True,
    process_bytes: int = 0,
    process_growth_bytes: int = 0,
) -> RankHost:
    """Run construction, initialisation and two optimizer steps of `rank` on `memory`: phases model, init, train.

    `process_bytes` is there from the start, `process_growth_bytes` comes with the first step. `free_device_bytes` is what the driver
    reports free once the model is on the GPU (None: enough); DeepSpeed flattens through host memory when the flat buffer does not fit.
    """
    run = _Rank(parameters, settings, rank, memory, free_device_bytes)
    memory.phase("model")
    memory.take(PROCESS, process_bytes)
    if settings.stage == 3:
        run.construct_partitioned()
        memory.phase("init")
        run.initialize_stage3()
        memory.phase("train")
        memory.take(PROCESS, process_growth_bytes)
        run.step_stage3(adam_on_host)
    else:
        memory.phase("init")
        if settings.wrapper == "zero-1-2":
            run.initialize_stage12()
        memory.phase("train")
        memory.take(PROCESS, process_growth_bytes)
        run.step_stage12(adam_on_host)
    return RankHost(memory, run.nvme_bytes, tuple(run.warnings))


class _Rank:
    def __init__(
        self, parameters: Sequence[Parameter], settings: ZeroSettings, rank: int, memory: HostMemory, free_device_bytes: int | None
    ) -> None:
        self.settings, self.rank, self.memory, self.free_device_bytes = settings, rank, memory, free_device_bytes
        self.parameters = parameters
        self.trainable = [p.numel for p in parameters if p.trainable]
        self.item = DTYPE_BYTES[settings.precision]
        self.master = DTYPE_BYTES[settings.master_dtype]
        self.moment = DTYPE_BYTES[settings.optimizer_state_dtype]
        self.nvme_bytes = 0
        self.warnings: list[str] = []

    # --- stages 1 and 2: runtime/zero/stage_1_and_2.py, DeepSpeedZeroOptimizer ---

    def initialize_stage12(self) -> None:
        settings, memory = self.settings, self.memory
        numels = self._round_robin(self.trainable)
        if not numels:
            return
        self.offsets, flat = self._layout(numels)
        self.flat_numels = numels
        partition = flat // settings.world_size
        self.partition = partition
        self._flatten_through_host(sum(numels), flat)
        if not settings.offload_optimizer.enabled:
            return
        pin = settings.offload_optimizer.pin_memory
        converted = memory.take(COPIES, self.item * partition) if self.master != self.item else None
        weights = memory.take(MASTER, self.master * partition)  # .detach().clone().to("cpu", dtype=master)
        memory.give(converted)
        if pin:
            memory.pin(weights)
        # The 16-bit buffer that carries updated weights back. The pageable one stays in __init__'s frame while it runs.
        staging = memory.take(WEIGHTS, self.item * partition)
        if pin:
            memory.take(WEIGHTS, self.item * partition, pinned=True)
        temporary = memory.take(GRADIENTS, self.item * max(numels))  # temp_grad_buffer_for_cpu_offload
        if pin:
            memory.pin(temporary)
        # initialize_optimizer_states
        gradient = memory.take(GRADIENTS, self.master * partition)
        if pin:
            memory.take(GRADIENTS, self.master * partition, pinned=True)
            memory.give(gradient)
            memory.give(staging)

    def step_stage12(self, adam_on_host: bool) -> None:
        settings, memory = self.settings, self.memory
        if not (settings.offload_optimizer.enabled and settings.stage in (1, 2) and self.trainable):
            return
        compact = settings.grad_accum_dtype == "fp32" != settings.precision  # those accumulate on the GPU
        if settings.stage == 2 and settings.grad_accum_steps > 1 and self.master == 4 and not compact:
            # async_accumulate_grad_in_cpu_via_gpu: a buffer for each parameter that touches the partition, whole. Stage 1 accumulates
            # on the GPU and brings gradients here once.
            start, end = self.partition * self.rank, self.partition * (self.rank + 1)
            for offset, numel in zip(self.offsets, self.flat_numels, strict=True):
                if offset < end and offset + numel > start:
                    buffer = memory.take(GRADIENTS, self.item * numel)
                    if settings.offload_optimizer.pin_memory:
                        memory.pin(buffer)
        if adam_on_host:
            for _ in range(_ADAM_MOMENTS):
                memory.take(MOMENTS, self.moment * self.partition)

    def _round_robin(self, numels: list[int]) -> list[int]:
        world = self.settings.world_size
        return [n for first in range(world) for n in numels[first::world]] if self.settings.round_robin_gradients else numels

    def _layout(self, numels: list[int]) -> tuple[list[int], int]:
        """Each parameter's offset in the flat buffer, and the buffer's length."""
        align = 16 // self.item if self.settings.parameter_alignment else 1
        offsets, at = [], 0
        for i, numel in enumerate(numels):
            offsets.append(at)
            at += numel
            if i < len(numels) - 1:
                at = round_up(at, align)
        return offsets, round_up(at, _ALIGNMENT * self.settings.world_size)

    def _flatten_through_host(self, numel: int, flat: int) -> None:
        free = self.free_device_bytes
        if free is None or free < 0 or free >= self.item * flat:  # below 0 the model itself does not fit, and nothing gets this far
            return
        parts = self.memory.take(COPIES, self.item * numel)  # param.cpu_data
        whole = self.memory.take(COPIES, self.item * flat)
        self.memory.give(parts)
        self.memory.give(whole)
        self.warnings.append("the flat buffer does not fit beside the model on the GPU: each rank flattens its parameters in host memory")

    # --- stage 3: runtime/zero/partition_parameters.py and stage3.py ---

    def construct_partitioned(self) -> None:
        """zero.Init: each parameter becomes this rank's partition of it, in host memory with parameter offload."""
        offload, memory = self.settings.offload_param, self.memory
        self.partitions: list[tuple[int, bool, Block | None]] = []  # (elements, on NVMe, host block) of the trainable ones
        if offload.device == "nvme":
            memory.lock(SWAP, self.item * self._swap_aligned(offload.buffer_size, self.item) * offload.buffer_count)
        persisted = 0
        limit = self.settings.model_persistence_threshold // self.settings.world_size
        for p in self.parameters:
            size = ceil_div(p.numel, self.settings.world_size)
            persists = p.numel <= self.settings.param_persistence_threshold and persisted + p.numel <= limit
            persisted += p.numel if persists else 0
            on_nvme, block = False, None
            if offload.device == "nvme" and self._swappable(size, self.item):
                on_nvme = True
                self.nvme_bytes += self.item * self._swap_aligned(size, self.item)
                if size > offload.buffer_size:
                    self.warnings.append(
                        f"a parameter's partition has {size:,} elements, more than offload_param.buffer_size "
                        f"({offload.buffer_size:,}): DeepSpeed stops there"
                    )
            elif offload.enabled and not persists:
                block = memory.take(WEIGHTS, self.item * size, pinned=offload.pin_memory)
            if p.trainable:
                self.partitions.append((size, on_nvme, block))

    def initialize_stage3(self) -> None:
        if not self.partitions:
            return
        self.groups = self._sub_groups()
        self._move_partitions()
        if self.settings.swaps_optimizer:
            # SwapBufferManager: `buffer_count` buffers, each as large as the largest sub-group
            largest = self._swap_aligned(max(self.groups), self.master)
            self.memory.lock(SWAP, self.master * largest * self.settings.offload_optimizer.buffer_count)
        if self.settings.offload_optimizer.enabled:
            self._create_master_weights()
            self._create_gradients()

    def step_stage3(self, adam_on_host: bool) -> None:
        memory = self.memory
        if not (self.partitions and self.settings.offload_optimizer.enabled and adam_on_host):
            return
        swapped: list[int] = []
        for i, numel in enumerate(self.groups):
            if not self._on_host(i):
                continue
            moments = [memory.take(MOMENTS, self.moment * numel) for _ in range(_ADAM_MOMENTS)]
            if not self.flat_on_host[i] and self.master != self.item and not self.group_on_nvme[i]:
                memory.give(memory.take(COPIES, self.item * numel))  # the update is converted here, then copied to the GPU
            if self._swaps(i):
                swapped.append(numel)
                for block in moments:
                    memory.give(block)  # written out; later steps work in the buffers
        # Files of master weights, both moments and the gradients that cross the size limit
        for numel in swapped:
            aligned = self._swap_aligned(numel, self.master)
            self.nvme_bytes += aligned * (self.master + _ADAM_MOMENTS * self.moment + self.master)

    def _sub_groups(self) -> list[int]:
        """Partition elements of each sub-group (_create_fp16_sub_groups)."""
        sizes, limit = [size for size, _, _ in self.partitions], self.settings.sub_group_size
        if limit >= sum(sizes):
            return [sum(sizes)]
        groups, current = [], 0
        for i, size in enumerate(sizes):
            current += size
            if current >= limit or i == len(sizes) - 1:
                groups.append(current)
                current = 0
        return groups

    def _move_partitions(self) -> None:
        """_create_fp16_partitions_with_defragmentation."""
        memory, offload, total = self.memory, self.settings.offload_param, sum(self.groups)
        self.flat_on_host = [offload.enabled] * len(self.groups)
        self.group_on_nvme = [False] * len(self.groups)
        if not offload.enabled:
            memory.give(memory.take(COPIES, self.item * total))  # defragment: all partitions through one host buffer
            return
        kept = min(total, offload.max_in_cpu) if offload.device == "nvme" else total
        if kept:
            memory.take(WEIGHTS, self.item * kept, pinned=True)  # pinned whatever pin_memory says
        at = 0
        remaining = iter(self.partitions)
        for i, numel in enumerate(self.groups):
            fits = at + numel <= kept
            self.group_on_nvme[i] = not fits
            at += numel
            seen = 0
            while seen < numel:
                size, on_nvme, block = next(remaining)
                seen += size
                if fits:
                    memory.give(block)
                    if on_nvme:
                        self.nvme_bytes -= self.item * self._swap_aligned(size, self.item)
        if any(self.group_on_nvme):
            largest = max(self.groups)
            memory.lock(SWAP, self.item * self._swap_aligned(largest, self.item))  # reserve_partitioned_swap_space

    def _create_master_weights(self) -> None:
        memory = self.memory
        previous: Block | None = None
        for i, numel in enumerate(self.groups):
            if self._swaps(i) or not self._on_host(i):
                continue
            if self.group_on_nvme[i]:
                memory.take(MASTER, self.master * numel)
                continue
            if self.flat_on_host[i] and self.master == self.item:
                memory.take(MASTER, self.master * numel)  # .to() returns its argument; the clone remains
                continue
            crossing = not self.flat_on_host[i] and self.master != self.item
            source = memory.take(COPIES, self.item * numel) if crossing else None  # a blocking copy converts on the CPU
            converted = memory.take(COPIES, self.master * numel)
            memory.give(source)
            memory.give(previous)  # rebound only now
            previous = converted
            memory.take(MASTER, self.master * numel)
        memory.give(previous)

    def _create_gradients(self) -> None:
        """initialize_optimizer_states, then grad_partitions_flat_buffer."""
        settings, memory = self.settings, self.memory
        pin = settings.offload_optimizer.pin_memory
        shared = memory.take(COPIES, self.master * max(self.groups))  # gradient_buffer, dropped when the function returns
        for i, numel in enumerate(self.groups):
            if not self._swaps(i) and self._on_host(i):
                block = memory.take(GRADIENTS, self.master * numel)
                if pin:
                    memory.pin(block)
        memory.give(shared)
        partitions = memory.take(GRADIENTS, DTYPE_BYTES[settings.grad_accum_dtype] * sum(self.groups))
        if pin:
            memory.pin(partitions)

    def _on_host(self, group: int) -> bool:
        """Partial offload keeps the first sub-groups' states on the GPU."""
        return group >= int((1 - self.settings.offload_optimizer.ratio) * len(self.groups))

    def _swaps(self, group: int) -> bool:
        return self.settings.swaps_optimizer and self._swappable(self.groups[group], self.master)

    def _swappable(self, numel: int, item: int) -> bool:
        return numel * item >= max(_MIN_SWAP_BYTES, self.settings.aio_block_size)

    def _swap_aligned(self, numel: int, item: int) -> int:
        return round_up(numel, max(1, _SWAP_ALIGNMENT_BYTES * self.settings.aio_intra_op_parallelism // item))
