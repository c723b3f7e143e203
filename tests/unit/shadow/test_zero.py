"""ZeRO on one rank of N, by hand from DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, stage3.py, partitioned_param_coordinator.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmcheck.dsconfig import ZeroSettings
from llmcheck.shadow.autograd import NoGrad, backward
from llmcheck.shadow.kernels import Kernels
from llmcheck.shadow.module import Build, Linear, Module
from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.shadow.zero.coordinator import GATHER_STREAM
from llmcheck.shadow.zero.partition import AVAILABLE, NOT_AVAILABLE, Stage3Build
from llmcheck.shadow.zero.stage0 import Plain
from llmcheck.shadow.zero.stage3 import REDUCE_STREAM, Stage3
from llmcheck.shadow.zero.stage12 import Partition, Stage12


@pytest.fixture(autouse=True)
def tape() -> Iterator[Tape]:
    found = Tape()
    cur.reset(found)
    yield found
    cur.hooks = None
    cur.reset(Tape())


def settings_of(stage: int, world: int, **zero: Any) -> ZeroSettings:
    return ZeroSettings.from_config({"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, **zero}}, world)


def signed(tape: Tape, start: int = 0) -> list[int]:
    return [tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events[start:]]


def live(tape: Tape, category: str = "") -> int:
    return sum(
        (1 if e >= 0 else -1) * tape.sizes[i]
        for e in tape.events
        for i in [e if e >= 0 else ~e]
        if not category or tape.categories[i] == category
    )


# --- the flat buffer of stages 1 and 2 -----------------------------------------------------------------------------------------


def test_the_flat_buffer_is_padded_to_two_elements_a_rank() -> None:
    # flatten_dense_tensors_aligned: a multiple of nccl_start_alignment_factor (2) * ranks
    part = Partition([10, 7, 2], 4, 2)

    assert (part.used, part.total, part.size) == (19, 24, 6)


def test_a_parameter_across_a_boundary_has_a_piece_on_each_side() -> None:
    part = Partition([6, 8, 5], 2, 2)  # ranks own [0, 10) and [10, 20)

    assert [part.pieces(0, 6), part.pieces(1, 8), part.pieces(2, 5)] == [[(0, 6)], [(0, 4), (1, 4)], [(1, 5)]]


def test_a_large_parameter_has_pieces_on_many_ranks() -> None:
    part = Partition([3, 20, 1], 4, 2)  # 6 elements a rank

    assert part.pieces(1, 20) == [(0, 3), (1, 6), (2, 6), (3, 5)]


def stage12(tape: Tape, stage: int, world: int, rank: int, numels: list[int], **zero: Any) -> Stage12:
    """An initialised optimizer with a bucket of 100 elements over parameters of `numels` elements."""
    zero = {"reduce_bucket_size": 100, **zero}
    settings = settings_of(stage, world, **zero)
    engine = Stage12(
        [Param((n,), 2) for n in numels], settings, rank=rank, world=world, item=2, optimizer=OptimizerState(settings_optimizer)
    )
    engine.initialize(True)
    return engine


settings_optimizer: Any = "adamw"  # FusedAdam keeps 4 B more


def give(engine: Stage12 | Stage3, index: int) -> None:
    """Accumulate a gradient of parameter `index`, as autograd does, and run its hook."""
    p = engine.params[index]
    p.grad = Tensor(p.shape, p.item)
    assert p.hook is not None
    p.hook(p)


def test_initialize_flattens_then_copies_to_fp32(tape: Tape) -> None:
    stage12(tape, 2, 2, 0, [60, 50, 40])  # 150 elements, padded to 152, 76 a rank

    assert signed(tape, 3) == [
        4, 304, -4,  # the padding, the flat buffer of which it becomes a part
        -120, -100, -80,  # each parameter is a view on it now
        152, 304, -152,  # the partition's clone, the fp32 master copy
        304, -304,  # the gradient partition that initialize_optimizer_states steps with
    ]  # fmt: skip


def test_initialize_through_the_host_never_holds_two_copies(tape: Tape) -> None:
    settings = settings_of(2, 1)
    engine = Stage12([Param((600,), 2), Param((400,), 2)], settings, rank=0, world=1, item=2, optimizer=OptimizerState("adamw"))
    start = len(tape.events)
    engine.initialize(False)
    weights = [e for e in signed(tape, start) if abs(e) in (1200, 800, 2000)][:3]

    assert weights == [-1200, -800, 2000]


@pytest.mark.parametrize(("kind", "counts"), [("adam-bf16", [16]), ("adamw", [])])
def test_adam_in_bf16_counts_its_steps_on_the_device_where_it_clips_itself(tape: Tape, kind: Any, counts: list[int]) -> None:
    params = [Param((60,), 2), Param((50,), 2)]
    engine = Plain(params, settings_of(0, 1), rank=0, world=1, item=2, optimizer=OptimizerState(kind, 2))
    engine.initialize(True)
    engine.step()
    engine.step()

    assert signed(tape, 0) == [120, 100, 120, 120, 100, 100, *counts]  # weights, moments


def test_a_gradient_moves_into_the_bucket(tape: Tape) -> None:
    engine = stage12(tape, 2, 1, 0, [60, 50, 40])
    start = len(tape.events)
    give(engine, 2)
    give(engine, 1)

    assert signed(tape, start) == [80, 200, -80, 100, -100]  # the bucket comes with the first gradient's hook
    assert (engine.elements, engine.bucket) == (90, [2, 1])


def test_a_gradient_that_does_not_fit_reduces_the_bucket_first(tape: Tape) -> None:
    engine = stage12(tape, 2, 1, 0, [60, 50, 40])
    give(engine, 2)
    give(engine, 1)
    start = len(tape.events)
    give(engine, 0)

    # its own gradient; on the first reduction the kept gradients of all 150 owned elements; then it moves into the bucket
    assert signed(tape, start) == [120, 300, -120]
    assert (engine.elements, engine.bucket) == (60, [0])


def test_one_rank_concatenates_nothing(tape: Tape) -> None:
    engine = stage12(tape, 2, 1, 0, [30, 20, 10])
    for i in (2, 1, 0):
        give(engine, i)
    start = len(tape.events)
    engine.epilogue()

    # 60 elements kept (120 B); then the bucket of 200 B goes: no copy, as one slice of one owner is reduced in place
    assert signed(tape, start) == [120, -200]


def test_slices_of_several_owners_are_concatenated(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [60, 50, 40])  # rank 0 owns [0, 76): the first parameter and 16 of the second
    give(engine, 2)
    give(engine, 1)
    start = len(tape.events)
    give(engine, 0)

    # slices (1, 40), (0, 16), (1, 34): 90 elements together; kept: the two parameters that touch the partition, whole (110 elements)
    assert signed(tape, start) == [120, 180, -180, 220, -120]


def test_neighbouring_slices_of_one_owner_are_one(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [40, 40, 30, 50])  # 80 elements a rank: the boundary lies between parameters
    give(engine, 3)
    give(engine, 2)
    start = len(tape.events)
    give(engine, 1)

    assert signed(tape, start) == [80, -80]  # both slices are rank 1's: no copy, nothing kept


def test_a_foreign_gradient_goes_with_the_reduction(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [60, 50, 40])
    for i in (2, 1, 0):
        give(engine, i)

    assert engine.params[2].grad is None
    assert engine.params[1].grad is not None


def test_a_parameter_larger_than_the_bucket_stays_apart(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [10, 130])
    start = len(tape.events)
    give(engine, 1)

    assert signed(tape, start) == [260, 200]  # its gradient is not copied into the bucket
    engine.epilogue()
    # slices (0, 60) and (1, 70) concatenated; 10 + 130 owned elements kept; the gradient is copied there; the bucket goes
    assert signed(tape, start)[2:] == [260, -260, 280, -260, -200]


def test_stage_1_keeps_every_gradient_until_the_epilogue(tape: Tape) -> None:
    engine = stage12(tape, 1, 2, 0, [60, 50, 40])
    start = len(tape.events)
    for i in (2, 1, 0):
        give(engine, i)

    assert signed(tape, start) == [80, 200, 100, 120]
    assert engine.bucket == []


def test_stage_1_walks_the_parameters_in_their_order(tape: Tape) -> None:
    engine = stage12(tape, 1, 1, 0, [60, 50, 40])
    for i in (2, 1, 0):
        give(engine, i)
    start = len(tape.events)
    engine.epilogue()

    # 60 into the bucket; 50 do not fit: reduce (300 B kept), then 50 and 40 into it; the bucket goes
    assert signed(tape, start) == [-120, 300, -100, -80, -200]


def test_stage_1_reduces_at_a_boundary_only(tape: Tape) -> None:
    engine = stage12(tape, 1, 1, 0, [60])
    engine.boundary = False
    give(engine, 0)
    start = len(tape.events)
    engine.epilogue()

    assert signed(tape, start) == []
    assert engine.params[0].grad is not None


@pytest.mark.parametrize("stage", [1, 2])
def test_after_the_epilogue_no_gradient_is_on_a_parameter(tape: Tape, stage: int) -> None:
    engine = stage12(tape, stage, 2, 0, [60, 50, 40])
    for i in (2, 1, 0):
        give(engine, i)
    engine.epilogue()

    assert [p.grad for p in engine.params] == [None, None, None]
    assert live(tape, "zero_buffers") == 0


def test_overlap_has_two_buckets_and_a_stream_of_its_own(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [60, 50, 40], overlap_comm=True)
    for i in (2, 1, 0):
        give(engine, i)
    streams = {tape.sizes[i]: tape.streams[i] for i in range(len(tape.sizes))}

    assert tape.sizes.count(200) == 2
    assert (streams[180], streams[220]) == (REDUCE_STREAM, REDUCE_STREAM)  # the concatenated slices, the kept gradients


def test_the_step_takes_norms_in_fp64_then_one_fp32_gradient(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [60, 50, 40])
    for i in (2, 1, 0):
        give(engine, i)
    engine.epilogue()
    start = len(tape.events)
    engine.step()

    assert signed(tape, start) == [
        480, -480, 128, -128,  # 60 elements, and the 16 of the second parameter
        152, 304, -152, -220,  # two pieces flattened, their fp32 copy; the flat one and the kept gradients go
        304, 304,  # Adam's moments
        -304,
    ]  # fmt: skip


def test_the_moments_are_made_once(tape: Tape) -> None:
    engine = stage12(tape, 2, 1, 0, [60])
    for _ in range(2):
        give(engine, 0)
        engine.epilogue()
        engine.step()

    assert live(tape, "optimizer_states") == 3 * 4 * 60  # master copy and two moments


def test_the_last_rank_pads_its_gradients(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 1, [60, 50, 40])  # 152 elements for 150
    for i in (2, 1, 0):
        give(engine, i)
    start = len(tape.events)
    engine.epilogue()
    assert signed(tape, start)[-2:] == [4, -200]  # get_flat_partition fills up with zeros; the bucket goes
    start = len(tape.events)
    engine.step()

    assert signed(tape, start)[:4] == [8 * 34, -8 * 34, 8 * 40, -8 * 40]


def test_earlier_micro_steps_keep_their_gradients_beside_the_new_ones(tape: Tape) -> None:
    engine = stage12(tape, 2, 1, 0, [60])
    engine.boundary = False
    give(engine, 0)
    engine.epilogue()
    assert live(tape, "gradients") == 120
    engine.boundary = True
    give(engine, 0)
    engine._reduce()

    assert live(tape, "gradients") == 240


def test_without_contiguous_gradients_the_first_micro_steps_gradients_are_added_to(tape: Tape) -> None:
    # independent_gradient_partition_epilogue: all_grad_tensors are the first ones, later ones go
    engine = stage12(tape, 2, 1, 0, [60], contiguous_gradients=False)
    engine.boundary = False
    give(engine, 0)
    first = engine.params[0].grad
    engine.epilogue()
    give(engine, 0)
    engine.epilogue()

    assert first is not None
    assert [grad.st for grad in engine.kept if grad is not None] == [first.st]


def test_without_contiguous_gradients_overlap_keeps_foreign_ones_for_one_reduction_more(tape: Tape) -> None:
    # reduce_ipg_grads: previous_reduced_grads, cleared in allreduce_and_copy and in the epilogue
    engine = stage12(tape, 2, 2, 0, [90, 80, 40], contiguous_gradients=False, overlap_comm=True)  # rank 0 owns the first two
    give(engine, 2)
    give(engine, 1)  # does not fit beside it: that one is reduced
    assert engine.params[2].grad is not None
    give(engine, 0)
    assert engine.params[2].grad is None
    engine.epilogue()

    assert [p.grad for p in engine.params] == [None, None, None]


def test_cpu_offload_leaves_no_state_on_the_gpu(tape: Tape) -> None:
    engine = stage12(tape, 2, 2, 0, [60, 50, 40], offload_optimizer={"device": "cpu"})
    for i in (2, 1, 0):
        give(engine, i)
    engine.epilogue()
    engine.step()

    assert (live(tape, "optimizer_states"), live(tape, "gradients")) == (0, 0)


# --- stage 3 -----------------------------------------------------------------------------------------------------------------------

W, X = 512, 64  # bytes of a 16 x 16 weight and of the tensor [2, 16] between them


class Chain(Module):
    """Linear layers of 16 x 16, called in `order`."""

    def __init__(self, build: Build, order: tuple[int, ...]) -> None:
        self.layers = [Linear(build, 16, 16) for _ in range(max(order) + 1)]
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        for i in self.order:
            x = self.layers[i](x)
        return x


def stage3(tape: Tape, world: int = 2, order: tuple[int, ...] = (0, 1, 2), **zero: Any) -> tuple[Chain, Stage3]:
    """A chain under ZeRO-3; nothing persists and nothing is prefetched unless `zero` says so."""
    zero = {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 10**9,
        "reduce_bucket_size": 600,
        "overlap_comm": True,
        **zero,
    }
    settings = settings_of(3, world, **zero)
    cur.kernels = None
    cur.category = "weights"
    build = Stage3Build(2, world, False)
    model = Chain(build, order)
    engine = Stage3(model, build, settings, rank=0, world=world, item=2, optimizer=OptimizerState("adamw"))
    engine.initialize(True)
    return model, engine


def forward(tape: Tape, model: Chain) -> list[int]:
    """Events of a forward pass without gradients; the input is there before, the output goes after."""
    x = Tensor((2, 16), 2)
    start = len(tape.events)
    with NoGrad():
        y = model(x)
    events = signed(tape, start)
    del y
    return events


def test_construction_keeps_a_partition_of_each_parameter(tape: Tape) -> None:
    build = Stage3Build(2, 2, False)
    layer = Linear(build, 5, 3, bias=True)

    # the weight of 15 elements and the bias of 3; then 8 and 2 elements of them, each whole one dropped after its partition
    assert signed(tape) == [30, 6, 16, -30, 4, -6]
    assert layer.weight.ds.partition_numel == 8


def test_initialize_gathers_the_partitions_in_one_buffer(tape: Tape) -> None:
    stage3(tape)

    # three partitions of 128 elements
    assert live(tape, "weights") == 3 * 128 * 2
    assert live(tape, "optimizer_states") == 3 * 128 * 4  # the fp32 master copy
    assert live(tape, "gradients") == 3 * 128 * 2
    assert live(tape, "zero_buffers") == 600 * 2


def test_the_first_forward_gathers_before_and_releases_after_each_module(tape: Tape) -> None:
    model, _ = stage3(tape)

    assert forward(tape, model) == [W, X, -W, W, X, -W, -X, W, X, -W, -X]


def test_one_rank_gathers_nothing(tape: Tape) -> None:
    model, _ = stage3(tape, world=1)

    assert forward(tape, model) == [X, X, -X, X, -X]


def test_parameters_are_gathered_on_a_stream_of_their_own(tape: Tape) -> None:
    model, _ = stage3(tape)
    first = len(tape.sizes)
    forward(tape, model)
    streams = {tape.streams[i] for i in range(first + 1, len(tape.sizes)) if tape.sizes[i] == W}

    assert streams == {GATHER_STREAM}


def test_without_overlap_the_gathers_share_the_default_stream(tape: Tape) -> None:
    model, _ = stage3(tape, overlap_comm=False)
    forward(tape, model)

    assert set(tape.streams) == {0}


def test_without_overlap_the_reductions_share_the_default_stream(tape: Tape) -> None:
    model, engine = stage3(tape, overlap_comm=False, reduce_bucket_size=300)
    for p in model.parameters():
        p.grad = Tensor(p.shape, 2)
        engine._hook(p)
    engine.epilogue()

    assert set(tape.streams) == {0}
    assert tape.shared == {}


def test_released_weights_and_bucketed_gradients_wait_for_the_other_stream(tape: Tape) -> None:
    model, engine = stage3(tape)
    forward(tape, model)
    gathered = {i for i, stream in enumerate(tape.streams) if stream == GATHER_STREAM}
    assert {tape.shared[i] for i in gathered} == {0}

    before = set(tape.shared)
    for p in model.parameters():
        p.grad = Tensor(p.shape, 2)
        engine._hook(p)
    engine.epilogue()

    assert {tape.shared[i] for i in set(tape.shared) - before} == {REDUCE_STREAM}
    assert len(set(tape.shared) - before) == len(model.parameters()) + 1  # and the bucket, which stays


def test_the_second_forward_prefetches_along_the_recorded_order(tape: Tape) -> None:
    model, _ = stage3(tape, stage3_prefetch_bucket_size=300)
    forward(tape, model)

    # bucket of 300 elements, 256 a weight. At the model's own hook: the first weight, and as 256 < 300 the second: one flat buffer.
    # First layer: at its wait a copy of each of the two; the third weight is prefetched, alone, into a buffer of its own.
    # Second layer: the last parameter of the flat buffer was waited for: it goes.
    assert forward(tape, model) == [
        2 * W,
        W, W, W, X, -W,
        -2 * W, X, -W, -X,
        X, -W, -X,
    ]  # fmt: skip


def test_a_bucket_of_one_weight_is_gathered_without_a_copy(tape: Tape) -> None:
    model, _ = stage3(tape, stage3_prefetch_bucket_size=256)
    forward(tape, model)

    # one weight ahead, always; a single parameter's buffer becomes the parameter
    assert forward(tape, model) == [W, W, X, -W, W, X, -W, -X, X, -W, -X]


def test_nothing_is_prefetched_beyond_max_live_parameters(tape: Tape) -> None:
    model, _ = stage3(tape, stage3_prefetch_bucket_size=1000, stage3_max_live_parameters=256)
    forward(tape, model)

    # 256 at the model's hook; with the first weight there, no more room; it goes after its layer, and the next is fetched when called
    assert forward(tape, model) == [W, X, -W, W, X, -W, -X, W, X, -W, -X]


def test_a_weight_that_is_used_again_within_the_reuse_distance_stays(tape: Tape) -> None:
    model, _ = stage3(tape, order=(0, 1, 0), stage3_max_reuse_distance=10**9)
    forward(tape, model)

    # the first weight is released after its second use only
    assert forward(tape, model) == [W, X, W, X, -W, -X, X, -W, -X]


def test_a_weight_that_is_used_again_beyond_the_reuse_distance_goes(tape: Tape) -> None:
    model, _ = stage3(tape, order=(0, 1, 0))
    forward(tape, model)

    assert forward(tape, model) == [W, X, -W, W, X, -W, -X, W, X, -W, -X]


def test_small_parameters_persist(tape: Tape) -> None:
    model, _ = stage3(tape, stage3_param_persistence_threshold=256)
    forward(tape, model)  # the recording pass releases them, too

    assert forward(tape, model) == [W, X, W, X, -X, W, X, -X]


def test_persistent_parameters_are_gathered_after_the_step(tape: Tape) -> None:
    model, engine = stage3(tape, stage3_param_persistence_threshold=256)
    forward(tape, model)
    engine.step()

    assert live(tape, "gathered_weights") == 3 * W
    assert forward(tape, model) == [X, X, -X, X, -X]


def test_backward_gathers_again_and_releases(tape: Tape) -> None:
    model, engine = stage3(tape)
    x = Tensor((2, 16), 2)
    x.req = True
    y = model(x)
    assert {p.ds.status for p in engine.params} == {NOT_AVAILABLE}
    seen: list[tuple[int, ...]] = []
    for p in engine.params:
        hook = p.hook
        assert hook is not None
        p.hook = lambda q, hook=hook: (seen.append(tuple(r.ds.status for r in engine.params)), hook(q))[1]
    backward(y)

    last, middle, first = seen
    assert last == (NOT_AVAILABLE, NOT_AVAILABLE, AVAILABLE)
    assert middle == (NOT_AVAILABLE, AVAILABLE, NOT_AVAILABLE)
    assert first == (AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE)


def test_without_gradient_into_a_module_its_weight_stays_until_backward_ends(tape: Tape) -> None:
    # the input needs no gradient: no post-backward hook on the first layer (release_backward_leftovers)
    model, engine = stage3(tape)
    backward(model(Tensor((2, 16), 2)))
    assert [p.ds.status for p in engine.params] == [AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE]
    engine.epilogue()

    assert [p.ds.status for p in engine.params] == [NOT_AVAILABLE] * 3


def test_a_full_bucket_is_reduced_through_a_padded_copy(tape: Tape) -> None:
    _, engine = stage3(tape, world=3)  # 256 elements are 3 x 86
    give(engine, 2)
    give(engine, 1)
    assert engine.elements == 512
    start = len(tape.events)
    give(engine, 0)

    # its gradient; 512 + 256 > 600: the copy of two times 258 elements; then it moves into the bucket
    assert signed(tape, start) == [W, 2 * 258 * 2, -2 * 258 * 2, -W]


def test_a_single_divisible_parameter_is_reduced_in_place(tape: Tape) -> None:
    _, engine = stage3(tape, world=2)
    give(engine, 0)
    start = len(tape.events)
    engine.epilogue()

    assert signed(tape, start) == []
    assert engine.params[0].grad is None


def test_sub_groups_close_when_their_partitions_reach_the_size(tape: Tape) -> None:
    _, engine = stage3(tape, order=(0, 1, 2, 3, 4), sub_group_size=256)  # partitions of 128

    assert [len(group) for group in engine.sub_groups] == [2, 2, 1]


def test_the_step_takes_one_fp32_gradient_a_sub_group(tape: Tape) -> None:
    _, engine = stage3(tape, sub_group_size=256)
    engine.step()
    start = len(tape.events)
    engine.step()

    norms = [8 * 128, -8 * 128] * 3
    two = [2 * 256, 4 * 256, -2 * 256, -4 * 256]  # flattened from two pieces, fp32
    assert signed(tape, start) == [*norms, *two, 4 * 128, -4 * 128]


def test_the_moments_of_stage_3_are_of_the_partition(tape: Tape) -> None:
    _, engine = stage3(tape, world=2)
    engine.step()

    assert live(tape, "optimizer_states") == 3 * 4 * 3 * 128


def test_a_tied_weights_own_partition_lives_until_initialize_collects(tape: Tape) -> None:
    build = Stage3Build(2, 2, False)
    first, second = Linear(build, 16, 16), Linear(build, 16, 16)
    build.tied(second, "weight", first.weight)
    assert live(tape) == 2 * W // 2
    build.garbage.clear()

    assert live(tape) == W // 2


def test_peft_copies_a_gathered_weight_whole_and_deepspeed_partitions_it_later(tape: Tape) -> None:
    build = Stage3Build(2, 2, False)
    linear = Linear(build, 16, 16)
    wrapper = build.copy(linear)
    assert live(tape) == W // 2 + W  # the original's partition, the whole copy; what was gathered is gone
    build.finish(wrapper.active)

    assert live(tape) == 2 * W // 2
    assert [p.req for p in wrapper.parameters()] == [False, True]


def test_kernels_know_where_they_run() -> None:
    # cuBLAS allocates one workspace a thread: forward and backward have their own (Hopper: 32 MiB)
    tape = Tape()
    kernels = Kernels(132, 2048, 32 << 20, ("cudnn",))
    cur.reset(tape, kernels)
    for in_backward in (False, False, True, True):
        kernels.in_backward = in_backward
        kernels.matmul_workspace(False)

    assert tape.sizes == [32 << 20] * 2
