"""Copies, conversions and pointwise operators: results in the layout of what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.shadow.autograd import Like, attach, begin, keep, record
from llmcheck.shadow.ops.layout import contiguous_strides, dense_strides, normal_strides
from llmcheck.shadow.ops.views import alias, clone_contiguous, expand, reshape, unsqueeze
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Param, Shape, Tensor


def clone(t: Tensor) -> Tensor:
    """``clone()`` in the same layout."""
    out = pointwise_result(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def cast(t: Tensor, item: int) -> Tensor:
    """``.to(dtype)``: itself where the size (hence, here, the type) is the same."""
    if t.item == item:
        return t
    out = Tensor(t.shape, item, None, dense_strides(t.shape, t.strides))
    if cur.grad and t.req:
        old = t.item
        record(out, lambda s, g: (Tensor(g.shape, old, None, dense_strides(g.shape, g.strides)),), (t,), ())
    return out


def broadcast(a: Shape, b: Shape) -> Shape:
    if a == b:
        return a
    n = max(len(a), len(b))
    a = (1,) * (n - len(a)) + a
    b = (1,) * (n - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def pointwise_result(a: Tensor, b: Tensor | None = None, item: int = 0) -> Tensor:
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
    shape = broadcast(a.shape, b.shape)
    full = a if a.shape == shape else b if b.shape == shape else None
    return Tensor(shape, item, None, None if full is None or full.strides is None else dense_strides(shape, full.strides))


def add(a: Tensor, b: Tensor, item: int = 0) -> Tensor:
    """``a + b``."""
    out = pointwise_result(a, b, item)
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
    out = pointwise_result(a, b)
    if cur.grad and (a.req or b.req):
        need_a, need_b = a.req, b.req
        metas: Any = None if a.shape == b.shape else (a.shape, b.shape)
        if not a.item == b.item == out.item:
            metas = Like(a.shape, a.item), Like(b.shape, b.item)

        def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
            gb = pointwise_result(g) if need_b else None
            return alias(g) if need_a else None, gb

        record(out, back, (a, b), (), metas)
    return out


def add_scalar(t: Tensor) -> Tensor:
    """``t + c``."""
    out = pointwise_result(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (g,), (t,), ())
    return out


def unary(t: Tensor, temps: int = 0, save: str = "in", item: int = 0) -> Tensor:
    """An elementwise function whose gradient is ``temps`` temporaries and a result.

    `save`: "in" (the input), "out" (the result), "none". Covers silu, gelu (input), tanh, exp, rsqrt (result), neg, scaling (none).
    """
    if not (cur.grad and t.req):
        return pointwise_result(t, None, item)
    old = t.item

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        tmp = [pointwise_result(g) for _ in range(temps)]
        res = pointwise_result(g, None, old)
        del tmp
        return (res,)

    if save == "in":
        node = begin(back, (t,), (keep(t),))
        return attach(pointwise_result(t, None, item), node)
    out = pointwise_result(t, None, item)
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
        return pointwise_result(a, b, item)
    sa, sb, ia, ib = a.shape, b.shape, a.item, b.item
    ka, kb = a.strides, b.strides
    need_a, need_b = a.req, b.req

    def back(s: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gb = pointwise_result(g, Tensor(sa, ia, s[0].st if type(s[0]) is Param else s[0], ka)) if need_b else None
        ga = pointwise_result(g, Tensor(sb, ib, s[1].st if type(s[1]) is Param else s[1], kb)) if need_a else None
        return ga, gb

    out_item = item or max(ia, ib)
    metas: Any = None if sa == sb else (sa, sb)
    if not ia == ib == out_item:
        metas = Like(sa, ia), Like(sb, ib)
    node = begin(back, (a, b), (keep(a) if need_b else None, keep(b) if need_a else None), metas)
    return attach(pointwise_result(a, b, item), node)


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
        return pointwise_result(a, b)
    shape, item = b.shape, b.item

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        conjugate = Tensor(shape, item)
        res = pointwise_result(g)
        del conjugate
        return (res,)

    node = begin(back, (a,), (keep(b),))
    return attach(pointwise_result(a, b), node)


def power(t: Tensor) -> Tensor:
    """``t.pow(c)`` with a number `c` that is not 0. Backward: ``grad * (c * t.pow(c - 1))``, three tensors."""
    if not (cur.grad and t.req):
        return pointwise_result(t)

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        power = pointwise_result(g)
        double = pointwise_result(g)
        res = pointwise_result(g)
        del power, double
        return (res,)

    node = begin(back, (t,), (keep(t),))
    return attach(pointwise_result(t), node)


square = power


def rsqrt(t: Tensor) -> Tensor:
    """Backward: ``-0.5 * grad * result.pow(3)``."""
    return unary(t, temps=2, save="out")


def where_scalar(t: Tensor, mask: Tensor) -> Tensor:
    """``t.masked_fill(mask, c)`` / ``torch.where(mask, t, c)``: a copy; backward one copy more."""
    out = pointwise_result(t, mask, t.item)
    if cur.grad and t.req:
        shape = t.shape
        record(out, lambda s, g: (pointwise_result(g),), (t,), (keep(mask),), (shape,) if shape != out.shape else None)
    return out


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``torch.where(mask, a, b)`` of one shape. Backward: the gradient of `b` first, each a copy."""
    out = pointwise_result(a, b)
    if cur.grad and (a.req or b.req):
        need_a, need_b = a.req, b.req

        def back(s: Any, g: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
            gb = pointwise_result(g) if need_b else None
            return None, pointwise_result(g) if need_a else None, gb

        record(out, back, (mask, a, b), (keep(mask),))
    return out


def expm1(t: Tensor) -> Tensor:
    """Backward: ``grad * (result + 1)``."""
    return unary(t, temps=1, save="out")


def minimum(t: Tensor, bound: Tensor) -> Tensor:
    """``torch.minimum(t, bound)`` with a scalar tensor. Backward: half the gradient, two byte masks, the result filled in place."""
    if not (cur.grad and t.req):
        return pointwise_result(t)
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        half = pointwise_result(g)
        equal = Tensor(shape, 1, None, strides)
        res = pointwise_result(g)
        greater = Tensor(shape, 1, None, strides)
        del greater, equal, half
        return (res,)

    node = begin(back, (t,), (keep(t), keep(bound)))
    return attach(pointwise_result(t), node)


def dropout(t: Tensor, p: float) -> Tensor:
    """``F.dropout`` in training: a result and a byte mask; nothing where p is 0."""
    if p <= 0:
        return t
    mask = Tensor(t.shape, 1)
    out = pointwise_result(t)
    if cur.grad and t.req:
        record(out, lambda s, g: (pointwise_result(g),), (t,), (mask.st,))
    return out


def masked(t: Tensor, num_masks: int) -> Callable[[Any, Tensor], tuple[Tensor]]:
    """The backward function of a bounded `t`: a byte mask for each bound, and the result."""
    shape, strides = t.shape, t.strides

    def back(s: Any, g: Tensor) -> tuple[Tensor]:
        masks = [Tensor(shape, 1, None, strides) for _ in range(num_masks)]
        res = pointwise_result(g)
        del masks
        return (res,)

    return back


def clamp(t: Tensor) -> Tensor:
    """``t.clamp(low, high)``. Backward: two byte masks and the result."""
    if not (cur.grad and t.req):
        return pointwise_result(t)
    node = begin(masked(t, 2), (t,), (keep(t),))
    return attach(pointwise_result(t), node)


def clamp_max(t: Tensor) -> Tensor:
    """``t.clamp(max=high)``. Backward: one byte mask and the result."""
    if not (cur.grad and t.req):
        return pointwise_result(t)
    node = begin(masked(t, 1), (t,), (keep(t),))
    return attach(pointwise_result(t), node)
