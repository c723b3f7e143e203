"""Blocks used on a second stream, on tapes written by hand: when they come back, and what holds the CPU up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.dsconfig import complete
from llmcheck.shadow.allocator import NativeAllocator
from llmcheck.shadow.late import Late, LateReplay, replay_late, replay_until_flush
from llmcheck.shadow.pace import Pace
from llmcheck.shadow.replay import Replays, State, replay
from llmcheck.shadow.run import Rank
from llmcheck.shadow.tape import Note, Tape
from llmcheck.types import AllocatorKind, ClusterSpec, TrainingRecipe
from llmcheck.units import MIB

GATHER, REDUCE = 2, 1
BOTH = pytest.mark.parametrize("kind", ["native", "expandable"])

# CPU and GPU in round numbers: a launch takes the CPU 1 s, a kernel's work is what PRODUCT notes say.
PACE = Pace(
    kernel_s=0.0,
    byte_s=0.0,
    product_s=1.0,
    attention_s=1.0,
    launch_s=1.0,
    backward_launch_s=1.0,
    visit_s=0.0,
    gather_s=0.0,
    slice_s=0.0,
    gradient_s=0.0,
)


class Script:
    """A tape in the making. Every request has `size` MiB."""

    def __init__(self, size: int = 20) -> None:
        self.tape, self.size = Tape(), size
        self.tape.mark("phase", "init")

    def ask(self, stream: int = 0, user: int | None = None) -> int:
        tape = self.tape
        request = len(tape.sizes)
        tape.events.append(request)
        tape.sizes.append(self.size * MIB)
        tape.categories.append("other")
        tape.streams.append(stream)
        if user is not None:
            tape.shared[request] = user
        return request

    def drop(self, *requests: int) -> None:
        self.tape.events += [~request for request in requests]

    def note(self, what: Note, amount: float = 0.0) -> None:
        self.tape.notes.append((len(self.tape.events), what, amount))

    def late(self, pace: Pace = PACE) -> Late:
        self.tape.mark("phase", "step0")
        return Late(self.tape, pace, start="init").complete()


def replayed(run: Late, kind: AllocatorKind, cap_bytes: int | None = None) -> LateReplay:
    return replay_late(run, Replays(run.source, kind), cap_bytes)


def test_a_block_that_only_its_own_stream_uses_comes_back_at_once() -> None:
    script = Script()
    weight = script.ask(GATHER)
    script.note(Note.PRODUCT, 100)
    script.drop(weight)
    script.ask()

    run = script.late()

    assert run.events == script.tape.events
    assert run.asked == []


def test_a_shared_block_comes_back_at_the_first_request_after_the_kernel_that_used_it() -> None:
    script = Script()
    weight = script.ask(GATHER, user=0)  # the CPU is at 1 s
    script.note(Note.PRODUCT, 2.5)  # the GPU is busy until 3.5 s
    script.drop(weight)
    after = [script.ask() for _ in range(5)]  # asked for at 1, 2, 3, 4 and 5 s

    run = script.late()

    assert run.events == [weight, *after[:3], ~weight, *after[3:]]
    assert run.asked == [(1, weight)]


def test_a_gpu_that_keeps_up_frees_at_once() -> None:
    script = Script()
    for _ in range(3):
        weight = script.ask(GATHER, user=0)
        script.note(Note.PRODUCT, 100)
        script.drop(weight)

    assert script.late(replace(PACE, product_s=0.0)).events == script.tape.events


def test_frees_before_the_start_are_immediate() -> None:
    script = Script()
    weight = script.ask(GATHER, user=0)
    script.note(Note.PRODUCT, 100)
    script.drop(weight)
    script.ask()
    script.tape.mark("phase", "bwd0")

    assert Late(script.tape, PACE, start="bwd0").complete().events == script.tape.events


def test_the_cpu_waits_for_all_streams_where_the_run_does() -> None:
    script = Script()
    weight = script.ask(GATHER, user=0)
    script.note(Note.PRODUCT, 1000)
    script.drop(weight)
    before = script.ask()
    script.note(Note.SYNC)
    after = script.ask()

    assert script.late(PACE.without_host()).events == [weight, before, ~weight, after]


def test_the_third_bucket_after_a_reduction_waits_for_it() -> None:
    script = Script()
    gradients, requests = [], []
    for _ in range(4):
        gradient = script.ask(0, user=REDUCE)
        script.note(Note.PRODUCT, 10)
        script.note(Note.COPY, 1)
        script.note(Note.BUCKET)
        script.drop(gradient)
        gradients.append(gradient)
        requests.append(script.ask())

    events = script.late(PACE.without_host()).events

    # three reductions are pending when the fourth begins: that waits for the first
    assert events.index(~gradients[0]) == events.index(requests[3]) - 1
    assert events.index(~gradients[1]) > events.index(requests[3])


def test_a_full_launch_queue_holds_the_cpu_up() -> None:
    script = Script(1)
    weight = script.ask(GATHER, user=0)
    script.note(Note.PRODUCT, 100)
    script.drop(weight)
    later = [script.ask() for _ in range(1100)]

    events = script.late(replace(PACE, kernel_s=1e-3).without_host()).events

    assert events.index(~weight) == events.index(later[1025]) - 1  # 1024 launches wait: the one after them had to see the first done


@BOTH
def test_what_does_not_come_back_is_reserved_anew(kind: AllocatorKind) -> None:
    script = Script()
    for _ in range(3):
        weight = script.ask(GATHER, user=0)
        script.note(Note.PRODUCT, 100)
        script.drop(weight)

    assert replay(script.tape, kind).peak_reserved_bytes == 0  # no phase has ended yet
    found = replayed(script.late(), kind)

    assert found.reserved["step0"] == (60 * MIB, 60 * MIB)
    assert replay(script.tape, kind).peak_reserved_bytes == 20 * MIB


@BOTH
def test_the_allocator_waits_for_the_gpu_before_it_gives_up(kind: AllocatorKind) -> None:
    script = Script()
    for _ in range(3):
        weight = script.ask(GATHER, user=0)
        script.note(Note.PRODUCT, 100)
        script.drop(weight)
    run = script.late()

    tight, too_small = replayed(run, kind, 40 * MIB), replayed(run, kind, 10 * MIB)

    assert (tight.ran, tight.num_retries, tight.peak_reserved_bytes) == (True, 1, 40 * MIB)
    assert not too_small.ran


@BOTH
def test_emptying_the_cache_waits_for_the_gpu(kind: AllocatorKind) -> None:
    script = Script()
    weight = script.ask(GATHER, user=0)
    script.note(Note.PRODUCT, 100)
    script.drop(weight)
    script.tape.mark("empty_cache")
    script.ask()
    run = script.late()

    assert run.events == script.tape.events
    assert replayed(run, kind).reserved["step0"] == (20 * MIB, 20 * MIB)


def test_the_time_of_a_faster_gpu_is_shorter() -> None:
    a100, h100 = Pace.of(find_gpu("a100-80g"), "bf16"), Pace.of(find_gpu("h100"), "bf16")

    assert h100.product_s < a100.product_s
    assert h100.byte_s < a100.byte_s
    assert h100.launch_s == a100.launch_s


def test_a_replay_without_late_blocks_is_the_plain_one() -> None:
    script = Script()
    kept = [script.ask() for _ in range(3)]
    script.drop(*kept)
    found = replayed(script.late(), "native")
    allocator = NativeAllocator()
    for _ in kept:
        allocator.malloc(20 * MIB)

    assert found.peak_reserved_bytes == allocator.peak_reserved


class _FromTheStart(Replays):
    """Replays that hand out no state on the way."""

    def state_after(self, phase: str, cap_bytes: int | None) -> State:
        return super().state_after("", cap_bytes)


def _step(zero_stage: int = 3) -> Tape:
    """Rank 0 of 4 of a small model."""
    recipe = TrainingRecipe(seq_len=256, zero_stage=zero_stage)
    recipe = replace(recipe, deepspeed=complete(recipe, {"zero_optimization": {"reduce_bucket_size": 10_000_000}}, world_size=4))
    cluster = ClusterSpec(gpu=find_gpu("h100"), gpus_per_node=4)
    return Rank(find_model("smollm-135m", allow_network=False), recipe, cluster).tape


@BOTH
@pytest.mark.parametrize("start", ["init", "bwd0"])
def test_a_late_replay_goes_on_from_the_immediate_one(kind: AllocatorKind, start: str) -> None:
    tape = _step()
    pace = Pace.of(find_gpu("h100"), "bf16").without_host()
    peak = replay(tape, kind).peak_reserved_bytes
    immediate = Replays(tape, kind)
    flushes = set()
    for cap in (None, *range(peak * 7 // 10, peak * 13 // 10, peak // 20)):
        found = replay_late(Late(tape, pace, start=start), immediate, cap)
        assert found == replay_late(Late(tape, pace, start=start), _FromTheStart(tape, kind), cap)
        assert replay_until_flush(Late(tape, pace, start=start), immediate, cap) == (found if found.num_retries == 0 else None)
        flushes.add((found.num_retries > 0, found.ran))

    assert flushes == {(False, True), (True, True), (True, False)}
