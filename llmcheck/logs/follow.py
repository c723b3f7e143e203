"""Following a log that a run is writing: what is found is told as soon as its lines are whole.

By polling: logs live on network file systems, which send no notifications. Truncation and rotation begin a new log; a line waits for its
end. Interrupting is the caller's: KeyboardInterrupt passes through, and what was found so far is at hand.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmcheck.errors import UserError
from llmcheck.logs.match import Group, ScanResult, TracebackGroup
from llmcheck.logs.scan import Scanner
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import BLOCK_BYTES, Chunk, LineSplitter, check_regular, encoding_of
from llmcheck.paths import trouble

POLL_S = 1.0
SETTLE_S = 5.0  # without growth before a window of several lines is judged by what is there


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is new since the last update: groups that fired, tracebacks not seen before, and a notice of what happened to the file."""

    groups: tuple[Group, ...] = ()
    tracebacks: tuple[TracebackGroup, ...] = ()
    notice: str = ""


class Follower:
    """Follows one log: a file, a named pipe, or standard input for ``-``. Raises UserError when it cannot be opened or is compressed."""

    def __init__(
        self,
        path: str,
        signatures: Signatures,
        *,
        poll_s: float = POLL_S,
        settle_s: float = SETTLE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._signatures = signatures
        self._poll_s, self._settle_s, self._sleep, self._clock = poll_s, settle_s, sleep, clock
        self._descriptor, self._is_file = _open(path)
        self._finished: list[ScanResult] = []
        self._begin()

    def updates(self) -> Iterator[Update]:
        """Updates as they come; ends with a pipe, never with a file."""
        changed, settled = self._clock(), True
        while True:
            block = self._read()
            if block:
                if self._position == 0:
                    self._check(block)
                self._position += len(block)
                changed, settled = self._clock(), False
                for data, offset in self._splitter.feed(block):
                    self._scanner.feed(Chunk(data, offset))
                yield from self._news()
                continue
            if not self._is_file:
                self._end()
                yield from self._news()
                return
            notice = self._reopened()
            if notice:
                yield from self._news()  # of the log that ended
                self._begin()
                yield Update(notice=notice)
                continue
            if not settled and self._clock() - changed >= self._settle_s:
                settled = True
                self._scanner.settle()
                yield from self._news()
            self._sleep(self._poll_s)

    def finish(self) -> list[ScanResult]:
        """What was found, for each log that the file has been; its last line counts even if it has no end."""
        self._end()
        return [result for result in self._finished if result.num_bytes]

    def close(self) -> None:
        """Close the file (never standard input). May be called twice."""
        if self.path != "-" and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _begin(self) -> None:
        self._scanner = Scanner(self._signatures, self.path)
        self._splitter = LineSplitter()
        self._position = 0
        self._ended = False
        self._told: set[int] = set()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        for data, offset in self._splitter.finish():
            self._scanner.feed(Chunk(data, offset))
        self._finished.append(self._scanner.finish())

    def _news(self) -> Iterator[Update]:
        groups = tuple(group for group in self._scanner.fired() if id(group) not in self._told)
        tracebacks = tuple(group for group in self._scanner.tracebacks() if id(group) not in self._told)
        self._told.update(map(id, groups), map(id, tracebacks))
        if groups or tracebacks:
            yield Update(groups=groups, tracebacks=tracebacks)

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, BLOCK_BYTES)
        except OSError as reason:
            raise _cannot(self.path, *trouble(self.path, reason)) from reason

    def _check(self, first: bytes) -> None:
        codec = "gzip" if first.startswith(b"\x1f\x8b") else encoding_of(first)
        if codec:
            raise _cannot(self.path, f"it is {codec}, and only plain text can be followed", "read it without --follow")

    def _reopened(self) -> str:
        """After the last byte: end this log and open the next where the file was truncated or replaced; says which."""
        try:
            there, here = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:
            return ""  # removed, and not there again yet
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            try:
                descriptor, is_file = _open(self.path)
            except UserError:
                return ""
            self._end()
            self.close()
            self._descriptor, self._is_file = descriptor, is_file
            return f"{self.path} was replaced: following the new file"
        if here.st_size < self._position:
            self._end()
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return f"{self.path} was truncated: reading it from the start"
        return ""


def _open(path: str) -> tuple[int, bool]:
    """A descriptor, and whether it is a file that may grow (a pipe ends)."""
    if path == "-":
        if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
            raise _cannot(path, "nothing is piped in", "for example: kubectl logs -f POD | llmcheck doctor --follow --log -")
        return sys.stdin.fileno(), False
    try:
        is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    if not is_pipe:
        check_regular(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as reason:
        raise _cannot(path, *trouble(path, reason)) from reason
    return descriptor, not is_pipe


def _cannot(path: str, why: str, hint: str) -> UserError:
    return UserError(f"cannot follow {path}", code="log", where=f"--log {path}", why=why, hint=hint)
