"""ZeRO stages 1 and 2, as ``deepspeed/runtime/zero/stage_1_and_2.py`` (0.19.8) does them on one rank of N.

Parameters are flattened; each gradient is copied into the reduction bucket by its accumulation hook (stage 2) or in the epilogue
(stage 1); a full bucket is reduced, and what this rank owns is kept in `grads_in_partition`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.tape import Storage, cur
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.units import round_up

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

REDUCE_STREAM = 1


class Partition:
    """Which ranks own which pieces of the flat parameter buffer."""

    def __init__(self, numels: list[int], world: int, alignment: int) -> None:
        self.total = round_up(sum(numels), alignment * world)
        self.size = self.total // world
        self.offsets: list[int] = []
        offset = 0
        for n in numels:
            self.offsets.append(offset)
            offset += n
        self.used = offset

    def pieces(self, index: int, numel: int) -> list[tuple[int, int]]:
        """(owner rank, elements) of parameter `index`, in order."""
        start, out = self.offsets[index], []
        end = start + numel
        while start < end:
            owner = start // self.size
            stop = min(end, (owner + 1) * self.size)
            out.append((owner, stop - start))
            start = stop
        return out


class Stage12:
    """Optimizer of one rank. `params`: trainable parameters in the order of the (single) parameter group."""

    def __init__(self, params: list[Param], settings: ZeroSettings, *, rank: int, world: int, item: int, optimizer: OptimizerState) -> None:
        self.params, self.settings, self.rank, self.world, self.item = params, settings, rank, world, item
        self.optimizer = optimizer
        self.master_item = settings.master_bytes
        self.partition = Partition([p.numel for p in params], world, 2)
        self.index = {id(p): i for i, p in enumerate(params)}
        self.pieces = [self.partition.pieces(i, p.numel) for i, p in enumerate(params)]
        self.owned = [i for i, pieces in enumerate(self.pieces) if any(owner == rank for owner, _ in pieces)]
        self.owned_set = set(self.owned)
        self.owned_numel = sum(params[i].numel for i in self.owned)
        self.bucket: list[int] = []
        self.bucket_grads: list[Any] = []
        self.elements = 0
        self.extra_large = False
        self.buffers: list[Storage] = []
        self.buffer_index = 0
        self.grads_in_partition: Storage | None = None
        self.accumulated: Storage | None = None  # all_grad_tensors: views on an earlier micro-step's grads_in_partition
        self.averaged: Storage | None = None
        self.averaged_pad: Storage | None = None
        self.flat: Storage | None = None
        self.master: Storage | None = None
        self.boundary = True
        self.micro_step = 0
        self.offload = settings.offload_optimizer.enabled
        self.offload_buffer: Storage | None = None
        # fp32 accumulation of 16-bit gradients: each reduced slice is added to one flat partition (_build_compact_grad_partition_buffer)
        self.compact = settings.grad_accum_dtype == "fp32" and item != 4
        self.compact_flat: Storage | None = None
        # without contiguous gradients: all_grad_tensors; what other ranks own and the reduction under way still reads
        self.kept: list[Tensor | None] = []
        self.reduced: list[Param] = []

    # --- deepspeed.initialize ---------------------------------------------------------------------------------------------------

    def initialize(self, flatten_on_device: bool) -> None:
        """Flatten, master copy, gradient partition. Through the host where the device has no room for a second copy."""
        c = cur
        part = self.partition
        c.tape.mark("empty_cache")
        c.category = "weights"
        flat_bytes = part.total * self.item
        if flatten_on_device:
            pad = Storage((part.total - part.used) * self.item)
            self.flat = Storage(flat_bytes)
            del pad
            for p in self.params:
                p.st = self.flat
        else:  # through the host
            for p in self.params:
                p.st = Storage(self.item)
            c.tape.mark("empty_cache")
            self.flat = Storage(flat_bytes)
            for p in self.params:
                p.st = self.flat
        c.category = "optimizer_states"
        clone = Storage(part.size * self.item)
        if self.offload:
            # .to(cpu, fp32): the clone is converted on its way
            del clone
            c.category = "zero_buffers"
            largest = max((p.numel for p in self.params), default=0)
            self.offload_buffer = Storage(largest * self.item)
        else:
            self.master = clone if self.item == self.master_item else Storage(part.size * self.master_item)
            del clone
            zeros = Storage(part.size * self.master_item)
            del zeros
        if self.optimizer.kind == "adam-bf16":  # the bundled trainer lets the optimizer work on the weights themselves
            self.master = None
        for p in self.params:
            p.hook = self._hook
        c.category = "activations"

    # --- backward ----------------------------------------------------------------------------------------------------------------

    def _setup_buckets(self) -> None:
        if not self.buffers and self.settings.contiguous_gradients:
            category, cur.category = cur.category, "zero_buffers"
            self.buffers = [Storage(self.settings.reduce_bucket_size * self.item)]
            if self.settings.overlap_comm:
                self.buffers.append(Storage(self.settings.reduce_bucket_size * self.item))
            self.buffer_index = 0
            cur.category = category

    def _hook(self, p: Param) -> None:
        self._setup_buckets()
        if self.settings.stage == 2 or (self.settings.overlap_comm and self.boundary):
            self._to_bucket(p)

    def _to_bucket(self, p: Param) -> None:
        i = self.index[id(p)]
        bucket_size = self.settings.reduce_bucket_size
        if self.elements + p.numel > bucket_size:
            self._reduce()
            if self.settings.contiguous_gradients and self.settings.overlap_comm:
                self.buffer_index = 1 - self.buffer_index
        assert p.grad is not None
        if self.settings.contiguous_gradients:
            if p.numel > bucket_size:
                self.extra_large = True
            else:
                p.grad.st = self.buffers[self.buffer_index]
        self.elements += p.numel
        self.bucket.append(i)

    def _reduce(self) -> None:
        """``reduce_ipg_grads``: average the bucket, keep what is owned, drop the rest."""
        settings, c = self.settings, cur
        overlap = settings.overlap_comm
        category, stream = c.category, c.stream
        c.category = "zero_buffers"
        if overlap:
            c.stream = REDUCE_STREAM
        if self.bucket:
            self._average()
        for i in self.bucket:
            p = self.params[i]
            if i in self.owned_set:
                if settings.contiguous_gradients:
                    self._keep_owned(i, p)
            elif settings.stage == 2 and overlap and not settings.contiguous_gradients:
                self.reduced.append(p)
            elif settings.stage == 2:
                p.grad = None
        c.category, c.stream = category, stream
        self.bucket = []
        self.elements = 0
        self.extra_large = False

    def _average(self) -> None:
        """Slices by owner, concatenated until more than a bucket's elements are together; one slice alone is not copied."""
        limit = self.settings.reduce_bucket_size
        if self.compact and self.compact_flat is None:
            before, cur.category = cur.category, "gradients"
            self.compact_flat = Storage(4 * self.partition.size)
            cur.category = before
        if not self.settings.contiguous_gradients:
            self._clear_reduced()
            self._concatenate([(-1, self.params[i].numel) for i in self.bucket], self.elements)
            return
        if not self.settings.reduce_scatter:
            if self.compact:
                self._add_to_compact([piece for i in self.bucket for piece in self.pieces[i]])
            return
        slices: list[tuple[int, int]] = []
        for i in self.bucket:
            for owner, n in self.pieces[i]:
                if slices and slices[-1][0] == owner and not (self.compact and owner == self.rank):
                    slices[-1] = (owner, slices[-1][1] + n)
                else:
                    slices.append((owner, n))
        if self.settings.use_multi_rank_bucket_allreduce:
            self._concatenate(slices, limit)
        else:
            by_owner: dict[int, list[tuple[int, int]]] = {}
            for owner, n in slices:
                by_owner.setdefault(owner, []).append((owner, n))
            for group in by_owner.values():
                self._concatenate(group, limit)

    def _clear_reduced(self) -> None:
        """``_clear_previous_reduced_grads``: the CPU has waited for the reduction before."""
        for p in self.reduced:
            p.grad = None
        self.reduced = []

    def _concatenate(self, slices: list[tuple[int, int]], limit: int) -> None:
        group: list[tuple[int, int]] = []
        total = 0
        for piece in slices:
            group.append(piece)
            total += piece[1]
            if total > limit:
                self._flatten(group, total)
                group, total = [], 0
        if group:
            self._flatten(group, total)

    def _flatten(self, group: list[tuple[int, int]], total: int) -> None:
        flat = Storage(total * self.item) if len(group) > 1 else None
        if self.compact:
            self._add_to_compact(group)
        del flat

    def _add_to_compact(self, group: list[tuple[int, int]]) -> None:
        for owner, n in group:
            if owner == self.rank:
                fp32 = Storage(4 * n)
                del fp32

    def _keep_owned(self, i: int, p: Param) -> None:
        if self.offload:
            self._offload_gradient(i, p)
            return
        if self.compact:
            return
        if self.grads_in_partition is None:
            before, cur.category = cur.category, "gradients"
            self.grads_in_partition = Storage(self.owned_numel * self.item)
            cur.category = before
        assert p.grad is not None
        p.grad.st = self.grads_in_partition

    def _own_piece(self, i: int) -> int:
        return next(n for owner, n in self.pieces[i] if owner == self.rank)

    def _offload_gradient(self, i: int, p: Param) -> None:
        """To the host: the norm's fp64 copy, an fp32 copy, the gradient dropped."""
        if not self.boundary:
            return
        n = self._own_piece(i)
        norm = Storage(8 * n)
        del norm
        if self.item != self.master_item:
            converted = Storage(self.master_item * n)
            del converted
        p.grad = None

    def epilogue(self) -> None:
        """End of ``engine.backward``."""
        if self.settings.stage == 1 and not self.boundary:
            return
        self._setup_buckets()
        if self.settings.stage == 1 and not self.settings.overlap_comm:
            for p in self.params:
                if p.grad is not None:
                    self._to_bucket(p)
        self._reduce()
        self._clear_reduced()
        if not self.offload:
            new = self.compact_flat if self.compact else self.grads_in_partition
            if not self.settings.contiguous_gradients:
                new = None
                if not self.kept:  # later micro-steps' are added to the first one's
                    self.kept = [self.params[i].grad for i in self.owned]
            if self.accumulated is None:
                self.accumulated = new
            del new
            if self.boundary:
                self.averaged = self.accumulated
                self.accumulated = None
                pad = self._padding()
                if pad and not self.compact:
                    before, cur.category = cur.category, "gradients"
                    self.averaged_pad = Storage(pad * self.item)
                    cur.category = before
        self.buffers = []
        self.grads_in_partition = None
        for p in self.params:
            p.grad = None

    def _padding(self) -> int:
        have = sum(self._own_piece(i) for i in self.owned)
        return self.partition.size - have

    # --- step --------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        c = cur
        if self.offload:
            return
        c.category = "optimizer_states"
        sizes = [self._own_piece(i) for i in self.owned]
        if self.settings.compute_grad_norm:
            for n in sizes:
                norm = Storage(8 * n)
                del norm
        pieces = len(sizes) + (1 if self.averaged_pad is not None else 0)
        c.category = "gradients"
        part = self.partition
        if self.compact:
            grad = self.averaged if self.master_item == 4 else Storage(part.size * self.master_item)
            self.compact_flat = None
        else:
            flat = Storage(part.size * self.item) if pieces > 1 else self.averaged
            grad = flat if self.item == self.master_item else Storage(part.size * self.master_item)
            del flat
        self.averaged = self.averaged_pad = None
        self.kept = []
        self.optimizer.step([part.size])
        del grad
        c.category = "activations"
