"""Results of work that would be the same again, kept in the user's cache folder: data only, keyed by a digest of all that it was made from.

Nothing depends on it: a file that is missing, damaged, or not this user's alone to write is as if it were not there, and a folder that
cannot be written is left alone. `LLMCHECK_CACHE_DIR` names another folder; empty, it switches this off.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping

from llmcheck import __version__

VARIABLE = "LLMCHECK_CACHE_DIR"
MAX_BYTES = 16 << 20  # of a file; the rule packs and their literals are below 1 MiB
_FORMAT = b"llmcheck.cache/1\n"  # of the files, and of what is put in them
_KEY_CHARS = 32


def key_of(*parts: bytes) -> str:
    """A digest of `parts`, this llmcheck and the format: what was kept under it was made from just these."""
    digest = hashlib.sha256(_FORMAT + __version__.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:_KEY_CHARS]


def load(name: str, key: str) -> bytes | None:
    """What `store` kept as `name` under `key`, whole and unchanged; None when there is nothing to be trusted."""
    folder = _folder()
    if folder is None:
        return None
    try:
        _check_owner(os.lstat(folder), stat.S_ISDIR)
        handle = os.open(os.path.join(folder, f"{name}-{key}"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            _check_owner(os.fstat(handle), stat.S_ISREG)
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    start = len(_FORMAT)
    digest, payload = data[start : start + 32], data[start + 32 :]
    if len(data) > MAX_BYTES or data[:start] != _FORMAT or hashlib.sha256(payload).digest() != digest:
        return None
    return payload


def store(name: str, key: str, payload: bytes) -> None:
    """Keep `payload` for `load`, in place of what was kept as `name` under other keys. Never raises OSError."""
    folder = _folder()
    if folder is None or len(payload) > MAX_BYTES - 1024:
        return
    scratch = os.path.join(folder, f".{name}-{os.getpid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _check_owner(os.lstat(folder), stat.S_ISDIR)
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_FORMAT + hashlib.sha256(payload).digest() + payload)
            os.replace(scratch, os.path.join(folder, f"{name}-{key}"))
        except OSError:
            os.unlink(scratch)
            raise
        for old in os.listdir(folder):
            if old.startswith(f"{name}-") and old != f"{name}-{key}" and len(old) == len(name) + 1 + _KEY_CHARS:
                os.unlink(os.path.join(folder, old))
    except OSError:
        return


def _folder(environ: Mapping[str, str] = os.environ) -> str | None:
    """Our folder in the user's cache; None where there is none, or where owners of files cannot be told (Windows)."""
    if not hasattr(os, "geteuid"):
        return None
    named = environ.get(VARIABLE)
    if named is not None:
        return os.path.abspath(named) if named else None
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "llmcheck") if os.path.isabs(base) else None


def _check_owner(status: os.stat_result, kind: Callable[[int], bool]) -> None:
    """Raise OSError unless it is of that kind, ours, and nobody else's to write."""
    if not kind(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("not this user's alone")
