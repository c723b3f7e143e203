"""Requests to stop. Imports nothing heavy: a request may come while torch is still being imported."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C ask the run to save and stop after the step that it is in; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.wanted = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
