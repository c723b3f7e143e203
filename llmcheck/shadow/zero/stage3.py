"""ZeRO stage 3, as DeepSpeed 0.19.8 does it on one rank of N: gradients are averaged bucket by bucket into a flat partition buffer
(``stage3.py``). Names follow the sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcheck.shadow.module import Module
from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.tape import EMPTY, Note, Storage, cur, note, record_stream
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.shadow.zero.coordinator import Coordinator
from llmcheck.shadow.zero.hooks import Hooks
from llmcheck.shadow.zero.partition import AVAILABLE, NOT_AVAILABLE, Stage3Build, gathered

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

REDUCE_STREAM = 1
_NORM_CHUNK = 250_000_000  # elements whose norm is taken at once (stage3.py, _constant_buffered_norm2)


class Stage3:
    """Optimizer of one rank under stage 3."""

    def __init__(
        self, model: Module, build: Stage3Build, settings: ZeroSettings, *, rank: int, world: int, item: int, optimizer: OptimizerState
    ):
        self.model, self.build, self.settings = model, build, settings
        self.rank, self.world, self.item, self.optimizer = rank, world, item, optimizer
        self.coordinator = Coordinator(settings, world)
        self.all_params = model.parameters()
        self.coordinator.params = self.all_params
        self.params = [p for p in self.all_params if p.req]
        self.bucket: list[Param] = []
        self.elements = 0
        self.buffer: Storage | None = None
        self.flat: Storage | None = None
        self.masters: list[Storage] = []
        self.grad_partitions: Storage | None = None
        self.boundary = True
        self.reduce_stream = REDUCE_STREAM if settings.overlap_comm else 0  # reduce_and_partition_stream
        self.offload = settings.offload_optimizer.enabled
        self.offload_param = settings.offload_param.enabled
        self.master_item = settings.master_bytes
        self.grad_item = 4 if settings.grad_accum_dtype == "fp32" else item
        self.sub_groups = self._sub_groups()

    def _sub_groups(self) -> list[list[Param]]:
        size = self.settings.sub_group_size
        total = sum(p.ds.partition_numel for p in self.params)
        if size >= total:
            return [self.params]
        groups: list[list[Param]] = []
        group: list[Param] = []
        n = 0
        for p in self.params:
            group.append(p)
            n += p.ds.partition_numel
            if n >= size or p is self.params[-1]:
                groups.append(group)
                group, n = [], 0
        return groups

    def initialize(self, flatten_on_device: bool) -> None:
        c = cur
        settings = self.settings
        total = 0
        for p in self.all_params:
            if total + p.numel <= settings.model_persistence_threshold and p.numel <= settings.param_persistence_threshold:
                p.ds.persist = True
                total += p.numel
        self.build.garbage.clear()
        c.category = "weights"
        numels = [sum(p.ds.partition_numel for p in g) for g in self.sub_groups]
        if not self.offload_param:
            for p in self.params:
                p.ds.tensor = EMPTY
            c.tape.mark("empty_cache")
            self.flat = Storage(sum(numels) * self.item)
            for p in self.params:
                p.ds.tensor = self.flat
        if not self.offload:
            c.category = "optimizer_states"
            item = self.master_item
            if self.item == item:
                self.masters = [Storage(item * n) for n in numels]
            else:
                converted: Storage | None = None
                for n in numels:
                    converted = Storage(item * n)
                    self.masters.append(Storage(item * n))
                del converted
            zeros = Storage(item * max(numels, default=0))
            del zeros
        c.category = "zero_buffers"
        if settings.contiguous_gradients:
            self.buffer = Storage(settings.reduce_bucket_size * self.item)
        c.category = "gradients"
        if not self.offload:
            self.grad_partitions = Storage(sum(numels) * self.grad_item)
        c.category = "gathered_weights"
        for p in self.params:
            full = Storage(p.ds.partition_numel * self.world * p.item)
            moved = Storage(p.ds.partition_numel * p.item) if self.offload_param else None
            del full, moved
            p.hook = self._hook
        for module in self.model.modules():
            if module.zero_leaf:
                for p in module.parameters():
                    p.hook = None
        if self.optimizer.kind == "adam-bf16":  # the bundled trainer lets the optimizer work on the weights themselves
            self.masters = []
        c.category = "activations"
        c.hooks = hooks = Hooks(self.coordinator, self.model)
        hooks.reduce_leaf = self._reduce_leaf

    # --- gradients --------------------------------------------------------------------------------------------------------------

    def _hook(self, p: Param) -> None:
        if self.elements + p.numel > self.settings.reduce_bucket_size and self.elements > 0:
            self._reduce()
        assert p.grad is not None
        if self.settings.contiguous_gradients and self.elements + p.numel <= self.settings.reduce_bucket_size:
            assert self.buffer is not None
            note(Note.COPY, p.grad.nbytes)
            record_stream(p.grad.st, self.reduce_stream)
            p.grad.st = self.buffer
        self.bucket.append(p)
        self.elements += p.numel

    def _reduce_leaf(self, module: Module) -> None:
        """``reduce_leaf_module_grads``; parameters that took no part get zeros."""
        for p in self.coordinator.own_params(module):
            if p.req:
                if p.grad is None:
                    p.grad = Tensor(p.shape, p.item)
                self._hook(p)

    def _reduce(self) -> None:
        if not self.bucket:
            return
        c = cur
        note(Note.BUCKET)
        category, stream = c.category, c.stream
        c.category, c.stream = "zero_buffers", self.reduce_stream
        params = sorted(self.bucket, key=lambda q: q.ds.ident)
        note(Note.SLICES, len(params) * self.world)
        flat: Storage | None = None
        if self.settings.reduce_scatter and not (len(params) == 1 and params[0].numel % self.world == 0):
            flat = Storage(sum(p.ds.partition_numel * self.world for p in params) * self.item)
        copy: Storage | None = None
        accumulated = [Storage(4 * p.ds.partition_numel) for p in params] if self.grad_item != self.item else []
        if accumulated:
            flat = None
        for p in params:
            if p.ds.partition_numel * self.rank < p.numel and self.offload:
                n = p.ds.partition_numel
                copy = Storage(self.item * n)  # the partition comes back from the host
                left = n
                while left > 0:
                    norm = Storage(8 * min(left, _NORM_CHUNK))
                    del norm
                    left -= _NORM_CHUNK
                if self.item != self.master_item:
                    converted = Storage(self.master_item * n)
                    del converted
            assert p.grad is not None
            record_stream(p.grad.st, c.stream)
            p.grad = None
        del flat, copy, accumulated
        c.category, c.stream = category, stream
        self.bucket = []
        self.elements = 0

    def epilogue(self) -> None:
        self._reduce()
        note(Note.SYNC)
        self.coordinator.release_backward_leftovers()

    # --- step ----------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        c = cur
        self.coordinator.release_all()
        if not self.offload and self.settings.precision == "fp16":
            # has_overflow: isinf makes |x| and its mask, isnan a mask, over all gradients at once, on the reduction stream
            stream, c.stream = c.stream, self.reduce_stream
            c.category = "zero_buffers"
            n = sum(p.ds.partition_numel for p in self.params)
            absolute = Storage(self.grad_item * n)
            mask = Storage(n)
            del absolute, mask
            nan = Storage(n)
            del nan
            c.stream = stream
        if not self.offload:
            c.category = "optimizer_states"
            for p in self.params:
                norm = Storage(8 * p.ds.partition_numel)
                del norm
            note(Note.SYNC)
            for key, group in enumerate(self.sub_groups):
                n = sum(p.ds.partition_numel for p in group)
                c.category = "gradients"
                flat = Storage(n * self.grad_item) if len(group) > 1 else None
                grad = Storage(self.master_item * n) if self.grad_item != self.master_item else flat
                del flat
                self.optimizer.step([n], key)
                del grad
        persistent = [p for p in self.all_params if p.ds.persist and p.ds.status == NOT_AVAILABLE]
        c.category = "gathered_weights"
        for p in persistent:
            p.st = gathered(p, self.world, len(persistent))
            p.ds.status = AVAILABLE
        c.category = "activations"
