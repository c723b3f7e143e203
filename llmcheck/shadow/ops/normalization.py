"""Softmax, layer norm and the loss that begins with a softmax."""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.shadow.autograd import keep, record
from llmcheck.shadow.ops.pointwise import cast
from llmcheck.shadow.tape import Storage, cur
from llmcheck.shadow.tensor import Tensor


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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``F.cross_entropy(logits [r, V], labels [r])``, mean: log_softmax and nll_loss."""
    logp = log_softmax(logits)
    out, total = Tensor((), logits.item), Tensor((), logits.item)
    if cur.grad and logp.req:
        shape, item = logp.shape, logp.item
        record(out, lambda s, g: (Tensor(shape, item),), (logp,), (logp.st, labels.st, total.st))
    return out
