"""Rows of a JSON or JSON lines file, gzip or not, one at a time: memory does not grow with the file."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from llmcheck import jsonfile
from llmcheck.console import is_terminal
from llmcheck.errors import UserError
from llmcheck.units import MIB

MAX_ROW_BYTES = 64 * MIB  # a longer line or element is skipped
_CHUNK_BYTES = 1 << 20
_PROGRESS_AFTER_S = 1.0
_PROGRESS_ROWS = 2_000  # rows between looks at the clock
WHAT = "training data"

Row = tuple[int, bytes, Any]


class Reader:
    """The rows of the file at `path`, and what was found on the way to them.

    `rows` gives (line from 1, the row's bytes, its value where it had to be parsed to find its end). `problem` is what stopped the
    reading early; `unread_bytes` what `max_bytes` left, of the file as it lies on the disk.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.num_bytes = 0
        self.unread_bytes = 0
        self.problem: str | None = None
        self.has_bom = False
        self.is_array = False
        self.num_blank = 0
        self.first_huge_line: int | None = None
        self.num_huge = 0

    def rows(self) -> Iterator[Row]:
        """Raises UserError when the file cannot be opened or is no text in UTF-8."""
        with jsonfile.open_regular(self.path, what=WHAT) as raw:
            self.num_bytes = os.fstat(raw.fileno()).st_size
            progress = _Progress(self.path, min(self.num_bytes, self.max_bytes))
            try:
                file = _plain(raw)
                self._begin(file)
                rows = self._elements(file) if self.is_array else self._lines(file)
                for count, row in enumerate(rows, 1):
                    yield row
                    if count % _PROGRESS_ROWS == 0:
                        done = raw.tell()
                        progress.update(done)
                        if done >= self.max_bytes:
                            self.unread_bytes = max(0, self.num_bytes - done)
                            return
            except (EOFError, gzip.BadGzipFile, zlib.error) as reason:
                self.problem = f"the gzip file is damaged or cut short: {reason}"[:200]
            except OSError as reason:
                self.problem = f"reading stopped: {reason.strerror or reason}"[:200]
            finally:
                progress.close()

    def _begin(self, file: io.BufferedReader) -> None:
        """Byte order mark and first bracket."""
        head = file.peek(4096)[:4096]
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(
                f"the {WHAT} is UTF-16: {self.path}", code="not-utf8", where=self.path, why="it begins with a UTF-16 byte order mark",
                hint="iconv -f UTF-16 -t UTF-8",
            )  # fmt: skip
        if head.startswith(b"\xef\xbb\xbf"):
            self.has_bom = True
            file.read(3)
            head = head[3:]
        self.is_array = head.lstrip()[:1] == b"["

    def _lines(self, file: io.BufferedReader) -> Iterator[Row]:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                self._huge(number)
                while line and not line.endswith(b"\n"):
                    line = file.readline(_CHUNK_BYTES)
            elif line.isspace():
                self.num_blank += 1
            else:
                yield number, line, None

    def _elements(self, file: io.BufferedReader) -> Iterator[Row]:
        """The elements of one JSON list, found with the standard decoder in a window that grows only as far as one element."""
        decoder = json.JSONDecoder()
        reader = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        window, line, at_end = reader.read(_CHUNK_BYTES), 1, False
        position, begun = 0, False
        while True:
            while True:  # white space, the opening bracket and commas
                start = position
                position = _skip(window, position, ", \t\r\n" if begun else "[ \t\r\n")
                begun = begun or "[" in window[start:position]
                line += window.count("\n", start, position)
                if position < len(window) or at_end:
                    break
                window, position = reader.read(_CHUNK_BYTES), 0
                at_end = not window
            if position >= len(window):
                self.problem = "the list is not closed: the file is cut short"
                return
            if window[position] == "]":
                return
            try:
                value, end = decoder.raw_decode(window, position)
                complete = end < len(window) or at_end  # a number at the window's end may go on
            except (ValueError, RecursionError) as reason:
                if at_end or len(window) - position > MAX_ROW_BYTES:
                    if len(window) - position > MAX_ROW_BYTES:
                        self._huge(line)
                    self.problem = f"line {line}: the list cannot be read on from here: {reason}"[:200]
                    return
                complete, end, value = False, position, None
            if not complete:
                more = reader.read(max(_CHUNK_BYTES, len(window) - position))
                at_end = not more
                window, position = window[position:] + more, 0
                continue
            yield line, window[position:end].encode("utf-8", "surrogateescape"), value
            line += window.count("\n", position, end)
            position = end

    def _huge(self, line: int) -> None:
        self.num_huge += 1
        self.first_huge_line = self.first_huge_line or line


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _plain(raw: IO[bytes]) -> io.BufferedReader:
    """The file's content, unpacked where it begins as gzip does."""
    magic = raw.read(2)
    raw.seek(0)
    if magic != b"\x1f\x8b":
        assert isinstance(raw, io.BufferedReader)
        return raw
    return io.BufferedReader(gzip.GzipFile(fileobj=raw), _CHUNK_BYTES)  # type: ignore[arg-type,type-var,unused-ignore]


class _Progress:
    """A bar on a terminal's stderr, from the second on that the reading takes."""

    def __init__(self, path: str, total: int) -> None:
        self._path, self._total = path, total
        self._bar: Any = None
        self._task: Any = None
        self._clock: Callable[[], float] | None = None
        if is_terminal(sys.stderr):
            import time

            self._clock = time.monotonic
            self._begun = self._clock()

    def update(self, done: int) -> None:
        if self._clock is None:
            return
        if self._bar is None and self._clock() - self._begun > _PROGRESS_AFTER_S:
            from rich.console import Console  # only for people who wait
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("reading {task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(ascii(os.path.basename(self._path))[1:-1][:60], total=self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
