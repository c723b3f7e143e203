"""NF4 with double quantisation, as bitsandbytes 0.50 and ``peft.prepare_model_for_kbit_training`` leave a model.

Weights of linear layers (the head excepted) are packed two to a byte with one 8-bit scale a block of 64, whose own scales are fp32, one
a block of 256. Each product unpacks the weight into the model's type first, forward and backward.
"""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.module import Build, Linear, Module
from llmcheck.shadow.tensor import Param, Storage, Tensor, attach, begin, cur
from llmcheck.units import ceil_div

BLOCK = 64  # elements a scale (bitsandbytes.functional.quantize_4bit)
BLOCK2 = 256  # scales a second-level scale


class PackedWeight:
    """The 4-bit form of a linear layer's weight and its scales. Allocations in the order of ``quantize_4bit``."""

    __slots__ = ("shape", "item", "packed", "state")

    def __init__(self, weight: Param, build: QuantBuild) -> None:
        n, k = weight.shape
        self.shape = (n, k)
        self.item = weight.item
        blocks = ceil_div(n * k, BLOCK)
        absmax = Storage(4 * blocks)
        self.packed = Storage(ceil_div(n * k, 2))
        code = Storage(64)
        offset = Storage(4)
        centred = Storage(4 * blocks)
        build.make_map()
        absmax32 = Storage(4 * ceil_div(blocks, BLOCK2))
        absmax8 = Storage(blocks)
        self.state = (code, offset, absmax8, absmax32)
        del absmax, centred

    def _unpack(self, num_scales: int) -> tuple[Storage, list[Storage]]:
        """The weight in the model's type, and the fp32 vectors of scales made on the way."""
        n, k = self.shape
        before, cur.category = cur.category, "unpacked_weights"
        scales = [Storage(4 * ceil_div(n * k, BLOCK)) for _ in range(num_scales)]
        unpacked = Storage(n * k * self.item)
        cur.category = before
        return unpacked, scales

    def product(self, x: Tensor, biased: bool) -> Tensor:
        """``MatMul4Bit``: a Python function; it saves nothing but the packed weight."""
        lead = x.shape[:-1]
        n = self.shape[0]
        unpacked, scales = self._unpack(2)
        out = ops.matmul_kernel(lead + (n,), x.item, biased)
        del scales, unpacked
        if not (cur.grad and x.req):
            return out
        shape, item = x.shape, x.item

        def back(s: Any, g: Tensor) -> tuple[Tensor]:
            g = ops.contiguous(g)
            weight, sums = self._unpack(1)
            del sums
            gx = ops.matmul_kernel(shape, item)
            del weight
            return (gx,)

        return attach(out, begin(back, (x,), ()))


class QuantBuild(Build):
    """Construction with each linear layer but the head quantised as soon as its weight is there, as loading a checkpoint does."""

    def __init__(self, item: int, vocab_size: int) -> None:
        super().__init__(item)
        self.vocab_size = vocab_size
        self.map: Storage | None = None

    def make_map(self) -> None:
        """The second-level quantisation map, 256 fp32 values, shared by all layers."""
        if self.map is None:
            self.map = Storage(1024)

    def finish(self, module: Module) -> None:
        if type(module) is not Linear or module.weight.shape[0] == self.vocab_size:
            return
        before, cur.category = cur.category, "weights"
        module.packed = PackedWeight(module.weight, self)
        module.weight.st = module.packed.packed
        module.weight.req = False
        cur.category = before


def cast_rest(model: Module, item: int) -> None:
    """Give the unquantised, frozen parameters another element size, one by one.

    ``prepare_model_for_kbit_training`` casts them to fp32; ``deepspeed.initialize`` casts them back.
    """
    packed = {id(m.weight) for m in model.modules() if isinstance(m, Linear) and m.packed is not None}
    before, cur.category = cur.category, "weights"
    for p in model.parameters():
        if id(p) not in packed and p.item != item:
            p.item = item
            p.st = Storage(prod(p.shape) * item)
    cur.category = before
