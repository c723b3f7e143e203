"""Rows and elements picked by index."""

from __future__ import annotations

from typing import Any

from llmcheck.shadow.autograd import Node, attach, begin, keep, record
from llmcheck.shadow.ops.views import contiguous
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Param, Tensor


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
