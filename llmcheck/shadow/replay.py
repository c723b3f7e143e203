"""Replay a tape of allocations through the caching allocator: phases, peaks, retries, failure, breakdown and timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcheck.shadow.allocator import ExpandableAllocator, NativeAllocator, OutOfMemoryError
from llmcheck.shadow.tensor import Tape
from llmcheck.types import AllocatorKind, OutOfMemory, PhaseStats


@dataclass
class Replay:
    """What one replay showed. Positions are indices into the tape's events."""

    phases: list[PhaseStats]
    num_retries: int
    out_of_memory: OutOfMemory | None
    peak_position: int  # of the allocated peak in the training phases
    peak_phase: str
    block_bytes: list[int]  # size of the block that served each request

    @property
    def peak_reserved_bytes(self) -> int:
        return max((p.peak_reserved_bytes for p in self.phases), default=0)

    def peak_allocated_bytes(self, training: bool) -> int:
        return max((p.peak_allocated_bytes for p in self.phases if (p.name not in ("model", "init")) == training), default=0)


def replay(tape: Tape, kind: AllocatorKind, cap_bytes: int | None = None) -> Replay:
    """Run `tape` through an allocator of `kind` under `cap_bytes` of reserved memory."""
    allocator: NativeAllocator | ExpandableAllocator
    allocator = NativeAllocator(cap_bytes) if kind == "native" else ExpandableAllocator(cap_bytes)
    events, sizes, streams = tape.events, tape.sizes, tape.streams
    blocks: list[Any] = [None] * len(sizes)
    block_bytes = [0] * len(sizes)
    phases: list[PhaseStats] = []
    malloc, free = allocator.malloc, allocator.free
    position = 0
    peak_position, peak_phase, peak = 0, "", -1
    oom: OutOfMemory | None = None
    pending = list(tape.marks)
    pending.append((len(events), "end", ""))
    names = [m[2] for m in tape.marks if m[1] == "phase"]
    phase_index = 0
    for stop, what, name in pending:
        start = position
        training = phase_index < len(names) and names[phase_index] not in ("model", "init")
        try:
            if training:
                for position in range(start, stop):
                    e = events[position]
                    if e >= 0:
                        block = blocks[e] = malloc(sizes[e], streams[e])
                        block_bytes[e] = block.size
                        if allocator.allocated > peak:
                            peak, peak_position, peak_phase = allocator.allocated, position, names[phase_index]
                    else:
                        free(blocks[~e])
            else:
                for position in range(start, stop):
                    e = events[position]
                    if e >= 0:
                        block = blocks[e] = malloc(sizes[e], streams[e])
                        block_bytes[e] = block.size
                    else:
                        free(blocks[~e])
        except OutOfMemoryError as error:
            phase = names[phase_index] if phase_index < len(names) else "end"
            oom = OutOfMemory(
                phase=phase,
                requested_bytes=error.requested,
                allocated_bytes=error.allocated,
                reserved_bytes=error.reserved,
                category=tape.categories[events[position]],
            )
            phases.append(_stats(phase, allocator))
            break
        position = stop
        if what == "empty_cache":
            allocator.empty_cache()
        elif what == "phase":
            phases.append(_stats(name, allocator))
            allocator.peak_allocated, allocator.peak_reserved = allocator.allocated, allocator.reserved
            phase_index += 1
    return Replay(phases, allocator.num_retries, oom, peak_position, peak_phase, block_bytes)


def _stats(name: str, a: NativeAllocator | ExpandableAllocator) -> PhaseStats:
    return PhaseStats(
        name=name,
        allocated_bytes=a.allocated,
        peak_allocated_bytes=a.peak_allocated,
        reserved_bytes=a.reserved,
        peak_reserved_bytes=a.peak_reserved,
    )


def breakdown(tape: Tape, block_bytes: list[int], position: int) -> Mapping[str, int]:
    """Bytes by category of the blocks that are live after event `position`."""
    live: dict[int, None] = {}
    for e in tape.events[: position + 1]:
        if e >= 0:
            live[e] = None
        else:
            live.pop(~e, None)
    out: dict[str, int] = {}
    for e in live:
        category = tape.categories[e]
        out[category] = out.get(category, 0) + block_bytes[e]
    return out


def timeline(tape: Tape, block_bytes: list[int], phase_names: tuple[str, ...], points: int = 160) -> list[tuple[float, Mapping[str, int]]]:
    """Bytes by category over the given (consecutive) phases, at most `points` samples, each the highest moment of its slice."""
    marks = [m for m in tape.marks if m[1] == "phase"]
    ends = {m[2]: m[0] for m in marks}
    order = [m[2] for m in marks]
    if not phase_names or phase_names[0] not in ends:
        return []
    first = order.index(phase_names[0])
    start = marks[first - 1][0] if first else 0
    stop = ends[phase_names[-1]]
    current: dict[str, int] = {}
    total = 0
    categories = tape.categories
    width = max(1, (stop - start) // points)
    out: list[tuple[float, Mapping[str, int]]] = []
    best, best_at, snapshot = -1, start, {}
    boundary = start + width
    for i, e in enumerate(tape.events[:stop]):
        ident = e if e >= 0 else ~e
        size = block_bytes[ident] if e >= 0 else -block_bytes[ident]
        category = categories[ident]
        current[category] = current.get(category, 0) + size
        total += size
        if i < start:
            continue
        if total > best:
            best, best_at, snapshot = total, i, dict(current)
        if i + 1 >= boundary:
            out.append(((best_at - start) / max(1, stop - start), snapshot))
            best, boundary = -1, boundary + width
    return out
