"""Which back end `scaled_dot_product_attention` takes: as an H100 with torch 2.11 chose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmcheck.shadow.attention import _choose
from llmcheck.shadow.kernels import Kernels
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Tensor

HOPPER = Kernels(132, 2048, 32 << 20, ("cudnn", "flash", "efficient", "math"))


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    cur.reset(Tape(), HOPPER)
    yield
    cur.reset(Tape())


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width", "masked", "gqa", "item", "expected"),
    [
        (8, 8, 64, 64, False, False, 2, "cudnn"),
        (8, 8, 64, 64, True, False, 2, "cudnn"),
        (8, 8, 256, 256, False, False, 2, "cudnn"),
        (8, 8, 256, 256, True, False, 2, "cudnn"),
        (8, 4, 256, 256, False, True, 2, "cudnn"),
        (8, 8, 192, 128, True, False, 2, "cudnn"),
        (8, 8, 100, 100, False, False, 2, "flash"),
        (8, 8, 512, 512, False, False, 2, "efficient"),
        (8, 8, 64, 64, False, False, 4, "efficient"),
        (71, 1, 64, 64, True, False, 2, "math"),
        (71, 1, 64, 64, False, False, 2, "math"),
        (8, 2, 128, 128, True, True, 2, "cudnn"),
    ],
)
def test_back_end(heads: int, kv_heads: int, width: int, value_width: int, masked: bool, gqa: bool, item: int, expected: str) -> None:
    q = Tensor((2, heads, 256, width), item)
    k = Tensor((2, kv_heads, 256, width), item)
    v = Tensor((2, kv_heads, 256, value_width), item)
    mask = Tensor((2, 1, 256, 256), item) if masked else None

    assert expected == _choose(q, k, v, mask, gqa)
