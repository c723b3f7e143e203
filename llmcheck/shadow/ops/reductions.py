"""Sums, means and the largest of a dimension."""

from __future__ import annotations

from typing import Any

from llmcheck.shadow.autograd import record
from llmcheck.shadow.ops.views import expand, unsqueeze
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor


def mean_last(t: Tensor) -> Tensor:
    """``t.mean(-1, keepdim=True)``. Backward: expand, divide."""
    shape, item = t.shape, t.item
    out = Tensor(shape[:-1] + (1,), item)
    if cur.grad and t.req:
        record(out, lambda s, g: (Tensor(shape, item),), (t,), ())
    return out


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
