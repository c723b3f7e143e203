"""Host memory that processes hold, apart from the page cache that they have mapped: from ``/proc``, Linux only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

INTERVAL_S = 0.02
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
    for name, _, value in _lines(f"/proc/{pid}/smaps_rollup"):
        if name in _FIELDS:
            found[_FIELDS[name]] = int(value.split()[0]) * 1024
    return Memory(*found)


def of_processes(pids: Sequence[int | str]) -> Memory:
    """Memory of all of them together."""
    each = [of_process(pid) for pid in pids]
    return Memory(*(sum(values) for values in zip(*each, strict=True)))


class Counters(NamedTuple):
    """What the kernel counts anyway: smaps_rollup walks the page tables, 15 ms a GiB, for which the process may have to wait."""

    held_bytes: int  # Memory.held_bytes, but shared memory counts for each process that maps it
    mapped_bytes: int  # of files, by the process that maps the most
    machine_bytes: int  # what is not available on the machine: other programs' memory, too, and drivers', which no process is charged for


def counters(pids: Sequence[int | str]) -> Counters:
    """The counters of some processes. Raises OSError where one is gone."""
    held, mapped = 0, [0]
    for pid in pids:
        for name, _, value in _lines(f"/proc/{pid}/status"):
            if name in ("RssAnon", "RssShmem"):
                held += int(value.split()[0]) * 1024
            elif name == "RssFile":
                mapped.append(int(value.split()[0]) * 1024)
    machine = {name: int(value.split()[0]) * 1024 for name, _, value in _lines("/proc/meminfo")}
    return Counters(held, max(mapped), machine["MemTotal"] - machine["MemAvailable"])


def _lines(path: str) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in Path(path).read_text().splitlines()]


class Peaks:
    """The highest values seen since `restart`, each by itself, of what some processes have; looks from a thread of its own."""

    def __init__(self, pids: Sequence[int | str], interval_s: float = INTERVAL_S) -> None:
        self.pids, self.interval_s = pids, interval_s
        self.num_samples = 0
        self.before = self.highest = Counters(0, 0, 0)
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def restart(self) -> None:
        """Begin anew from the present state."""
        with self._lock:
            self.before = self.highest = counters(self.pids)
            self.num_samples = 1

    @property
    def above(self) -> Counters:
        """How far the highest values are above those at the start."""
        return Counters(*(high - before for high, before in zip(self.highest, self.before, strict=True)))

    def _look(self) -> None:
        while not self._end.wait(self.interval_s):
            with self._lock, contextlib.suppress(OSError):  # a process that has ended
                self.highest = Counters(*map(max, self.highest, counters(self.pids)))
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
