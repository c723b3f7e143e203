from __future__ import annotations

import pytest

from llmcheck.errors import UserError
from llmcheck.shadow import activations
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param


def _allocations(name: str) -> list[int]:
    tape = Tape()
    cur.reset(tape)
    activations.get(name)(Param((3, 5), 2))
    cur.reset(Tape())
    return tape.sizes[1:]  # without the input


def test_one_kernel_where_pytorch_has_one() -> None:
    assert _allocations("gelu_pytorch_tanh") == [30]


def test_a_result_an_operator_where_transformers_computes_in_python() -> None:
    # 0.5 * x; pow; * c; + x; * c; tanh; + 1; product
    assert _allocations("gelu_new") == [30] * 8


def test_linear_is_its_input() -> None:
    assert _allocations("linear") == []


def test_an_unknown_name_is_an_error_that_names_what_is_close() -> None:
    with pytest.raises(UserError) as error:
        activations.get("gelu_mew")

    assert "gelu_new" in error.value.hint
