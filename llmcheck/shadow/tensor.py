"""Fake tensors and parameters: shape, layout, storage, and what autograd keeps on them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from llmcheck.shadow.tape import Storage

if TYPE_CHECKING:
    from llmcheck.shadow.autograd import AccumulateGrad, Node

Shape = tuple[int, ...]


class Tensor:
    """A fake tensor: `shape`, `strides` (None: contiguous), element size in bytes, storage, autograd fields."""

    __slots__ = ("shape", "strides", "item", "st", "req", "node", "slot", "view", "grad", "leaf")

    def __init__(self, shape: Shape, item: int, st: Storage | None = None, strides: Shape | None = None, view: bool = False) -> None:
        self.shape = shape
        self.item = item
        self.st = Storage(prod(shape) * item) if st is None else st
        self.strides = strides
        self.req = False
        self.node: Node | None = None
        self.slot = 0
        self.view = view  # made by a view op: never the target of an in-place accumulation
        self.grad: Tensor | None = None
        self.leaf: Any = None  # weak reference to the accumulator of a leaf that is no parameter

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.item

    def detach(self) -> Tensor:
        """The same storage without history."""
        return Tensor(self.shape, self.item, self.st, self.strides, True)


class Param(Tensor):
    """A leaf: a weight (or a LoRA adapter). `hook` runs after a gradient was accumulated; `ds` is ZeRO-3's state."""

    __slots__ = ("acc", "hook", "ds", "name", "__weakref__")

    def __init__(self, shape: Shape, item: int, name: str = "", st: Storage | None = None) -> None:
        super().__init__(shape, item, st)
        self.req = True
        self.name = name
        self.hook: Callable[[Param], None] | None = None
        self.ds: Any = None
        self.acc: AccumulateGrad | None = None  # made at the first use: parameter and accumulator refer to each other
