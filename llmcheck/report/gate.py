"""What a report means for a pipeline: which findings are ignored, known or allowed, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from typing import Literal

from llmcheck.report.finding import Finding, Report
from llmcheck.rules.rule import CONFIDENCES, SEVERITIES, Confidence

FailOn = Literal["error", "warning", "info", "never"]


@dataclass(frozen=True, kw_only=True)
class Ignore:
    """An entry of llmcheck.toml: a code, optionally where, why, and until when."""

    code: str
    reason: str
    expires: date
    path: str = ""  # a glob over the finding's location
    captures: Mapping[str, str] | None = None

    def covers(self, finding: Finding) -> bool:
        """True when this entry is about `finding`."""
        if finding.code != self.code:
            return False
        if self.path and (finding.location is None or not fnmatchcase(finding.location.uri, self.path)):
            return False
        return all(finding.captures.get(name) == value for name, value in (self.captures or {}).items())


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How strict to be. `select` and `ignore` are prefixes of codes."""

    fail_on: FailOn = "error"
    min_confidence: Confidence = "low"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignores: tuple[Ignore, ...] = ()
    baseline: frozenset[str] = frozenset()
    allow_unknown: tuple[str, ...] = ()
    strict: bool = False

    def wants(self, code: str) -> bool:
        """True when rules of this code are judged at all."""
        return (not self.select or code.startswith(self.select)) and not (self.ignore and code.startswith(self.ignore))


def apply(report: Report, gate: Gate, today: date) -> Report:
    """`report` with its suppressed findings marked, and notes on ignores that are past their day or cover nothing."""
    used: set[int] = set()
    findings = []
    for finding in report.findings:
        marked = finding
        for index, entry in enumerate(gate.ignores):
            if entry.covers(finding):
                used.add(index)
                if today <= entry.expires:
                    marked = replace(finding, suppressed_by="ignored", suppression=entry.reason)
        if marked.suppressed_by is None and finding.fingerprint in gate.baseline:
            marked = replace(finding, suppressed_by="baseline", suppression="in the baseline")
        if marked.suppressed_by is None and finding.outcome == "unknown" and finding.code in gate.allow_unknown:
            marked = replace(finding, suppressed_by="allowed", suppression="--allow-unknown")
        findings.append(marked)
    return replace(report, findings=tuple(findings), notes=(*report.notes, *_ignore_notes(gate.ignores, used, today)))


def exit_code(report: Report, gate: Gate) -> int:
    """0 clean, 1 findings at or above `fail_on`, 3 a rule that could stop a run could not be decided. 1 wins over 3."""
    if gate.fail_on != "never":
        bar = SEVERITIES.index(gate.fail_on)
        if any(gates(finding, gate) and SEVERITIES.index(finding.severity) <= bar for finding in report.active()):
            return 1
    undecided = [finding for finding in report.unknown() if gate.strict or (finding.severity == "error" and finding.status == "stable")]
    return 3 if undecided else 0


def gates(finding: Finding, gate: Gate) -> bool:
    """True when a finding may stop a pipeline: sure enough, and of a rule that has proved itself."""
    sure = CONFIDENCES.index(finding.confidence) <= CONFIDENCES.index(gate.min_confidence)
    return sure and finding.status == "stable" and finding.role != "context"


def sure_enough(report: Report, gate: Gate) -> Report:
    """`report` without what is less sure than `min_confidence`: it counts nowhere and is told in no form, but how many it was.

    The rules count as skipped; an effect whose cause is left out stands by itself.
    """
    kept = visible(report.findings, gate.min_confidence)
    if len(kept) == len(report.findings):
        return report
    codes = {finding.code for finding in kept}
    gone = {finding.code for finding in report.findings} - codes
    note = f"less sure than --min-confidence {gate.min_confidence}"
    return replace(
        report,
        findings=tuple(
            replace(
                finding,
                explained_by=None if finding.explained_by in gone else finding.explained_by,
                explains=tuple(code for code in finding.explains if code not in gone),
            )
            for finding in kept
        ),
        checks=tuple(replace(check, outcome="skip", note=note) if check.code in gone else check for check in report.checks),
        hidden=len(report.findings) - len(kept),
    )


def visible(findings: Sequence[Finding], min_confidence: Confidence) -> tuple[Finding, ...]:
    """The findings that are sure enough to be told."""
    bar = CONFIDENCES.index(min_confidence)
    return tuple(finding for finding in findings if CONFIDENCES.index(finding.confidence) <= bar)


def hidden_words(report: Report) -> str:
    """How many findings `sure_enough` left out, in words; empty when it left out none."""
    return f"{report.hidden:,} less sure not told (--min-confidence)" if report.hidden else ""


def _ignore_notes(ignores: Sequence[Ignore], used: set[int], today: date) -> list[str]:
    notes = []
    for index, entry in enumerate(ignores):
        if today > entry.expires:
            notes.append(f"the [[ignore]] of {entry.code} expired on {entry.expires}: it no longer counts")
        elif index not in used:
            notes.append(f"the [[ignore]] of {entry.code} covers nothing in this report")
    return notes
