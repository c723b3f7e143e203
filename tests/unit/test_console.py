"""What a stream can show, and text made safe for it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.console import Terminal, escape, terminal


class Stream(io.TextIOWrapper):
    def __init__(self, tty: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def test_a_pipe_gets_no_colour_and_100_columns() -> None:
    assert terminal(Stream(tty=False), {}) == Terminal(columns=100, colour=False, unicode=True)


def test_a_terminal_gets_colour() -> None:
    assert terminal(Stream(tty=True), {"TERM": "xterm"}).colour


def test_a_dumb_terminal_gets_no_colour() -> None:
    assert not terminal(Stream(tty=True), {"TERM": "dumb"}).colour


def test_no_color_beats_force_color() -> None:
    assert not terminal(Stream(tty=True), {"NO_COLOR": "1", "FORCE_COLOR": "1"}).colour


def test_force_color_colours_a_pipe() -> None:
    assert terminal(Stream(tty=False), {"FORCE_COLOR": "1"}).colour


@pytest.mark.parametrize(("columns", "expected"), [("80", 80), ("20", 60), ("500", 100), ("x", 100), ("0", 100)])
def test_the_width_of_a_terminal_is_kept_within_bounds(columns: str, expected: int) -> None:
    assert terminal(Stream(tty=True), {"COLUMNS": columns}).columns == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_blocks_draws_with_ascii(encoding: str) -> None:
    assert not terminal(Stream(tty=False, encoding=encoding), {}).unicode


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\rb", "tab\there", "\u202eevil", "\u200b", "\ud800", "line\nbreak", "\x9b31m"])
def test_text_that_could_drive_a_terminal_is_spelt_out(hostile: str) -> None:
    assert escape(hostile).isprintable()


@given(st.text())
def test_escaped_text_is_always_printable(text: str) -> None:
    assert escape(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P"])))
def test_printable_text_is_left_as_it_is(text: str) -> None:
    assert escape(text) == text
