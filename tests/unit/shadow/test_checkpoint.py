"""Non-reentrant checkpointing, by hand from ``torch/utils/checkpoint.py`` (torch 2.11): _checkpoint_without_reentrant_generator."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import NoGrad, backward
from llmcheck.shadow.checkpoint import checkpoint
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param, Tensor

# x [4, 8], w1 [16, 8], w2 [10, 16], bf16: every tensor has its own size
X, W1, HIDDEN, W2, OUT = 64, 256, 128, 320, 80


@pytest.fixture
def tape() -> Iterator[Tape]:
    collecting = gc.isenabled()
    gc.disable()
    found = Tape()
    cur.reset(found)
    yield found
    cur.reset(Tape())
    if collecting:
        gc.enable()


class Region:
    """``linear(silu(linear(x)))``, as a model's feed-forward network."""

    def __init__(self) -> None:
        self.x = Tensor((4, 8), 2)
        self.w1, self.w2 = Param((16, 8), 2), Param((10, 16), 2)
        self.calls = 0

    def __call__(self, h: Tensor) -> Tensor:
        self.calls += 1
        return ops.linear(ops.silu(ops.linear(h, self.w1)), self.w2)


def signed(tape: Tape, start: int = 0) -> list[int]:
    return [tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events[start:]]


def test_the_forward_keeps_the_regions_input_and_result_only(tape: Tape) -> None:
    region = Region()
    start = len(tape.events)
    y = checkpoint(region, region.x)

    assert signed(tape, start) == [HIDDEN, HIDDEN, -HIDDEN, OUT, -HIDDEN]
    assert y.req


def test_without_checkpointing_the_saved_tensors_stay(tape: Tape) -> None:
    region = Region()
    start = len(tape.events)
    y = region(region.x)

    assert signed(tape, start) == [HIDDEN, HIDDEN, OUT]
    assert y.req


def test_backward_runs_the_region_again_up_to_its_last_saved_tensor(tape: Tape) -> None:
    region = Region()
    y = checkpoint(region, region.x)
    start = len(tape.events)
    backward(y)

    assert signed(tape, start) == [
        OUT,  # the root's gradient
        HIDDEN, HIDDEN,  # re-run: linear, silu; the last linear saves its input before it computes, so its result never is
        W2, HIDDEN,  # dW2, then the gradient of its input
        -HIDDEN, -OUT,  # silu's result, that only the node held; the root's gradient
        HIDDEN, -HIDDEN, -HIDDEN,  # silu: its gradient; the saved input; the gradient that came in
        W1, -HIDDEN,  # dW1 (x needs none); the gradient that came in
    ]  # fmt: skip
    assert region.calls == 2


def test_gradients_are_the_same_with_and_without(tape: Tape) -> None:
    region = Region()
    backward(checkpoint(region, region.x))

    assert (region.w1.grad is not None, region.w2.grad is not None) == (True, True)


def test_an_operator_that_saves_its_result_is_run_again_whole(tape: Tape) -> None:
    w = Param((10, 8), 2)
    y = checkpoint(lambda h: ops.tanh(ops.linear(h, w)), Tensor((4, 8), 2))
    start = len(tape.events)
    backward(y)

    # g; re-run: the product and tanh of it, which is the last saved tensor (the product goes when its frame does)
    assert signed(tape, start)[:4] == [OUT, OUT, OUT, -OUT]


def test_without_grad_mode_the_function_just_runs(tape: Tape) -> None:
    region = Region()
    with NoGrad():
        y = checkpoint(region, region.x)

    assert y.node is None
    assert region.calls == 1


def test_the_regions_input_lives_until_its_last_node_ran(tape: Tape) -> None:
    region = Region()
    h = ops.neg(Param((4, 8), 2))
    y = checkpoint(region, h)
    del h
    start = len(tape.events)
    backward(y)
    events = signed(tape, start)

    # dW1 is made by the region's last node: before it nothing of the input's size goes, after it the input does
    last = events.index(W1)
    assert -X not in events[:last]
    assert -X in events[last:]


def test_each_region_is_run_again_only_when_backward_reaches_it(tape: Tape) -> None:
    first, second = Region(), Region()
    second.w1, second.w2 = Param((16, 10), 2), Param((10, 16), 2)
    order: list[str] = []
    second.w1.hook = lambda p: order.append(f"second done, first called {first.calls}")
    y = checkpoint(second, checkpoint(first, first.x))
    backward(y)

    assert order == ["second done, first called 1"]
    assert (first.calls, second.calls) == (2, 2)


def test_what_a_dead_node_of_the_forward_saved_is_not_kept_again(tape: Tape) -> None:
    # a result that no loss depends on: its node is gone when the region is run again, so its saved tensor goes at once
    w = Param((8, 8), 2)

    def fn(h: Tensor) -> Tensor:
        unused = ops.silu(ops.cast(ops.linear(h, w), 8))  # saves 256 B that nothing else holds
        del unused
        return ops.silu(ops.linear(h, w))

    y = checkpoint(fn, Tensor((4, 8), 2))
    start = len(tape.events)
    backward(y)
    events = signed(tape, start)

    assert events.count(4 * 8 * 8) == events.count(-4 * 8 * 8) == 2  # the cast and silu of it
    assert max(i for i, e in enumerate(events) if e == -256) < events.index(2 * 8 * 8)  # gone before the first gradient of w


def test_a_slot_without_tensor_stays_empty(tape: Tape) -> None:
    # a frozen weight: the linear saves no input, and its weight only if the input needs a gradient
    frozen = Param((10, 8), 2)
    frozen.req = False
    x = Param((4, 8), 2)
    y = checkpoint(lambda h: ops.linear(h, frozen), x)
    start = len(tape.events)
    backward(y)

    assert signed(tape, start) == [OUT, X, -OUT]  # nothing is computed again: the weight is saved before the product


def test_after_backward_only_weights_gradients_and_what_is_named_live(tape: Tape) -> None:
    region = Region()
    w = Param((4, 8), 2)
    backward(checkpoint(region, checkpoint(lambda h: ops.silu(ops.mul(h, w)), region.x)))

    assert sum(signed(tape)) == X + 2 * (W1 + W2 + X)  # x; the three weights (the third is as large as x) and their gradients


def test_an_exception_in_the_region_leaves_no_hook_behind(tape: Tape) -> None:
    def broken(h: Tensor) -> Tensor:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        checkpoint(broken, Tensor((1,), 2))

    assert cur.pack is None
