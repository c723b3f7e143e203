"""Replay a tape of allocations through the caching allocator: phases, peaks, retries, failure, breakdown and timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, compress, count
from typing import NamedTuple

from llmcheck.shadow.allocator import (
    NO_CAP,
    SIZE_SHIFT,
    SMALL_SIZE,
    UNIT,
    Allocator,
    ExpandableAllocator,
    Lists,
    NativeAllocator,
    OutOfMemoryError,
)
from llmcheck.shadow.tape import Tape
from llmcheck.types import AllocatorKind, OutOfMemory, PhaseStats

_PIECE = 2048  # events between two states that are kept
_CONSTRUCTION = ("model", "init")  # phases before training
_KEPT_PHASES = ("init", "bwd0")  # where the tapes of shadow.late leave the immediate one


class Mark(NamedTuple):
    """The end of a phase: events before it, bytes reserved there and at most since the phase before."""

    name: str
    stop: int
    reserved_bytes: int
    peak_reserved_bytes: int


class Replay:
    """What one replay showed. Positions are indices into the tape's events. What was allocated is only summed up when it is asked for.

    Under every cap in [`admitted_bytes`, `refused_bytes`) the tape replays in the same way.
    """

    def __init__(self, tape: Tape, allocator: Allocator, blocks: list[int], marks: list[Mark], failed: int | None) -> None:
        self.tape, self.marks = tape, marks
        self.num_retries = allocator.num_retries
        self.admitted_bytes, self.refused_bytes = allocator.admitted, allocator.refused
        self._blocks, self._failed = blocks, failed

    @property
    def ran(self) -> bool:
        """Whether the tape ran to its end."""
        return self._failed is None

    @cached_property
    def block_bytes(self) -> list[int]:
        """Size of the block that served each request; 0 where it was not reached."""
        return [(block >> SIZE_SHIFT) * UNIT for block in self._blocks]

    @cached_property
    def _allocated(self) -> list[int]:
        """Bytes allocated after each event, as far as the tape ran."""
        sizes, events = self.block_bytes, self.tape.events
        if self._failed is not None:
            events = events[: self._failed]
        changes = sizes + [-size for size in reversed(sizes)]  # a free's number, ~request, counts from the end
        return list(accumulate(map(changes.__getitem__, events)))

    @cached_property
    def phases(self) -> list[PhaseStats]:
        """One for each phase of the tape; the last may have ended in the failure."""
        everything = self._allocated
        out, before, allocated = [], 0, 0
        for name, stop, reserved, peak in self.marks:
            during = everything[before:stop]
            highest = max(allocated, max(during, default=0))
            allocated = during[-1] if during else allocated
            out.append(
                PhaseStats(
                    name=name,
                    allocated_bytes=allocated,
                    peak_allocated_bytes=highest,
                    reserved_bytes=reserved,
                    peak_reserved_bytes=peak,
                )
            )
            before = stop
        return out

    @property
    def out_of_memory(self) -> OutOfMemory | None:
        """The request that failed."""
        if self._failed is None:
            return None
        request = self.tape.events[self._failed]
        return OutOfMemory(
            phase=self.marks[-1].name,
            requested_bytes=self.tape.block_sizes[request],
            allocated_bytes=self._allocated[-1] if self._allocated else 0,
            reserved_bytes=self.marks[-1].reserved_bytes,
            category=self.tape.categories[request],
        )

    @cached_property
    def peak_position(self) -> int:
        """Where the allocated peak of the training phases is first reached."""
        start = max((mark.stop for mark in self.marks if mark.name in _CONSTRUCTION), default=0)
        events, stop = self.tape.events, self.marks[-1].stop if self.marks else 0
        if start == stop:
            return 0
        allocated = self._allocated
        position = allocated.index(max(allocated[start:stop]), start)
        if events[position] < 0:  # it only falls from where training starts: the highest that a request has reached counts
            requests = [total if e >= 0 else -1 for e, total in zip(events[start:stop], allocated[start:stop], strict=True)]
            position = start + requests.index(max(requests))
        return position

    @property
    def peak_phase(self) -> str:
        """The phase of `peak_position`; empty when nothing was trained."""
        return next((m.name for m in self.marks if m.name not in _CONSTRUCTION and self.peak_position < m.stop), "")

    @property
    def peak_reserved_bytes(self) -> int:
        return max((mark.peak_reserved_bytes for mark in self.marks), default=0)

    def peak_allocated_bytes(self, training: bool) -> int:
        return max((p.peak_allocated_bytes for p in self.phases if (p.name not in _CONSTRUCTION) == training), default=0)


class State(NamedTuple):
    """A replay on its way: `allocator` after `position` events and `num_marks` of the tape's marks."""

    position: int
    num_marks: int
    allocator: Allocator
    marks: list[Mark]
    blocks: list[int]  # of the replay that came by here; those of later requests are its own


class Replays:
    """Replays of one tape. Two caps lead to the same run until they first decide a request differently, and that part is run once."""

    def __init__(self, tape: Tape, kind: AllocatorKind) -> None:
        self.tape, self.kind = tape, kind
        self._done: list[Replay] = []
        self._states: list[State] = []
        self._after: list[tuple[str, State]] = []  # states at the end of the phases of _KEPT_PHASES
        self.sizes = [size // UNIT for size in tape.block_sizes]
        self._pool_of = [2 * stream + (size <= SMALL_SIZE) for stream, size in zip(tape.streams, tape.block_sizes, strict=True)]

    def under(self, cap_bytes: int | None) -> Replay:
        """The replay under a cap on reserved memory (None: no cap)."""
        cap = NO_CAP if cap_bytes is None else cap_bytes
        for done in self._done:
            if done.admitted_bytes <= cap < done.refused_bytes:
                return done
        shared = [s for s in self._states if s.allocator.admitted <= cap < s.allocator.refused]
        done = self._run(cap, max(shared, key=lambda s: s.position, default=None))
        self._done.append(done)
        return done

    def pools(self, allocator: Allocator) -> list[Lists]:
        """The pool of `allocator` that each request comes from, as `Allocator.run` wants them."""
        pools = [
            allocator.pool(stream, small).lists() for stream in range(max(self.tape.streams, default=0) + 1) for small in (False, True)
        ]
        out = [pools[place] for place in self._pool_of]
        return out + out[::-1]

    def state_after(self, phase: str, cap_bytes: int | None) -> State:
        """The state at the end of `phase` ("init" or "bwd0") under a cap, to go on from; that of the start where that was not reached."""
        cap = NO_CAP if cap_bytes is None else cap_bytes
        self.under(cap_bytes)
        for name, state in self._after:
            if name == phase and state.allocator.admitted <= cap < state.allocator.refused:
                return state._replace(allocator=state.allocator.copy(cap), marks=state.marks[:], blocks=state.blocks[:])
        return self._start(cap)

    def _start(self, cap: int) -> State:
        allocator = NativeAllocator(cap) if self.kind == "native" else ExpandableAllocator(cap)
        return State(0, 0, allocator, [], [0] * len(self.tape.sizes))

    def _run(self, cap: int, state: State | None) -> Replay:
        """Run the tape, from `state` on where there is one, and keep the states that come by."""
        tape, events, sizes = self.tape, self.tape.events, self.sizes
        state = state or self._start(cap)
        position, allocator, marks, blocks = state.position, state.allocator.copy(cap), state.marks[:], state.blocks[:]
        pools = self.pools(allocator)
        names = [name for _, what, name in tape.marks if what == "phase"]
        kept = len(self._states)
        for number, (stop, what, name) in enumerate((*tape.marks, (len(events), "end", ""))):
            if number < state.num_marks:
                continue
            for start in range(position, stop, _PIECE):
                piece = events[start : min(start + _PIECE, stop)]
                try:
                    allocator.run(piece, sizes, pools, blocks, forget=False)
                except OutOfMemoryError:
                    failed = start + piece.index(allocator.event)
                    phase = names[len(marks)] if len(marks) < len(names) else "end"
                    marks.append(Mark(phase, failed, allocator.reserved, allocator.peak_reserved))
                    return Replay(tape, allocator, blocks, marks, failed)
                last = self._states[-1].allocator if len(self._states) > kept else None
                if last is not None and (last.admitted, last.refused) == (allocator.admitted, allocator.refused):
                    self._states.pop()  # the later one serves the same caps
                self._states.append(State(start + len(piece), number, allocator.copy(cap), marks[:], blocks))
            position = stop
            if what == "empty_cache":
                allocator.empty_cache()
            elif what == "phase":
                marks.append(Mark(name, stop, allocator.reserved, allocator.peak_reserved))
                allocator.peak_reserved = allocator.reserved
                if name in _KEPT_PHASES:
                    self._after.append((name, State(stop, number + 1, allocator.copy(cap), marks[:], blocks)))
        return Replay(tape, allocator, blocks, marks, None)


def replay(tape: Tape, kind: AllocatorKind, cap_bytes: int | None = None) -> Replay:
    """One replay of `tape` through an allocator of `kind` under `cap_bytes` of reserved memory."""
    return Replays(tape, kind).under(cap_bytes)


def breakdown(tape: Tape, block_bytes: Sequence[int], position: int) -> Mapping[str, int]:
    """Bytes by category of the blocks that are live after event `position`."""
    out: dict[str, int] = {}
    for e in compress(count(), _live(tape, position + 1)):
        category = tape.categories[e]
        out[category] = out.get(category, 0) + block_bytes[e]
    return out


def _live(tape: Tape, stop: int) -> list[bool]:
    """Of each request before event `stop`, whether it is live then."""
    events = tape.events[:stop]
    live = [True] * next((e + 1 for e in reversed(events) if e >= 0), 0)  # requests are numbered in the order of their events
    for e in events:
        if e < 0:
            live[~e] = False
    return live


def timeline(
    tape: Tape, block_bytes: Sequence[int], phase_names: tuple[str, ...], points: int = 160
) -> list[tuple[float, Mapping[str, int]]]:
    """Bytes by category over the given (consecutive) phases, at most `points` samples, each the highest moment of its slice."""
    marks = [m for m in tape.marks if m[1] == "phase"]
    ends = {m[2]: m[0] for m in marks}
    order = [m[2] for m in marks]
    if not phase_names or phase_names[0] not in ends:
        return []
    first = order.index(phase_names[0])
    start = marks[first - 1][0] if first else 0
    stop = ends[phase_names[-1]]
    categories, events = tape.categories, tape.events
    live = _live(tape, start)
    current = dict.fromkeys(categories[: len(live)], 0)  # those with nothing left too
    for e in compress(count(), live):
        current[categories[e]] += block_bytes[e]
    total = sum(current.values())
    width = max(1, (stop - start) // points)
    out: list[tuple[float, Mapping[str, int]]] = []
    for begin in range(start, stop - width + 1, width):
        changes = [(e, block_bytes[e]) if e >= 0 else (~e, -block_bytes[~e]) for e in events[begin : begin + width]]
        totals = list(accumulate([change for _, change in changes], initial=total))
        highest = totals.index(max(totals[1:]), 1)
        for i, (request, change) in enumerate(changes, 1):
            category = categories[request]
            current[category] = current.get(category, 0) + change
            if i == highest:
                out.append(((begin + i - 1 - start) / max(1, stop - start), dict(current)))
        total = totals[-1]
    return out
