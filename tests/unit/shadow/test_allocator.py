"""The caching allocator's rules, by hand from ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.11): round_size, get_pool,
get_allocation_size, should_split, release_cached_blocks, try_allocate_expandable_block, unmap_block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcheck.shadow.allocator import NO_CAP, Block, ExpandableAllocator, NativeAllocator, OutOfMemoryError, segment_size
from llmcheck.units import KIB, MIB

KINDS = [NativeAllocator, ExpandableAllocator]
both = pytest.mark.parametrize("kind", KINDS)

# --- rounding and segments -------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("request_bytes", "block_bytes"), [(1, 512), (512, 512), (513, 1024), (4096, 4096), (MIB + 1, MIB + 512)])
def test_a_request_rounds_up_to_512_bytes(kind: Any, request_bytes: int, block_bytes: int) -> None:
    allocator = kind()

    # the large pool of the native allocator hands out 20 MiB whole only where the rest is at most 1 MiB: not here
    assert block_bytes == allocator.malloc(request_bytes).size
    assert block_bytes == allocator.allocated


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ],
)
def test_the_segment_of_a_rounded_request(size: int, expected: int) -> None:
    assert expected == segment_size(size)


@pytest.mark.parametrize(("request_bytes", "reserved"), [(1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (11 * MIB, 12 * MIB)])
def test_native_asks_the_driver_for_one_segment(request_bytes: int, reserved: int) -> None:
    allocator = NativeAllocator()
    allocator.malloc(request_bytes)

    assert reserved == allocator.reserved


def test_small_requests_share_a_segment() -> None:
    allocator = NativeAllocator()
    first, second = allocator.malloc(MIB), allocator.malloc(MIB)

    assert allocator.reserved == 2 * MIB
    assert first.addr + MIB == second.addr


@both
def test_a_small_request_takes_nothing_from_the_large_pool(kind: Any) -> None:
    allocator = kind()
    allocator.free(allocator.malloc(5 * MIB))
    allocator.malloc(512)

    assert allocator.reserved == 22 * MIB  # 20 MiB large, 2 MiB small


# --- best fit, splitting, merging --------------------------------------------------------------------------------------------


def test_the_smallest_block_that_fits_serves() -> None:
    allocator = NativeAllocator()
    blocks = [allocator.malloc(n * MIB) for n in (30, 14, 22)]
    for block in blocks:
        allocator.free(block)

    assert blocks[1].addr == allocator.malloc(13 * MIB).addr


def test_of_equal_blocks_the_one_of_the_newest_segment_serves() -> None:
    # by (size, address), and the driver's addresses descend (read off allocator traces of an H100)
    allocator = NativeAllocator()
    older, newer = allocator.malloc(20 * MIB), allocator.malloc(20 * MIB)
    allocator.free(older)
    allocator.free(newer)

    assert newer.addr < older.addr
    assert newer.addr == allocator.malloc(20 * MIB).addr


def test_a_large_block_is_not_split_for_a_rest_of_one_mib() -> None:
    allocator = NativeAllocator()
    allocator.free(allocator.malloc(12 * MIB))

    assert allocator.malloc(11 * MIB).size == 12 * MIB


def test_a_large_block_is_split_for_a_rest_above_one_mib() -> None:
    allocator = NativeAllocator()
    allocator.free(allocator.malloc(12 * MIB))

    assert allocator.malloc(11 * MIB - 512).size == 11 * MIB - 512


def test_a_small_block_is_split_for_a_rest_of_512_bytes() -> None:
    allocator = NativeAllocator()
    allocator.malloc(MIB)
    assert allocator.malloc(MIB - 512).size == MIB - 512
    assert allocator.malloc(1).size == 512

    assert allocator.reserved == 2 * MIB


def test_the_expandable_allocator_splits_large_blocks_for_512_bytes() -> None:
    allocator = ExpandableAllocator()

    assert allocator.malloc(20 * MIB - 512).size == 20 * MIB - 512


@both
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_neighbours_merge_in_whatever_order_they_are_freed(kind: Any, order: Sequence[int]) -> None:
    allocator = kind()
    blocks = [allocator.malloc(4 * MIB) for _ in range(3)]  # 12 of the 20 MiB
    start = blocks[0].addr
    for i in order:
        allocator.free(blocks[i])

    whole = allocator.malloc(20 * MIB)
    assert (start, 20 * MIB, 20 * MIB) == (whole.addr, whole.size, allocator.reserved)


@both
def test_a_block_in_use_keeps_its_neighbours_apart(kind: Any) -> None:
    allocator = kind()
    first, middle, last = (allocator.malloc(6 * MIB) for _ in range(3))
    allocator.free(first)
    allocator.free(last)

    assert (first.addr, 20 * MIB) == (allocator.malloc(6 * MIB).addr, allocator.reserved)  # 6 MiB, not the 8 MiB at the end
    assert middle.addr == first.addr + 6 * MIB


# --- streams -------------------------------------------------------------------------------------------------------------------


@both
def test_a_free_block_serves_its_own_stream_only(kind: Any) -> None:
    allocator = kind()
    allocator.free(allocator.malloc(20 * MIB, 0))
    allocator.malloc(20 * MIB, 1)
    assert allocator.reserved == 40 * MIB
    allocator.malloc(20 * MIB, 0)

    assert allocator.reserved == 40 * MIB


# --- the cap ---------------------------------------------------------------------------------------------------------------------


def test_over_the_cap_free_segments_go_back_and_the_request_is_tried_again() -> None:
    allocator = NativeAllocator(cap=40 * MIB)
    allocator.free(allocator.malloc(20 * MIB))
    allocator.malloc(30 * MIB)

    assert (allocator.num_retries, allocator.reserved) == (1, 30 * MIB)


@both
def test_the_flush_returns_the_free_segments_of_all_streams_and_pools(kind: Any) -> None:
    allocator = kind(cap=44 * MIB)
    allocator.free(allocator.malloc(20 * MIB, 0))
    allocator.free(allocator.malloc(20 * MIB, 1))
    allocator.free(allocator.malloc(512, 1))
    allocator.malloc(40 * MIB, 2)

    assert (allocator.num_retries, allocator.reserved) == (1, 40 * MIB)


def test_the_flush_keeps_a_segment_of_which_a_part_is_in_use() -> None:
    allocator = NativeAllocator(cap=40 * MIB)
    allocator.malloc(2 * MIB)  # 18 of the 20 MiB are free

    with pytest.raises(OutOfMemoryError) as failure:
        allocator.malloc(22 * MIB)

    error = failure.value
    assert (error.requested, error.reserved) == (22 * MIB, 20 * MIB)


@both
def test_a_failed_request_changes_nothing_but_the_count_of_retries(kind: Any) -> None:
    allocator = kind(cap=20 * MIB)
    kept = allocator.malloc(2 * MIB)

    with pytest.raises(OutOfMemoryError):
        allocator.malloc(40 * MIB)

    assert (allocator.allocated, allocator.reserved, allocator.num_retries) == (2 * MIB, 20 * MIB, 1)
    assert kept.addr + 2 * MIB == allocator.malloc(18 * MIB).addr


@both
def test_a_request_of_exactly_what_the_cap_leaves_succeeds(kind: Any) -> None:
    allocator = kind(cap=60 * MIB)
    allocator.malloc(20 * MIB)
    allocator.malloc(40 * MIB)

    assert (allocator.num_retries, allocator.reserved) == (0, 60 * MIB)


@both
def test_empty_cache_is_no_retry(kind: Any) -> None:
    allocator = kind()
    allocator.free(allocator.malloc(20 * MIB))
    allocator.empty_cache()

    assert (allocator.num_retries, allocator.reserved) == (0, 0)


@both
def test_the_peaks_stay_when_memory_goes(kind: Any) -> None:
    allocator = kind()
    allocator.free(allocator.malloc(20 * MIB))
    allocator.empty_cache()
    allocator.malloc(512)

    assert (allocator.peak_allocated, allocator.peak_reserved) == (20 * MIB, 20 * MIB)


# --- expandable segments -----------------------------------------------------------------------------------------------------------


def test_a_range_grows_by_pages_of_20_mib() -> None:
    allocator = ExpandableAllocator()
    first = allocator.malloc(12 * MIB)
    assert allocator.reserved == 20 * MIB
    second = allocator.malloc(30 * MIB)  # the 8 MiB that are left and two pages more

    assert (first.addr + 12 * MIB, 60 * MIB) == (second.addr, allocator.reserved)


def test_the_small_range_grows_by_pages_of_2_mib() -> None:
    allocator = ExpandableAllocator()
    for _ in range(3):
        allocator.malloc(MIB)

    assert allocator.reserved == 4 * MIB


def test_whole_pages_inside_a_free_block_are_unmapped() -> None:
    allocator = ExpandableAllocator()
    blocks = [allocator.malloc(30 * MIB) for _ in range(3)]
    assert allocator.reserved == 100 * MIB  # five pages for 90 MiB
    allocator.free(blocks[1])  # [30, 60) MiB: only the page [40, 60) lies inside
    allocator.empty_cache()

    assert allocator.reserved == 80 * MIB


def test_an_unmapped_hole_is_mapped_again_together_with_the_free_space_before_it() -> None:
    allocator = ExpandableAllocator()
    blocks = [allocator.malloc(30 * MIB) for _ in range(3)]
    allocator.free(blocks[1])
    allocator.empty_cache()
    block = allocator.malloc(25 * MIB)  # 10 MiB are mapped in front of the hole of 20

    assert (blocks[0].addr + 30 * MIB, 100 * MIB) == (block.addr, allocator.reserved)


def test_a_hole_that_is_too_small_is_passed_over() -> None:
    allocator = ExpandableAllocator()
    blocks = [allocator.malloc(30 * MIB) for _ in range(3)]
    allocator.free(blocks[1])
    allocator.empty_cache()
    block = allocator.malloc(31 * MIB)  # behind 90 MiB, where 10 are mapped

    assert (blocks[2].addr + 30 * MIB, 120 * MIB) == (block.addr, allocator.reserved)


def test_best_fit_passes_over_a_block_that_borders_unmapped_space() -> None:
    # such a block counts with the size that it can grow to (get_free_block, expandable_size)
    allocator = ExpandableAllocator()
    first = allocator.malloc(12 * MIB)
    allocator.malloc(2 * MIB)  # [14, 20) MiB stays free, in front of the unmapped rest of the range
    allocator.free(first)

    assert first.addr == allocator.malloc(5 * MIB).addr


def test_the_cap_counts_the_whole_request_and_not_what_mapping_would_add() -> None:
    # alloc_block compares total_allocated_memory + alloc_size with the cap before it looks at what is mapped
    allocator = ExpandableAllocator(cap=40 * MIB)
    allocator.malloc(15 * MIB)

    with pytest.raises(OutOfMemoryError):
        allocator.malloc(24 * MIB)  # 19 MiB more would do: one page


# --- laws -----------------------------------------------------------------------------------------------------------------------

_SIZES = st.one_of(st.integers(1, 4 * KIB), st.integers(1, 2 * MIB), st.integers(MIB - 600, MIB + 600), st.integers(MIB, 64 * MIB))
# (size, stream) allocates; a number frees the live block at that place
_PROGRAMS = st.lists(st.one_of(st.tuples(_SIZES, st.integers(0, 1)), st.integers(0, 1 << 16)), max_size=60)
laws = settings(max_examples=150)


def _run(allocator: Any, program: Sequence[Any]) -> list[tuple[Block, int]]:
    """The live (block, request) pairs after `program`, with the invariants checked after every step."""
    live: list[tuple[Block, int]] = []
    for step in program:
        if isinstance(step, tuple):
            try:
                live.append((allocator.malloc(*step), step[0]))
            except OutOfMemoryError:
                assert allocator.cap != NO_CAP
        elif live:
            allocator.free(live.pop(step % len(live))[0])
        assert sum(block.size for block, _ in live) == allocator.allocated
        assert allocator.allocated <= allocator.reserved <= allocator.peak_reserved
        assert allocator.allocated <= allocator.peak_allocated
        assert allocator.reserved <= allocator.cap
    return live


def _free_lists(allocator: Any) -> list[Any]:
    return [allocator.pools[key].free for key in sorted(allocator.pools)]


@both
@laws
@given(program=_PROGRAMS, cap=st.one_of(st.just(NO_CAP), st.integers(2, 120).map(lambda n: n * 2 * MIB)))
def test_live_blocks_never_overlap(kind: Any, program: Sequence[Any], cap: int) -> None:
    live = _run(kind(cap), program)

    spans: dict[int, list[tuple[int, int]]] = {}
    for block, _ in live:
        spans.setdefault(id(block.pool), []).append((block.addr, block.addr + block.size))
    for found in spans.values():
        found.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))


@laws
@given(program=_PROGRAMS)
def test_native_blocks_exceed_their_rounded_request_by_at_most_one_mib_and_small_ones_by_nothing(program: Sequence[Any]) -> None:
    for block, request in _run(NativeAllocator(), program):
        rounded = -(-request // 512) * 512
        assert 0 <= block.size - rounded <= (0 if rounded <= MIB else MIB)


@laws
@given(program=_PROGRAMS)
def test_expandable_blocks_are_their_rounded_request(program: Sequence[Any]) -> None:
    for block, request in _run(ExpandableAllocator(), program):
        assert -(-request // 512) * 512 == block.size


@both
@laws
@given(program=_PROGRAMS, cap=st.one_of(st.just(NO_CAP), st.integers(2, 120).map(lambda n: n * 2 * MIB)))
def test_with_everything_freed_the_cache_can_be_emptied_wholly(kind: Any, program: Sequence[Any], cap: int) -> None:
    allocator = kind(cap)
    for block, _ in _run(allocator, program):
        allocator.free(block)
    allocator.empty_cache()

    assert (allocator.allocated, allocator.reserved) == (0, 0)


@both
@laws
@given(program=_PROGRAMS, seed=st.randoms(use_true_random=False))
def test_the_order_of_frees_that_follow_one_another_changes_nothing(kind: Any, program: Sequence[Any], seed: Any) -> None:
    """Why comparisons of event lists may sort the frees of a run."""
    results = []
    for shuffled in (False, True):
        allocator = kind()
        blocks = [block for block, _ in _run(allocator, program)]
        half = blocks[: len(blocks) // 2]
        if shuffled:
            seed.shuffle(half)
        for block in half:
            allocator.free(block)
        results.append((allocator.allocated, allocator.reserved, _free_lists(allocator)))

    assert results[0] == results[1]
