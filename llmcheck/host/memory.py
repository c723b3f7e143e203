"""A model of one process's host memory: pageable blocks, and PyTorch's cache of pinned ones."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

PAGE_BYTES = 4096


class Block(NamedTuple):
    """An allocation: `category`, the bytes asked for, and the bytes held for it (more, where pinned)."""

    category: str
    asked_bytes: int
    held_bytes: int
    pinned: bool


class Snapshot(NamedTuple):
    """The moment of a phase's highest use. `terms` sums to `total_bytes`."""

    phase: str
    total_bytes: int
    pinned_bytes: int
    terms: dict[str, int]


ROUNDING = "rounding of pinned blocks to powers of two"
CACHED = "pinned blocks that PyTorch keeps for reuse"


class HostMemory:
    """What a process holds, by category, and the peak of each phase. Freed pageable memory goes back to the system at once.

    Pinned memory follows PyTorch's CachingHostAllocator (torch 2.13, ATen/core/CachingHostAllocator.h): a request is rounded up to
    a power of two, served from a free block of exactly that size if there is one, and never returned. Pageable blocks of this size
    (each is megabytes) are mapped and unmapped by the C library, one by one.
    """

    def __init__(self) -> None:
        self.terms: dict[str, int] = defaultdict(int)
        self.total_bytes = 0
        self.pinned_bytes = 0
        self.peaks: list[Snapshot] = []
        self._free: dict[int, int] = defaultdict(int)  # size -> number of free pinned blocks
        self.phase("start")

    def phase(self, name: str) -> None:
        """Begin a phase: its peak starts at what is held now."""
        self.peaks.append(self._now(name))

    def take(self, category: str, num_bytes: int, *, pinned: bool = False) -> Block:
        """Allocate `num_bytes`."""
        if not pinned:
            self._add(category, num_bytes)
            return Block(category, num_bytes, num_bytes, False)
        size = power_of_two(num_bytes)
        if self._free[size]:
            self._free[size] -= 1
            self._move(CACHED, -size)
        else:
            self.pinned_bytes += size
        self._move(category, num_bytes)
        self._add(ROUNDING, size - num_bytes)
        return Block(category, num_bytes, size, True)

    def lock(self, category: str, num_bytes: int) -> Block:
        """Page-locked memory of DeepSpeed's own (posix_memalign and mlock, csrc/pin_memory): whole pages, kept to the end."""
        size = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
        self.pinned_bytes += size
        self._add(category, size)
        return Block(category, size, size, True)

    def give(self, block: Block | None) -> None:
        """Free `block`; None is allowed."""
        if block is None:
            return
        self._move(block.category, -block.asked_bytes)
        if block.pinned:
            self._move(ROUNDING, block.asked_bytes - block.held_bytes)
            self._move(CACHED, block.held_bytes)
            self._free[block.held_bytes] += 1

    def pin(self, block: Block) -> Block:
        """A pinned copy of `block`, which is then freed: ``t = t.pin_memory()``."""
        copy = self.take(block.category, block.asked_bytes, pinned=True)
        self.give(block)
        return copy

    def peak(self) -> Snapshot:
        """The highest moment of all phases; of equals the first."""
        return max(self.peaks, key=lambda s: s.total_bytes)

    def peak_of(self, *phases: str) -> Snapshot:
        """The highest moment of the named phases."""
        return max((s for s in self.peaks if s.phase in phases), key=lambda s: s.total_bytes)

    def _move(self, category: str, num_bytes: int) -> None:
        self.terms[category] += num_bytes
        self.total_bytes += num_bytes

    def _add(self, category: str, num_bytes: int) -> None:
        self._move(category, num_bytes)
        if self.total_bytes > self.peaks[-1].total_bytes:
            self.peaks[-1] = self._now(self.peaks[-1].phase)

    def _now(self, phase: str) -> Snapshot:
        return Snapshot(phase, self.total_bytes, self.pinned_bytes, {k: v for k, v in self.terms.items() if v})


def power_of_two(num_bytes: int) -> int:
    """The smallest power of two that is at least `num_bytes`; 0 for 0."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes > 0 else 0
