"""One run at a time in an output folder: ranks that a dead launcher left behind would overwrite the files of the run that goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch.distributed as dist

from llmcheck import lock
from llmcheck.errors import UserError

RANKS_END_S = 30.0  # for the ranks of a run whose launcher was killed; what Slurm gives a job's processes (KillWait's default)


@contextlib.contextmanager
def output(folder: str) -> Iterator[None]:
    """Hold `folder` for the run of these ranks; the system lets go of it when rank 0 ends, however it ends.

    All ranks call it. Raises UserError on all of them where another run holds it, or where it cannot be made.
    """
    problem: list[UserError | None] = [None]
    held = None
    if dist.get_rank() == 0:
        try:
            held = _take(folder)
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


def _take(folder: str) -> int | None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as reason:
        why, hint = reason.strerror or str(reason), "name a folder that can be written to"
        raise UserError(f"cannot write in {folder}", code="output", where="--output", why=why, hint=hint) from reason
    return lock.hold(os.path.join(folder, lock.TRAINER), wait_s=RANKS_END_S)
