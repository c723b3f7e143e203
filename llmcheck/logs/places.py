"""Where an exception came from tells what kind of failure it is, where no signature knows its words: rules with `raised_in`.

They see tracebacks, once the log has been read, and cost its lines nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from llmcheck.logs.match import Group, Match, Raised, TracebackGroup
from llmcheck.logs.tracebacks import is_messenger
from llmcheck.rules.rule import Rule, log_of

MAX_LINES_AFTER = 300  # of a log after a traceback: a run that writes more has gone on, so that the exception did not end it
MAX_TAIL_BYTES = 128 << 10  # of a log's end, in which a run is looked for that goes on after a traceback
ANYWHERE = "anywhere"  # in `raised_in`: any traceback, where no rule is about one of its frames
_MAX_TEXT_CHARS = 500
# Of a path outside of installed packages: the first folders are a user's or a mount's, called anything ("/data/ann"), and are left out.
_NUM_FIRST_PARTS, _NUM_LAST_PARTS, _LEAST_PARTS = 2, 5, 2
# What only a run that goes on writes: losses, and that it is done. One loss may be another rank's, written when this one was dying already.
_LOSS = re.compile(rb"\bloss['\"]?\s{0,4}[:=]\s{0,4}['\"]?\d", re.IGNORECASE)
_DONE = re.compile(rb"\btrain_runtime\b|\btraining (?:is |was )?(?:complete|completed|finished|done)\b", re.IGNORECASE)
_NUM_LOSSES = 2


class Ending(NamedTuple):
    """How a log of `num_lines` lines ends: `tail` has its last bytes, MAX_TAIL_BYTES at the most."""

    num_lines: int
    tail: bytes

    def shows_a_run_after(self, line: int) -> bool:
        """True where what comes after the line is more than a run writes that an exception has ended."""
        num_after = self.num_lines - line
        if num_after > MAX_LINES_AFTER:
            return True
        after = b"\n".join(self.tail.split(b"\n")[-num_after - 1 :]) if num_after > 0 else b""
        return _DONE.search(after) is not None or len(_LOSS.findall(after)) >= _NUM_LOSSES


def placed(
    rules: Sequence[Rule], tracebacks: Iterable[TracebackGroup], source: str, ending: Ending, compiled: Callable[[str], re.Pattern[str]]
) -> Iterator[Group]:
    """What `rules` say of the exceptions that may have ended the run, one group for each. `compiled` makes a pattern ready."""
    for group in tracebacks if rules else ():
        if group.last.level not in (None, "error") or ending.shows_a_run_after(group.last.end_line):
            continue
        chain = group.first.chain
        for raised in dict.fromkeys((chain[0], chain[-1])):
            rule = None if is_messenger(raised) or _in_cleanup(raised) else _rule_of(rules, raised, compiled)
            if rule is not None:
                first, last = _match(group.first.cause, source, group.first.rank), _match(group.last.cause, source, group.last.rank)
                yield Group(rule=rule, key=(), first=first, last=last, count=group.count, ranks=dict(group.ranks))
                break


def _rule_of(rules: Sequence[Rule], raised: Raised, compiled: Callable[[str], re.Pattern[str]]) -> Rule | None:
    """The first rule about the innermost frame that any rule is about."""
    able = [rule for rule in rules if compiled(log_of(rule).pattern).search(raised.text) is not None]
    for frame in [*map(_frame, raised.frames), ANYWHERE] if able else ():
        for rule in able:
            if any(part in frame for part in log_of(rule).raised_in):
                return rule
    return None


def _frame(frame: tuple[str, str]) -> str:
    """A frame as `raised_in` sees it: ``/transformers/trainer.py train`` between blanks, whatever stands before the package."""
    file, function = frame
    path = file.replace("\\", "/")
    _, installed, inside = path.rpartition("-packages/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    first = min(_NUM_FIRST_PARTS, len(parts) - _LEAST_PARTS) if path.startswith("/") or path[1:2] == ":" else 0
    shown = inside if installed else "/".join(parts[max(first, len(parts) - _NUM_LAST_PARTS, 0) :])
    return f" /{shown} {function.rpartition('.')[2]} "


def _in_cleanup(raised: Raised) -> bool:
    """True for what a destructor raised: Python prints it, and goes on."""
    return any(function.rpartition(".")[2] == "__del__" for _, function in raised.frames)


def _match(raised: Raised, source: str, rank: int | None) -> Match:
    return Match(source=source, line=raised.line, offset=raised.offset, text=raised.text[:_MAX_TEXT_CHARS], rank=rank)
