"""Running collectors apart from each other: each has a deadline, and one that fails or hangs is a reason, not a crash and not a silence."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmcheck.rules.facts import Facts

DEADLINE_S = 5.0
_MAX_OUTPUT_CHARS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Something that finds facts out. `names` are those (or wildcards) that are not known when it fails."""

    title: str
    names: tuple[str, ...]
    run: Callable[[Facts], None]


def collect(collectors: Sequence[Collector], deadline_s: float = DEADLINE_S) -> Facts:
    """The facts of all collectors, run side by side; those of one that raises or is not done in time are recorded as not found out.

    A thread that hangs (a file system that does not answer) is left behind: it is a daemon, so the program can end.
    """
    works = [_Work(collector) for collector in collectors]
    for work in works:
        work.start()
    left_s = deadline_s
    for work in works:
        started = _clock()
        work.join(max(left_s, 0.0))
        left_s -= _clock() - started
    total = Facts()
    for work in works:
        collector = work.collector
        why = f"{collector.title}: no answer in {deadline_s:g} s" if work.is_alive() else work.why
        if why is None:
            total = total.merged(work.facts)
            continue
        for name in collector.names:
            total.could_not(name, why)
    return total


class _Work(threading.Thread):
    def __init__(self, collector: Collector) -> None:
        super().__init__(daemon=True, name=collector.title)
        self.collector, self.facts = collector, Facts()
        self.why: str | None = None

    def run(self) -> None:
        try:
            self.collector.run(self.facts)
        except Exception as reason:  # a collector may not take the others down
            self.why = f"{self.collector.title}: {type(reason).__name__}: {reason}"[:300]


def _clock() -> float:
    import time

    return time.monotonic()


class CommandError(Exception):
    """A command could not be run, did not end in time, or said that it failed. The text is fit for a reason."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command printed and its exit code."""

    code: int
    text: str
    errors: str


def run_command(
    arguments: Sequence[str], *, deadline_s: float = DEADLINE_S, environ: Mapping[str, str] | None = None, check: bool = True
) -> Output:
    """Run a program with an argument list (never a shell). Raises CommandError when it cannot start, hangs, or (with `check`) fails."""
    name = os.path.basename(arguments[0])
    try:
        done = subprocess.run(
            list(arguments), stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, check=False,
            env=None if environ is None else dict(environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CommandError(f"{name}: no answer in {deadline_s:g} s") from None
    except (OSError, ValueError) as reason:
        raise CommandError(f"{name}: {getattr(reason, 'strerror', None) or reason}") from None
    text, errors = (stream.decode("utf-8", "replace")[:_MAX_OUTPUT_CHARS] for stream in (done.stdout, done.stderr))
    if check and done.returncode != 0:
        said = next((line for line in (errors + "\n" + text).splitlines() if line.strip()), "")
        raise CommandError(f"{name}: exit code {done.returncode}" + (f": {said.strip()[:200]}" if said.strip() else ""))
    return Output(code=done.returncode, text=text, errors=errors)


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    """The program that a shell would start: shutil.which, whose module costs 5 ms to import. POSIX only."""
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
