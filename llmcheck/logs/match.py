"""What a scan of one log found: matches of signatures, folded; tracebacks; and what could not be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmcheck.rules.rule import Level, Rule


@dataclass(frozen=True, kw_only=True)
class Match:
    """One place where a signature's pattern was found. `line` counts from 1, in the file as it is; `offset` is in bytes."""

    source: str
    line: int
    offset: int
    text: str  # the clean line
    captures: Mapping[str, str] = field(default_factory=dict)
    rank: int | None = None
    level: Level | None = None


@dataclass(kw_only=True)
class Group:
    """All matches of a rule that its `group_by` does not tell apart, over all ranks."""

    rule: Rule
    key: tuple[tuple[str, str], ...]  # captures named by group_by
    first: Match
    last: Match
    count: int = 0
    ranks: dict[int | None, int] = field(default_factory=dict)  # matches of each rank; None: lines that name none
    exact: bool = True  # False: `count` includes lines that have the literal and were not matched one by one

    @property
    def fired(self) -> bool:
        """True when it occurred as often as the rule asks, on one rank: eight ranks that say a thing once have not said it eight times."""
        assert self.rule.log is not None
        wanted = self.rule.log.min_count
        return max(self.ranks.values(), default=0) >= wanted or (not self.exact and self.count >= wanted)


@dataclass(frozen=True, kw_only=True)
class Raised:
    """An exception of a traceback: what was raised, where its innermost frame is, and on which line of the log it stands."""

    type: str
    message: str
    line: int
    file: str = ""
    file_line: int | None = None
    function: str = ""
    offset: int = field(default=0, compare=False)  # of that line
    frames: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)  # file and function of each, innermost first

    @property
    def text(self) -> str:
        """The exception's line, as Python prints it."""
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, kw_only=True)
class Traceback:
    """A traceback and those that it is chained with. The first of `chain` was raised first: it is the cause."""

    source: str
    line: int  # of the first header
    offset: int
    end_line: int
    chain: tuple[Raised, ...]
    rank: int | None = None
    level: Level | None = None  # that the header was logged at: below error, the program went on

    @property
    def cause(self) -> Raised:
        """What was raised first."""
        return self.chain[0]


@dataclass(kw_only=True)
class TracebackGroup:
    """Tracebacks with one cause, over all ranks and repetitions."""

    first: Traceback
    last: Traceback
    count: int = 0
    ranks: dict[int | None, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """A rule that could not be decided on this log, and why."""

    rule: Rule
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What one log holds. `notes` says what was not read, `unread` why nothing can be told from it.

    `tracebacks` are in order of their first line, as `groups` are.
    """

    source: str
    groups: tuple[Group, ...] = ()
    tracebacks: tuple[TracebackGroup, ...] = ()
    undecided: tuple[Undecided, ...] = ()
    notes: tuple[str, ...] = ()
    unread: str = ""
    num_lines: int = 0
    num_bytes: int = 0
    engine: str = ""
