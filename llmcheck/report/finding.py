"""Findings and reports: what doctor says, whatever form it is written in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmcheck.rules.facts import Location
from llmcheck.rules.rule import SEVERITIES, Confidence, Fix, Outcome, Role, Severity, Status

Suppression = Literal["ignored", "baseline", "allowed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that failed, or that could not be decided.

    `location` is where it was read; `evidence` at most three raw lines; `count` how often it was seen, over `ranks`; `explains` the
    codes of the cascades that stand under a root cause.
    """

    code: str
    name: str
    title: str
    pack: str
    outcome: Outcome
    severity: Severity
    confidence: Confidence
    status: Status
    message: str
    why: str = ""
    role: Role | None = None
    cause: str | None = None
    candidates: tuple[str, ...] = ()
    family: str | None = None
    location: Location | None = None
    evidence: tuple[str, ...] = ()
    captures: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    ranks: tuple[int, ...] = ()
    explains: tuple[str, ...] = ()
    explained_by: str | None = None
    missing: tuple[tuple[str, str], ...] = ()
    fix: tuple[Fix, ...] = ()
    references: tuple[str, ...] = ()
    group: tuple[str, ...] = ()  # what tells two findings of one rule apart
    suppressed_by: Suppression | None = None
    suppression: str = ""  # the reason given

    @property
    def fingerprint(self) -> str:
        """Stays the same from run to run: the code, what tells findings of it apart, and the file's name without its folder or line."""
        place = re.split(r"[\\/]", self.location.uri)[-1] if self.location is not None else ""
        text = "\0".join([self.code, *self.group, place])
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one rule, for those who want to see everything: `note` says why it was skipped."""

    code: str
    name: str
    title: str
    pack: str
    outcome: Outcome
    severity: Severity
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LastException:
    """What a log in which no signature matched ended with."""

    type: str
    message: str
    location: Location
    frame: str = ""


@dataclass(frozen=True, kw_only=True)
class PackStamp:
    """Which rules judged."""

    id: str
    version: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that doctor has to say. `findings`: root causes first. `notes`: what was not read or not checked."""

    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    packs: tuple[PackStamp, ...]
    subjects: tuple[str, ...]  # titles of what was examined
    notes: tuple[str, ...] = ()
    exceptions: tuple[LastException, ...] = ()
    hidden: int = 0  # findings and undecided rules that are less sure than --min-confidence asks: in no form of the report

    def counted(self, outcome: Outcome) -> int:
        """How many rules had that outcome."""
        return sum(check.outcome == outcome for check in self.checks)

    def active(self) -> tuple[Finding, ...]:
        """Failures that nothing suppresses."""
        return tuple(f for f in self.findings if f.outcome == "fail" and f.suppressed_by is None)

    def unknown(self) -> tuple[Finding, ...]:
        """Rules that could not be decided and that nobody allowed to be so."""
        return tuple(f for f in self.findings if f.outcome == "unknown" and f.suppressed_by is None)


def worst_first(finding: Finding) -> tuple[int, int, int]:
    """Sort key: failures before the undecided, errors before notes."""
    return (finding.outcome != "fail", finding.role == "cascade", SEVERITIES.index(finding.severity))
