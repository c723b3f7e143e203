"""Operators that write into a tensor that is there."""

from __future__ import annotations

from typing import Any

from llmcheck.shadow.autograd import attach, begin, keep
from llmcheck.shadow.ops.pointwise import masked, pointwise_result
from llmcheck.shadow.ops.views import alias
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


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
    original = pointwise_result(t)
    sa, sb = t.shape, other.shape

    def back(s: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        quotient = pointwise_result(g)
        square_ = pointwise_result(g)
        negative = pointwise_result(g)
        go = pointwise_result(g)
        del negative, square_, quotient
        return pointwise_result(g), go

    node = begin(back, (t, other), (original.st, keep(other)), None if sa == sb else (sa, sb))
    return attach(t, node)


def clamp_(t: Tensor) -> Tensor:
    """``t.clamp_(low, high)``: a clone is kept for the backward: two byte masks and the result."""
    if not (cur.grad and t.req):
        return t
    original = pointwise_result(t)
    return attach(t, begin(masked(t, 2), (t,), (original.st,)))


def scale_(t: Tensor) -> Tensor:
    """``t *= c`` or ``t /= c`` with a number."""
    if cur.grad and t.req:
        attach(t, begin(lambda s, g: (pointwise_result(g),), (t,), ()))
    return t


def add_(t: Tensor, other: Tensor) -> Tensor:
    """``t += other``."""
    if cur.grad and (t.req or other.req):
        need_t, need_o = t.req, other.req
        metas = None if t.shape == other.shape else (t.shape, other.shape)
        attach(t, begin(lambda s, g: (alias(g) if need_t else None, g if need_o else None), (t, other), (), metas))
    return t


def masked_fill_(t: Tensor, mask: Tensor) -> Tensor:
    """``t.masked_fill_(mask, c)``. Backward: one copy."""
    if cur.grad and t.req:
        attach(t, begin(lambda s, g: (pointwise_result(g),), (t,), (keep(mask),)))
    return t
