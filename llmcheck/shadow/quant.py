"""NF4 with double quantisation, as bitsandbytes 0.50, transformers 5.17 and ``peft.prepare_model_for_kbit_training`` leave a model.

Weights of linear layers (the head excepted) are packed two to a byte with one 8-bit scale a block of 64, whose own scales are fp32, one
a block of 256. Each product unpacks the weight into the model's type first, forward and backward.
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import attach, begin
from llmcheck.shadow.module import Build, Conv1D, Linear, Module
from llmcheck.shadow.tape import EMPTY, Storage, cur
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.units import ceil_div

BLOCK = 64  # elements a scale (bitsandbytes.functional.quantize_4bit)
BLOCK2 = 256  # scales a second-level scale
BY_NAME = True  # weights come in the order of their names; False: of construction, as in the campaign of benchmarks/accuracy
MAP_BYTES = 1024  # the second-level quantisation map, 256 fp32 values


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
        code2 = Storage(MAP_BYTES)  # each layer's state has a copy of the map
        self.state = (code, offset, absmax8, absmax32, code2)
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
    """Construction without storage, as on the meta device; `load` then brings the weights, as from a checkpoint."""

    def __init__(self, item: int, vocab_size: int) -> None:
        super().__init__(item)
        self.vocab_size = vocab_size
        self.map: Storage | None = None

    def param(self, *shape: int, item: int = 0) -> Param:
        return Param(shape, item or self.item, st=EMPTY)

    def make_map(self) -> None:
        """bitsandbytes' own map, made for the first layer."""
        if self.map is None:
            self.map = Storage(MAP_BYTES)

    def load(self, model: Module) -> None:
        """Weights to the device one by one in the order of their names, each layer packed as soon as its weight is there.

        transformers 5.17, ``core_model_loading.convert_and_load_state_dict_in_model``: without threads where it quantises on the way.
        """
        before, cur.category = cur.category, "weights"
        converted = _without_conv1d(model)
        layers = {id(m.weight): m for m in model.modules() if type(m) is Linear and m.weight.shape[0] != self.vocab_size}
        named = list(model.named_parameters())
        for _, p in sorted(named, key=lambda pair: natural_key(pair[0])) if BY_NAME else named:
            p.st = Storage(p.numel * p.item)
            layer = layers.get(id(p))
            if layer is not None:
                line = Storage(p.numel * p.item) if id(p) in converted else None  # of the transposed weight, contiguous again
                layer.packed = PackedWeight(p, self)
                p.st, p.req = layer.packed.packed, False
                del line
        cur.category = before


def natural_key(name: str) -> list[tuple[int, str, int]]:
    """Numbers by their value, also at the end of a word (transformers 5.17, ``core_model_loading.dot_natural_key``)."""
    key = []
    for part in name.split("."):
        word = part.rstrip("0123456789")
        digits = part[len(word) :]
        key.append((0, "", int(part)) if not word else (1, word, int(digits) if digits else -1))
    return key


def _without_conv1d(module: Module) -> set[int]:
    """Make each GPT-2 ``Conv1D`` a linear layer, as ``replace_with_bnb_linear`` does; the ids of their weights."""
    found = set()
    for key, value in list(module.__dict__.items()):
        if isinstance(value, Conv1D):
            layer = Linear(Build(value.weight.item), 0, 0)
            layer.weight, layer.bias = Param((value.out_features, value.in_features), value.weight.item, st=EMPTY), value.bias
            setattr(module, key, layer)
            found.add(id(layer.weight))
        elif isinstance(value, Module):
            found |= _without_conv1d(value)
        elif type(value) is list:
            for item in value:
                if isinstance(item, Module):
                    found |= _without_conv1d(item)
    return found


def cast_rest(model: Module, item: int) -> None:
    """Give the unquantised, frozen parameters another element size, one by one.

    ``prepare_model_for_kbit_training`` casts them to fp32; ``deepspeed.initialize`` casts them back.
    """
    packed = {id(m.weight) for m in model.modules() if isinstance(m, Linear) and m.packed is not None}
    before, cur.category = cur.category, "weights"
    for p in model.parameters():
        if id(p) not in packed and p.item != item:
            p.item = item
            p.st = Storage(p.numel * item)
    cur.category = before
