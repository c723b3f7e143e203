"""Values of options: what is taken, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.commands.values import choice, count, names, number, whole
from llmcheck.errors import UserError


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("65_536", 65536), ("007", 7)])
def test_whole_numbers(text: str, value: int) -> None:
    assert whole("--gpus", 1, 10**6, unit="GPUs")(text) == value


@pytest.mark.parametrize("text", ["", "1.5", "1e3", "ten", "0x10", "9" * 5000, "nan", "--", "1 2"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--gpus needs a whole number of GPUs"):
        whole("--gpus", 1, 10**6, unit="GPUs")(text)


@pytest.mark.parametrize("text", ["0", "-1", "1000001"])
def test_a_whole_number_out_of_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(UserError, match="out of range") as error:
        whole("--gpus", 1, 10**6, unit="GPUs")(text)
    assert error.value.why == "it takes 1 to 1,000,000 GPUs"


@pytest.mark.parametrize(("text", "value"), [("2M", 2_000_000), ("1.5b", 1_500_000_000), ("350k", 350_000), ("12", 12), ("2_000", 2000)])
def test_counts_may_have_a_suffix(text: str, value: int) -> None:
    assert count("--samples", 10**12, unit="samples")(text) == value


@pytest.mark.parametrize("text", ["", "M", "1.5", "1.0001k1", "infM", "nank", "1e400M", "9" * 40])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--samples"):
        count("--samples", 10**12, unit="samples")(text)


@pytest.mark.parametrize("text", ["0", "-5", "0k", "2T"])
def test_a_count_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="out of range"):
        count("--samples", 10**12, unit="samples")(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "forty", "", "1e999"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="needs a number of GiB"):
        number("--gpu-memory", 1, 4096, unit="GiB")(text)


def test_a_choice_says_what_was_meant() -> None:
    with pytest.raises(UserError, match="cannot be 'qlaro'") as error:
        choice("--method", ("auto", "full", "lora", "qlora"))("qlaro")
    assert "'qlora'" in error.value.hint


@pytest.mark.parametrize(("text", "value"), [("all-linear", "all-linear"), ("q_proj, v_proj", "q_proj,v_proj"), ("mlp.fc1", "mlp.fc1")])
def test_names_of_modules(text: str, value: str) -> None:
    assert names("--lora-targets")(text) == value


@pytest.mark.parametrize("text", ["", ",", "q_proj,,v_proj", "q*", "a" * 1001, "q\x1b[0m", "(.*)"])
def test_what_names_no_modules_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--lora-targets needs names"):
        names("--lora-targets")(text)


@given(st.text())
def test_no_text_makes_a_value_crash(text: str) -> None:
    makers = (
        whole("--x", 1, 9, unit="x"),
        count("--x", 9, unit="x"),
        number("--x", 0, 9, unit="x"),
        names("--x"),
        choice("--x", ("a", "b")),
    )
    for parse in makers:
        try:
            parse(text)
        except UserError:
            pass
