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
from typing import Protocol

MIN_BLOCK = 512
SMALL_SIZE = 1 << 20
SMALL_BUFFER = 2 << 20
LARGE_BUFFER = 20 << 20
MIN_LARGE_ALLOC = 10 << 20
ROUND_LARGE = 2 << 20


class OutOfMemoryError(Exception):
    """The cap does not hold the request, even after all free segments were returned."""

    def __init__(self, requested: int, allocated: int, reserved: int) -> None:
        super().__init__(requested)
        self.requested, self.allocated, self.reserved = requested, allocated, reserved


class Block:
    """A piece of a segment: free or allocated; neighbours in address order are linked."""

    __slots__ = ("size", "addr", "prev", "next", "free", "pool", "mapped")

    def __init__(self, size: int, addr: int, pool: Pool) -> None:
        self.size = size
        self.addr = addr
        self.prev: Block | None = None
        self.next: Block | None = None
        self.free = True
        self.pool = pool
        self.mapped = True

    def __lt__(self, other: Block) -> bool:  # never decides: (size, addr) keys are unique
        return self.addr < other.addr


class Pool:
    """Free blocks of one (stream, size class), sorted by (size, address)."""

    __slots__ = ("small", "blocks", "unmapped", "top")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.blocks: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []  # expandable only, by address
        self.top = 0


def segment_size(size: int) -> int:
    """Bytes that the native allocator asks of the driver for a rounded request of `size`."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE_ALLOC:
        return LARGE_BUFFER
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE


class Allocator(Protocol):
    """What a replay needs of an allocator."""

    allocated: int
    reserved: int
    peak_allocated: int
    peak_reserved: int
    num_retries: int

    def malloc(self, nbytes: int, stream: int) -> Block: ...
    def free(self, block: Block) -> None: ...
    def empty_cache(self) -> None: ...


class NativeAllocator:
    """The default allocator under a cap of `cap` bytes of reserved memory (None: no cap)."""

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.pools: dict[int, tuple[Pool, Pool]] = {}
        self.next_addr = 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.num_retries = 0

    def _pool(self, stream: int, small: bool) -> Pool:
        pair = self.pools.get(stream)
        if pair is None:
            pair = self.pools[stream] = (Pool(False), Pool(True))
        return pair[small]

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        size = (nbytes + 511) & -512 if nbytes > 512 else 512
        small = size <= SMALL_SIZE
        pair = self.pools.get(stream)
        pool = pair[small] if pair is not None else self._pool(stream, small)
        blocks = pool.blocks
        i = bisect_left(blocks, (size,))
        if i < len(blocks):
            block = blocks.pop(i)[2]
        else:
            block = self._new_segment(size, pool)
        rest = block.size - size
        if rest > SMALL_SIZE or (small and rest >= MIN_BLOCK):
            tail = Block(rest, block.addr + size, pool)
            tail.prev = block
            nxt = tail.next = block.next
            if nxt is not None:
                nxt.prev = tail
            block.next = tail
            block.size = size
            insort(blocks, (rest, tail.addr, tail))
        block.free = False
        self.allocated = allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return block

    def _new_segment(self, size: int, pool: Pool) -> Block:
        seg = segment_size(size)
        if self.cap is not None and self.reserved + seg > self.cap:
            self.num_retries += 1
            self.empty_cache()
            if self.reserved + seg > self.cap:
                raise OutOfMemoryError(size, self.allocated, self.reserved)
        self.next_addr -= seg
        self.reserved += seg
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
        return Block(seg, self.next_addr, pool)

    def free(self, block: Block) -> None:
        self.allocated -= block.size
        blocks = block.pool.blocks
        prev, nxt = block.prev, block.next
        if prev is not None and prev.free:
            del blocks[bisect_left(blocks, (prev.size, prev.addr))]
            prev.size += block.size
            prev.next = nxt
            if nxt is not None:
                nxt.prev = prev
            block = prev
        else:
            block.free = True
        if nxt is not None and nxt.free:
            del blocks[bisect_left(blocks, (nxt.size, nxt.addr))]
            block.size += nxt.size
            after = block.next = nxt.next
            if after is not None:
                after.prev = block
        insort(blocks, (block.size, block.addr, block))

    def empty_cache(self) -> None:
        for pair in self.pools.values():
            for pool in pair:
                kept = []
                for entry in pool.blocks:
                    block = entry[2]
                    if block.prev is None and block.next is None:
                        self.reserved -= block.size
                    else:
                        kept.append(entry)
                pool.blocks[:] = kept  # in place: `malloc` holds this list while it asks for a segment


class ExpandableAllocator:
    """``expandable_segments:True``: one growing virtual range a pool."""

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.pools: dict[int, tuple[Pool, Pool]] = {}
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.num_retries = 0

    def _pool(self, stream: int, small: bool) -> Pool:
        pair = self.pools.get(stream)
        if pair is None:
            pair = self.pools[stream] = (Pool(False), Pool(True))
            for pool in pair:
                whole = Block(1 << 60, 0, pool)
                whole.mapped = False
                pool.unmapped.append((0, whole))
        return pair[small]

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        size = (nbytes + 511) & -512 if nbytes > 512 else 512
        small = size <= SMALL_SIZE
        pair = self.pools.get(stream)
        pool = pair[small] if pair is not None else self._pool(stream, small)
        block = self._best_fit(pool, size) or self._expand(pool, size)
        rest = block.size - size
        if rest >= MIN_BLOCK:
            tail = Block(rest, block.addr + size, pool)
            self._splice(block, tail)
            block.size = size
            insort(pool.blocks, (rest, tail.addr, tail))
        block.free = False
        self.allocated = allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return block

    @staticmethod
    def _splice(block: Block, tail: Block) -> None:
        tail.prev = block
        nxt = tail.next = block.next
        if nxt is not None:
            nxt.prev = tail
        block.next = tail

    @staticmethod
    def _best_fit(pool: Pool, size: int) -> Block | None:
        """Best fit, where a block that borders unmapped space counts with the size that it can grow to."""
        blocks = pool.blocks
        i = bisect_left(blocks, (size,))
        if i == len(blocks):
            return None

        after = blocks[i][2].next
        if after is None or after.mapped:  # cannot grow, and what follows is no smaller
            return blocks.pop(i)[2]

        def grown(b: Block) -> int:
            return b.size + (b.next.size if b.next is not None and not b.next.mapped else 0)

        while i + 1 < len(blocks) and grown(blocks[i + 1][2]) < grown(blocks[i][2]):
            i += 1
        return blocks.pop(i)[2]

    def _expand(self, pool: Pool, size: int) -> Block:
        request = segment_size(size)
        if self.cap is not None and self.reserved + request > self.cap:
            self._flush_or_fail(request, size)
        block = self._try_expand(pool, size)
        if block is None:  # the driver has no page left
            self._flush_or_fail(0, size)
            block = self._best_fit(pool, size) or self._try_expand(pool, size)
            if block is None:
                raise OutOfMemoryError(size, self.allocated, self.reserved)
        return block

    def _flush_or_fail(self, request: int, size: int) -> None:
        self.num_retries += 1
        self.empty_cache()
        if self.cap is not None and self.reserved + request > self.cap:
            raise OutOfMemoryError(size, self.allocated, self.reserved)

    def _try_expand(self, pool: Pool, size: int) -> Block | None:
        candidate: Block | None = None
        for _, space in pool.unmapped:
            start = space.prev if space.prev is not None and space.prev.free and space.prev.mapped else space
            room, b = 0, start
            while b is not None and b.free and room < size:
                room += b.size
                b = b.next  # type: ignore[assignment]
            if room >= size:
                candidate = start
                break
        assert candidate is not None, "the last range is unbounded"
        if not candidate.mapped:
            mapped = self._map(candidate, min(candidate.size, size))
            if mapped is None:
                return None
            candidate = mapped
        while candidate.size < size:
            nxt = candidate.next
            assert nxt is not None
            mapped = self._map(nxt, min(size - candidate.size, nxt.size))
            if mapped is None:
                return None
            candidate = mapped
        blocks = pool.blocks
        del blocks[bisect_left(blocks, (candidate.size, candidate.addr))]
        return candidate

    def _map(self, space: Block, size: int) -> Block | None:
        """Map pages at the start of `space` for `size` bytes; the mapped block merged with its free neighbours."""
        pool = space.pool
        page = SMALL_BUFFER if pool.small else LARGE_BUFFER
        mapped = min((size + page - 1) // page * page, space.size)
        if self.cap is not None and self.reserved + mapped > self.cap:
            return None
        del pool.unmapped[bisect_left(pool.unmapped, (space.addr,))]
        space.mapped = True
        if mapped < space.size:
            rest = Block(space.size - mapped, space.addr + mapped, pool)
            rest.mapped = False
            self._splice(space, rest)
            insort(pool.unmapped, (rest.addr, rest))
            space.size = mapped
        self.reserved += mapped
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
        return self._merge_in(space)

    def _merge_in(self, block: Block) -> Block:
        """Merge a block of no list with free neighbours in the same mapping state, and enter it in its list."""
        pool = block.pool
        prev, nxt = block.prev, block.next
        if prev is not None and prev.free and prev.mapped == block.mapped:
            self._remove(prev)
            prev.size += block.size
            prev.next = nxt
            if nxt is not None:
                nxt.prev = prev
            block = prev
        if nxt is not None and nxt.free and nxt.mapped == block.mapped:
            self._remove(nxt)
            block.size += nxt.size
            after = block.next = nxt.next
            if after is not None:
                after.prev = block
        if block.mapped:
            insort(pool.blocks, (block.size, block.addr, block))
        else:
            insort(pool.unmapped, (block.addr, block))
        return block

    @staticmethod
    def _remove(block: Block) -> None:
        pool = block.pool
        if block.mapped:
            del pool.blocks[bisect_left(pool.blocks, (block.size, block.addr))]
        else:
            del pool.unmapped[bisect_left(pool.unmapped, (block.addr,))]

    def free(self, block: Block) -> None:
        self.allocated -= block.size
        block.free = True
        self._merge_in(block)

    def empty_cache(self) -> None:
        for pair in self.pools.values():
            for pool in pair:
                page = SMALL_BUFFER if pool.small else LARGE_BUFFER
                for _, _, block in list(pool.blocks):
                    first = (block.addr + page - 1) // page * page
                    last = (block.addr + block.size) // page * page
                    if last <= first:
                        continue
                    self._remove(block)
                    self.reserved -= last - first
                    before, after = first - block.addr, block.addr + block.size - last
                    if before:
                        head = Block(before, block.addr, pool)
                        head.prev, head.next = block.prev, block
                        if block.prev is not None:
                            block.prev.next = head
                        block.prev = head
                        insort(pool.blocks, (head.size, head.addr, head))
                    if after:
                        tail = Block(after, last, pool)
                        self._splice(block, tail)
                        insort(pool.blocks, (tail.size, tail.addr, tail))
                    block.addr, block.size, block.mapped = first, last - first, False
                    self._merge_in(block)
