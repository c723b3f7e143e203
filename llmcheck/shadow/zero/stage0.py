"""No partitioning of gradients or weights: DeepSpeed's wrappers of stage 0, and the BF16 optimizer of stage 1 with fp32 accumulation.

Sources (DeepSpeed 0.19.8): ``fp16/fused_optimizer.py``, ``fp16/unfused_optimizer.py``, ``bf16_optimizer.py``, ``engine.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.tape import Storage, cur
from llmcheck.shadow.tensor import Param
from llmcheck.shadow.zero.stage12 import Partition

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

DDP_BUCKET_ELEMENTS = 500_000_000  # engine.py, MEMORY_OPT_ALLREDUCE_SIZE


class _Replicated:
    """What the wrappers share: gradients stay on the parameters until the step."""

    def __init__(self, params: list[Param], settings: ZeroSettings, *, rank: int, world: int, item: int, optimizer: OptimizerState) -> None:
        self.params, self.settings, self.rank, self.world, self.item = params, settings, rank, world, item
        self.optimizer = optimizer
        self.boundary = True
        self.numel = sum(p.numel for p in params)

    def initialize(self, flatten_on_device: bool) -> None:
        raise NotImplementedError

    def epilogue(self) -> None:
        """``buffered_allreduce_fallback`` at a boundary: gradients flattened bucket by bucket."""
        if not self.boundary:
            return
        before, cur.category = cur.category, "zero_buffers"
        group: list[int] = []
        for p in self.params:
            group.append(p.numel)
            if sum(group) > DDP_BUCKET_ELEMENTS:
                self._flatten(group)
                group = []
        self._flatten(group)
        cur.category = before

    def _flatten(self, group: list[int]) -> None:
        if len(group) > 1:
            flat = Storage(sum(group) * self.item)
            del flat

    def step(self) -> None:
        raise NotImplementedError


class FusedFp16(_Replicated):
    """``FP16_Optimizer``: stage 0 in bf16 or fp16 with FusedAdam."""

    def initialize(self, flatten_on_device: bool) -> None:
        c = cur
        c.category = "weights"
        clones = [Storage(p.nbytes) for p in self.params]
        self.flat = Storage(self.numel * self.item) if len(clones) > 1 else clones[0]
        clones = []
        for p in self.params:
            p.st = self.flat
        c.category = "optimizer_states"
        clone = Storage(self.numel * self.item)
        self.master = Storage(self.numel * 4)
        del clone
        c.category = "gradients"
        grad = Storage(self.numel * 4)
        self.optimizer.step([self.numel])
        del grad
        c.category = "activations"

    def step(self) -> None:
        c = cur
        c.category = "gradients"
        casts = [Storage(p.numel * 4) for p in self.params]
        grad = Storage(self.numel * 4) if len(casts) > 1 else casts[0]
        casts = []
        for p in self.params:
            p.grad = None
        self.optimizer.step([self.numel])
        del grad
        c.category = "activations"


class UnfusedFp16(_Replicated):
    """``FP16_UnfusedOptimizer``: stage 0 in bf16 or fp16 with any other optimizer."""

    def initialize(self, flatten_on_device: bool) -> None:
        c = cur
        c.category = "optimizer_states"
        self.masters: list[Storage] = []
        for p in self.params:
            clone = Storage(p.nbytes)
            self.masters.append(Storage(4 * p.numel))
            del clone
        c.category = "gradients"
        low = [Storage(p.nbytes) for p in self.params]  # initialize_optimizer_states gives both copies zero gradients
        grads = [Storage(4 * p.numel) for p in self.params]
        self.optimizer.step([p.numel for p in self.params])
        low.clear()
        grads.clear()
        c.category = "activations"

    def step(self) -> None:
        c = cur
        c.category = "gradients"
        for p in self.params:
            norm = Storage(4 * p.numel)
            del norm
        grads = [Storage(4 * p.numel) for p in self.params]
        self.optimizer.step([p.numel for p in self.params])
        grads.clear()
        for p in self.params:
            p.grad = None
        c.category = "activations"


class Plain(_Replicated):
    """Stage 0 in fp32, and with adam-bf16: the optimizer itself."""

    counts: Storage | None = None

    def initialize(self, flatten_on_device: bool) -> None:
        cur.category = "activations"

    def step(self) -> None:
        self.optimizer.step([p.numel for p in self.params])
        if self.optimizer.kind == "adam-bf16" and self.counts is None:
            cur.category = "optimizer_states"
            self.counts = Storage(8 * len(self.params))  # its steps, counted on the device
            cur.category = "activations"
        for p in self.params:
            p.grad = None


class Bf16Optimizer(_Replicated):
    """``BF16_Optimizer``: stage 1, bf16 weights, a full fp32 gradient buffer."""

    def initialize(self, flatten_on_device: bool) -> None:
        c = cur
        part = Partition([p.numel for p in self.params], self.world, 2)
        self.partition = part
        c.category = "weights"
        pad = Storage((part.total - part.used) * self.item)
        self.flat = Storage(part.total * self.item)
        del pad
        for p in self.params:
            p.st = self.flat
            p.hook = self._hook
        c.category = "optimizer_states"
        clone = Storage(part.size * self.item)
        self.master = Storage(part.size * 4)
        del clone
        c.category = "gradients"
        self.grads = Storage(part.total * 4)
        c.category = "activations"

    def _hook(self, p: Param) -> None:
        if self.settings.bf16_immediate_grad_update:
            self._accumulate(p)

    @staticmethod
    def _accumulate(p: Param) -> None:
        before, cur.category = cur.category, "gradients"
        fp32 = Storage(4 * p.numel)
        del fp32
        cur.category = before

    def epilogue(self) -> None:
        if not self.settings.bf16_immediate_grad_update:
            for p in self.params:
                self._accumulate(p)
        if self.boundary and self.settings.communication_dtype != "fp32":
            before, cur.category = cur.category, "zero_buffers"
            sent = Storage(self.partition.total * 2)
            del sent
            cur.category = before

    def step(self) -> None:
        self.optimizer.step([self.partition.size])
        for p in self.params:
            p.grad = None
