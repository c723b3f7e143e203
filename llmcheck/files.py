"""Writing files: whole or not at all, and never over something that the user could miss."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from llmcheck.errors import UserError


class Place(NamedTuple):
    """Where a file may be written: the path that links lead to, and the mode it gets."""

    path: str
    mode: int


def find_place(path: str, *, flag: str, replaceable: Callable[[bytes], bool], force: bool = False) -> Place:
    """Where to write `path`; looked at before long work, so that a bad name fails at once.

    An existing file may be replaced only when `replaceable` says so of its content, or with `force`. Raises UserError that names `flag`.
    """
    target = os.path.realpath(path)  # replace what a link points to, not the link
    try:
        status = os.stat(target)
    except FileNotFoundError as reason:
        if not os.path.isdir(os.path.dirname(target)):
            raise _cannot(path, flag, reason) from reason
        return Place(target, 0o666)  # less the umask
    except (OSError, ValueError) as reason:
        raise _cannot(path, flag, reason) from reason
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise UserError(f"cannot write {path}: it is {kind}", code="output", where=f"{flag} {path}", hint="name a file")
    if not force and not _replaceable(target, replaceable, path, flag):
        raise UserError(
            f"{path} exists and is not an unchanged file of llmcheck's",
            code="exists",
            where=f"{flag} {path}",
            why="replacing it could lose your work",
            hint="choose another name, or add --force",
        )
    return Place(target, stat.S_IMODE(status.st_mode))


def write_atomically(path: str, data: bytes, *, flag: str, replaceable: Callable[[bytes], bool], force: bool = False) -> None:
    """Write `data` to `path` through a temporary file beside it, under the conditions of :func:`find_place`."""
    place = find_place(path, flag=flag, replaceable=replaceable, force=force)
    try:
        _replace(place, data)
    except (OSError, ValueError) as reason:
        raise _cannot(path, flag, reason) from reason


def write_new(path: str, data: bytes, *, flag: str, mode: int) -> None:
    """Write `data` to `path`, which must not exist, readable as `mode` says. Raises UserError that names `flag`."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} exists", code="exists", where=f"{flag} {path}", why="replacing it could lose your work", hint="choose another name"
        )
    target = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    try:
        _replace(Place(target, mode), data)
    except (OSError, ValueError) as reason:
        raise _cannot(path, flag, reason) from reason


def _replaceable(target: str, judge: Callable[[bytes], bool], path: str, flag: str) -> bool:
    try:
        with open(target, "rb") as file:
            return judge(file.read())
    except OSError as reason:
        raise _cannot(path, flag, reason) from reason


def _replace(place: Place, data: bytes) -> None:
    scratch = f"{place.path}.{os.getpid()}.part"
    # O_EXCL: never through a file or link that someone else put there. The umask applies to new files; an old one's mode is kept.
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, place.mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, place.path)
    except BaseException:
        os.unlink(scratch)
        raise


def _cannot(path: str, flag: str, reason: Exception) -> UserError:
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    hint = "make its folder first" if isinstance(reason, FileNotFoundError) else ""
    return UserError(f"cannot write {path}", code="output", where=f"{flag} {path}", why=why, hint=hint)
