"""What a rule is: the TOML of rules/README.md as values. Reading is load.py's, judging is engine.py's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
Confidence = Literal["high", "medium", "low"]
Status = Literal["experimental", "stable", "deprecated", "removed"]
Role = Literal["root", "cascade", "context"]
Outcome = Literal["fail", "pass", "skip", "unknown"]
Level = Literal["debug", "info", "warning", "error"]
Operator = Literal[
    "==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", "not contains", "matches", "not matches", "present"
]  # fmt: skip

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")  # worst first
CONFIDENCES: tuple[Confidence, ...] = ("high", "medium", "low")  # surest first
ROLES: tuple[Role, ...] = ("root", "cascade", "context")  # most telling first
MAX_WITHIN_LINES = 1_000  # how far `above` and `below` may look
MAX_LINES = 50  # how many lines a pattern may see


@dataclass(frozen=True, kw_only=True)
class Condition:
    """`left op right`, or one of `any`, or all of `all`."""

    left: str = ""
    op: Operator | None = None
    right: Any = None
    any: tuple[Condition, ...] = ()
    all: tuple[Condition, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """One border of a range of versions, as in OSV."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None


@dataclass(frozen=True, kw_only=True)
class Affects:
    """Releases of a package (or of a fact of type version) that a rule is about."""

    package: str = ""
    fact: str = ""
    events: tuple[Event, ...] = ()
    versions: tuple[str, ...] = ()
    absent: bool = False

    @property
    def name(self) -> str:
        """The fact that holds the version."""
        return self.fact or f"pkg.{self.package}"


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """One of a rule's `level`s: its severity where `when` holds."""

    severity: Severity
    confidence: Confidence
    when: tuple[Condition, ...]


@dataclass(frozen=True, kw_only=True)
class Fix:
    """What to do: a command (shown, never run), an edit of a file, or advice."""

    kind: Literal["command", "edit", "advice"]
    run: tuple[str, ...] = ()
    text: str = ""

    def command(self) -> str:
        """The argument list as one would type it; empty where there is none."""
        import shlex

        return shlex.join(self.run)

    def words(self) -> str:
        """In one line: the command, its remark in brackets."""
        command = self.command()
        return f"{command}  ({self.text})" if command and self.text else command or self.text


@dataclass(frozen=True, kw_only=True)
class Context:
    """Lines above or below a signature's that tell causes apart."""

    literal: str
    pattern: str = ""
    within: int = 200  # lines
    absent: bool = False


@dataclass(frozen=True, kw_only=True)
class LogPattern:
    """What a signature looks for in a log; see rules/README.md, Signatures."""

    pattern: str
    role: Role
    cause: str
    family: str
    literal: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    lines: int = 1
    levels: tuple[Level, ...] = ()
    min_count: int = 1
    above: tuple[Context, ...] = ()
    below: tuple[Context, ...] = ()
    raised_in: tuple[str, ...] = ()  # parts of a frame ("file function"): the pattern then sees the exception's line of a traceback only


@dataclass(frozen=True, kw_only=True)
class Example:
    """One of a rule's tests: facts or a log, and the outcome they must have."""

    expect: Outcome
    facts: Mapping[str, Any] | None = None
    absent: tuple[str, ...] = ()  # facts that were looked for and are not there
    log: str | None = None
    severity: Severity | None = None
    message: str | None = None
    captures: Mapping[str, str] | None = None
    line: int | None = None  # of the match, from 1
    also: tuple[str, ...] = ()  # names of other signatures that may fire on this log


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a pack."""

    code: str
    name: str
    title: str
    status: Status
    severity: Severity = "warning"
    confidence: Confidence = "medium"
    since: str = ""
    published: date | None = None
    review_by: date | None = None
    until: date | None = None
    aliases: tuple[str, ...] = ()
    why: str = ""
    message: str = ""
    evidence: str = ""
    example: str = ""
    fix: tuple[Fix, ...] = ()
    references: tuple[str, ...] = ()
    affects: tuple[Affects, ...] = ()
    needs: tuple[Condition, ...] = ()
    when: tuple[Condition, ...] = ()
    level: tuple[Escalation, ...] = ()
    log: LogPattern | None = None
    test: tuple[Example, ...] = ()
    file: str = ""  # of the pack that it was read from

    def conditions(self) -> Iterator[Condition]:
        """Every comparison of the rule, those inside `any` and `all` too."""
        yield from _comparisons(self.needs)
        yield from _comparisons(self.when)
        for level in self.level:
            yield from _comparisons(level.when)

    def facts(self) -> tuple[str, ...]:
        """Names of the facts that the rule reads, in order, each once."""
        names = [affects.name for affects in self.affects]
        for condition in self.conditions():
            names.append(condition.left)
            if (other := reference(condition.right)) is not None:
                names.append(other)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A folder of rules. `digest` is the SHA-256 over its files."""

    id: str
    title: str
    version: str
    prefix: str
    license: str = ""
    requires: str = ""
    rules: tuple[Rule, ...] = ()
    path: str = ""
    digest: str = ""


def reference(value: Any) -> str | None:
    """The fact that ``"$name"`` stands for, or None for any other value."""
    return value[1:] if isinstance(value, str) and value.startswith("$") and not value.startswith("$$") else None


def _comparisons(conditions: tuple[Condition, ...]) -> Iterator[Condition]:
    for condition in conditions:
        if condition.any or condition.all:
            yield from _comparisons(condition.any)
            yield from _comparisons(condition.all)
        else:
            yield condition


def log_of(rule: Rule) -> LogPattern:
    """What a rule about logs looks for."""
    assert rule.log is not None
    return rule.log
