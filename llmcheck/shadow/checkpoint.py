"""Activation checkpointing, non-reentrant, as ``torch.utils.checkpoint`` does it (torch 2.11).

The forward keeps only the region's inputs and one placeholder a saved tensor. At the first unpack the region is run again with grad
mode on; every saved tensor is kept (detached) until its node takes it; the re-run stops at the last saved tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Param


class _StopError(Exception):
    """All saved tensors of the region are there."""


class _Frame:
    __slots__ = ("fn", "args", "holders", "recomputed", "values")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.fn = fn
        self.args: Any = args
        self.holders: list[ReferenceType[_Holder]] = []
        self.recomputed = False
        self.values: list[Any] = []


class _Holder:
    __slots__ = ("frame", "index", "__weakref__")

    def __init__(self, frame: _Frame) -> None:
        self.frame = frame
        self.index = len(frame.holders)
        frame.holders.append(ref(self))

    def unpack(self) -> Any:
        frame = self.frame
        if not frame.recomputed:
            _recompute(frame)
        value = frame.values[self.index]
        frame.values[self.index] = None
        return value


class _Nothing:
    """A saved slot that holds no tensor (the op saved none there)."""

    __slots__ = ()

    def unpack(self) -> None:
        return None


_NOTHING = _Nothing()


def _recompute(frame: _Frame) -> None:
    frame.recomputed = True
    values, holders = frame.values, frame.holders
    total = len(holders)

    def pack(x: Any) -> Any:
        if x is None:
            return _NOTHING
        # a tensor that requires a gradient is detached, i.e. its data are held as they are now; a frozen parameter is held by identity
        kept = x.st if type(x) is Param and x.req else x
        # nothing is kept for a node of the forward that is gone (of a result that no loss depends on)
        values.append(None if holders[len(values)]() is None else kept)
        if len(values) == total:
            raise _StopError
        return kept  # held by the graph of the re-run, which goes with its frames

    before, grad = cur.pack, cur.grad
    cur.pack, cur.grad = pack, True
    try:
        frame.fn(*frame.args)
    except _StopError:
        pass
    finally:
        cur.pack, cur.grad = before, grad


def checkpoint(fn: Callable[..., Any], *args: Any) -> Any:
    """Run ``fn(*args)`` keeping only `args`."""
    if not cur.grad:
        return fn(*args)
    frame = _Frame(fn, args)
    before = cur.pack

    def pack(x: Any) -> Any:
        return _NOTHING if x is None else _Holder(frame)

    cur.pack = pack
    try:
        return fn(*args)
    finally:
        cur.pack = before
