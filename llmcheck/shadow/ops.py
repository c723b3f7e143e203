"""Operators on fake tensors: what each allocates, saves for the backward pass and allocates there.

Order of temporaries and of gradients as in PyTorch's generated code (``derivatives.yaml``: gradients of one function are computed in
the alphabetical order of the argument names, so `other` before `self`, `mat2` before `self`) and ATen's CUDA kernels (torch 2.11).
A function named like the torch function has its meaning. Shapes are tuples; `item` is the element size in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from llmcheck.shadow.tensor import Like, Node, Param, Shape, Storage, Tensor, attach, begin, cur, flops, keep, record, sum_to

# --- layout -----------------------------------------------------------------------------------------------------------------


def contiguous_strides(shape: Shape) -> Shape:
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def normal_strides(shape: Shape, strides: Shape | None) -> Shape | None:
    """None where `strides` are those of a contiguous tensor (sizes of one do not count)."""
    if strides is None:
        return None
    step = 1
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1:
            if s != step:
                return strides
            step *= n
    return None


def dense_strides(shape: Shape, strides: Shape | None) -> Shape | None:
    """Layout of a new tensor that keeps the order of `strides` (``torch.preserve_format``)."""
    if strides is None:
        return None
    order = sorted(range(len(shape)), key=lambda i: (strides[i] if strides[i] else 1 << 62, -i))
    out, step = [0] * len(shape), 1
    for i in order:
        out[i] = step
        step *= shape[i]
    return normal_strides(shape, tuple(out))


def view_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | bool | None:
    """Strides of a view of `new` shape; False where a copy is needed."""
    # merge the dimensions that lie one behind the other, then cut them up again
    runs: list[list[int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == s * n:
            runs[-1][0] *= n
            runs[-1][1] = s
        else:
            runs.append([n, s])
    out: list[int] = [0] * len(new)
    i = len(new) - 1
    for n, s in reversed(runs):
        left, step = n, s
        while left > 1:
            if i < 0:
                return False
            if new[i] == 1:
                out[i] = step
                i -= 1
                continue
            if left % new[i]:
                return False
            out[i] = step
            step *= new[i]
            left //= new[i]
            i -= 1
    while i >= 0:
        if new[i] != 1:
            return False
        out[i] = 1
        i -= 1
    return normal_strides(new, tuple(out))


def _resolve(shape: Sequence[int], numel: int) -> Shape:
    if -1 in shape:
        known = -prod(shape)
        return tuple(numel // known if n == -1 else n for n in shape)
    return tuple(shape)


# --- views ------------------------------------------------------------------------------------------------------------------


def _make_view(t: Tensor, shape: Shape, strides: Shape | None, back: Callable[[Tensor], Tensor]) -> Tensor:
    out = Tensor(shape, t.item, t.st, strides, not cur.grad)
    if cur.grad and t.req:
        record(out, lambda s, g: (back(g),), (t,), ())
    return out


def reshape(t: Tensor, *shape: int) -> Tensor:
    """A view where the layout allows it, else a copy."""
    new = _resolve(shape, t.numel)
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


# --- copies and elementwise ---------------------------------------------------------------------------------------------------


def clone_contiguous(t: Tensor) -> Tensor:
    """``clone(memory_format=contiguous)``."""
    out = Tensor(t.shape, t.item)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def clone(t: Tensor) -> Tensor:
    """``clone()`` in the same layout."""
    out = _ew(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def contiguous(t: Tensor) -> Tensor:
    return t if t.strides is None else clone_contiguous(t)


def cast(t: Tensor, item: int) -> Tensor:
    """``.to(dtype)``: itself where the size (hence, here, the type) is the same."""
    if t.item == item:
        return t
    out = Tensor(t.shape, item, None, dense_strides(t.shape, t.strides))
    if cur.grad and t.req:
        old = t.item
        record(out, lambda s, g: (Tensor(g.shape, old, None, dense_strides(g.shape, g.strides)),), (t,), ())
    return out


def _broadcast(a: Shape, b: Shape) -> Shape:
    if a == b:
        return a
    n = max(len(a), len(b))
    a = (1,) * (n - len(a)) + a
    b = (1,) * (n - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _ew(a: Tensor, b: Tensor | None = None, item: int = 0) -> Tensor:
    """A new tensor for an elementwise result, in the layout of the operand that has the full shape."""
    if b is None:
        return Tensor(a.shape, item or a.item, None, a.strides and dense_strides(a.shape, a.strides))
    item = item or (a.item if a.item >= b.item else b.item)
    if a.shape == b.shape:
        st = a.strides
        if st is not None:
            st = dense_strides(a.shape, st)
        elif b.strides is not None:
            st = None
        return Tensor(a.shape, item, None, st)
    shape = _broadcast(a.shape, b.shape)
    full = a if a.shape == shape else b if b.shape == shape else None
    return Tensor(shape, item, None, None if full is None or full.strides is None else dense_strides(shape, full.strides))


def add(a: Tensor, b: Tensor, item: int = 0) -> Tensor:
    """``a + b``."""
    out = _ew(a, b, item)
    if cur.grad and (a.req or b.req):
        sa, sb = a.shape, b.shape
        ia, ib = a.item, b.item
        need_a, need_b = a.req, b.req
        if ia == ib == out.item:
            record(out, lambda s, g: (alias(g) if need_a else None, g if need_b else None), (a, b), (), None if sa == sb else (sa, sb))
        else:
            record(out, lambda s, g: (alias(g) if need_a else None, g if need_b else None), (a, b), (), (Like(sa, ia), Like(sb, ib)))
    return out


def sub(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``. Backward: the gradient of `b` is a negated copy."""
    out = _ew(a, b)
    if cur.grad and (a.req or b.req):
        need_a, need_b = a.req, b.req
        metas: Any = None if a.shape == b.shape else (a.shape, b.shape)
        if not a.item == b.item == out.item:
            metas = Like(a.shape, a.item), Like(b.shape, b.item)

        def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
            gb = _ew(g) if need_b else None
            return alias(g) if need_a else None, gb

        record(out, back, (a, b), (), metas)
    return out


def add_scalar(t: Tensor) -> Tensor:
    """``t + c``."""
    out = _ew(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def unary(t: Tensor, temps: int = 0, save: str = "in", item: int = 0) -> Tensor:
    """An elementwise function whose gradient is ``temps`` temporaries and a result.

    `save`: "in" (the input), "out" (the result), "none". Covers silu, gelu (input), tanh, exp, rsqrt (result), neg, scaling (none).
    """
    if not (cur.grad and t.req):
        return _ew(t, None, item)
    old = t.item

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        tmp = [_ew(g) for _ in range(temps)]
        res = _ew(g, None, old)
        del tmp
        return (res,)

    if save == "in":
        node = begin(back, (t,), (keep(t),))
        return attach(_ew(t, None, item), node)
    out = _ew(t, None, item)
    return record(out, back, (t,), (out.st,) if save == "out" else ())


def silu(t: Tensor) -> Tensor:
    return unary(t)


def gelu(t: Tensor) -> Tensor:
    """``F.gelu`` (exact or tanh): one kernel forward, one backward."""
    return unary(t)


def relu(t: Tensor) -> Tensor:
    return unary(t, save="out")


def tanh(t: Tensor) -> Tensor:
    return unary(t, save="out")


def sigmoid(t: Tensor) -> Tensor:
    return unary(t, save="out")


def erf(t: Tensor) -> Tensor:
    """Backward: ``c * exp(-(t.pow(2))) * grad``."""
    return unary(t, temps=4)


def neg(t: Tensor) -> Tensor:
    return unary(t, save="none")


def scale(t: Tensor) -> Tensor:
    """``t * c`` or ``t / c``."""
    return unary(t, save="none")


def mul(a: Tensor, b: Tensor, item: int = 0) -> Tensor:
    """``a * b``. Backward: the gradient of `b` first."""
    if not (cur.grad and (a.req or b.req)):
        return _ew(a, b, item)
    sa, sb, ia, ib = a.shape, b.shape, a.item, b.item
    ka, kb = a.strides, b.strides
    need_a, need_b = a.req, b.req

    def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gb = _ew(g, Tensor(sa, ia, s[0].st if type(s[0]) is Param else s[0], ka)) if need_b else None
        ga = _ew(g, Tensor(sb, ib, s[1].st if type(s[1]) is Param else s[1], kb)) if need_a else None
        return ga, gb

    out_item = item or max(ia, ib)
    metas: Any = None if sa == sb else (sa, sb)
    if not ia == ib == out_item:
        metas = Like(sa, ia), Like(sb, ib)
    node = begin(back, (a, b), (keep(a) if need_b else None, keep(b) if need_a else None), metas)
    return attach(_ew(a, b, item), node)


def cat(parts: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Concatenation; the gradient is a view (narrow) for each part."""
    dim = dim % len(parts[0].shape)
    sizes = [p.shape[dim] for p in parts]
    shape = parts[0].shape[:dim] + (sum(sizes),) + parts[0].shape[dim + 1 :]
    out = Tensor(shape, max(p.item for p in parts))
    if cur.grad and any(p.req for p in parts):
        shapes = [p.shape for p in parts]

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            gs = g.strides or contiguous_strides(g.shape)
            return [Tensor(x, g.item, g.st, normal_strides(x, gs), True) for x in shapes]

        mixed = any(p.item != out.item for p in parts)
        record(out, back, list(parts), (), [Like(p.shape, p.item) for p in parts] if mixed else None)
    return out


def stack(parts: Sequence[Tensor]) -> Tensor:
    """``torch.stack(parts, dim=-1)``; the gradient is a view (unbind) for each part."""
    shape = parts[0].shape
    out = Tensor((*shape, len(parts)), max(p.item for p in parts))
    if cur.grad and any(p.req for p in parts):
        count = len(parts)

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            gs = g.strides or contiguous_strides(g.shape)
            return [Tensor(shape, g.item, g.st, normal_strides(shape, gs[:-1]), True) for _ in range(count)]

        record(out, back, list(parts), ())
    return out


def repeat_interleave(t: Tensor, n: int, dim: int) -> Tensor:
    """``torch.repeat_interleave(t, n, dim)``: a copy."""
    dim = dim % len(t.shape)
    wide = expand(unsqueeze(t, dim + 1), *t.shape[: dim + 1], n, *t.shape[dim + 1 :])
    return reshape(clone_contiguous(wide), *t.shape[:dim], t.shape[dim] * n, *t.shape[dim + 1 :])


def view_as_complex(t: Tensor) -> Tensor:
    """Pairs of the last dimension [.., 2] as complex numbers [..]."""
    shape, item = t.shape[:-1], t.item
    strides = None if t.strides is None else normal_strides(shape, tuple(n // 2 for n in t.strides[:-1]))
    out = Tensor(shape, 2 * item, t.st, strides, not cur.grad)
    if cur.grad and t.req:
        record(out, lambda s, g: (view_as_real(g),), (t,), ())
    return out


def view_as_real(t: Tensor) -> Tensor:
    """Complex numbers [..] as pairs [.., 2]."""
    shape, item = (*t.shape, 2), t.item // 2
    strides = None if t.strides is None else normal_strides(shape, (*(n * 2 for n in t.strides), 1))
    out = Tensor(shape, item, t.st, strides, not cur.grad)
    if cur.grad and t.req:
        record(out, lambda s, g: (view_as_complex(g),), (t,), ())
    return out


def mul_complex(a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` of complex numbers, `b` without gradient. Backward: the conjugate of `b`, then the product."""
    if not (cur.grad and a.req):
        return _ew(a, b)
    shape, item = b.shape, b.item

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        conjugate = Tensor(shape, item)
        res = _ew(g)
        del conjugate
        return (res,)

    node = begin(back, (a,), (keep(b),))
    return attach(_ew(a, b), node)


def power(t: Tensor) -> Tensor:
    """``t.pow(c)`` with a number `c` that is not 0. Backward: ``grad * (c * t.pow(c - 1))``, three tensors."""
    if not (cur.grad and t.req):
        return _ew(t)

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        power = _ew(g)
        double = _ew(g)
        res = _ew(g)
        del power, double
        return (res,)

    node = begin(back, (t,), (keep(t),))
    return attach(_ew(t), node)


square = power


def mean_last(t: Tensor) -> Tensor:
    """``t.mean(-1, keepdim=True)``. Backward: expand, divide."""
    shape, item = t.shape, t.item
    out = Tensor(shape[:-1] + (1,), item)
    if cur.grad and t.req:
        record(out, lambda s, g: (Tensor(shape, item),), (t,), ())
    return out


def rsqrt(t: Tensor) -> Tensor:
    """Backward: ``-0.5 * grad * result.pow(3)``."""
    return unary(t, temps=2, save="out")


def where_scalar(t: Tensor, mask: Tensor) -> Tensor:
    """``t.masked_fill(mask, c)`` / ``torch.where(mask, t, c)``: a copy; backward one copy more."""
    out = _ew(t, mask, t.item)
    if cur.grad and t.req:
        shape = t.shape
        record(out, lambda s, g: (_ew(g),), (t,), (keep(mask),), (shape,) if shape != out.shape else None)
    return out


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``torch.where(mask, a, b)`` of one shape. Backward: the gradient of `b` first, each a copy."""
    out = _ew(a, b)
    if cur.grad and (a.req or b.req):
        need_a, need_b = a.req, b.req

        def back(s: Any, g: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
            gb = _ew(g) if need_b else None
            return None, _ew(g) if need_a else None, gb

        record(out, back, (mask, a, b), (keep(mask),))
    return out


def expm1(t: Tensor) -> Tensor:
    """Backward: ``grad * (result + 1)``."""
    return unary(t, temps=1, save="out")


def minimum(t: Tensor, bound: Tensor) -> Tensor:
    """``torch.minimum(t, bound)`` with a scalar tensor. Backward: half the gradient, two byte masks, the result filled in place."""
    if not (cur.grad and t.req):
        return _ew(t)
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        half = _ew(g)
        equal = Tensor(shape, 1, None, strides)
        res = _ew(g)
        greater = Tensor(shape, 1, None, strides)
        del greater, equal, half
        return (res,)

    node = begin(back, (t,), (keep(t), keep(bound)))
    return attach(_ew(t), node)


def dropout(t: Tensor, p: float) -> Tensor:
    """``F.dropout`` in training: a result and a byte mask; nothing where p is 0."""
    if p <= 0:
        return t
    mask = Tensor(t.shape, 1)
    out = _ew(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (_ew(g),), (t,), (mask.st,))
    return out


# --- sums, choices, in-place operators ------------------------------------------------------------------------------------------


def sum_dim(t: Tensor, dim: int, keepdim: bool = False, item: int = 0) -> Tensor:
    """``t.sum(dim)``; its gradient is an expanded view."""
    dim = dim % len(t.shape)
    old = t.shape
    kept = old[:dim] + (1,) + old[dim + 1 :]
    out = Tensor(kept if keepdim else old[:dim] + old[dim + 1 :], item or t.item)
    if cur.grad and t.req:

        def back(s: Any, g: Tensor) -> tuple[Tensor]:
            wide = g if keepdim else unsqueeze(g, dim)
            res = expand(wide, *old)
            res.view = True
            return (res,)

        record(out, back, (t,), ())
    return out


def topk(t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of the last dimension and their int64 indices. Backward: zeros of the whole, the gradient scattered in."""
    shape = t.shape[:-1] + (k,)
    values, indices = Tensor(shape, t.item), Tensor(shape, 8)
    if cur.grad and t.req:
        old, item = t.shape, t.item
        record(values, lambda s, g: (Tensor(old, item),), (t,), (indices.st,))
    return values, indices


def max_last(t: Tensor) -> Tensor:
    """``t.max(-1, keepdim=True).values``; the int64 indices live as long. Backward: zeros of the whole, the gradient scattered in."""
    return topk(t, 1)[0]


def gather_rows(t: Tensor, index: Tensor) -> Tensor:
    """``t[index]`` over the first dimension. Backward: zeros of the whole with the rows added."""
    out_shape = index.shape + t.shape[1:]
    node: Node | None = None
    if cur.grad and t.req:
        old, item = t.shape, t.item
        node = begin(lambda s, g: (Tensor(old, item),), (t,), (keep(index),))
    out = Tensor(out_shape, t.item)
    return out if node is None else attach(out, node)


def gather_last(t: Tensor, index: Tensor) -> Tensor:
    """``t.gather(-1, index)``. Backward: zeros of the whole, the gradient added in."""
    node: Node | None = None
    if cur.grad and t.req:
        old, item = t.shape, t.item
        node = begin(lambda s, g: (Tensor(old, item),), (t,), (keep(index),))
    out = Tensor(index.shape, t.item)
    return out if node is None else attach(out, node)


def assign(t: Tensor, src: Tensor) -> None:
    """``t[.., a:b].copy_(src)``: `t` gets a node (``CopySlices``) that copies its gradient whole and the slice again."""
    if not (cur.grad and (t.req or src.req)):
        return
    whole, part, item, need_t, need_src = t.shape, src.shape, t.item, t.req, src.req

    def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        result = Tensor(whole, item)
        piece = Tensor(part, item)
        zeros = Tensor(part, item) if need_t else None
        del zeros
        return result if need_t else None, piece if need_src else None

    attach(t, begin(back, (t, src), ()))


def div_(t: Tensor, other: Tensor) -> Tensor:
    """``t /= other``: the dividend is cloned for the backward, whose gradient of `other` comes first."""
    if not (cur.grad and (t.req or other.req)):
        return t
    original = _ew(t)
    sa, sb = t.shape, other.shape

    def back(s: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        quotient = _ew(g)
        square_ = _ew(g)
        negative = _ew(g)
        go = _ew(g)
        del negative, square_, quotient
        return _ew(g), go

    node = begin(back, (t, other), (original.st, keep(other)), None if sa == sb else (sa, sb))
    return attach(t, node)


def clamp_(t: Tensor) -> Tensor:
    """``t.clamp_(low, high)``: a clone is kept for the backward: two byte masks and the result."""
    if not (cur.grad and t.req):
        return t
    original = _ew(t)
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        masks = (Tensor(shape, 1, None, strides), Tensor(shape, 1, None, strides))
        res = _ew(g)
        del masks
        return (res,)

    return attach(t, begin(back, (t,), (original.st,)))


def scale_(t: Tensor) -> Tensor:
    """``t *= c`` or ``t /= c`` with a number."""
    if cur.grad and t.req:
        attach(t, begin(lambda s, g: (_ew(g),), (t,), ()))
    return t


def add_(t: Tensor, other: Tensor) -> Tensor:
    """``t += other``."""
    if cur.grad and (t.req or other.req):
        need_t, need_o = t.req, other.req
        metas = None if t.shape == other.shape else (t.shape, other.shape)
        attach(t, begin(lambda s, g: (alias(g) if need_t else None, g if need_o else None), (t, other), (), metas))
    return t


def clamp(t: Tensor) -> Tensor:
    """``t.clamp(low, high)``. Backward: two byte masks and the result."""
    if not (cur.grad and t.req):
        return _ew(t)
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        masks = (Tensor(shape, 1, None, strides), Tensor(shape, 1, None, strides))
        res = _ew(g)
        del masks
        return (res,)

    node = begin(back, (t,), (keep(t),))
    return attach(_ew(t), node)


def clamp_max(t: Tensor) -> Tensor:
    """``t.clamp(max=high)``. Backward: one byte mask and the result."""
    if not (cur.grad and t.req):
        return _ew(t)
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        mask = Tensor(shape, 1, None, strides)
        res = _ew(g)
        del mask
        return (res,)

    node = begin(back, (t,), (keep(t),))
    return attach(_ew(t), node)


def masked_fill_(t: Tensor, mask: Tensor) -> Tensor:
    """``t.masked_fill_(mask, c)``. Backward: one copy."""
    if cur.grad and t.req:
        attach(t, begin(lambda s, g: (_ew(g),), (t,), (keep(mask),)))
    return t


# --- matrix products ----------------------------------------------------------------------------------------------------------


def matmul_kernel(shape: Shape, item: int, lt: bool = False, view: bool = False) -> Tensor:
    """The result of a matrix product; the first one of a thread also makes the library's workspace."""
    out = Tensor(shape, item, None, None, view)
    if cur.kernels is not None:
        cur.kernels.matmul_workspace(lt)
    return out


def flatten_rows(g: Tensor, n: int) -> None:
    """The view of a gradient as [rows, n] where the layout needs a copy: made in place, as the copy is a node of its own in PyTorch.

    Where no copy is needed the products read the layout as it is.
    """
    if g.strides is not None and view_strides(g.shape, g.strides, (prod(g.shape) // n, n)) is False:
        g.st = Storage(g.nbytes)
        g.strides = None
        g.view = False


def linear(x: Tensor, w: Tensor, b: Param | None = None) -> Tensor:
    """``F.linear``: t + view + mm + view without a bias, view + t + addmm + view with one.

    `x`: [.., k], `w`: [n, k], `b`: [n]. Backward without bias: dW, dX; with: dX, dW, then (under checkpointing) the saved
    tensors go, then the bias sum.
    """
    hooks = cur.hooks
    return dense(x, w, b) if hooks is None else hooks.linear(x, w, b)  # ZeRO-3 exchanges F.linear


def dense(x: Tensor, w: Tensor, b: Param | None = None, *, transposed: bool = False) -> Tensor:
    """`linear` as torch has it. `transposed`: ``x @ w.T``, which saves the view, so that ZeRO-3 cannot take the memory away."""
    lead, k = x.shape[:-1], x.shape[-1]
    n, rows = w.shape[0], prod(x.shape[:-1])
    if x.strides is not None:
        x = reshape(x, rows, k)
    need_x, need_w = x.req, w.req
    if not cur.grad or not (need_x or need_w or (b is not None and b.req)):
        return matmul_kernel(lead + (n,), x.item, b is not None)
    xs, item = x.shape, x.item
    flat = len(lead) != 1  # rows were merged by a view: the gradient of `x` is one, too
    saved = (keep(x) if need_w else None, (w.st if transposed else keep(w)) if need_x else None)
    if b is None:

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            flatten_rows(g, n)
            gw = matmul_kernel((n, k), item, False, True) if need_w else None
            gx = matmul_kernel(xs, item, False, flat) if need_x else None
            return [gx, gw]

        node = begin(back, (x, w), saved)
        return attach(matmul_kernel(lead + (n,), item), node)
    need_b = b.req

    def back_bias(s: Any, g: Tensor) -> list[Tensor | None]:
        flatten_rows(g, n)
        gx = matmul_kernel(xs, item, False, flat) if need_x else None
        gw = matmul_kernel((n, k), item, False, True) if need_w else None
        if type(s) is list:  # unpacked by a checkpoint: locals of the function, gone before the last gradient
            s.clear()
        gb = column_sum(rows, n, item) if need_b else None
        return [gb, gw, gx] if flat else [gx, gb, gw]

    # the order in which the gradients arrive: that of `x` last where it goes through a view, else first
    node = begin(back_bias, (b, w, x) if flat else (x, b, w), saved)
    return attach(matmul_kernel(lead + (n,), item, True), node)


def conv1d(x: Tensor, w: Param, b: Param) -> Tensor:
    """GPT-2's ``Conv1D``: addmm with the weight stored [k, n]."""
    lead, k = x.shape[:-1], x.shape[-1]
    n, rows = w.shape[1], prod(x.shape[:-1])
    x = reshape(x, rows, k)
    node: Node | None = None
    if cur.grad and (x.req or w.req):
        item = x.item
        need_x, need_w, need_b = x.req, w.req, b.req

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            gx = matmul_kernel((rows, k), item) if need_x else None
            gw = matmul_kernel((k, n), item) if need_w else None
            flops(2.0 * rows * k * n * (need_x + need_w))
            if type(s) is list:
                s.clear()
            gb = column_sum(rows, n, item) if need_b else None
            return [gb, gw, gx]

        node = begin(back, (b, w, x), (keep(x) if need_w else None, keep(w) if need_x else None))
    out = matmul_kernel((rows, n), x.item, True)
    flops(2.0 * rows * k * n)
    if node is not None:
        attach(out, node)
    return reshape(out, *lead, n)


def column_sum(rows: int, cols: int, item: int) -> Tensor:
    """The sum over the rows of a [rows, cols] gradient, with the reduction kernel's cross-block buffer."""
    out = Tensor((cols,), item, None, None, True)
    reduction_buffer(rows, cols)
    return out


def reduction_buffer(rows: int, cols: int) -> None:
    if cur.kernels is not None:
        nbytes = cur.kernels.reduction_buffer_bytes(rows, cols)
        if nbytes:
            Storage(nbytes)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """``torch.bmm``: [n, s, k] x [n, k, t]. Backward: the second operand first."""
    n, s_, k = a.shape
    t_ = b.shape[2]
    node: Node | None = None
    if cur.grad and (a.req or b.req):
        item, need_a, need_b = a.item, a.req, b.req

        def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
            gb = matmul_kernel((n, k, t_), item) if need_b else None
            ga = matmul_kernel((n, s_, k), item) if need_a else None
            flops(2.0 * n * s_ * k * t_ * (need_a + need_b))
            return ga, gb

        node = begin(back, (a, b), (keep(a) if need_b else None, keep(b) if need_a else None))
    out = matmul_kernel((n, s_, t_), a.item)
    flops(2.0 * n * s_ * k * t_)
    return out if node is None else attach(out, node)


def baddbmm(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``base.baddbmm(a, b, beta=1, alpha=c)``, `base` without gradient. Backward: a product and its scaling for `a`, then for `b`."""
    n, s_, k = a.shape
    t_ = b.shape[2]
    node: Node | None = None
    if cur.grad and (a.req or b.req):
        item, need_a, need_b = a.item, a.req, b.req

        def scaled(shape: Shape) -> Tensor:
            product = matmul_kernel(shape, item)
            flops(2.0 * n * s_ * k * t_)
            out = Tensor(shape, item)
            del product
            return out

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            return [scaled((n, s_, k)) if need_a else None, scaled((n, k, t_)) if need_b else None]

        node = begin(back, (a, b), (keep(b) if need_a else None, keep(a) if need_b else None))
    out = matmul_kernel((n, s_, t_), a.item)
    flops(2.0 * n * s_ * k * t_)
    return out if node is None else attach(out, node)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``torch.matmul`` of batches: expand (batch dimensions of one), reshape, bmm, view."""
    lead = _broadcast(a.shape[:-2], b.shape[:-2])
    n = prod(lead)
    a3 = reshape(_batch(a, lead), n, a.shape[-2], a.shape[-1])
    b3 = reshape(_batch(b, lead), n, b.shape[-2], b.shape[-1])
    out = bmm(a3, b3)
    del a3, b3
    return reshape(out, *lead, a.shape[-2], b.shape[-1])


def _batch(t: Tensor, lead: Shape) -> Tensor:
    return t if t.shape[:-2] == lead else expand(t, *lead, *t.shape[-2:])


def grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """``F.grouped_mm``: rows [S, k] in groups (`offsets`: their ends) by weights [E, k, n] seen transposed. Backward: dW, dX."""
    rows, k = x.shape
    experts, _, n = w.shape
    node: Node | None = None
    if cur.grad and (x.req or w.req):
        item, need_x, need_w = x.item, x.req, w.req
        ws = w.strides

        def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
            gw = matmul_kernel((experts, k, n), item) if need_w else None
            if gw is not None:
                gw.strides = ws
            gx = matmul_kernel((rows, k), item) if need_x else None
            flops(2.0 * rows * k * n * (need_x + need_w))
            return gx, gw

        node = begin(back, (x, w), (keep(x) if need_w else None, keep(w) if need_x else None, keep(offsets)))
    out = matmul_kernel((rows, n), x.item)
    flops(2.0 * rows * k * n)
    return out if node is None else attach(out, node)


# --- softmax, norms, embedding, loss --------------------------------------------------------------------------------------------


def softmax(t: Tensor) -> Tensor:
    """``_softmax`` over the last dimension. Backward: grad * output, and the result."""
    out = Tensor(t.shape, t.item)
    if cur.grad and t.req:
        shape, item = t.shape, t.item

        def back(s: Any, g: Tensor) -> tuple[Tensor]:
            res = Tensor(shape, item)
            product = Tensor(shape, item)
            del product
            return (res,)

        record(out, back, (t,), (out.st,))
    return out


def safe_softmax(t: Tensor) -> Tensor:
    """``_safe_softmax``: rows of -inf alone become zeros (a byte mask, its reduction to rows, an in-place fill)."""
    out = softmax(t)
    masked = Tensor(t.shape, 1)
    rows = Tensor(t.shape[:-1] + (1,), 1)
    del masked, rows
    return out


def softmax_as(t: Tensor, item: int) -> Tensor:
    """``F.softmax(t, dim=-1, dtype=..)`` to a type of `item` bytes that is not wider: converted first."""
    return softmax(cast(t, item))


def softmax_fp32(t: Tensor) -> Tensor:
    """``F.softmax(t, dim=-1, dtype=torch.float32)``: fp16 converts inside the kernel, bf16 through an fp32 copy."""
    if t.item == 2 and cur.kernels is not None and cur.kernels.fp16:
        out = Tensor(t.shape, 4)
        if cur.grad and t.req:
            shape = t.shape

            def back(s: Any, g: Tensor) -> tuple[Tensor]:
                res = Tensor(shape, 2)
                product = Tensor(shape, 4)
                del product
                return (res,)

            record(out, back, (t,), (out.st,))
        return out
    return softmax(cast(t, 4))


def log_softmax(t: Tensor) -> Tensor:
    out = Tensor(t.shape, t.item)
    if cur.grad and t.req:
        shape, item = t.shape, t.item
        record(out, lambda s, g: (Tensor(shape, item),), (t,), (out.st,))
    return out


def layer_norm(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """``F.layer_norm`` over the last dimension: result, mean and rstd ([rows], fp32). The kernel copies what is not contiguous."""
    rows, h = prod(x.shape[:-1]), x.shape[-1]
    scattered = x.strides is not None and cur.kernels is not None
    copy = Storage(x.nbytes) if scattered else None
    out = Tensor(x.shape, x.item)
    mean, rstd = Storage(4 * rows), Storage(4 * rows)
    del copy
    if cur.grad and (x.req or (w is not None and w.req)):
        shape, item = x.shape, x.item
        need_x = x.req
        need_w, need_b = w is not None and w.req, b is not None and b.req

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            copies = [Storage(g.nbytes)] if scattered else []
            if g.strides is not None and cur.kernels is not None:
                copies.append(Storage(g.nbytes))
            gx = Tensor(shape, item) if need_x else None
            gw = Tensor((h,), item) if need_w else None
            gb = Tensor((h,), item) if need_b else None
            if (need_w or need_b) and cur.kernels is not None:
                for nbytes in cur.kernels.layer_norm_partial_bytes(rows, h, item):
                    Storage(nbytes)
            del copies
            return [gx, gw, gb]

        record(out, back, (x, w, b), (keep(x), mean, rstd, None if w is None else keep(w), None if b is None else keep(b)))
    return out


def embedding(w: Param, ids: Tensor) -> Tensor:
    """``F.embedding``: [.., h]; the gradient is dense, [V, h]."""
    out = Tensor(ids.shape + (w.shape[1],), w.item)
    if cur.grad and w.req:
        shape, item, rows = w.shape, w.item, ids.numel

        def back(s: Any, g: Tensor) -> tuple[Tensor]:
            g = contiguous(g)
            kernels = cur.kernels
            order = kernels.embedding_sort(rows) if kernels is not None else ()
            res = Tensor(shape, item)
            if kernels is not None and order:
                kernels.embedding_segments(rows, shape[0], shape[1])
            return (res,)

        record(out, back, (w,), (keep(ids),))
    return out


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``F.cross_entropy(logits [r, V], labels [r])``, mean: log_softmax and nll_loss."""
    logp = log_softmax(logits)
    out, total = Tensor((), logits.item), Tensor((), logits.item)
    if cur.grad and logp.req:
        shape, item = logp.shape, logp.item
        record(out, lambda s, g: (Tensor(shape, item),), (logp,), (logp.st, labels.st, total.st))
    return out
