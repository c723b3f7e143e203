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

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from llmcheck.shadow.allocator import OutOfMemoryError
from llmcheck.shadow.pace import Pace
from llmcheck.shadow.replay import Replays
from llmcheck.shadow.tape import Note, Tape

# Launches that a stream holds before the next one blocks the CPU: measured, "CUDA stream is blocked when launching many kernels (>1000)",
# Stack Overflow 53970187 and NVIDIA developer forum 68937; 1024 is the usual figure.
_LAUNCH_QUEUE = 1024
_BUCKETS_AHEAD = 2  # max_param_reduce_events
_DEFAULT, _REDUCE, _GATHER = 0, 1, 2  # streams
# the members as plain numbers: a tape has tens of thousands of notes
_FORWARD, _BACKWARD, _PRODUCT, _ATTENTION = (int(note) for note in (Note.FORWARD, Note.BACKWARD, Note.PRODUCT, Note.ATTENTION))
_GATHERED, _SLICES, _COPY, _BUCKET = (int(note) for note in (Note.GATHER, Note.SLICES, Note.COPY, Note.BUCKET))
_NEVER = float("inf")


class Late:
    """A tape in the order in which blocks come back: every free of a shared block is where the GPU, at `pace`, has passed its event. All
    frees before the end of phase `start` are immediate. It is written from mark to mark, as far as somebody looks.
    """

    def __init__(self, tape: Tape, pace: Pace, *, start: str) -> None:
        self.source, self.pace, self.start = tape, pace, start
        self._stop = next((position for position, kind, name in tape.marks if kind == "phase" and name == start), len(tape.events))
        self.events = tape.events[: self._stop]
        self.marks = [mark for mark in tape.marks if mark[0] <= self._stop]
        self.asked: list[tuple[int, int]] = []  # frees that had to wait, in order: where in `events` each was asked for, the request
        self._writing = self._write()

    def has_mark(self, number: int) -> bool:
        """Write up to mark `number`; False where there is none."""
        while len(self.marks) <= number:
            if next(self._writing, None) is None:
                return False
        return True

    def complete(self) -> Late:
        """This tape, written to its end."""
        for _ in self._writing:
            pass
        return self

    def _write(self) -> Iterator[int]:
        """Write events and marks; yields after each mark.

        `cpu` is the time of the CPU, `gpu` until when each stream is busy with what it was given; seconds.
        """
        source, pace, events, asked = self.source, self.pace, self.events, self.asked
        sizes, streams, shared, notes = source.sizes, source.streams, source.shared, source.notes
        launch_s, kernel_s, byte_s, product_s = pace.launch_s, pace.kernel_s, pace.byte_s, pace.product_s
        cpu, gpu = 0.0, [0.0, 0.0, 0.0]
        launches: deque[float] = deque()  # when the default stream's kernels are done
        buckets: deque[float] = deque()
        waiting: tuple[deque[tuple[float, int]], ...] = (deque(), deque(), deque())  # (time of the event, free), by stream
        earliest = _NEVER  # of the events in `waiting`
        position, at = self._stop, bisect_left(notes, (self._stop,))
        for stop, kind, name in [*source.marks[len(self.marks) :], (len(source.events), "end", "")]:
            last = bisect_right(notes, (stop, len(Note)), at)
            for until, what, amount in [*notes[at:last], (stop, -1, 0.0)]:
                for e in source.events[position:until]:
                    if e >= 0:
                        if earliest <= cpu:
                            earliest = _come_back(waiting, cpu, events)
                        events.append(e)
                        cpu += launch_s
                        stream = streams[e]
                        busy = gpu[stream]
                        gpu[stream] = busy = (busy if busy > cpu else cpu) + kernel_s + byte_s * sizes[e]
                        if stream == _DEFAULT:
                            launches.append(busy)
                            if len(launches) > _LAUNCH_QUEUE:
                                cpu = max(cpu, launches.popleft())
                        continue
                    user = shared.get(~e)
                    if user is None or gpu[user] <= cpu:
                        events.append(e)
                    else:
                        waiting[user].append((gpu[user], e))
                        earliest = min(earliest, gpu[user])
                        asked.append((len(events), ~e))
                position = until
                if what == _PRODUCT:
                    gpu[_DEFAULT] = max(gpu[_DEFAULT], cpu) + amount * product_s
                elif what in (_FORWARD, _BACKWARD):
                    launch_s = pace.launch_s if what == _FORWARD else pace.backward_launch_s
                    cpu += pace.visit_s
                    gpu[_DEFAULT] = max(gpu[_DEFAULT], gpu[_GATHER])  # what the module needs was gathered
                elif what == _GATHERED:
                    cpu += amount * pace.gather_s
                elif what == _SLICES:
                    cpu += amount * pace.slice_s
                elif what == _COPY:
                    cpu += pace.gradient_s
                    gpu[_REDUCE] = max(gpu[_DEFAULT], gpu[_REDUCE], cpu) + amount * byte_s
                elif what == _ATTENTION:
                    gpu[_DEFAULT] = max(gpu[_DEFAULT], cpu) + amount * pace.attention_s
                elif what == _BUCKET:
                    while buckets and buckets[0] <= cpu:
                        buckets.popleft()
                    if len(buckets) > _BUCKETS_AHEAD:
                        cpu = max(cpu, buckets.popleft())
                    buckets.append(gpu[_REDUCE])
                elif what == Note.SYNC or kind == "empty_cache" or kind == "end":
                    cpu = max(cpu, *gpu)
            at = last
            if kind != "phase":
                earliest = _come_back(waiting, cpu, events)
            if kind != "end":
                self.marks.append((len(events), kind, name))
                yield len(self.marks)


def _come_back(waiting: tuple[deque[tuple[float, int]], ...], cpu: float, events: list[int]) -> float:
    """``process_events``: write the frees whose events the GPU has passed; the earliest event left."""
    for queue in waiting:
        while queue and queue[0][0] <= cpu:
            events.append(queue.popleft()[1])
    return min([queue[0][0] for queue in waiting if queue], default=_NEVER)


class LateReplay(NamedTuple):
    """What a replay showed: reserved bytes at the end of each phase and at most within it, flushes, whether it ran to its end."""

    reserved: dict[str, tuple[int, int]]
    num_retries: int
    ran: bool

    @property
    def peak_reserved_bytes(self) -> int:
        """Most reserved in the whole run."""
        return max((peak for _, peak in self.reserved.values()), default=0)


class _FlushedError(Exception):
    """The allocator was about to return its cache for want of memory."""


def replay_late(run: Late, immediate: Replays, cap_bytes: int | None = None) -> LateReplay:
    """Run a late tape under `cap_bytes` of reserved memory. It begins like the replay of its source in `immediate`."""
    return _replay(run, immediate, cap_bytes, until_flush=False)


def replay_until_flush(run: Late, immediate: Replays, cap_bytes: int | None = None) -> LateReplay | None:
    """What `replay_late` finds where the allocator never flushes; None, as soon as that is known, where it does."""
    try:
        return _replay(run, immediate, cap_bytes, until_flush=True)
    except _FlushedError:
        return None


def _replay(run: Late, immediate: Replays, cap_bytes: int | None, *, until_flush: bool) -> LateReplay:
    state = immediate.state_after(run.start, cap_bytes)
    allocator, blocks, position = state.allocator, state.blocks, state.position
    if until_flush and allocator.num_retries:
        raise _FlushedError
    events, sizes, asked = run.events, immediate.sizes, run.asked
    pools = immediate.pools(allocator)
    give, give_back = allocator.give, allocator.empty_cache
    num_back = flushed = 0

    def wait(position: int) -> None:
        """All blocks whose frees were asked for before event `position` come back."""
        nonlocal num_back
        while num_back < len(asked) and asked[num_back][0] <= position:
            request = asked[num_back][1]
            num_back += 1
            if blocks[request]:  # else it is back
                give(blocks[request], pools[request][0])
                blocks[request] = 0

    def flush() -> None:
        nonlocal flushed
        if until_flush:
            raise _FlushedError
        flushed = events.index(allocator.event, flushed)
        wait(flushed)
        give_back()

    allocator.empty_cache = flush  # type: ignore[method-assign]
    reserved = {mark.name: (mark.reserved_bytes, mark.peak_reserved_bytes) for mark in state.marks}
    try:
        for number in count(state.num_marks):
            if not run.has_mark(number):
                break
            stop, what, name = run.marks[number]
            # what came back when the allocator waited for all is not freed again
            allocator.run(events[position:stop], sizes, pools, blocks, forget=True)
            position = stop
            if what == "empty_cache":
                wait(stop)
                give_back()
            else:
                reserved[name] = allocator.reserved, allocator.peak_reserved
                allocator.peak_reserved = allocator.reserved
    except OutOfMemoryError:
        reserved["end"] = allocator.reserved, allocator.peak_reserved
        return LateReplay(reserved, allocator.num_retries, False)
    return LateReplay(reserved, allocator.num_retries, True)
