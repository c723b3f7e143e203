"""The machine that is looked at: its files below a root and its environment variables, so that tests can hand in another one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmcheck.rules.facts import Facts, Location

_MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the collectors look. `root` stands for ``/``."""

    root: str = "/"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cwd: str = "."
    system: str = sys.platform

    def path(self, absolute: str) -> str:
        """The real path of an absolute one of the machine."""
        return absolute if self.root == "/" else os.path.join(self.root, absolute.lstrip("/"))

    def exists(self, absolute: str) -> bool:
        """Whether the machine has that file or folder."""
        return os.path.exists(self.path(absolute))

    def read(self, absolute: str) -> str | None:
        """A text file, without white space around it; None when it cannot be read."""
        try:
            with open(self.path(absolute), "rb") as file:
                return file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def listing(self, absolute: str) -> list[str]:
        """Names in a folder, in order; empty when it cannot be read."""
        try:
            return sorted(os.listdir(self.path(absolute)))
        except OSError:
            return []

    def home(self, *parts: str) -> str:
        """A path below the user's home."""
        return os.path.join(self.environ.get("HOME") or os.path.expanduser("~"), *parts)

    def put_file_system(self, result: Facts, name: str, path: str) -> None:
        """Record the type of the file system that holds `path`."""
        kind = file_system(self, path)
        if kind is None:
            result.could_not(name, "/proc/self/mountinfo does not say")
        else:
            result.put(name, kind, Location(uri=path))

    def integer(self, absolute: str) -> int | None:
        """A file that holds one number."""
        text = self.read(absolute)
        return int(text) if text is not None and re.fullmatch(r"-?\d{1,20}", text) else None


def file_system(machine: Machine, path: str) -> str | None:
    """The type of the file system (``nfs4``, ``overlay``) that holds `path`; None when the kernel does not say. proc(5), mountinfo."""
    wanted = os.path.realpath(path)
    best, kind = -1, None
    for line in (machine.read("/proc/self/mountinfo") or "").splitlines():
        head, dash, tail = line.partition(" - ")
        fields = head.split(" ")
        if not dash or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = mount == "/" or wanted == mount or wanted.startswith(mount + "/")
        if inside and len(mount) >= best:  # a later mount covers an earlier one
            best, kind = len(mount), tail.split(" ")[0]
    return kind


def nearest_existing(path: str) -> str:
    """`path`, or the closest folder above it that exists: where the file system will be that it is made on."""
    current = os.path.abspath(path)
    while not os.path.exists(current) and os.path.dirname(current) != current:
        current = os.path.dirname(current)
    return current
