"""Strides of views and results, as ATen computes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from llmcheck.shadow.tensor import Shape


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


def resolve(shape: Sequence[int], numel: int) -> Shape:
    if -1 in shape:
        known = -prod(shape)
        return tuple(numel // known if n == -1 else n for n in shape)
    return tuple(shape)
