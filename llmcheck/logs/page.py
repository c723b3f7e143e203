"""One chunk of a log, and its lines: where they begin, which number they have in the file, and what is left of them when cleaned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from llmcheck.logs.clean import Clean, Stripped, judge, strip, strip_controls
from llmcheck.logs.source import Chunk


class Line(NamedTuple):
    """A line within a page: its place in the page's data, its number (from 1, line feeds only) and its offset in the log in bytes."""

    start: int
    end: int
    number: int
    offset: int


class Page:
    """A chunk without control sequences. Lines end at line feeds and carriage returns; only line feeds count for numbers."""

    def __init__(self, chunk: Chunk, first_line: int) -> None:
        self.data = strip_controls(chunk.data)
        self.first_line = first_line
        self._raw = chunk.data
        self._has_bars = b"\r" in self.data  # carriage returns, as progress bars write them
        self._offset = chunk.offset
        self._ends: list[int] | None = None  # of the lines of `_raw`
        self._at = 0  # a beginning of a line that has been passed, its number, and how many lines are before it
        self._number = first_line
        self._index = 0
        self._stripped: dict[int, Stripped] = {}
        self._cleaned: dict[int, Clean] = {}

    def line_at(self, position: int) -> Line:
        """The line that holds `position`, which is not before the line asked for last."""
        data = self.data
        start = data.rfind(b"\n", self._at, position) + 1 or self._at
        if not self._has_bars and self._raw is data:  # the usual case, for less
            self._number += data.count(b"\n", self._at, start)
            self._at = start
            end = data.find(b"\n", start)
            return Line(start, end if end >= 0 else len(data), self._number, self._offset + start)
        start = max(start, data.rfind(b"\r", start, position) + 1)
        self._number += data.count(b"\n", self._at, start)
        if self._raw is not data:
            self._index += data.count(b"\n", self._at, start) + data.count(b"\r", self._at, start)
        self._at = start
        return Line(start, self._end(start), self._number, self._offset_of(start, self._index))

    def around(self, position: int) -> Line:
        """The line that holds `position`, anywhere in the page; without its number and its offset."""
        start = self.data.rfind(b"\n", 0, position) + 1
        start = max(start, self.data.rfind(b"\r", start, position) + 1)
        return Line(start, self._end(start), 0, 0)

    def number_at(self, start: int) -> int:
        """Number of the line that begins at `start`."""
        return self.first_line + self.data.count(b"\n", 0, start)

    def lines_after(self, line: Line | None) -> Iterator[Line]:
        """The lines after `line`, or all."""
        data = self.data
        if line is None:
            start, number, index = 0, self.first_line, 0
        else:
            start, number = line.end + 1, line.number + (data[line.end : line.end + 1] == b"\n")
            index = 0
            if self._raw is not data:
                index = data.count(b"\n", 0, start) + data.count(b"\r", 0, start)
        while start < len(data):
            end = self._end(start)
            # `\r\n` is one end of a line, not a line and an empty one.
            if not (end == start and data[start - 1 : start + 1] == b"\r\n"):
                yield Line(start, end, number, self._offset_of(start, index))
            number += data[end : end + 1] == b"\n"
            index += 1
            start = end + 1

    def clean(self, line: Line) -> Clean:
        """`line` cleaned; remembered, since several rules may ask for it."""
        found = self._cleaned.get(line.start)
        if found is None:
            found = self._cleaned[line.start] = judge(self.strip(line))
        return found

    def strip(self, line: Line) -> Stripped:
        """`line` without its prefixes: all that is needed to see that a pattern is not in it."""
        found = self._stripped.get(line.start)
        if found is None:
            found = self._stripped[line.start] = strip(self.data[line.start : line.end])
        return found

    def num_lines(self) -> int:
        """Line feeds in the page."""
        return self._number - self.first_line + self.data.count(b"\n", self._at)

    def _end(self, start: int) -> int:
        newline = self.data.find(b"\n", start)
        if newline < 0:
            newline = len(self.data)
        bar = self.data.find(b"\r", start, newline) if self._has_bars else -1
        return newline if bar < 0 else bar

    def _offset_of(self, start: int, index: int) -> int:
        if self._raw is self.data:
            return self._offset + start
        if self._ends is None:
            self._ends = [match.start() for match in re.finditer(rb"[\r\n]", self._raw)]
        return self._offset + (self._ends[index - 1] + 1 if index else 0)
