"""Locks between processes that write to one folder; the system frees them when their holder ends, however it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmcheck.errors import UserError

RUN, DATA, TRAINER = ".run.lock", ".data.lock", ".trainer.lock"  # of an output folder: a run, its preparation of data, its first rank
_MAX_NOTE_BYTES = 200
_POLL_S = 0.1


def hold(path: str, *, inherited: bool = False, wait_s: float = 0.0) -> int | None:
    """Take the lock at `path` until the descriptor is closed; None where the file system has no locks.

    `inherited`: a program that this process becomes keeps it. `wait_s`: seconds that its holder is given to end. Raises UserError where
    another process has it, or nothing can be written.
    """
    import fcntl

    descriptor = _open(path)
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_POLL_S)
    except BlockingIOError as reason:
        holder = _note(descriptor)
        os.close(descriptor)
        folder = os.path.dirname(path)
        raise UserError(
            f"another run writes to {folder}",
            code="output-in-use",
            where=f"--output {folder}",
            why=(f"it is {holder}; " if holder else "") + "two runs in one folder would replace each other's checkpoints",
            hint="wait until it has ended, stop it, or name another --output",
        ) from reason
    except OSError:  # some network file systems: what a lock guards against is then not seen
        os.close(descriptor)
        return None
    _write_note(descriptor)
    os.set_inheritable(descriptor, inherited)
    return descriptor


@contextmanager
def waiting(path: str, tell: str) -> Iterator[None]:
    """Hold the lock at `path` in the block; where another process has it, say `tell` on stderr and wait. Raises UserError."""
    import fcntl

    from llmcheck.console import complain

    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            complain([tell])
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as reason:
        folder = os.path.dirname(path)
        raise UserError(
            f"cannot write to {folder}",
            code="output",
            where=f"--output {folder}",
            why=reason.strerror or str(reason),
            hint="name a folder that this user may write to",
        ) from reason


def _note(descriptor: int) -> str:
    try:
        return os.pread(descriptor, _MAX_NOTE_BYTES, 0).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _write_note(descriptor: int) -> None:
    """Who holds it, for the message of those who do not; a courtesy."""
    from platform import node

    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {node()}\n".encode(), 0)
    except OSError:
        pass
