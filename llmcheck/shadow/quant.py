"""NF4 with double quantisation, as bitsandbytes 0.50 and ``peft.prepare_model_for_kbit_training`` leave a model.

Weights of linear layers (the head excepted) are packed two to a byte with one 8-bit scale a block of 64, whose own scales are fp32, one
a block of 256. Each product unpacks the weight into the model's type first, forward and backward.
"""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM
from llmcheck.shadow.module import Build, Linear, Module
from llmcheck.shadow.tensor import Param, Storage, Tensor, attach, begin, cur
from llmcheck.units import ceil_div

BLOCK = 64  # elements a scale (bitsandbytes.functional.quantize_4bit)
BLOCK2 = 256  # scales a second-level scale
_SMALL = 512  # what the allocator makes of the code table and of the offset


class Linear4bit(Module):
    """``bnb.nn.Linear4bit`` with NF4 and double quantisation."""

    def __init__(self, base: Linear) -> None:
        n, k = base.weight.shape
        numel = n * k
        item = base.weight.item
        before, cur.category = cur.category, "weights"
        packed = Storage(ceil_div(numel, 2))
        absmax = Storage(4 * ceil_div(numel, BLOCK))
        code = Storage(64)
        offset = Storage(4)
        centred = Storage(4 * ceil_div(numel, BLOCK))
        absmax8 = Storage(ceil_div(numel, BLOCK))
        absmax32 = Storage(4 * ceil_div(ceil_div(numel, BLOCK), BLOCK2))
        del absmax, centred
        cur.category = before
        self.state = [code, offset, absmax8, absmax32]
        self.weight = Param((n, k), item, st=packed)
        self.weight.req = False
        self.bias = base.bias

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def _unpack(self) -> Storage:
        n, k = self.weight.shape
        before, cur.category = cur.category, "unpacked_weights"
        scales = Storage(4 * ceil_div(n * k, BLOCK))
        unpacked = Storage(n * k * self.weight.item)
        del scales
        cur.category = before
        return unpacked

    def forward(self, x: Tensor) -> Tensor:
        """``MatMul4Bit``: a Python function; it saves nothing but the packed weight."""
        lead, k = x.shape[:-1], x.shape[-1]
        n = self.weight.shape[0]
        unpacked = self._unpack()
        out = ops.matmul_kernel(lead + (n,), x.item, self.bias is not None)
        del unpacked
        if not (cur.grad and x.req):
            return out
        shape, item = x.shape, x.item
        owner = self

        def back(s: Any, g: Tensor) -> tuple[Tensor]:
            g = ops.contiguous(g)
            weight = owner._unpack()
            gx = ops.matmul_kernel(shape, item)
            del weight
            return (gx,)

        return attach(out, begin(back, (x,), ()))


def quantize(model: CausalLM, build: Build) -> None:
    """Replace every linear layer but the head, one after the other, and take the fp32 detour of the rest.

    ``prepare_model_for_kbit_training`` casts what is not quantised to fp32; ``deepspeed.initialize`` casts it back.
    """
    head = getattr(model, "lm_head", None) or getattr(model, "embed_out", None)
    for module in list(model.modules()):
        for key, value in list(module.__dict__.items()):
            if type(value) is Linear and value is not head:
                setattr(module, key, Linear4bit(value))
            elif type(value) is list:
                for i, item in enumerate(value):
                    if type(item) is Linear:
                        value[i] = Linear4bit(item)


def rest(model: Module) -> list[Param]:
    """The parameters that stay in the model's own type."""
    packed = {id(m.weight) for m in model.modules() if isinstance(m, Linear4bit)}
    return [p for p in model.parameters() if id(p) not in packed]


def cast_rest(model: Module, item: int) -> None:
    """Give the unquantised parameters another element size, one by one."""
    before, cur.category = cur.category, "weights"
    for p in rest(model):
        if not p.req and p.item != item:
            p.item = item
            p.st = Storage(prod(p.shape) * item)
    cur.category = before
