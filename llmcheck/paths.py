"""What to say of a path that cannot be read: which part of it is wrong, and what was probably meant."""

from __future__ import annotations

import errno
import os

from llmcheck.errors import UserError, did_you_mean

_MAX_NAMES = 10_000  # of a folder, that a missing name is compared with


def unreadable(
    path: str, *, what: str, where: str, reason: OSError | ValueError, code: str = "unreadable", folder: bool = False
) -> UserError:
    """The error for a file (or a `folder`) that could not be opened, for the system's `reason`; `what` names it ("plan file")."""
    why, hint = trouble(path, reason, folder=folder)
    return UserError(f"cannot read the {what}: {path}", code=code, where=where, why=why, hint=hint)


def trouble_with(path: str, *, folder: bool = False, otherwise: str = "") -> tuple[str, str] | None:
    """Why nothing can be read at `path`, and what to do next; None where there is a file (or, where asked for, a folder).

    `otherwise` is the advice where the name resembles none that is there.
    """
    try:
        is_folder = os.path.isdir(path)
        os.stat(path)
    except (OSError, ValueError) as reason:
        return trouble(path, reason, folder=folder, otherwise=otherwise)
    if is_folder == folder:
        return None
    number = errno.ENOTDIR if folder else errno.EISDIR
    # OSError() gives the subclass of its number
    return trouble(path, OSError(number, os.strerror(number)), folder=folder, otherwise=otherwise)


def trouble(path: str, reason: OSError | ValueError, *, folder: bool = False, otherwise: str = "") -> tuple[str, str]:
    """Why `path` cannot be read, for the system's `reason`, and what to do next. `folder`: a folder was wanted, not a file."""
    if not path:
        return "the path is empty: an unset variable of the shell?", "name a folder" if folder else "name a file"
    if isinstance(reason, (FileNotFoundError, NotADirectoryError)):
        return _missing(path, folder=folder, otherwise=otherwise)
    said = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    if isinstance(reason, PermissionError):
        return said, "let this user read it, or give a copy"
    if isinstance(reason, IsADirectoryError):
        return "it is a folder", "give the file in it"
    if isinstance(reason, ValueError):
        return said, "check the path"
    if reason.errno == errno.ELOOP:
        return "its links lead round in a circle", "name what is meant, or mend the link"
    if reason.errno == errno.ENAMETOOLONG:
        return said, "check the path: is it the content of a file, where its name is wanted?"
    return said, "give a copy on a disk that works"


def _missing(path: str, *, folder: bool, otherwise: str) -> tuple[str, str]:
    """The first part of `path` that is not there, is a file where a folder is needed, or is a link that leads nowhere."""
    try:
        whole = os.path.abspath(path)
    except OSError:
        return "the folder that llmcheck runs in is gone", "change to one that is there"
    parent, name = os.path.split(whole)
    while not os.path.lexists(parent) and parent != os.path.dirname(parent):
        parent, name = os.path.split(parent)
    there = os.path.join(parent, name)
    for place in (parent, there):
        if os.path.islink(place) and not os.path.exists(place):
            said = "it" if place == whole else place
            return f"{said} is a link to {os.readlink(place)}, which leads nowhere", "name what is meant, or mend the link"
    if not os.path.isdir(parent):
        return f"{parent} is a file, not a folder", "check the path"
    if os.path.lexists(there):  # as a file: a folder was wanted
        return "it is a file, not a folder", "give the folder, not a file in it"
    near = did_you_mean(name, _candidates(parent, folders=folder or there != whole))
    return f"{parent} holds nothing called {name}", near or otherwise or (
        "check the spelling" if os.path.isabs(path) else f"paths count from the folder that llmcheck runs in, {os.getcwd()}"
    )


def _candidates(parent: str, *, folders: bool) -> list[str]:
    """The names in `parent` that could be meant; only folders, where a file could not be."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for _, entry in zip(range(_MAX_NAMES), entries, strict=False)]
    except (OSError, ValueError):
        return []
    return [name for name in sorted(names) if not folders or os.path.isdir(os.path.join(parent, name))]
