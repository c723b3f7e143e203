"""What a stream can show, and text made safe for it."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.console import Terminal, escape, inert, terminal


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


# A line that GitHub's runner acts on: actions/runner, ActionCommand.cs (TryParseV2 trims blanks before it; TryParse looks anywhere).
COMMAND = re.compile(r"^\s*::|##\[|##vso\[|##teamcity\[", re.MULTILINE)


@pytest.mark.parametrize("text", ["::error::x", "a\n  ::add-mask::x", "\u00a0::x", "x ##[set-output name=a]b", "##vso[task]", "####[x]"])
def test_no_text_is_a_command_to_a_runner(text: str) -> None:
    assert COMMAND.search(inert(text)) is None


@pytest.mark.parametrize("text", ["std::vector and a ::b", "## heading", "c10::Error", "", "a: b\n\nc\n"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert inert(text) == text


@given(st.text(alphabet=":# [\nav\t"))
def test_no_text_is_ever_a_command(text: str) -> None:
    assert COMMAND.search(inert(text)) is None


def test_no_stream_at_all_shows_nothing() -> None:
    assert terminal(None, {"TERM": "xterm"}) == Terminal(columns=100, colour=False, unicode=False)
