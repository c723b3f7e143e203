"""Views of the same storage, and the copies that are made where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.shadow.autograd import record, sum_to
from llmcheck.shadow.ops.layout import contiguous_strides, normal_strides, resolve, view_strides
from llmcheck.shadow.tape import Storage, cur
from llmcheck.shadow.tensor import Shape, Tensor


def _make_view(t: Tensor, shape: Shape, strides: Shape | None, back: Callable[[Tensor], Tensor]) -> Tensor:
    out = Tensor(shape, t.item, t.st, strides, not cur.grad)
    if cur.grad and t.req:
        record(out, lambda s, g: (back(g),), (t,), ())
    return out


def reshape(t: Tensor, *shape: int) -> Tensor:
    """A view where the layout allows it, else a copy."""
    new = resolve(shape, t.numel)
    if new == t.shape:
        return t if not cur.grad else view_as(t)
    strides: Shape | bool | None = None if t.strides is None else view_strides(t.shape, t.strides, new)
    if strides is False:
        return reshape(clone_contiguous(t), *new)
    old = t.shape
    return _make_view(t, new, strides, lambda g: reshape(g, *old))  # type: ignore[arg-type]


view = reshape


def view_as(t: Tensor) -> Tensor:
    """An alias with a node of its own (`view` to the same shape)."""
    return _make_view(t, t.shape, t.strides, alias)


def alias(g: Tensor) -> Tensor:
    """Another owner of the same storage."""
    return Tensor(g.shape, g.item, g.st, g.strides, g.view)


def transpose(t: Tensor, a: int, b: int) -> Tensor:
    s = list(t.shape)
    s[a], s[b] = s[b], s[a]
    st = list(t.strides or contiguous_strides(t.shape))
    st[a], st[b] = st[b], st[a]
    shape = tuple(s)
    return _make_view(t, shape, normal_strides(shape, tuple(st)), lambda g: transpose(g, a, b))


def permute(t: Tensor, *dims: int) -> Tensor:
    st = t.strides or contiguous_strides(t.shape)
    shape = tuple(t.shape[d] for d in dims)
    inverse = tuple(sorted(range(len(dims)), key=lambda i: dims[i]))
    return _make_view(t, shape, normal_strides(shape, tuple(st[d] for d in dims)), lambda g: permute(g, *inverse))


def unsqueeze(t: Tensor, dim: int) -> Tensor:
    dim = dim if dim >= 0 else len(t.shape) + 1 + dim
    st = t.strides or contiguous_strides(t.shape)
    step = st[dim] * t.shape[dim] if dim < len(t.shape) else 1
    shape = t.shape[:dim] + (1,) + t.shape[dim:]
    return _make_view(t, shape, normal_strides(shape, st[:dim] + (step,) + st[dim:]), lambda g: squeeze(g, dim))


def squeeze(t: Tensor, dim: int) -> Tensor:
    dim = dim if dim >= 0 else len(t.shape) + dim
    shape = t.shape[:dim] + t.shape[dim + 1 :]
    st = None if t.strides is None else normal_strides(shape, t.strides[:dim] + t.strides[dim + 1 :])
    return _make_view(t, shape, st, lambda g: unsqueeze(g, dim))


def expand(t: Tensor, *shape: int) -> Tensor:
    old = t.shape
    pad = len(shape) - len(old)
    st = t.strides or contiguous_strides(old)
    new = tuple(old[i - pad] if n == -1 else n for i, n in enumerate(shape))
    strides = tuple(0 if i < pad or (old[i - pad] == 1 and n != 1) else st[i - pad] for i, n in enumerate(new))
    out = Tensor(new, t.item, t.st, normal_strides(new, strides), not cur.grad)
    if cur.grad and t.req:
        record(out, lambda s, g: (sum_over(g, old),), (t,), ())
    return out


def sum_over(g: Tensor, shape: Shape) -> Tensor:
    """``expand_backward``: the sum of a gradient down to `shape`."""
    return g if g.shape == shape else sum_to(g, shape)


def narrow(t: Tensor, dim: int, length: int, step: int = 1) -> Tensor:
    """A slice of `length` along `dim`; its gradient is a zero tensor of the whole with the slice copied in. A full slice is an alias."""
    dim = dim % len(t.shape)
    if length == t.shape[dim]:
        return view_as(t)
    shape = t.shape[:dim] + (length,) + t.shape[dim + 1 :]
    st = t.strides or contiguous_strides(t.shape)
    if step != 1:
        st = st[:dim] + (st[dim] * step,) + st[dim + 1 :]
    old, item = t.shape, t.item
    return _make_view(t, shape, normal_strides(shape, st), lambda g: Tensor(old, item))


def select(t: Tensor, dim: int) -> Tensor:
    """One index along `dim`."""
    dim = dim % len(t.shape)
    shape = t.shape[:dim] + t.shape[dim + 1 :]
    st = t.strides or contiguous_strides(t.shape)
    old, item = t.shape, t.item
    return _make_view(t, shape, normal_strides(shape, st[:dim] + st[dim + 1 :]), lambda g: Tensor(old, item))


def index(t: Tensor, dim: int, length: int) -> Tensor:
    """``t[.., [i, j, ..], ..]``, a list of `length` indices along `dim`: a copy. Backward: zeros of the whole, the values put in."""
    dim = dim % len(t.shape)
    place = Storage(8 * length)
    out = Tensor(t.shape[:dim] + (length,) + t.shape[dim + 1 :], t.item)
    if cur.grad and t.req:
        old, item = t.shape, t.item
        record(out, lambda s, g: (Tensor(old, item),), (t,), (place,))
    return out


def split(t: Tensor, sizes: Sequence[int], dim: int = -1) -> list[Tensor]:
    """Views of `sizes` along `dim`; the gradient is one concatenation."""
    dim = dim % len(t.shape)
    st = t.strides or contiguous_strides(t.shape)
    outs = []
    for n in sizes:
        shape = t.shape[:dim] + (n,) + t.shape[dim + 1 :]
        outs.append(Tensor(shape, t.item, t.st, normal_strides(shape, st), not cur.grad))
    if cur.grad and t.req:
        old, item = t.shape, t.item
        shapes = [o.shape for o in outs]

        def back(saved: Any, grads: list[Tensor | None]) -> tuple[Tensor]:
            filled = [Tensor(s, item) if g is None else g for g, s in zip(grads, shapes, strict=True)]
            del grads
            out = Tensor(old, item)
            del filled
            return (out,)

        record(outs[0], back, (t,), ())
        node = outs[0].node
        assert node is not None
        node.slots = len(outs)
        for i, o in enumerate(outs):
            o.node, o.slot, o.req = node, i, True
    return outs


def clone_contiguous(t: Tensor) -> Tensor:
    """``clone(memory_format=contiguous)``."""
    out = Tensor(t.shape, t.item)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def contiguous(t: Tensor) -> Tensor:
    return t if t.strides is None else clone_contiguous(t)
