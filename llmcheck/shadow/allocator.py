"""PyTorch's CUDA caching allocator, as far as sizes decide: which block serves a request, what is split, merged, kept, returned.

Rules read in ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.11) and checked by replaying recorded allocator traces to the byte
(``tests/golden/traces``):

* requests round up to 512 B; at most 1 MiB comes from the small pool (2 MiB segments), less than 10 MiB takes a 20 MiB segment,
  more rounds up to 2 MiB; pools are separate per stream;
* best fit by (size, address). New segments get descending virtual addresses, so the newest of equals is taken;
* a block is split when the rest is at least 512 B (small pool) or more than 1 MiB (large pool);
* over the cap, all wholly free segments go back to the driver and the request is tried once more (a "retry");
* ``expandable_segments``: one growing range a pool, pages of 20 MiB (2 MiB small) mapped as needed and unmapped inside free blocks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

MIN_BLOCK = 512
SMALL_SIZE = 1 << 20
SMALL_BUFFER = 2 << 20
LARGE_BUFFER = 20 << 20
MIN_LARGE_ALLOC = 10 << 20
ROUND_LARGE = 2 << 20

# A block is one number, its size above its address, both in units of UNIT bytes: the order of the numbers is the allocator's order of
# free blocks, and most of them are short enough for fast arithmetic.
UNIT = MIN_BLOCK
SIZE_SHIFT = 40
ADDRESS = (1 << SIZE_SHIFT) - 1
NO_CAP = 1 << 60


class OutOfMemoryError(Exception):
    """The cap does not hold the request, even after all free segments were returned."""

    def __init__(self, requested: int, reserved: int) -> None:
        super().__init__(requested)
        self.requested, self.reserved = requested, reserved


class Block(NamedTuple):
    """A block in use, as `malloc` hands it out."""

    addr: int
    size: int
    pool: Pool


class Pool:
    """Free blocks of one (stream, size class): sorted, by their start and by their end. All numbers in units."""

    __slots__ = ("small", "min_rest", "free", "starts", "ends", "segments", "holes")

    def __init__(self, small: bool, min_rest: int) -> None:
        self.small = small
        self.min_rest = min_rest  # that a block must exceed its request by, to be split
        self.free: list[int] = []
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.segments: dict[int, int] = {}  # native only: size by address
        self.holes: dict[int, int] = {}  # expandable only, ranges without pages: size by address

    def copy(self) -> Pool:
        """Another pool in the same state."""
        out = Pool(self.small, self.min_rest)
        out.free, out.starts, out.ends = self.free[:], self.starts.copy(), self.ends.copy()
        out.segments, out.holes = self.segments.copy(), self.holes.copy()
        return out

    def lists(self) -> Lists:
        """The pool, its free blocks, and these by start and end."""
        return self, self.free, self.starts, self.ends

    def add(self, block: int) -> None:
        """Enter a free block that has no free neighbour."""
        insort(self.free, block)
        addr = block & ADDRESS
        self.starts[addr] = self.ends[addr + (block >> SIZE_SHIFT)] = block

    def remove(self, block: int) -> None:
        """Take a free block out."""
        free, addr = self.free, block & ADDRESS
        del free[bisect_left(free, block)], self.starts[addr], self.ends[addr + (block >> SIZE_SHIFT)]


def rounded(nbytes: int) -> int:
    """Size of the block that a request of `nbytes` needs."""
    return (nbytes + 511) & -512 if nbytes > 512 else 512


def segment_size(size: int) -> int:
    """Bytes that the native allocator asks of the driver for a rounded request of `size`."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE_ALLOC:
        return LARGE_BUFFER
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE


class Allocator:
    """What both allocators share: pools, the cap, the count of what is reserved, and how a block goes back.

    `cap`: bytes of reserved memory. All that a cap decides is whether `reserved` and a request together exceed it. So
    every other cap in [`admitted`, `refused`), the largest sum that did not and the smallest that did, leads to the same run.
    """

    def __init__(self, cap: int = NO_CAP) -> None:
        self.cap = cap
        self.pools: dict[tuple[int, bool], Pool] = {}
        self.reserved = self.peak_reserved = self.num_retries = 0
        self.admitted, self.refused = 0, NO_CAP + 1
        self.allocated = self.peak_allocated = 0  # of `malloc` and `free`
        self.event = 0

    # --- one request at a time, in bytes

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """A block for `nbytes` on `stream`."""
        size = rounded(nbytes)
        pool = self.pool(stream, size <= SMALL_SIZE)
        block = self.take(size // UNIT, pool)
        out = Block((block & ADDRESS) * UNIT, (block >> SIZE_SHIFT) * UNIT, pool)
        self.allocated += out.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return out

    def free(self, block: Block) -> None:
        """Give back what `malloc` handed out."""
        self.allocated -= block.size
        self.give(block.size // UNIT << SIZE_SHIFT | block.addr // UNIT, block.pool)

    # --- many requests: the caller rounds them, in units, and knows their pools

    def pool(self, stream: int, small: bool) -> Pool:
        """The pool of the requests on `stream` up to SMALL_SIZE, or of those above."""
        pool = self.pools.get((stream, small))
        if pool is None:
            pool = self.pools[stream, small] = self._new_pool(small)
        return pool

    def take(self, size: int, pool: Pool) -> int:
        """A block for a rounded request."""
        blocks = [0]
        self.run((0,), (size,), (pool.lists(),), blocks, forget=False)
        return blocks[0]

    def run(self, events: Sequence[int], sizes: Sequence[int], pools: Sequence[Lists], blocks: list[int], *, forget: bool) -> None:
        """Serve ``e`` and free ``~e``, one after the other; blocks by request go to `blocks`.

        `pools`: of each request, and once more from the end, where a free's number points. `forget`: the blocks of freed requests become
        0, and those that are 0 were freed before. `event` is the request being served when pages are lacking.
        """
        raise NotImplementedError

    def give(self, block: int, pool: Pool) -> int:
        """Free a block; it, merged with its free neighbours."""
        free, starts, ends = pool.free, pool.starts, pool.ends
        addr = block & ADDRESS
        end = addr + (block >> SIZE_SHIFT)
        before = ends.pop(addr, None)
        if before is not None:
            del free[bisect_left(free, before)]
            block += before - addr  # sizes add up, the address is the lower one
            addr = before & ADDRESS  # its entry in `starts` is replaced below
        after = starts.pop(end, None)
        if after is not None:
            del free[bisect_left(free, after)]
            block += after - end
            end += after >> SIZE_SHIFT
        insort(free, block)
        starts[addr] = ends[end] = block
        return block

    def empty_cache(self) -> None:
        """Return to the driver what is wholly free."""
        raise NotImplementedError

    def copy(self, cap: int) -> Allocator:
        """Another allocator in the same state, under another cap."""
        out = type(self)(cap)
        out.__dict__.update(self.__dict__, cap=cap)
        out.pools = {key: pool.copy() for key, pool in self.pools.items()}
        return out

    def _new_pool(self, small: bool) -> Pool:
        raise NotImplementedError

    def _admits(self, request: int) -> bool:
        """Whether `request` bytes more may be reserved."""
        total = self.reserved + request
        if total <= self.cap:
            self.admitted = max(self.admitted, total)
            return True
        self.refused = min(self.refused, total)
        return False

    def _reserve(self, size: int) -> None:
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _flush(self) -> None:
        self.num_retries += 1
        self.empty_cache()


Lists = tuple[Pool, list[int], dict[int, int], dict[int, int]]  # see `Pool.lists`


class NativeAllocator(Allocator):
    """The default allocator: segments of the driver."""

    def __init__(self, cap: int = NO_CAP) -> None:
        super().__init__(cap)
        self.next_addr = ADDRESS + 1

    def _new_pool(self, small: bool) -> Pool:
        return Pool(small, 1 if small else SMALL_SIZE // UNIT + 1)

    def run(self, events: Sequence[int], sizes: Sequence[int], pools: Sequence[Lists], blocks: list[int], *, forget: bool) -> None:
        for e in events:
            pool, free, starts, ends = pools[e]
            if e < 0:
                block = blocks[~e]
                if forget:
                    if not block:
                        continue
                    blocks[~e] = 0
                self.give(block, pool)
                continue
            size = sizes[e]
            wanted = size << SIZE_SHIFT
            i = bisect_left(free, wanted)
            if i < len(free):
                block = free.pop(i)
                addr, whole = block & ADDRESS, block >> SIZE_SHIFT
                del starts[addr]
                if whole - size < pool.min_rest:
                    del ends[addr + whole]
                    blocks[e] = block
                    continue
            else:
                self.event = e
                block = self._new_segment(size, pool)
                addr, whole = block & ADDRESS, block >> SIZE_SHIFT
                if whole - size < pool.min_rest:
                    blocks[e] = block
                    continue
            tail = block - wanted + size
            insort(free, tail)
            starts[addr + size] = ends[addr + whole] = tail
            blocks[e] = wanted + addr

    def _new_segment(self, size: int, pool: Pool) -> int:
        segment = segment_size(size * UNIT)
        if not self._admits(segment):
            self._flush()
            if not self._admits(segment):
                raise OutOfMemoryError(size * UNIT, self.reserved)
        self._reserve(segment)
        segment //= UNIT
        self.next_addr -= segment + 1  # apart, so that blocks of two segments are no neighbours
        assert self.next_addr > 0
        pool.segments[self.next_addr] = segment
        return segment << SIZE_SHIFT | self.next_addr

    def empty_cache(self) -> None:
        for pool in self.pools.values():
            for block in list(pool.free):
                addr = block & ADDRESS
                if pool.segments.get(addr) == block >> SIZE_SHIFT:
                    pool.remove(block)
                    self.reserved -= pool.segments.pop(addr) * UNIT


class ExpandableAllocator(Allocator):
    """``expandable_segments:True``: one growing virtual range a pool, whose holes have no pages."""

    def _new_pool(self, small: bool) -> Pool:
        pool = Pool(small, 1)
        pool.holes[0] = ADDRESS + 1
        return pool

    def run(self, events: Sequence[int], sizes: Sequence[int], pools: Sequence[Lists], blocks: list[int], *, forget: bool) -> None:
        for e in events:
            pool, free, starts, ends = pools[e]
            if e < 0:
                block = blocks[~e]
                if forget:
                    if not block:
                        continue
                    blocks[~e] = 0
                addr = block & ADDRESS  # from here on `give`, without a call
                end = addr + (block >> SIZE_SHIFT)
                before = ends.pop(addr, None)
                after = starts.pop(end, None)
                if after is not None:
                    i = bisect_left(free, after)
                    block += after - end
                    end += after >> SIZE_SHIFT
                    if before is None and (i + 1 == len(free) or free[i + 1] > block):
                        free[i] = starts[addr] = ends[end] = block
                        continue
                    del free[i]
                if before is not None:
                    del free[bisect_left(free, before)]
                    block += before - addr
                    addr = before & ADDRESS
                insort(free, block)
                starts[addr] = ends[end] = block
                continue
            size = sizes[e]
            wanted = size << SIZE_SHIFT
            i = bisect_left(free, wanted)
            if i == len(free):
                self.event = e
                i = bisect_left(free, self._expand(pool, size))
            block = free[i]
            addr = block & ADDRESS
            end = addr + (block >> SIZE_SHIFT)
            if end in pool.holes and i + 1 < len(free):  # it can grow, so something that follows may count as smaller
                i = self._best_of(pool, i)
                block = free[i]
                addr = block & ADDRESS
                end = addr + (block >> SIZE_SHIFT)
            del starts[addr]
            tail = block - wanted + size
            if tail == end:  # nothing is left
                del free[i], ends[end]
                blocks[e] = block
                continue
            if i and free[i - 1] > tail:
                del free[i]
                insort(free, tail)
            else:
                free[i] = tail
            starts[addr + size] = ends[end] = tail
            blocks[e] = wanted + addr

    @staticmethod
    def _best_of(pool: Pool, i: int) -> int:
        """Best fit from place `i` on, where a block in front of a hole counts with the size that it can grow to."""
        free, holes = pool.free, pool.holes
        best = 0
        for place in range(i, len(free)):
            block = free[place]
            size = block >> SIZE_SHIFT
            hole = holes.get((block & ADDRESS) + size)
            if place > i and size + (hole or 0) >= best:
                return place - 1
            if hole is None:  # what follows is no smaller
                return place
            best = size + hole
        return len(free) - 1

    def _expand(self, pool: Pool, size: int) -> int:
        """A free block of at least `size` units, where there was none."""
        request = segment_size(size * UNIT)
        if not self._admits(request):
            self._flush()
            if not self._admits(request):
                raise OutOfMemoryError(size * UNIT, self.reserved)
        block = self._map_for(pool, size)
        if block is None:  # the driver has no page left
            self._flush()
            i = bisect_left(pool.free, size << SIZE_SHIFT)
            block = pool.free[self._best_of(pool, i)] if i < len(pool.free) else self._map_for(pool, size)
            if block is None:
                raise OutOfMemoryError(size * UNIT, self.reserved)
        return block

    def _map_for(self, pool: Pool, size: int) -> int | None:
        """Map pages in the first run of free blocks and holes that has `size` bytes; None where the cap is met on the way."""
        starts, holes = pool.starts, pool.holes
        start = self._first_run(pool, size)
        block = starts.get(start)
        while block is None or block >> SIZE_SHIFT < size:
            have = 0 if block is None else block >> SIZE_SHIFT
            addr = start + have
            block = self._map(pool, addr, min(size - have, holes[addr]))
            if block is None:
                return None
        return block

    @staticmethod
    def _first_run(pool: Pool, size: int) -> int:
        """Address of the first free block and hole, or hole, with which `size` bytes begin that are free or holes."""
        starts, ends, holes = pool.starts, pool.ends, pool.holes
        for hole in sorted(holes):
            start = addr = ends[hole] & ADDRESS if hole in ends else hole
            while addr - start < size and (addr in starts or addr in holes):
                addr += starts[addr] >> SIZE_SHIFT if addr in starts else holes[addr]
            if addr - start >= size:
                return start
        raise AssertionError("the last range is unbounded")

    def _map(self, pool: Pool, addr: int, size: int) -> int | None:
        """Map pages at the start of the hole at `addr` for `size` bytes; the block, merged with its free neighbours."""
        page = (SMALL_BUFFER if pool.small else LARGE_BUFFER) // UNIT
        mapped = min((size + page - 1) // page * page, pool.holes[addr])
        if not self._admits(mapped * UNIT):
            return None
        rest = pool.holes.pop(addr) - mapped
        if rest:
            pool.holes[addr + mapped] = rest
        self._reserve(mapped * UNIT)
        return self.give(mapped << SIZE_SHIFT | addr, pool)

    def empty_cache(self) -> None:
        for pool in self.pools.values():
            page = (SMALL_BUFFER if pool.small else LARGE_BUFFER) // UNIT
            holes = pool.holes
            hole_ends = {addr + size: addr for addr, size in holes.items()}
            for block in list(pool.free):
                addr = block & ADDRESS
                end = addr + (block >> SIZE_SHIFT)
                first, last = (addr + page - 1) // page * page, end // page * page
                if last <= first:
                    continue
                pool.remove(block)
                self.reserved -= (last - first) * UNIT
                if addr < first:
                    pool.add(first - addr << SIZE_SHIFT | addr)
                if last < end:
                    pool.add(end - last << SIZE_SHIFT | last)
                start = hole_ends.pop(first, first)
                stop = last + holes.pop(last, 0)
                holes[start] = stop - start
                hole_ends[stop] = start
