"""NF4 with double quantisation, by hand from bitsandbytes' ``quantize_4bit`` (blocks of 64, of those 256) and the QLoRA paper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmcheck.shadow import quant
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.module import Conv1D, Linear, Module
from llmcheck.shadow.quant import QuantBuild
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param

MAP = 1024  # the second-level map: 256 fp32 values; bitsandbytes keeps one, each layer a copy


@pytest.fixture(autouse=True)
def tape() -> Iterator[Tape]:
    found = Tape()
    cur.reset(found)
    yield found
    cur.reset(Tape())


def live(tape: Tape) -> int:
    return sum(tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events)


def signed(tape: Tape, start: int) -> list[int]:
    return [tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events[start:]]


def packed(in_features: int, out_features: int, vocab_size: int = 32000) -> Linear:
    """A layer as it is after loading, but for bitsandbytes' own map, which goes with the build."""
    build = QuantBuild(2, vocab_size)
    layer = Linear(build, in_features, out_features)
    build.load(layer)
    return layer


@pytest.mark.parametrize(
    ("out_features", "in_features", "expected"),
    [
        # two to a byte; a byte a block; 4 B for 256 blocks; the code (16 fp32 values) and the offset (one)
        (4096, 4096, 8_388_608 + 262_144 + 4_096 + 64 + 4),
        (11008, 4096, 22_544_384 + 704_512 + 11_008 + 64 + 4),
        # 15 elements: 8 bytes, one block, one second-level block
        (5, 3, 8 + 1 + 4 + 64 + 4),
        # 16,448 elements = 257 blocks of 64: two second-level blocks
        (257, 64, 8_224 + 257 + 8 + 64 + 4),
    ],
)
def test_what_a_packed_layer_holds(tape: Tape, out_features: int, in_features: int, expected: int) -> None:
    layer = packed(in_features, out_features)

    assert expected + MAP == live(tape)
    assert layer.packed is not None


def test_the_scales_cost_an_eighth_of_a_bit_a_parameter() -> None:
    # QLoRA (arXiv 2305.14314), section 3: double quantisation takes 8/64 + 32/(64 * 256) = 0.127 bits instead of 0.5
    tape = Tape()
    cur.reset(tape)
    layer = packed(4096, 4096)
    bits = 8 * (live(tape) - MAP - 64 - 4) / layer.weight.numel

    assert round(bits, 3) == 4.127


class _Layers(Module):
    def __init__(self, build: QuantBuild) -> None:
        self.layers: list[Module] = [Linear(build, 64, 64) for _ in range(2)]


def test_each_layer_has_a_copy_of_the_map(tape: Tape) -> None:
    # functional.py, quantize_blockwise: code.to(A.device, copy=True)
    build = QuantBuild(2, vocab_size=32000)
    model = _Layers(build)
    build.load(model)

    assert live(tape) == MAP + len(model.layers) * (2048 + 64 + 4 + 64 + 4 + MAP)


def test_packing_drops_the_weight_last(tape: Tape) -> None:
    build = QuantBuild(2, vocab_size=32000)
    build.make_map()
    start = len(tape.events)
    layer = Linear(build, 64, 64)
    build.load(layer)

    # bf16 weight; fp32 scales, packed weight, code, offset, centred scales, second-level scales, byte scales, map; what is unpacked goes
    events = signed(tape, start)
    assert events[:9] == [8192, 256, 2048, 64, 4, 256, 4, 64, MAP]
    assert sorted(events[9:]) == [-8192, -256, -256]
    assert events[-1] == -8192
    assert layer.weight.req is False


class _Block(Module):
    def __init__(self, build: QuantBuild) -> None:
        self.up = Conv1D(build, 64, 128)


def test_a_transposed_layer_is_packed_as_a_linear_one(tape: Tape) -> None:
    # transformers, integrations/bitsandbytes.py: Conv1D becomes Linear4bit, and its weight is transposed first
    build = QuantBuild(2, vocab_size=32000)
    model = _Block(build)
    build.load(model)

    layer: Module = model.up
    assert isinstance(layer, Linear)
    assert layer.packed is not None
    assert (layer.in_features, layer.out_features) == (64, 128)
    assert signed(tape, 0)[:4] == [128 * 2, 64 * 128 * 2, 64 * 128 * 2, 512]  # bias; the weight as loaded, as transposed; the scales
    assert live(tape) == MAP + (4096 + 128 + 4 + 64 + 4 + MAP) + 128 * 2


class _Names(Module):
    def __init__(self, build: QuantBuild) -> None:
        self.w10 = build.param(10)
        self.w2 = build.param(2)
        self.layers = [_Leaf(build, 100 + i) for i in range(11)]
        self.head = build.param(50)


class _Leaf(Module):
    def __init__(self, build: QuantBuild, size: int) -> None:
        self.weight = build.param(size)


def test_weights_come_in_the_order_of_their_names(tape: Tape) -> None:
    # core_model_loading.dot_natural_key: head, layers.0 to layers.10 by number, w2 before w10
    build = QuantBuild(2, vocab_size=32000)
    model = _Names(build)
    assert tape.events == []
    build.load(model)

    assert signed(tape, 0) == [100, *(2 * (100 + i) for i in range(11)), 4, 20]


def test_the_head_is_not_packed(tape: Tape) -> None:
    head = packed(64, 320, vocab_size=320)

    assert head.packed is None
    assert live(tape) == 320 * 64 * 2


def test_the_product_unpacks_the_weight_for_a_moment(tape: Tape) -> None:
    layer = packed(64, 128)
    x = Param((3, 64), 2)
    start = len(tape.events)
    y = layer(x)

    # two fp32 vectors of 128 scales, the weight in bf16, the product; then only the product is left
    events = signed(tape, start)
    assert events[:4] == [512, 512, 16384, 768]
    assert sorted(events[4:]) == [-16384, -512, -512]
    assert y.req


def test_backward_unpacks_it_again(tape: Tape) -> None:
    layer = packed(64, 128)
    x = Param((3, 64), 2)
    y = layer(x)
    start = len(tape.events)
    backward(y)

    # g; one vector of scales, the weight, the vector goes; the gradient of x; the weight and g go
    assert signed(tape, start) == [768, 512, 16384, -512, 384, -16384, -768]
    assert layer.weight.grad is None


def test_the_product_saves_no_activation(tape: Tape) -> None:
    layer = packed(64, 128)
    before = live(tape)
    x = Param((3, 64), 2)
    y = layer(x)
    x.st = quant.Storage(0)

    assert live(tape) - before == y.nbytes


class _Model(Module):
    def __init__(self, build: QuantBuild) -> None:
        self.inner = Linear(build, 64, 128, bias=True)
        self.head = Linear(build, 64, 320)


def test_prepare_casts_what_is_not_packed(tape: Tape) -> None:
    # peft, utils/other.py, prepare_model_for_kbit_training: fp16 and bf16 parameters that are no Params4bit become fp32
    build = QuantBuild(2, vocab_size=320)
    model = _Model(build)
    build.load(model)
    before = live(tape)
    quant.cast_rest(model, 4)

    assert (model.inner.weight.item, model.head.weight.item, model.inner.bias.item if model.inner.bias else 0) == (2, 4, 4)
    # the bias of 128 belongs to a packed layer but is none of its packed weights
    assert live(tape) - before == 2 * (320 * 64 + 128)
