"""One run at a time in an output folder: ranks that a dead launcher left behind would overwrite the files of the run that goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import torch.distributed as dist

from llmcheck.errors import UserError

_NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that were mounted without them
_MAX_BYTES = 300


@contextlib.contextmanager
def output(folder: str) -> Iterator[None]:
    """Hold `folder` for the run of these ranks; the system lets go of it when rank 0 ends, however it ends.

    Raises UserError on all ranks where another run holds it, or where it cannot be made.
    """
    problem: list[UserError | None] = [None]
    held = None
    if dist.get_rank() == 0:
        try:
            held = _lock(folder)
        except UserError as error:
            problem = [error]
    try:
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise problem[0]
        yield
    finally:
        if held is not None:
            os.close(held)


def _lock(folder: str) -> int | None:
    """A descriptor of the locked file; None where there are no locks."""
    import fcntl

    path = os.path.join(folder, _NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as reason:
        raise UserError(f"cannot write in {folder}", code="output", where="--output", why=reason.strerror or str(reason)) from reason
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as reason:
        who = os.read(descriptor, _MAX_BYTES).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise UserError(
            "another run is writing there",
            code="output-in-use",
            where=f"--output {folder}",
            why=who or "its rank 0 holds the lock",
            hint="wait for it, end it, or name another --output; ranks can outlive their launcher",
        ) from reason
    except OSError as reason:
        os.close(descriptor)
        if reason.errno in _NO_LOCKS:
            return None
        raise UserError(f"cannot lock {path}", code="output", where="--output", why=reason.strerror or str(reason)) from reason
    with contextlib.suppress(OSError):  # a full disk has room for a lock, not for a word on who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"rank 0 is process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor
