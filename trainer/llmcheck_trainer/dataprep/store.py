"""The folder that a preparation writes: whole or not at all, and how to read it.

Everything is written into a scratch folder beside the place, the manifest last, each file forced to the disk; then the folder is renamed.
A run that is killed leaves a scratch folder that no one takes for data and that the next run clears away.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from llmcheck.errors import UserError
from llmcheck.jsonfile import load_object
from llmcheck.paths import trouble_with
from llmcheck_trainer.dataprep.sources import hash_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "llmcheck.data/1"
MANIFEST, TOKENS, SUPERVISED, OFFSETS, SOURCE = "manifest.json", "tokens.bin", "supervised.bin", "offsets.bin", "source.bin"
FILES = (TOKENS, SUPERVISED, OFFSETS, SOURCE)
FILE_SHIFT = 48  # of source.bin: a line number has 48 bits, the file's place in the list the 15 above
MAX_FILES = 1 << 15
MAX_MANIFEST_BYTES = 16 << 20
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAKING_S = 60.0  # a scratch folder has its lock an instant after it is made
_TOKENS_AT_A_TIME = 1 << 24  # bounds the memory of a pass over all tokens


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class Writer:
    """Writes one folder. Leaving the `with` block without :meth:`finish` clears everything away."""

    def __init__(self, out: str, *, dtype: str) -> None:
        self._out = check_place(out)
        folder, name = os.path.split(self._out)
        clear_away(folder, name)
        self.scratch = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.part")
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._digests = {file: hashlib.sha256() for file in FILES}
        self._files: dict[str, IO[bytes]] = {}
        self._lock: IO[bytes] | None = None
        self._end = 0  # tokens written

    def __enter__(self) -> Writer:
        try:
            os.mkdir(self.scratch)
            self._lock = open(os.path.join(self.scratch, _LOCK), "wb")  # held until the end
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            for name in FILES:
                self._files[name] = open(os.path.join(self.scratch, name), "wb")
            self._put(OFFSETS, np.zeros(1, dtype="<i8"))
        except BaseException as reason:
            self._clear()
            if isinstance(reason, OSError):
                raise _cannot(self._out, reason) from reason
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    def _clear(self) -> None:
        """Close everything and remove what is left of the scratch folder."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk, which was told already
                file.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def add(
        self, tokens: NDArray[np.uint32], supervised: NDArray[np.uint8], lengths: NDArray[np.int64], sources: NDArray[np.int64]
    ) -> None:
        """Append rows. Raises UserError when the disk is full."""
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        try:
            self._put(TOKENS, tokens.astype(self._dtype, copy=False))
            self._put(SUPERVISED, supervised)
            self._put(OFFSETS, ends.astype("<i8", copy=False))
            self._put(SOURCE, sources.astype("<i8", copy=False))
        except OSError as reason:
            raise _cannot(self._out, reason) from reason
        self._end += len(tokens)

    def _put(self, name: str, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).data
        self._files[name].write(data)
        self._digests[name].update(data)

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Add the files' hashes to `manifest`, write it last, put the folder in its place. Returns the whole manifest."""
        try:
            files = {}
            for name in FILES:
                file = self._files[name]
                file.flush()
                os.fsync(file.fileno())
                files[name] = {"sha256": self._digests[name].hexdigest(), "num_bytes": file.tell()}
                file.close()
            whole = {**manifest, "files": files}
            with open(os.path.join(self.scratch, MANIFEST), "wb") as file:
                # Names of files need not be UTF-8: what stands for such bytes in them becomes a JSON escape.
                file.write(json.dumps(whole, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(self.scratch)
            self._put_in_place()
        except OSError as reason:
            raise _cannot(self._out, reason) from reason
        return whole

    def _put_in_place(self) -> None:
        folder, name = os.path.split(self._out)
        check_place(self._out)  # it may have changed since
        if os.path.isdir(self._out):
            # Between the two renames nothing is there: a kill then costs the old data, which a changed input had made worthless.
            old = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.part")
            os.rename(self._out, old)
            os.rename(self.scratch, self._out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(self.scratch, self._out)
        os.unlink(os.path.join(self._out, _LOCK))  # only now: until here it told other runs that the scratch folder is in use
        _sync_folder(folder)


def check_place(out: str, *, made: bool = True) -> str:
    """The full path of `out`, which is free, empty, or holds prepared data. Raises UserError, so that nothing of others is lost.

    `made`: the folder that it is in must exist.
    """
    path = os.path.realpath(out)
    if made and not os.path.isdir(os.path.dirname(path)):
        raise UserError(f"cannot write {out}", code="output", where=f"--out {out}", why="its folder does not exist", hint="make it first")
    if not os.path.lexists(path):
        return path
    if not os.path.isdir(path):
        raise UserError(f"cannot write {out}: it is a file", code="output", where=f"--out {out}", hint="name a folder")
    names = set(os.listdir(path))
    if not names:
        return path
    if MANIFEST not in names or names - {*FILES, MANIFEST, _LOCK} or not _is_ours(os.path.join(path, MANIFEST)):
        raise UserError(
            f"{out} holds other things than prepared data",
            code="exists",
            where=f"--out {out}",
            why="replacing it could lose your work",
            hint="choose another name",
        )
    return path


def _is_ours(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return f'"schema": "{SCHEMA.rpartition("/")[0]}/'.encode() in file.read(200)
    except OSError:
        return False


def clear_away(folder: str, name: str) -> None:
    """Remove the scratch folders of runs that ended without doing it: their lock is free, or they are data that was replaced."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.part")
    for entry in os.listdir(folder):
        if not pattern.fullmatch(entry):
            continue
        path = os.path.join(folder, entry)
        try:
            with open(os.path.join(path, _LOCK), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # being made, replaced data that a killed run left, or of a run killed before it took the lock
            if os.path.isfile(os.path.join(path, MANIFEST)) or _age_s(path) > _MAKING_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # in use
            continue


def _age_s(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:  # it is gone
        return 0.0


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(out: str, reason: OSError) -> UserError:
    hint = "make room, or name a folder on another disk" if reason.errno in _FULL else "name a folder that can be written to"
    return UserError(f"cannot write {out}", code="output", where=f"--out {out}", why=reason.strerror or str(reason), hint=hint)


def read_manifest(path: str) -> dict[str, Any]:
    """The manifest of the folder `path`. Raises UserError when it is not one of this version."""
    if (trouble := trouble_with(path, folder=True, otherwise="`llmcheck data prepare` makes it")) is not None:
        why, hint = trouble
        raise UserError(f"no prepared data at {path}", code="data", where=path, why=why, hint=hint)
    file = os.path.join(path, MANIFEST)
    if not os.path.isfile(file):
        raise UserError(
            f"no prepared data in {path}",
            code="data",
            where=path,
            why=f"it has no {MANIFEST}",
            hint="give the folder that `llmcheck data prepare` wrote",
        )
    manifest = load_object(file, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            "the manifest is of another version",
            code="data",
            where=file,
            why=f"its schema is {str(manifest.get('schema'))[:40]!r}, this version reads {SCHEMA!r}",
            hint="prepare the data again",
        )
    return manifest


def is_whole(path: str, manifest: Mapping[str, Any]) -> bool:
    """True when every file of the folder has the size and the hash that the manifest says."""
    try:
        for name in FILES:
            said = manifest["files"][name]
            file = os.path.join(path, name)
            if os.path.getsize(file) != said["num_bytes"] or hash_file(file) != said["sha256"]:
                return False
    except (OSError, KeyError, TypeError):
        return False
    return True


def changed(where: str, *, node: str = "") -> UserError:
    """The error of a folder that is not whole, of `node` where it may be whole on another; a run's receipt names data by these hashes."""
    return UserError(
        "the prepared data has changed since it was made",
        code="data",
        where=where + (f", on {node}" if node else ""),
        why=f"its files have other hashes than {MANIFEST} says",
        hint="prepare it again" + (", or copy it there again" if node else ""),
    )


def damaged(path: str, reason: Exception) -> UserError:
    """The error of a folder whose manifest is not what a preparation writes, or does not go with its files."""
    why = f"{MANIFEST} lacks {reason}" if isinstance(reason, KeyError) else str(reason)
    return UserError("the prepared data is damaged", code="data", where=path, why=why, hint="prepare it again")


class Reader:
    """Rows of a folder, mapped into memory. Raises UserError when the files' sizes are not those of the manifest."""

    def __init__(self, path: str) -> None:
        self.manifest = read_manifest(path)
        try:
            num_rows, num_tokens = int(self.manifest["num_rows"]), int(self.manifest["num_tokens"])
            dtype = np.dtype(self.manifest["token_dtype"]).newbyteorder("<")
            sizes = {TOKENS: num_tokens * dtype.itemsize, SUPERVISED: num_tokens, OFFSETS: 8 * (num_rows + 1), SOURCE: 8 * num_rows}
            for name, size in sizes.items():
                if os.path.getsize(os.path.join(path, name)) != size:
                    raise ValueError(f"{name} is not {size} bytes long")
            said = self.manifest["tokenizer"]
            if not isinstance(said["vocab_size"], int) or not isinstance(said["digest"], str):
                raise TypeError("its tokenizer is not described")
        except (KeyError, TypeError, ValueError, OSError) as reason:
            raise damaged(path, reason) from reason
        self.num_rows = num_rows
        self._tokens = _mapped(os.path.join(path, TOKENS), dtype)
        self._supervised = _mapped(os.path.join(path, SUPERVISED), np.dtype(np.uint8))
        self._offsets = _mapped(os.path.join(path, OFFSETS), np.dtype("<i8"))
        self._sources = _mapped(os.path.join(path, SOURCE), np.dtype("<i8"))

    def longest(self) -> int:
        """Tokens of the longest row; 0 where there is none."""
        return int(np.max(np.diff(self._offsets))) if self.num_rows else 0

    def largest_id(self) -> int:
        """The largest token id, for which all tokens are read; -1 where there is none."""
        starts = range(0, len(self._tokens), _TOKENS_AT_A_TIME)
        return max((int(np.max(self._tokens[start : start + _TOKENS_AT_A_TIME])) for start in starts), default=-1)

    def row(self, index: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Token ids of row `index` (from 0), and for each 1 when it is in the loss."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._tokens[start:end], self._supervised[start:end]

    def source(self, index: int) -> tuple[int, int]:
        """(place of the file in the manifest's sources, line or number in it) of row `index`."""
        packed = int(self._sources[index])
        return packed >> FILE_SHIFT, packed & ((1 << FILE_SHIFT) - 1)

    def rows_of(self, file: int, line: int) -> list[int]:
        """The rows that came from a line."""
        return [int(row) for row in np.nonzero(self._sources == (line | file << FILE_SHIFT))[0]]


def _mapped(path: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r") if os.path.getsize(path) else np.empty(0, dtype=dtype)
