"""Blocks that come back late: under ZeRO-3 the CPU may run ahead of the GPU.

A block that another stream uses too (``record_stream``: gathered weights, gradients on their way into a bucket) does not come back when
it is freed. PyTorch records an event on that stream and looks at each later request whether the GPU has passed it
(``CUDACachingAllocator.cpp``: ``insert_events`` in ``free``, ``process_events`` in ``malloc``; events of a stream in order). Until then
new requests take other memory, so more gets reserved; what counts as allocated stays the same. Before it gives up for want of memory,
and in ``empty_cache``, the allocator waits for all events.

How far ahead the CPU can be (DeepSpeed 0.19.8, ``stage3.py``): it waits for the last but two of the bucket reductions
(``max_param_reduce_events``), for the reduction stream at the end of each backward pass, and for the gradient norm. The driver takes
about a thousand launches on a stream before the next one blocks. Gathers do not hold it up: their stream does not wait for the others.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from llmcheck.shadow.allocator import NO_CAP, SMALL_SIZE, ExpandableAllocator, NativeAllocator, OutOfMemoryError
from llmcheck.shadow.pace import Pace
from llmcheck.shadow.tensor import Note, Tape
from llmcheck.types import AllocatorKind

# Launches that a stream holds before the next one blocks the CPU: measured, "CUDA stream is blocked when launching many kernels (>1000)",
# Stack Overflow 53970187 and NVIDIA developer forum 68937; 1024 is the usual figure.
_LAUNCH_QUEUE = 1024
_BUCKETS_AHEAD = 2  # max_param_reduce_events
_DEFAULT, _REDUCE, _GATHER = 0, 1, 2  # streams


class Late(NamedTuple):
    """A tape in the order in which blocks come back, and where (in its events) the frees that had to wait were asked for."""

    tape: Tape
    asked: dict[int, int]


class LateReplay(NamedTuple):
    """What a replay showed: reserved bytes at the end of each phase and at most within it, flushes, whether it ran to its end."""

    reserved: dict[str, tuple[int, int]]
    num_retries: int
    ran: bool

    @property
    def peak_reserved_bytes(self) -> int:
        """Most reserved in the whole run."""
        return max((peak for _, peak in self.reserved.values()), default=0)


def late(tape: Tape, pace: Pace, *, start: str) -> Late:
    """`tape` with every free of a shared block where the GPU, at `pace`, has passed its event. All frees before the end of phase `start`
    are immediate.
    """
    return _Clock(tape, pace, start).run()


class _Clock:
    """Time of the CPU and, by stream, until when the GPU is busy with what it was given; seconds."""

    def __init__(self, tape: Tape, pace: Pace, start: str) -> None:
        self.tape, self.pace = tape, pace
        self.start = next((position for position, kind, name in tape.marks if kind == "phase" and name == start), len(tape.events))
        self.cpu = 0.0
        self.gpu = [0.0, 0.0, 0.0]
        self.launch_s = pace.launch_s
        self.launches: deque[float] = deque()  # when the default stream's kernels are done
        self.buckets: deque[float] = deque()
        self.waiting: tuple[deque[tuple[float, int]], ...] = (deque(), deque(), deque())  # (time of the event, request), by stream
        self.events: list[int] = []
        self.asked: dict[int, int] = {}

    def run(self) -> Late:
        tape, stop = self.tape, self.start
        self.events = tape.events[:stop]
        out = Tape()
        out.sizes, out.categories, out.streams = tape.sizes, tape.categories, tape.streams
        marks = [mark for mark in tape.marks if mark[0] <= stop]
        stops: list[tuple[int, int, Any, Any]] = [(position, 0, what, amount) for position, what, amount in tape.notes if position >= stop]
        stops += [(position, 1, kind, name) for position, kind, name in tape.marks if position > stop]
        for position, is_mark, what, value in sorted(stops, key=lambda s: s[:2]):
            self._advance(stop, position)
            stop = position
            if is_mark:
                if what == "empty_cache":
                    self._wait()
                    self._come_back()
                marks.append((len(self.events), what, value))
            else:
                self._note(what, value)
        self._advance(stop, len(tape.events))
        self._wait()
        self._come_back()
        out.events, out.marks = self.events, marks
        return Late(out, self.asked)

    def _advance(self, start: int, stop: int) -> None:
        """The requests and frees of events [start, stop)."""
        tape, pace, gpu, launches, events = self.tape, self.pace, self.gpu, self.launches, self.events
        sizes, streams, shared = tape.sizes, tape.streams, tape.shared
        launch_s, kernel_s, byte_s = self.launch_s, pace.kernel_s, pace.byte_s
        for e in tape.events[start:stop]:
            if e >= 0:
                if any(self.waiting):
                    self._come_back()
                events.append(e)
                stream = streams[e]
                self.cpu += launch_s
                done = gpu[stream] = max(gpu[stream], self.cpu) + kernel_s + byte_s * sizes[e]
                if stream == _DEFAULT:
                    launches.append(done)
                    if len(launches) > _LAUNCH_QUEUE:
                        self.cpu = max(self.cpu, launches.popleft())
                continue
            user = shared.get(~e)
            if user is None or gpu[user] <= self.cpu:
                events.append(e)
            else:
                self.waiting[user].append((gpu[user], e))
                self.asked[~e] = len(events)

    def _come_back(self) -> None:
        """``process_events``."""
        for queue in self.waiting:
            while queue and queue[0][0] <= self.cpu:
                self.events.append(queue.popleft()[1])

    def _wait(self) -> None:
        self.cpu = max(self.cpu, *self.gpu)

    def _note(self, what: int, amount: float) -> None:
        pace, gpu = self.pace, self.gpu
        if what == Note.PRODUCT:
            gpu[_DEFAULT] = max(gpu[_DEFAULT], self.cpu) + amount * pace.product_s
        elif what == Note.ATTENTION:
            gpu[_DEFAULT] = max(gpu[_DEFAULT], self.cpu) + amount * pace.attention_s
        elif what in (Note.FORWARD, Note.BACKWARD):
            self.launch_s = pace.launch_s if what == Note.FORWARD else pace.backward_launch_s
            self.cpu += pace.visit_s
            gpu[_DEFAULT] = max(gpu[_DEFAULT], gpu[_GATHER])  # what the module needs was gathered
        elif what == Note.GATHER:
            self.cpu += amount * pace.gather_s
        elif what == Note.SLICES:
            self.cpu += amount * pace.slice_s
        elif what == Note.COPY:
            self.cpu += pace.gradient_s
            gpu[_REDUCE] = max(*gpu[: _REDUCE + 1], self.cpu) + amount * pace.byte_s
        elif what == Note.BUCKET:
            buckets = self.buckets
            while buckets and buckets[0] <= self.cpu:
                buckets.popleft()
            if len(buckets) > _BUCKETS_AHEAD:
                self.cpu = max(self.cpu, buckets.popleft())
            buckets.append(gpu[_REDUCE])
        else:
            self._wait()


def replay_late(run: Late, kind: AllocatorKind, cap_bytes: int | None = None) -> LateReplay:
    """Run a late tape through an allocator of `kind` under `cap_bytes` of reserved memory."""
    cap = NO_CAP if cap_bytes is None else cap_bytes
    allocator = NativeAllocator(cap) if kind == "native" else ExpandableAllocator(cap)
    tape, asked = run
    events, sizes = tape.events, tape.block_sizes
    pools = [allocator.pool(stream, size <= SMALL_SIZE) for stream, size in zip(tape.streams, sizes, strict=True)]
    take, give = allocator.take, allocator.give
    blocks = [0] * len(sizes)  # 0: not asked for yet, or back
    position = done = 0
    give_back = allocator.empty_cache

    def wait_and_give_back() -> None:
        for request, at in asked.items():
            block = blocks[request]
            if at <= position and block:
                blocks[request] = 0
                give(block, pools[request])
        give_back()

    allocator.empty_cache = wait_and_give_back  # type: ignore[method-assign]  # also what a flush calls
    reserved: dict[str, tuple[int, int]] = {}
    try:
        for stop, what, name in tape.marks:
            for position in range(done, stop):
                e = events[position]
                if e >= 0:
                    blocks[e] = take(sizes[e], pools[e])
                    continue
                block = blocks[~e]
                if block:  # else it came back when the allocator waited for all
                    blocks[~e] = 0
                    give(block, pools[~e])
            position = done = stop
            if what == "empty_cache":
                allocator.empty_cache()
            else:
                reserved[name] = allocator.reserved, allocator.peak_reserved
                allocator.peak_reserved = allocator.reserved
    except OutOfMemoryError:
        reserved["end"] = allocator.reserved, allocator.peak_reserved
        return LateReplay(reserved, allocator.num_retries, False)
    return LateReplay(reserved, allocator.num_retries, True)
