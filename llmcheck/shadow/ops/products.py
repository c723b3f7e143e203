"""Matrix products."""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.shadow.autograd import Node, attach, begin, keep
from llmcheck.shadow.ops.layout import view_strides
from llmcheck.shadow.ops.pointwise import broadcast
from llmcheck.shadow.ops.views import expand, reshape
from llmcheck.shadow.tape import Storage, cur, flops
from llmcheck.shadow.tensor import Param, Shape, Tensor


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
    lead = broadcast(a.shape[:-2], b.shape[:-2])
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
