"""Progress bars on stderr: only on a terminal, and only for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmcheck.console import is_terminal

_AFTER_S = 1.0  # nothing is drawn before
_EVERY_S = 0.1


@contextmanager
def bytes_bar(title: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; yields the function that says how many more were done. rich is loaded when the bar is first drawn."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    bar = _Bar(title, total_bytes)
    try:
        yield bar.advance
    finally:
        bar.close()


class _Bar:
    def __init__(self, title: str, total_bytes: int | None) -> None:
        self._title, self._total = title, total_bytes
        self._done = 0
        self._next = time.monotonic() + _AFTER_S
        self._progress: object | None = None
        self._update: Callable[[], None] = lambda: None
        self._stop: Callable[[], None] = lambda: None

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_S
        if self._progress is None:
            self._start()
        self._update()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        from llmcheck.console import escape

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = progress.add_task(escape(self._title), total=self._total)
        progress.start()
        self._progress = progress
        self._update = lambda: progress.update(task, completed=self._done)
        self._stop = progress.stop

    def close(self) -> None:
        self._stop()
