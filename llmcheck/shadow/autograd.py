"""A reverse-mode engine on fake tensors, with the lifetimes of PyTorch's (torch 2.11, ``autograd/engine.cpp``, ``input_buffer.cpp``):

* nodes run by descending creation number; a ready gradient accumulator runs first;
* a node's gradient inputs go when its function returned and broadcast gradients were reduced; its saved tensors go right after;
* a second gradient for the same input is added in place iff the first one owns its storage alone and is no view.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import prod
from typing import Any, NamedTuple

from llmcheck.shadow.tape import Storage, cur
from llmcheck.shadow.tensor import Param, Shape, Tensor

_FIRST = 1 << 62  # creation number of what runs before all else


class Node:
    """One backward function. `fn(saved, grad) -> gradients`, one for each of `edges`."""

    __slots__ = ("seq", "fn", "edges", "saved", "packed", "shapes", "buf", "deps", "slots", "seen", "category")

    def __init__(self, fn: Callable[[Any, Any], Any], edges: list[tuple[Node, int] | None], saved: Sequence[Any], shapes: Any) -> None:
        c = cur
        self.seq = c.seq
        c.seq += 1
        self.fn: Callable[[Any, Any], Any] | None = fn
        self.edges: list[tuple[Node, int] | None] | None = edges
        pack = c.pack
        if pack is None:
            self.saved: Any = saved
            self.packed = False
        else:
            self.saved = [pack(s) for s in saved]
            self.packed = True
        self.shapes = shapes  # of the inputs (or `Like`), where broadcasting may need a reduction or mixed types a conversion
        self.category = c.category  # the backward pass books its temporaries where the forward did
        self.buf: Any = None
        self.deps = 0
        self.slots = 1
        self.seen = 0


class OwningNode(Node):
    """A node whose function gets its gradient in a list, so that it can drop it while it runs."""

    __slots__ = ()

    def __init__(self, fn: Callable[[Any, Any], Any], edges: list[tuple[Node, int] | None], saved: Any) -> None:
        super().__init__(fn, edges, (), None)
        self.saved = saved


class Accumulator(Node):
    """The end of a graph: takes a leaf's gradient as soon as it is there."""

    __slots__ = ()

    def __init__(self) -> None:
        self.seq = _FIRST
        self.edges = None
        self.fn = None
        self.saved = None
        self.packed = False
        self.shapes = None
        self.buf = None
        self.deps = 0
        self.slots = 1
        self.seen = 0

    def run(self) -> None:
        """Take the gradient out of `buf`."""
        raise NotImplementedError


class AccumulateGrad(Accumulator):
    """Stores or adds a parameter's gradient, then calls the parameter's hook."""

    __slots__ = ("param",)

    def __init__(self, param: Param) -> None:
        super().__init__()
        self.param = param

    def run(self) -> None:
        p, g = self.param, self.buf
        self.buf = None
        if p.grad is None:
            if g.strides is not None:  # another layout than the parameter's: cloned
                g = Tensor(g.shape, g.item)
            p.grad = g
            if g.st.ident >= 0:
                cur.categories[g.st.ident] = "gradients"
        del g
        if p.hook is not None:
            p.hook(p)


def edges_of(inputs: Sequence[Tensor | None]) -> list[tuple[Node, int] | None]:
    """Where the gradients of `inputs` go."""
    out: list[tuple[Node, int] | None] = []
    for t in inputs:
        if t is None or not t.req:
            out.append(None)
        elif t.node is not None:
            out.append((t.node, t.slot))
        else:
            out.append((accumulator(t), 0) if isinstance(t, Param) else (leaf_accumulator(t), 0))
    return out


class LeafAccumulate(Accumulator):
    """The accumulator of a plain tensor made a leaf (`enable_input_require_grads`): keeps `.grad` on the tensor."""

    __slots__ = ("tensor", "__weakref__")

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def run(self) -> None:
        if self.tensor.grad is None:
            self.tensor.grad = self.buf
        self.buf = None


def accumulator(p: Param) -> AccumulateGrad:
    """The (one) accumulator of a parameter."""
    if p.acc is None:
        p.acc = AccumulateGrad(p)
    return p.acc


def leaf_accumulator(t: Tensor) -> Node:
    """The (one) accumulator of a leaf that is no parameter. The graph keeps it, the tensor only knows it."""
    node = t.leaf() if t.leaf is not None else None
    if node is None:
        node = LeafAccumulate(t)
        t.leaf = weakref.ref(node)
    return node


def begin(fn: Callable[[Any, Any], Any], inputs: Sequence[Tensor | None], saved: Sequence[Any], shapes: Any = None) -> Node:
    """The node of a differentiable op, made before its result, as PyTorch saves inputs before the kernel runs.

    Call only when grad mode is on and an input requires a gradient.
    """
    return Node(fn, edges_of(inputs), saved, shapes)


def attach(out: Tensor, node: Node) -> Tensor:
    """Make `out` the result of `node`."""
    out.node = node
    out.req = True
    return out


def record(out: Tensor, fn: Callable[[Any, Any], Any], inputs: Sequence[Tensor | None], saved: Sequence[Any], shapes: Any = None) -> Tensor:
    """`begin` and `attach` for an op whose saved tensors include its result."""
    out.node = Node(fn, edges_of(inputs), saved, shapes)
    out.req = True
    return out


def keep(t: Tensor) -> Any:
    """What a node holds of a saved tensor: a parameter by identity (its data may be exchanged, as ZeRO-3 does), else the storage."""
    return t if type(t) is Param else t.st


def _sole_count() -> int:
    t = Tensor((1,), 0)
    return sys.getrefcount(t.st)


SOLE = _sole_count()  # reference count that sys.getrefcount(t.st) shows for a storage with one owner, on this interpreter


class NoGrad:
    """``with NoGrad():`` grad mode off."""

    __slots__ = ("before",)

    def __enter__(self) -> None:
        self.before = cur.grad
        cur.grad = False

    def __exit__(self, *exc: object) -> None:
        cur.grad = self.before


def sum_to(g: Tensor, shape: Shape) -> Tensor:
    """Reduce a gradient to the shape of a broadcast input."""
    if g.shape == shape:
        return g
    out = Tensor(shape, g.item, None, None, len(g.shape) > len(shape))  # fewer dimensions: the sum is seen through a view
    n = prod(shape)
    kernels = cur.kernels
    if kernels is not None and n and not (shape[-1:] == (1,) and g.shape[-1] != 1):  # sums over the fastest dimension need no buffer
        buffer = kernels.reduction_buffer_bytes(prod(g.shape) // n, n)
        if buffer:
            Storage(buffer)
    return out


class Like(NamedTuple):
    """Shape and element size that a gradient must have."""

    shape: Shape
    item: int


def fit(grads: list[Tensor | None], metas: Sequence[Any]) -> None:
    """``validate_outputs``: one gradient after the other is summed to its input's shape and converted to its type."""
    for i, meta in enumerate(metas):
        g = grads[i]
        if g is None or meta is None:
            continue
        if type(meta) is Like:
            grads[i] = g = sum_to(g, meta.shape)
            if g.item != meta.item:
                grads[i] = g = Tensor(g.shape, meta.item, None, g.strides)
        elif g.shape != meta:
            grads[i] = g = sum_to(g, meta)


_generation = 0


def backward(root: Tensor) -> None:
    """Run the graph of the scalar `root`."""
    node = root.node
    assert node is not None
    node.buf = Tensor(root.shape, root.item)
    del root
    backward_from(node)


def backward_from(start: Node) -> None:
    """Run the graph of a node whose gradient is there."""
    global _generation
    c = cur
    before, category = c.grad, c.category
    c.grad = False
    # dependencies: how many gradients each node waits for
    _generation += 1
    gen = _generation
    start.seen, start.deps = gen, 0
    first = start
    leaves: list[tuple[Node, int] | None] = []  # the graph keeps the leaves' accumulators (so leaf and gradient) until its root goes
    stack: list[Node] = [start]
    while stack:
        edges = stack.pop().edges
        if edges is None:
            continue
        for e in edges:
            if e is None:
                continue
            n = e[0]
            if n.seen != gen:
                n.seen, n.deps = gen, 1
                stack.append(n)
                if type(n) is LeafAccumulate:
                    leaves.append((n, 0))
            else:
                n.deps += 1
    del edges, e, n, stack
    heap: list[tuple[int, Node]] = [(-start.seq, start)]
    del start
    getref = sys.getrefcount
    try:
        while heap:
            node = heappop(heap)[1]
            g = node.buf
            node.buf = None
            if type(node) is OwningNode:
                g = [g]
            fn = node.fn
            assert fn is not None
            c.category = node.category
            saved = node.saved
            if node.packed:
                saved = [s.unpack() for s in saved]
                outs = fn(saved, g)
                saved = None
            else:
                outs = fn(saved, g)
            outs = list(outs)
            shapes = node.shapes
            if shapes is not None:
                fit(outs, shapes)
            g = saved = node.saved = node.fn = fn = None
            edges = node.edges
            node.edges = None
            i = 0
            for e in edges:  # type: ignore[union-attr]
                o = outs[i]
                outs[i] = None
                i += 1
                if e is None:
                    continue
                n, slot = e
                if o is not None:
                    if n.slots == 1:
                        old = n.buf
                        if old is None:
                            n.buf = o
                        elif old.view or getref(old.st) != SOLE:
                            n.buf = Tensor(old.shape, old.item, None, old.strides)
                        old = None
                    else:
                        if n.buf is None:
                            n.buf = [None] * n.slots
                        buf = n.buf
                        old = buf[slot]
                        if old is None:
                            buf[slot] = o
                        elif old.view or getref(old.st) != SOLE:
                            buf[slot] = Tensor(old.shape, old.item, None, old.strides)
                        buf = old = None
                    o = None
                n.deps -= 1
                if n.deps == 0:
                    if n.seq >= _FIRST:
                        if n.buf is not None:
                            n.run()  # type: ignore[union-attr]
                    else:
                        heappush(heap, (-n.seq, n))
            node = e = n = edges = None  # type: ignore[assignment]
        first.edges = leaves
    finally:
        c.grad, c.category = before, category
