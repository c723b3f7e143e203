"""Replays of tapes written by hand: phases, peaks, failure, breakdown, timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcheck.shadow import replay as replay_module
from llmcheck.shadow.replay import Replay, Replays, breakdown, replay, timeline
from llmcheck.shadow.tape import Tape
from llmcheck.types import AllocatorKind, PhaseStats
from llmcheck.units import MIB

BOTH = pytest.mark.parametrize("kind", ["native", "expandable"])


def tape_of(*steps: tuple[str, int, str] | int | str) -> Tape:
    """("category", MiB, ...) allocates, a number frees that request, a text closes the phase of that name ("!" empties the cache)."""
    tape = Tape()
    for step in steps:
        if isinstance(step, tuple):
            tape.events.append(len(tape.sizes))
            tape.categories.append(step[0])
            tape.sizes.append(step[1] * MIB)
            tape.streams.append(0)
        elif isinstance(step, int):
            tape.events.append(~step)
        elif step == "!":
            tape.mark("empty_cache")
        else:
            tape.mark("phase", step)
    return tape


STEP = tape_of(
    ("weights", 40, ""), ("weights", 40, ""), 1, "model", "!", "init",
    ("activations", 20, ""), "fwd0", ("gradients", 60, ""), 2, "bwd0", ("optimizer_states", 20, ""), 3, "step0",
)  # fmt: skip


@BOTH
def test_each_phase_has_its_own_peaks(kind: AllocatorKind) -> None:
    found = replay(STEP, kind)

    # name, allocated at its end and at most, reserved at its end and at most; all sizes are whole segments and pages
    expected = [
        ("model", 40, 80, 80, 80),
        ("init", 40, 40, 40, 80),  # the cache is emptied in it
        ("fwd0", 60, 60, 60, 60),
        ("bwd0", 100, 120, 120, 120),
        ("step0", 60, 120, 120, 120),
    ]
    assert [
        PhaseStats(name=n, allocated_bytes=a * MIB, peak_allocated_bytes=b * MIB, reserved_bytes=c * MIB, peak_reserved_bytes=d * MIB)
        for n, a, b, c, d in expected
    ] == found.phases


@BOTH
def test_the_training_peak_leaves_out_construction(kind: AllocatorKind) -> None:
    found = replay(tape_of(("weights", 80, ""), 0, "model", "init", ("activations", 20, ""), "fwd0"), kind)

    assert (found.peak_allocated_bytes(True), found.peak_allocated_bytes(False)) == (20 * MIB, 80 * MIB)
    assert found.peak_phase == "fwd0"


@BOTH
def test_the_first_moment_of_the_peak_is_named(kind: AllocatorKind) -> None:
    found = replay(STEP, kind)

    assert (found.peak_phase, sum(breakdown(STEP, found.block_bytes, found.peak_position).values())) == ("bwd0", 120 * MIB)


@BOTH
def test_the_breakdown_is_of_the_live_blocks(kind: AllocatorKind) -> None:
    found = replay(STEP, kind)

    assert breakdown(STEP, found.block_bytes, found.peak_position) == {
        "weights": 40 * MIB,
        "activations": 20 * MIB,
        "gradients": 60 * MIB,
    }


@BOTH
def test_under_the_peak_it_fails_where_the_cap_is_met(kind: AllocatorKind) -> None:
    found = replay(STEP, kind, 100 * MIB)
    error = found.out_of_memory

    assert error is not None
    assert (error.phase, error.category, error.requested_bytes, error.allocated_bytes) == ("bwd0", "gradients", 60 * MIB, 60 * MIB)
    assert [p.name for p in found.phases] == ["model", "init", "fwd0", "bwd0"]


@BOTH
def test_with_the_cap_at_the_peak_it_runs(kind: AllocatorKind) -> None:
    found = replay(STEP, kind, 120 * MIB)

    assert (found.out_of_memory, found.num_retries) == (None, 0)


@BOTH
def test_a_retry_is_counted(kind: AllocatorKind) -> None:
    found = replay(tape_of(("a", 40, ""), 0, "model", "init", ("b", 60, ""), "fwd0"), kind, 60 * MIB)

    # native: the free segment of 40 MiB goes back; expandable: the test counts 40 + 60 before it maps, so it flushes, too
    assert (found.out_of_memory, found.num_retries) == (None, 1)


@BOTH
def test_the_timeline_sums_to_what_is_live(kind: AllocatorKind) -> None:
    found = replay(STEP, kind)
    points = timeline(STEP, found.block_bytes, ("fwd0", "bwd0", "step0"))

    assert [sum(kinds.values()) // MIB for _, kinds in points] == [60, 120, 100, 120, 60]
    assert [round(x, 2) for x, _ in points] == [0.0, 0.2, 0.4, 0.6, 0.8]


@BOTH
def test_a_short_timeline_keeps_the_highest_moment_of_each_slice(kind: AllocatorKind) -> None:
    found = replay(STEP, kind)
    points = timeline(STEP, found.block_bytes, ("fwd0", "bwd0", "step0"), points=2)

    assert [sum(kinds.values()) // MIB for _, kinds in points][:2] == [120, 120]


def test_a_timeline_of_phases_that_were_not_reached_is_empty() -> None:
    assert timeline(STEP, replay(STEP, "native").block_bytes, ("fwd1", "bwd1", "step1")) == []


# --- replays that share their beginning ----------------------------------------------------------------------------------------

# (MiB, stream) allocates, a number frees the live request at that place, a text is a mark
_PROGRAMS = st.lists(
    st.one_of(st.tuples(st.integers(1, 60), st.integers(0, 1)), st.integers(0, 1 << 16), st.sampled_from(["!", "phase"])),
    min_size=30,
    max_size=80,
)


def _tape_of_program(program: Sequence[Any]) -> Tape:
    tape, live = Tape(), []
    for number, step in enumerate((*program, "phase")):
        if isinstance(step, tuple):
            live.append(len(tape.sizes))
            tape.events.append(len(tape.sizes))
            tape.sizes.append(step[0] * MIB // 2)
            tape.streams.append(step[1])
            tape.categories.append(f"c{len(tape.sizes) % 3}")
        elif isinstance(step, int):
            if live:
                tape.events.append(~live.pop(step % len(live)))
        elif step == "!":
            tape.mark("empty_cache")
        else:
            tape.mark("phase", f"p{number}")
    return tape


def _shown(found: Replay) -> tuple[Any, ...]:
    reached = len(found.tape.sizes) if found.ran else sum(e >= 0 for e in found.tape.events[: found.marks[-1].stop])
    return found.phases, found.num_retries, found.out_of_memory, found.peak_position, found.peak_phase, found.block_bytes[:reached]


@BOTH
@settings(max_examples=150)
@given(program=_PROGRAMS, caps=st.lists(st.one_of(st.none(), st.integers(2, 40).map(lambda n: n * 10 * MIB)), min_size=3, max_size=6))
def test_replays_that_share_their_beginning_are_replays_of_the_whole(kind: AllocatorKind, program: Any, caps: list[int | None]) -> None:
    tape = _tape_of_program(program)
    shared = Replays(tape, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "_PIECE", 3)
        for cap in caps:
            assert _shown(replay(tape, kind, cap)) == _shown(shared.under(cap))


@BOTH
def test_a_cap_that_decides_nothing_differently_is_not_replayed(kind: AllocatorKind) -> None:
    shared = Replays(STEP, kind)

    assert shared.under(None) is shared.under(120 * MIB)
    assert shared.under(None) is not shared.under(119 * MIB)
