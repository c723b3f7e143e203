"""What ZeRO stage 3 does around each module's call and each linear layer (DeepSpeed 0.19.8, ``parameter_offload.py``, ``linear.py``)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import attach, begin, keep
from llmcheck.shadow.module import Module
from llmcheck.shadow.tape import cur, flops
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.shadow.zero.coordinator import Coordinator


class Hooks:
    """What ZeRO-3 does around each module call."""

    def __init__(self, coordinator: Coordinator, root: Module) -> None:
        self.coordinator = coordinator
        self.root = root
        self.remaining: dict[int, int] = {}
        self.stack: list[Module] = []
        self.in_leaf = False
        self.reduce_leaf: Callable[[Module], None] | None = None

    def recording(self, recorder: Any) -> Hooks:
        """The same hooks around modules whose calls `recorder` only writes down."""
        out = Hooks(recorder, self.root)
        out.reduce_leaf = recorder.reduce_leaf
        return out

    def gather_external(self, module: Module) -> None:
        """A weight of `module` is read outside its call."""
        self.coordinator.gather_external(self.stack[-1] if self.stack else self.root, module)

    def call(self, module: Module, args: tuple[Any, ...]) -> Any:
        coordinator = self.coordinator
        if module is self.root:
            self.stack.clear()  # a re-run that stopped early leaves its modules there
            coordinator.reset_step()
        if self.in_leaf:
            return module.forward(*args)
        self.stack.append(module)
        coordinator.fetch(module, True)
        self.remaining[id(module)] = 0
        positional = module.positional
        args = tuple([self._post_backward(module, a) if type(a) is Tensor and i < positional else a for i, a in enumerate(args)])
        if module.zero_leaf:
            out = self._leaf(module, args)
        else:
            out = _forward(module, args)
        self.stack.pop()
        coordinator.release(module, True)
        if type(out) is tuple:
            return tuple([self._pre_backward(module, o) if type(o) is Tensor else o for o in out])
        if type(out) is Tensor:
            return self._pre_backward(module, out)
        return out

    def _leaf(self, module: Module, args: tuple[Any, ...]) -> Any:
        """A leaf's children have no hooks; its parameters' gradients are reduced together when that of its input is there."""
        x, *rest = args
        inner = Tensor(x.shape, x.item, x.st, x.strides)
        if cur.grad and x.req:

            def back(saved: Any, g: Tensor) -> tuple[Tensor]:
                if self.reduce_leaf is not None:
                    self.reduce_leaf(module)
                return (g,)

            attach(inner, begin(back, (x,), ()))
        del x, args
        self.in_leaf = True
        try:
            return _forward(module, (inner, *rest))
        finally:
            self.in_leaf = False

    def _post_backward(self, module: Module, x: Tensor) -> Tensor:
        out = Tensor(x.shape, x.item, x.st, x.strides)
        if not (cur.grad and x.req):
            return out
        key = id(module)
        self.remaining[key] += 1

        def back(saved: Any, g: Tensor) -> tuple[Tensor]:
            self.remaining[key] -= 1
            if self.remaining[key] == 0:
                self.coordinator.release(module, False)
            return (g,)

        return attach(out, begin(back, (x,), ()))

    def _pre_backward(self, module: Module, y: Tensor) -> Tensor:
        out = Tensor(y.shape, y.item, y.st, y.strides)
        if not (cur.grad and y.req):
            return out

        def back(saved: Any, g: Tensor) -> tuple[Tensor]:
            self.coordinator.fetch(module, False)
            return (g,)

        return attach(out, begin(back, (y,), ()))

    def linear(self, x: Tensor, w: Param, b: Param | None) -> Tensor:
        """``LinearFunctionForZeroStage3``: saves after its forward; returns plain gradients."""
        lead, k = x.shape[:-1], x.shape[-1]
        n, rows = w.shape[0], prod(x.shape[:-1])
        copy = (
            Tensor(x.shape, x.item)
            if x.strides is not None and len(lead) > 1 and ops.view_strides(x.shape, x.strides, (rows, k)) is False
            else None
        )
        out = ops.matmul_kernel(lead + (n,), x.item, len(lead) == 1 and b is not None)
        product = 2.0 * rows * n * k
        flops(product)
        del copy
        need_x, need_w, need_b = x.req, w.req, b is not None and b.req
        if not cur.grad or not (need_x or need_w or need_b):
            return out
        xs, item, dense_x = x.shape, x.item, x.strides is None

        def back(saved: list[Any], g: Tensor) -> list[Tensor | None]:
            weight = saved[1]
            if type(weight) is Param:
                self.coordinator.regather(weight)
            gx = gw = gb = None
            dense_g = g.strides is None
            if need_x:
                tmp = None if dense_g else Tensor(g.shape, item)
                gx = ops.matmul_kernel(xs, item)
                flops(product)
                del tmp
            if need_w:
                tmp = None if dense_g else Tensor(g.shape, item)
                tmp2 = None if dense_x else Tensor(xs, item)
                gw = ops.matmul_kernel((n, k), item)
                flops(product)
                del tmp, tmp2
            if need_b:
                gb = ops.column_sum(rows, n, item)
                gb.view = False
            if type(weight) is Param:
                self.coordinator.ungather(weight)
            return [gx, gw, gb]

        return attach(out, begin(back, (x, w, b), [keep(x), keep(w), None if b is None else keep(b)]))


def _forward(module: Module, args: tuple[Any, ...]) -> Any:
    return module.forward(*args)
