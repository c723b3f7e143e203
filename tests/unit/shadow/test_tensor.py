"""Lifetimes and the reverse-mode engine, by hand from ``torch/csrc/autograd`` (engine, input_buffer, accumulate_grad; torch 2.11).

Sizes name tensors: every tensor of a test has its own number of bytes where that matters.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import NoGrad, accumulator, backward, begin, sum_to
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param, Tensor


@pytest.fixture
def tape() -> Iterator[Tape]:
    """A tape without a device, and no cycle collector that could free what reference counts do not."""
    collecting = gc.isenabled()
    gc.disable()
    found = Tape()
    cur.reset(found)
    yield found
    cur.reset(Tape())
    if collecting:
        gc.enable()


def signed(tape: Tape, start: int = 0) -> list[int]:
    """Signed sizes of the events from position `start` on."""
    return [tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events[start:]]


def live(tape: Tape) -> int:
    return sum(signed(tape))


# --- storages and views ------------------------------------------------------------------------------------------------------


def test_a_tensor_allocates_when_made_and_frees_when_dropped(tape: Tape) -> None:
    t = Tensor((3, 5), 2)
    assert signed(tape) == [30]
    del t

    assert signed(tape) == [30, -30]


def test_a_tensor_without_elements_allocates_nothing(tape: Tape) -> None:
    t = Tensor((3, 0), 2)
    del t

    assert signed(tape) == []


def test_a_view_keeps_the_storage_of_its_base(tape: Tape) -> None:
    t = Tensor((3, 5), 2)
    v = ops.transpose(t, 0, 1)
    del t
    assert signed(tape) == [30]
    del v

    assert signed(tape) == [30, -30]


def test_a_reshape_that_the_layout_forbids_is_a_copy(tape: Tape) -> None:
    # [3, 5] seen as [5, 3] lies with strides (1, 5): no view of it has one dimension (view_strides = computeStride of ATen)
    flat = ops.reshape(ops.transpose(Tensor((3, 5), 2), 0, 1), 15)

    assert signed(tape) == [30, 30, -30]
    assert flat.shape == (15,)


def test_without_grad_mode_nothing_is_kept(tape: Tape) -> None:
    w = Param((7,), 2)
    with NoGrad():
        y = ops.silu(w)

    assert (y.node, y.req, cur.grad) == (None, False, True)


def test_a_result_of_tensors_without_gradient_has_no_node(tape: Tape) -> None:
    y = ops.mul(Tensor((7,), 2), Tensor((7,), 2))

    assert (y.node, y.req) == (None, False)


def test_a_saved_tensor_lives_as_long_as_its_node(tape: Tape) -> None:
    w = Param((7,), 2)
    y = ops.silu(ops.neg(w))  # silu saves its input, the result of neg
    assert signed(tape) == [14, 14, 14]
    del y

    assert signed(tape)[3:] == [-14, -14]


def test_what_no_node_saves_goes_at_once(tape: Tape) -> None:
    w = Param((7,), 2)
    y = ops.neg(ops.neg(w))

    assert signed(tape) == [14, 14, 14, -14]
    assert y.req


# --- backward ----------------------------------------------------------------------------------------------------------------


def test_a_chain_frees_gradient_and_saved_tensor_node_by_node(tape: Tape) -> None:
    w = Param((7,), 4)
    y = ops.silu(ops.silu(w))  # 28 B each; the inner result is saved by the outer silu, w by the inner one
    start = len(tape.events)
    backward(y)
    # root's gradient; outer: a gradient, then the saved tensor and root's gradient go; inner: w's gradient, then the gradient before it
    assert signed(tape, start) == [28, 28, -28, -28, 28, -28]
    assert w.grad is not None


def test_the_gradient_that_came_in_goes_before_the_saved_tensors(tape: Tape) -> None:
    w = Param((5, 7), 2)
    x = ops.neg(Param((3, 7), 2))
    y = ops.linear(x, w)
    del x
    start = len(tape.events)
    backward(y)

    # g [3, 5]; dW [5, 7] first, dX [3, 7]; call_function drops g, release_variables x after it; neg: its gradient, dX goes
    assert signed(tape, start) == [30, 70, 42, -30, -42, 42, -42]


def test_nodes_run_from_the_newest_to_the_oldest(tape: Tape) -> None:
    a, b = Param((3,), 4), Param((5,), 4)
    left = ops.neg(a)
    right = ops.neg(b)
    y = ops.cat((left, right))
    order: list[str] = []
    a.hook = lambda p: order.append("a")
    b.hook = lambda p: order.append("b")
    backward(y)

    assert order == ["b", "a"]


def test_a_ready_accumulator_runs_before_every_other_node(tape: Tape) -> None:
    # y = u * v, u older than v; the product's gradient of v (a parameter) is accumulated before the node of u runs
    w, v = Param((3,), 4, "w"), Param((3,), 4, "v")
    order: list[str] = []
    w.hook = v.hook = lambda p: order.append(p.name)
    u = ops.neg(w)
    node = u.node
    assert node is not None
    inner = node.fn
    assert inner is not None
    node.fn = lambda s, g: (order.append("neg"), inner(s, g))[1]
    backward(ops.mul(u, v))

    assert order == ["v", "neg", "w"]


def test_a_gradient_dropped_by_its_hook_is_free_before_the_next_node_runs(tape: Tape) -> None:
    w = Param((3,), 4)
    v = Param((3,), 8)

    def drop(p: Param) -> None:
        p.grad = None

    v.hook = drop
    y = ops.mul(ops.neg(w), v)  # 24 B: the wider type
    start = len(tape.events)
    backward(y)
    # g 24; gradient of v 24, of -w 24, cast to 12 (the 24 go); the saved -w goes, g goes; v's gradient goes in its hook;
    # then neg makes 12 for w, and its gradient goes
    events = signed(tape, start)

    assert events.index(12, events.index(12) + 1) > max(i for i, e in enumerate(events) if e == -24)


def test_a_second_gradient_is_added_in_place_where_the_first_owns_its_storage(tape: Tape) -> None:
    w = Param((7,), 2)
    x = ops.neg(w)
    y = ops.add(ops.neg(x), ops.neg(x))
    start = len(tape.events)
    backward(y)
    # g 14 goes to both negs; the newer one makes 14; the older one 14, added to the first and dropped; g went with its last use;
    # then the gradient of w
    assert signed(tape, start) == [14, 14, 14, -14, -14, 14, -14]


def test_a_second_gradient_makes_a_new_sum_where_the_first_is_a_view(tape: Tape) -> None:
    w = Param((7,), 2)
    x = ops.neg(w)
    y = ops.add(ops.neg(ops.reshape(x, 7, 1)), ops.neg(ops.reshape(x, 7, 1)))
    start = len(tape.events)
    backward(y)
    # g; the newer neg's 14 becomes a view for x; the older's 14 too: the sum is a third; both go. Then w's gradient
    assert sum(e for e in signed(tape, start) if e > 0) == 14 * 5
    assert live(tape) == 14 + 14 + 14 + 14  # w, its gradient, x and y, still named here


def test_a_shared_first_gradient_makes_a_new_sum(tape: Tape) -> None:
    w = Param((7,), 2)
    x = ops.neg(w)
    y = ops.add(x, x)  # both gradients are y's own
    start = len(tape.events)
    backward(y)

    # g; the sum of g and g; g goes; w's gradient; the sum goes
    assert signed(tape, start) == [14, 14, -14, 14, -14]


def test_the_gradient_of_a_second_backward_is_added_in_place(tape: Tape) -> None:
    w = Param((7,), 2)
    backward(ops.neg(w))
    first = w.grad
    before = live(tape)
    backward(ops.neg(w))

    assert w.grad is first
    assert live(tape) == before


def test_a_gradient_in_another_layout_than_its_parameter_is_cloned(tape: Tape) -> None:
    w = Param((3, 5), 2)
    y = ops.transpose(w, 0, 1)
    backward(ops.neg(y))  # g [5, 3] is seen as [3, 5] with strides (1, 3)

    assert w.grad is not None
    assert w.grad.strides is None


def test_an_accumulated_gradient_is_booked_as_gradient(tape: Tape) -> None:
    cur.category = "activations"
    w = Param((7,), 2)
    backward(ops.neg(w))

    assert w.grad is not None
    assert tape.categories[w.grad.st.ident] == "gradients"


def test_backward_books_temporaries_where_the_forward_did(tape: Tape) -> None:
    cur.category = "activations"
    w = Param((7,), 2)
    y = ops.neg(ops.neg(w))
    cur.category = "other"
    start = len(tape.sizes)
    backward(y)

    assert tape.categories[start + 1] == "activations"
    assert cur.category == "other"


def test_a_broadcast_gradient_is_summed_to_its_input(tape: Tape) -> None:
    bias = Param((5,), 2)
    x = Param((3, 5), 2)
    start = len(tape.events)
    y = ops.add(x, bias)
    backward(y)

    # y 30, g 30, the sum over three rows 10
    assert signed(tape, start) == [30, 30, 10]
    assert bias.grad is not None
    assert bias.grad.shape == (5,)


def test_a_sum_to_fewer_dimensions_is_seen_through_a_view(tape: Tape) -> None:
    # sum_to ends in a view (aten/src/ATen/ExpandUtils.h): a later gradient is not added in place
    assert sum_to(Tensor((3, 5), 2), (5,)).view
    assert not sum_to(Tensor((3, 5), 2), (1, 5)).view


def test_a_gradient_is_converted_to_the_type_of_its_input(tape: Tape) -> None:
    w = Param((7,), 2)
    backward(ops.mul(w, Tensor((7,), 4)))  # the product is fp32

    assert w.grad is not None
    assert (w.grad.item, w.grad.nbytes) == (2, 14)


def test_a_parameter_used_twice_gets_one_gradient(tape: Tape) -> None:
    calls: list[Param] = []
    w = Param((7,), 2)
    w.hook = calls.append
    backward(ops.add(ops.neg(w), ops.neg(w)))

    assert calls == [w]


def test_a_parameter_has_one_accumulator(tape: Tape) -> None:
    w = Param((7,), 2)

    assert accumulator(w) is accumulator(w)


def test_a_leaf_that_is_no_parameter_keeps_its_gradient_until_the_root_goes(tape: Tape) -> None:
    # enable_input_require_grads: the graph holds the leaf's accumulator, hence the leaf and its gradient
    leaf = Tensor((7,), 2)
    leaf.req = True
    y = ops.neg(leaf)
    del leaf
    backward(y)
    assert live(tape) == 14 + 14 + 14  # leaf, gradient, y
    del y

    assert live(tape) == 0


def test_an_op_without_gradient_for_an_input_leaves_it_out(tape: Tape) -> None:
    w = Param((7,), 2)
    other = Tensor((7,), 2)
    y = ops.mul(w, other)
    start = len(tape.events)
    backward(y)

    assert signed(tape, start) == [14, 14, -14]  # g, w's gradient, g goes
    assert other.grad is None


def test_a_node_waits_for_all_its_gradients(tape: Tape) -> None:
    ran: list[int] = []
    w = Param((7,), 2)
    x = ops.neg(w)

    def watch(saved: object, g: Tensor) -> tuple[Tensor]:
        ran.append(1)
        return (g,)

    z = Tensor((7,), 2)
    z.node = begin(watch, (x,), ())
    z.req = True
    backward(ops.add(ops.neg(z), ops.add(ops.neg(z), z)))

    assert ran == [1]


def test_after_backward_only_what_is_named_lives(tape: Tape) -> None:
    w = Param((3, 5), 2)
    y = ops.softmax(ops.linear(ops.silu(Tensor((2, 5), 2)), w))
    backward(y)
    del y
    w.grad = None

    assert live(tape) == 30
