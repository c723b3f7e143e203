"""Host memory that processes hold, apart from the page cache that they have mapped: from ``/proc``, Linux only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

INTERVAL_S = 0.02
FILES_EVERY = 10  # samples: smaps_rollup walks the page tables, which takes 15 ms a GiB, and the process may have to wait
_FIELDS = {"Anonymous": 0, "Pss_Shmem": 1, "Pss_File": 2}  # proc_pid_smaps(5); Anonymous counts private copies of files' pages, too


class Memory(NamedTuple):
    """Bytes of some processes together. Pages that several of them map are counted once."""

    anonymous_bytes: int  # heap, stacks, and private copies of files' pages: only ending or swapping gives them back
    shared_bytes: int  # shared memory, pinned memory among it
    file_bytes: int  # mapped files: page cache, which the system drops when something else needs the room

    @property
    def held_bytes(self) -> int:
        """What the processes hold, whatever else needs memory."""
        return self.anonymous_bytes + self.shared_bytes


def of_process(pid: int | str) -> Memory:
    """Memory of one process. Raises OSError where it is gone, or the system has no smaps_rollup."""
    found = [0, 0, 0]
    for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            found[_FIELDS[name]] = int(value.split()[0]) * 1024
    return Memory(*found)


def of_processes(pids: Sequence[int | str]) -> Memory:
    """Memory of all of them together."""
    each = [of_process(pid) for pid in pids]
    return Memory(*(sum(values) for values in zip(*each, strict=True)))


def held_bytes(pids: Sequence[int | str]) -> int:
    """Memory.held_bytes at the price of reading a counter; shared memory counts for each of them. Raises OSError where one is gone."""
    kib = 0
    for pid in pids:
        for line in Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                kib += int(line.split()[1])
    return kib * 1024


class Peaks:
    """The highest values seen since `restart`, each by itself, of what some processes have; looks from a thread of its own."""

    def __init__(self, pids: Sequence[int | str], interval_s: float = INTERVAL_S) -> None:
        self.pids, self.interval_s = pids, interval_s
        self.num_samples = self.held_bytes = self.file_bytes = 0
        self.before = Memory(0, 0, 0)
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def restart(self) -> None:
        """Begin anew from the present state."""
        with self._lock:
            self.before = of_processes(self.pids)
            self.held_bytes, self.file_bytes, self.num_samples = self.before.held_bytes, self.before.file_bytes, 1

    def _look(self) -> None:
        while not self._end.wait(self.interval_s):
            with self._lock, contextlib.suppress(OSError):  # a process that has ended
                self.held_bytes = max(self.held_bytes, held_bytes(self.pids))
                if self.num_samples % FILES_EVERY == 0:
                    self.file_bytes = max(self.file_bytes, of_processes(self.pids).file_bytes)
                self.num_samples += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[Peaks]:
        """Look for as long as the block lasts."""
        self.restart()
        self._thread.start()
        try:
            yield self
        finally:
            self._end.set()
            self._thread.join()


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether `condition` came true within `limit_s` seconds."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(INTERVAL_S)
    return True
