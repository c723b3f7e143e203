"""Python tracebacks in a log: what was raised, where, and for what. Ranks that write at once are told apart by their prefix."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable

from llmcheck.logs.clean import Clean, Stripped
from llmcheck.logs.match import Raised, Traceback, TracebackGroup

HEADER = "Traceback (most recent call last)"  # a colon behind it, but for notebooks and rich
_PLAIN = HEADER + ":"
_ORIGINAL = "Original " + _PLAIN  # inside the message of what a DataLoader's worker raised; multiprocessing does alike
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_MAX_LINES = 2_000  # of one traceback, chained ones included (a recursion prints 1,000 frames at the most)
_MAX_FOREIGN_LINES = 20_000  # of other ranks, in between
_MAX_AFTER_LINES = 60  # of a message, in which a link to the next traceback may come
_MAX_MESSAGE_CHARS = 2_000
_MAX_CHAIN = 20
_MAX_MISFITS = 40  # lines among the frames that belong to no traceback
_MAX_GROUPS = 200
_MAX_FRAMES = 24  # kept of a traceback, the innermost ones
_BOX = "│╭╰┃┏┗"  # what rich draws its boxes with

# Raised by launchers and by what waits for another process: they tell that something failed elsewhere.
_MESSENGERS = (
    "ChildFailedError",
    "CalledProcessError",
    "SignalException",
    "KeyboardInterrupt",
    "SystemExit",
    "ProcessExitedException",
    "ProcessRaisedException",
    "RayTaskError",
    "ActorDiedError",
    "BrokenProcessPool",
)


def begins(text: str) -> str | None:
    """What a line that has the header begins: the type of the exception where a notebook names it, "" for any other traceback, or None for
    a mention.
    """
    if text.endswith(_PLAIN):
        return ""
    found = _heading().fullmatch(text)
    return (found[1] or "") if found is not None else None


def is_messenger(raised: Raised) -> bool:
    """True for what only reports that another process failed or was stopped."""
    return raised.type.rpartition(".")[2].startswith(_MESSENGERS)


class Collector:
    """Takes the lines after a header, one by one, until the traceback and its chain are over."""

    def __init__(self, source: str, number: int, offset: int, line: Clean) -> None:
        self.stream = line.stream
        self._named = begins(line.text) or ""  # in a notebook the header says what was raised, and code stands between the frames
        self.headers = {offset}  # of all headers that belong to this traceback, by the offset of their line
        self._source, self._line, self._offset, self._rank, self._level = source, number, offset, line.rank, line.level
        self._end_line = number
        self._chain: list[Raised] = []
        self._state = "frames"
        self._original = False
        self._frame: tuple[str, int | None, str] = ("", None, "")
        self._path: deque[tuple[str, str]] = deque(maxlen=_MAX_FRAMES)
        self._num_lines = self._num_foreign = self._num_after = self._num_misfits = 0
        self._blank = False

    def feed(self, number: int, offset: int, line: Stripped) -> bool:
        """Take a line; True when no more are wanted."""
        if line.stream != self.stream:
            self._num_foreign += 1
            return self._num_foreign > _MAX_FOREIGN_LINES
        self._num_lines += 1
        if self._num_lines > _MAX_LINES:
            return True
        text = line.text.removeprefix("  | ").removeprefix("    | ")  # exception groups
        if self._state == "frames":
            return self._frames(number, offset, text)
        return self._after(offset, text)

    def _frames(self, number: int, offset: int, text: str) -> bool:
        if HEADER in text and begins(text) is not None:  # of an unmarked rank that writes at once, or of a link
            self.headers.add(offset)
            return False
        if not text.strip():
            done = self._blank and not self._named
            self._blank = True
            return done
        self._blank = False
        if (match := _frame().match(text) or _other_frame().match(text)) is not None:
            self._frame = (match[1], int(match[2]) if match[2] else None, match[3] or "")
            self._path.appendleft((match[1], match[3] or ""))
            return False
        if text[0] in " \t" or text[0] in _BOX:
            return False
        kind, _, message = text.partition(": ")
        kind = kind.removesuffix(":")
        if self._named and kind.rpartition(".")[2] != self._named:
            return False
        if _type().fullmatch(kind) is None:
            self._num_misfits += 1  # something else was written in between, or the log has lost its indentation
            return self._num_misfits > _MAX_MISFITS
        file, file_line, function = self._frame
        raised = Raised(
            type=kind,
            message=message[:_MAX_MESSAGE_CHARS],
            line=number,
            file=file,
            file_line=file_line,
            function=function,
            offset=offset,
            frames=tuple(self._path),
        )
        self._path.clear()
        if self._original:
            self._chain.insert(0, raised)
        else:
            self._chain.append(raised)
        self._end_line = number
        self._frame = ("", None, "")
        self._state, self._num_after, self._blank = "after", 0, False
        return False

    def _after(self, offset: int, text: str) -> bool:
        """After an exception's line: the rest of its message, a link to the next traceback, or something else."""
        self._num_after += 1
        if self._num_after > _MAX_AFTER_LINES or len(self._chain) >= _MAX_CHAIN:
            return True
        if text.startswith(_ORIGINAL):
            self.headers.add(offset)
            self._state, self._original = "frames", True
            return False
        if text.startswith(_LINKS):
            self._state = "link"
            return False
        if HEADER in text and (named := begins(text)) is not None:
            if self._state != "link":
                return True  # another traceback
            self._named = named
            self.headers.add(offset)
            self._state, self._original = "frames", False
            return False
        if not text.strip():
            self._blank = True
            return False
        if self._state == "link":
            return True
        last = self._chain[0 if self._original else -1]
        if not last.message and not self._blank:
            index = self._chain.index(last)
            self._chain[index] = Raised(**{**vars(last), "message": text.strip()[:_MAX_MESSAGE_CHARS]})
        # After an empty line only a link still belongs to it, or the quotes in which multiprocessing wraps another process's traceback.
        return self._blank and text.strip() not in ('"""', "'''")

    def result(self) -> Traceback | None:
        """The traceback, or None when no exception's line was found."""
        if not self._chain:
            return None
        return Traceback(
            source=self._source,
            line=self._line,
            offset=self._offset,
            end_line=self._end_line,
            chain=tuple(self._chain),
            rank=self._rank,
            level=self._level,
        )


class Fold:
    """Tracebacks by their cause."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], TracebackGroup] = {}

    def add(self, traceback: Traceback) -> None:
        """Count `traceback` with those that have the same cause but for its numbers."""
        cause = traceback.cause
        key = (cause.type, _numbers().sub("#", cause.message[:200]))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _MAX_GROUPS:  # keep the first ones and the latest
                latest = list(self._groups)[-1]
                del self._groups[latest]
            group = self._groups[key] = TracebackGroup(first=traceback, last=traceback)
        group.count += 1
        group.ranks[traceback.rank] = group.ranks.get(traceback.rank, 0) + 1
        group.first = min(group.first, traceback, key=lambda t: t.line)
        group.last = max(group.last, traceback, key=lambda t: t.line)

    def groups(self) -> tuple[TracebackGroup, ...]:
        """In order of their first line."""
        return tuple(sorted(self._groups.values(), key=lambda group: group.first.line))


def choose(groups: Iterable[TracebackGroup]) -> TracebackGroup | None:
    """The traceback that tells most: the last one that is no messenger's, else the last one."""
    ordered = sorted(groups, key=lambda group: group.last.line)
    telling = [group for group in ordered if not is_messenger(group.last.cause)]
    return (telling or ordered)[-1] if ordered else None


@functools.cache
def _frame() -> re.Pattern[str]:
    return re.compile(r'\s{0,8}File "([^"\n]{1,1000})", line (\d{1,9})(?:, in ([^\n]{1,200}))?')


@functools.cache
def _other_frame() -> re.Pattern[str]:
    # IPython: File ~/lib/a.py:3, in f(x)   File /lib/a.py:3   ~/lib/a.py in f(x)   and the same as links of VS Code and Colab;
    # rich: │ /lib/a.py:3 in f   │
    file = r"((?:~|/|[A-Za-z]:\\)[^\s\]()\"]{1,500}\.py)(?::(\d{1,9}))?"
    return re.compile(rf"(?: {{0,4}}File |│ )?\[?{file}(?:\]\([^)\s]{{0,1000}}\))?(?:,? in ([\w.<>]{{1,200}})|(?<=\d)$)")


@functools.cache
def _heading() -> re.Pattern[str]:
    return re.compile(rf"(?:╭─{{1,200}} )?(?:([A-Za-z_][\w.]{{0,100}}) {{1,80}})?{re.escape(HEADER)}(?: ─{{1,200}}╮)?")


@functools.cache
def _type() -> re.Pattern[str]:
    return re.compile(r"[A-Za-z_][\w.]{0,200}")


@functools.cache
def _numbers() -> re.Pattern[str]:
    return re.compile(r"0x[0-9a-f]+|\d+")
