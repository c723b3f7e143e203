"""What a rank said last, kept for the process that runs the launcher.

Launchers end with an exit code of their own and a page on which process ended how, below which a rank's error is not seen any more. So the
error is said once more at the end, and its exit code is the run's.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

VARIABLE = "LLMCHECK_LAST_WORDS"  # a folder of this machine; ranks elsewhere do not have it, and keep nothing
_MAX_BYTES = 16 << 10


class LastWords(NamedTuple):
    """The error of one rank."""

    exit_code: int
    text: str


def keep(exit_code: int, text: str) -> None:
    """Keep this rank's error, where somebody wants it. Never raises: the error itself has been printed."""
    folder = os.environ.get(VARIABLE)
    if folder:
        with contextlib.suppress(OSError), open(os.path.join(folder, f"rank-{os.getpid()}"), "x", encoding="utf-8") as file:
            file.write(f"{exit_code}\n{text[:_MAX_BYTES]}")


def first(folder: str) -> LastWords | None:
    """The error that was kept first: the others mostly follow from it."""
    found = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8", errors="replace") as file:
            code, _, text = file.read(_MAX_BYTES + 16).partition("\n")
            found.append((os.stat(path).st_mtime_ns, LastWords(int(code), text)))
    return min(found)[1] if found else None
