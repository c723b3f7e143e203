"""Reading JSON that strangers wrote: bounded, strict, and with errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import IO, Any

from llmcheck.errors import UserError, did_you_mean

MAX_BYTES = 64 << 20  # no file that we read is near it: the largest model configurations are below 1 MiB, plan files below 2


# What differs between JSON and what people write by hand or Python prints.
_SYNTAX = "JSON wants double quotes, true, false and null, and has no comments and no comma before a closing bracket"

_O_QUIETLY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class _BadValueError(ValueError):
    """Raised by the parser's hooks."""


def load(path: str, *, what: str, where: str = "", max_bytes: int = MAX_BYTES) -> Any:
    """The document at `path`, as Python values. Raises UserError; `what` names the file in messages ("DeepSpeed configuration")."""
    return loads(read_bytes(path, what=what, where=where, max_bytes=max_bytes), what=what, where=where or path)


def read_bytes(path: str, *, what: str, where: str = "", max_bytes: int = MAX_BYTES) -> bytes:
    """The content of the regular file at `path`. Raises UserError when it cannot be read or is larger than `max_bytes`."""
    place = where or path
    with open_regular(path, what=what, where=place) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as reason:
            raise unreadable(path, what=what, where=place, reason=reason) from reason
    if len(data) > max_bytes:
        raise UserError(
            f"the {what} is larger than {max_bytes >> 20} MiB: {path}",
            code="too-large",
            where=place,
            why="none that we know is that large",
            hint="is this the file? weights and data sets are others",
        )
    return data


def open_regular(path: str, *, what: str, where: str = "") -> IO[bytes]:
    """The regular file at `path`, opened. Raises UserError for what is missing, may not be read, or is a pipe, a device or a folder."""
    place = where or path
    try:
        mode = os.stat(path).st_mode  # before opening: to open a device can do things
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISREG(mode):
            # Not blocking: it may have become a pipe since, and a pipe that nobody writes to would keep us for ever.
            file = os.fdopen(os.open(path, os.O_RDONLY | _O_QUIETLY), "rb")
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode):
                return file
            file.close()
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        raise unreadable(path, what=what, where=place, reason=reason) from reason
    raise UserError(
        f"the {what} is not a regular file: {path}",
        code="unreadable",
        where=place,
        why="a pipe or a device could be read for ever",
        hint="write its content to a file and give that",
    )


def list_folder(path: str, *, what: str) -> frozenset[str]:
    """The names in the folder `path`. Raises UserError; `what` names the folder in messages ("tokenizer's folder")."""
    try:
        return frozenset(os.listdir(path))
    except (OSError, ValueError) as reason:
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        hint = "give the folder, not a file in it" if isinstance(reason, NotADirectoryError) else _way_out(path, reason)
        raise UserError(f"cannot read the {what}: {path}", code="no-folder", where=path, why=why, hint=hint) from reason


def unreadable(path: str, *, what: str, where: str, reason: OSError | ValueError) -> UserError:
    """The error for a file that could not be opened: what the system said, and what is there instead."""
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return UserError(f"cannot read the {what}: {path}", code="unreadable", where=where, why=why, hint=_way_out(path, reason))


def _way_out(path: str, reason: OSError | ValueError) -> str:
    if isinstance(reason, PermissionError):
        return "let this user read it, or give a copy"
    if isinstance(reason, IsADirectoryError):
        return "that is a folder: give the file in it"
    if not isinstance(reason, (FileNotFoundError, NotADirectoryError)):
        return "check the path" if isinstance(reason, ValueError) else "give a copy on a disk that works"
    folder = os.path.dirname(path) or "."
    try:
        names = os.listdir(folder)
    except OSError:
        return f"there is no folder {folder}: check the path, which is relative to the current folder unless it begins with /"
    near = did_you_mean(os.path.basename(path), names[:10_000])
    return near or "check the path: " + ("the current folder" if folder == "." else folder) + " has no such file"


def loads(data: bytes, *, what: str, where: str) -> Any:
    """The document in `data`. Repeated keys, NaN, infinities and numbers of thousands of digits are errors, as is deep nesting."""
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats, parse_float=_finite)
    except UnicodeDecodeError as reason:
        raise UserError(
            f"the {what} is not UTF-8 text",
            code="not-json",
            where=where,
            why=f"byte {reason.start} begins no character of it",
            hint="is it a text file? save it as UTF-8",
        ) from reason
    except json.JSONDecodeError as reason:
        at_end = reason.pos >= len(text.rstrip())
        raise UserError(
            f"the {what} is not valid JSON" + (": it ends too early" if at_end else ""),
            code="not-json",
            where=f"{where}, line {reason.lineno}, column {reason.colno}",
            why=reason.msg,
            hint="the file is empty" if not text.strip() else "is the file complete?" if at_end else _SYNTAX,
        ) from reason
    except _BadValueError as reason:
        raise UserError(
            f"the {what} is not acceptable JSON", code="not-json", where=where, why=str(reason), hint="mend that value in the file"
        ) from reason
    except RecursionError as reason:
        raise UserError(
            f"the {what} is nested too deeply", code="not-json", where=where, why="none that we know is", hint="is this the file?"
        ) from reason
    except ValueError as reason:  # an integer beyond the interpreter's limit of digits
        raise UserError(
            f"the {what} holds a number that is too long",
            code="not-json",
            where=where,
            why="it has thousands of digits",
            hint="is this the file?",
        ) from reason


def load_object(path: str, *, what: str, where: str = "", max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Like :func:`load` for a file that must hold a JSON object."""
    document = load(path, what=what, where=where, max_bytes=max_bytes)
    if not isinstance(document, dict):
        raise UserError(
            f"the {what} must be a JSON object, not {kind_of(document)}", code="not-json", where=where or path, hint="is this the file?"
        )
    return document


def kind_of(value: object) -> str:
    """`value`'s JSON type, with its article."""
    if value is None:
        return "null"
    for kinds, name in (((bool,), "true or false"), ((int, float), "a number"), ((str,), "a string"), ((list, tuple), "a list")):
        if isinstance(value, kinds):
            return name
    return "an object"


def _no_constant(name: str) -> Any:
    raise _BadValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _BadValueError(f"{text[:40]} is too large")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _BadValueError(f"the key {key[:60]!r} is given twice")
            seen.add(key)
    return document
