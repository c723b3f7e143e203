"""Cells, widths, bars and tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.console import Terminal
from llmcheck.render.draw import Part, Pen, bar, cells, cut, pad, table, table_rows, width_of, wrap

PLAIN = Pen(Terminal())
ASCII = Pen(Terminal(unicode=False))
COLOUR = Pen(Terminal(colour=True))


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@given(st.lists(st.floats(0, 1e15), min_size=1, max_size=12), st.integers(0, 200))
def test_cells_sum_to_the_width(sizes: list[float], width: int) -> None:
    assert sum(cells(sizes, width)) == (width if sum(sizes) > 0 else 0)


@given(st.lists(st.floats(0, 1e15), min_size=1, max_size=12), st.integers(1, 200))
def test_no_cell_is_further_than_one_from_its_exact_share(sizes: list[float], width: int) -> None:
    total = sum(sizes)
    if total > 0:
        assert all(abs(cell - size * width / total) <= 1 for cell, size in zip(cells(sizes, width), sizes, strict=True))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.floats(0.1, 200), st.integers(20, 100))
@pytest.mark.parametrize("pen", [PLAIN, ASCII, COLOUR])
def test_a_bar_has_exactly_its_width(pen: Pen, sizes: list[float], limit: float, columns: int) -> None:
    parts = [Part(str(i), size, 33) for i, size in enumerate(sizes)]
    assert width_of(bare(bar(parts, limit, columns, pen))) == columns


def test_a_bar_within_the_limit_ends_on_its_mark() -> None:
    assert bar([Part("a", 5, 33)], 10, 11, PLAIN) == "█████·····│"


def test_a_bar_beyond_the_limit_has_its_mark_inside() -> None:
    assert bar([Part("a", 10, 33)], 5, 11, PLAIN) == "█████│█████"


def test_a_bar_without_unicode_is_ascii() -> None:
    assert bar([Part("a", 5, 33), Part("b", 5, 33)], 20, 21, ASCII) == "#####=====..........|"


def test_no_colour_means_no_escape() -> None:
    assert "\x1b" not in bar([Part("a", 5, 33)], 10, 40, PLAIN)


def test_wide_characters_take_two_columns() -> None:
    assert width_of("模型-7b") == 7


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=60), st.integers(4, 40))
def test_cut_text_fits(text: str, columns: int) -> None:
    assert width_of(cut(text, columns, PLAIN)) <= columns


@given(st.text(st.characters(categories=["L", "N"]), max_size=20), st.integers(20, 60))
def test_padded_text_has_its_width(text: str, columns: int) -> None:
    assert width_of(pad(text, columns)) == max(columns, width_of(text))


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)), st.integers(12, 60))
def test_wrapping_loses_no_word(words: list[str], columns: int) -> None:
    assert " ".join(wrap(words, columns)) == " ".join(words)


words = st.text(st.characters(categories=["L", "N", "P"]), max_size=70)


@given(st.lists(st.tuples(words, words.map(lambda w: w[:9]), words), min_size=1, max_size=5), st.booleans())
def test_a_table_keeps_to_its_columns(rows: list[tuple[str, str, str]], fold: bool) -> None:
    drawn = table_rows(rows, (False, True, False), 60, PLAIN, fold=fold)
    assert all(width_of(line) <= 60 for lines in drawn for line in lines)


@given(st.lists(st.tuples(words, words.map(lambda w: w[:9]), words), min_size=1, max_size=5))
def test_a_table_has_a_line_per_row_unless_it_may_fold(rows: list[tuple[str, str, str]]) -> None:
    assert len(table(rows, (False, True, False), 60, PLAIN)) == len(rows)


def test_a_folding_table_gives_free_text_more_lines() -> None:
    rows = [("change", "GiB", "price"), ("--zero 3", "-5.03", "weights are sharded too: same result")]
    assert table_rows(rows, (False, True, False), 40, PLAIN, fold=True) == [
        ["change      GiB  price"],
        ["--zero 3  -5.03  weights are sharded", "                 too: same result"],
    ]


def test_a_table_aligns_its_columns() -> None:
    assert table([("name", "GiB", "note"), ("a", "1.50", ""), ("bcdef", "10.00", "x")], (False, True, False), 40, PLAIN) == [
        "name     GiB  note",
        "a       1.50",
        "bcdef  10.00  x",
    ]
