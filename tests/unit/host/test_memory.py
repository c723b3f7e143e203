from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.host.memory import CACHED, PAGE_BYTES, ROUNDING, HostMemory, power_of_two


@pytest.mark.parametrize(("asked", "size"), [(0, 0), (1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192), (1_684_603_904, 2**31)])
def test_pinned_memory_is_rounded_to_powers_of_two(asked: int, size: int) -> None:
    assert power_of_two(asked) == size


def test_pageable_memory_goes_back() -> None:
    memory = HostMemory()
    memory.give(memory.take("a", 100))
    assert (memory.total_bytes, memory.peak().total_bytes) == (0, 100)


def test_pinned_memory_stays() -> None:
    memory = HostMemory()
    memory.give(memory.take("a", 100, pinned=True))
    assert (memory.total_bytes, memory.pinned_bytes, memory.terms[CACHED]) == (128, 128, 128)


def test_a_free_pinned_block_serves_a_request_of_its_size() -> None:
    memory = HostMemory()
    memory.give(memory.take("a", 100, pinned=True))
    memory.take("b", 120, pinned=True)
    assert (memory.pinned_bytes, memory.terms["b"], memory.terms[ROUNDING], memory.terms[CACHED]) == (128, 120, 8, 0)


def test_a_free_pinned_block_serves_no_other_size() -> None:
    memory = HostMemory()
    memory.give(memory.take("a", 100, pinned=True))
    memory.take("b", 50, pinned=True)
    assert memory.pinned_bytes == 128 + 64


def test_pinning_holds_both_copies_for_a_moment() -> None:
    memory = HostMemory()
    memory.pin(memory.take("a", 128))
    assert (memory.peak().total_bytes, memory.total_bytes) == (256, 128)


def test_locked_memory_is_whole_pages_without_rounding_up_further() -> None:
    memory = HostMemory()
    memory.lock("a", PAGE_BYTES * 3 + 1)
    assert memory.pinned_bytes == memory.total_bytes == PAGE_BYTES * 4


def test_a_phase_begins_at_what_is_held() -> None:
    memory = HostMemory()
    held = memory.take("a", 10)
    memory.give(memory.take("b", 90))
    memory.phase("next")
    memory.give(held)
    assert [(s.phase, s.total_bytes) for s in memory.peaks] == [("start", 100), ("next", 10)]


@given(st.lists(st.tuples(st.integers(0, 10**7), st.booleans(), st.booleans()), max_size=30))
def test_terms_sum_to_the_total_at_every_peak(steps: list[tuple[int, bool, bool]]) -> None:
    memory = HostMemory()
    for num_bytes, pinned, free in steps:
        block = memory.take(f"category {num_bytes % 3}", num_bytes, pinned=pinned)
        if free:
            memory.give(block)
    assert sum(memory.terms.values()) == memory.total_bytes
    for snapshot in memory.peaks:
        assert sum(snapshot.terms.values()) == snapshot.total_bytes


@given(st.lists(st.tuples(st.integers(1, 10**7), st.booleans()), max_size=30))
def test_what_is_pinned_never_shrinks(steps: list[tuple[int, bool]]) -> None:
    memory = HostMemory()
    before = 0
    for num_bytes, free in steps:
        block = memory.take("a", num_bytes, pinned=True)
        if free:
            memory.give(block)
        assert memory.pinned_bytes >= before
        before = memory.pinned_bytes
