"""Logs in the report: signatures as findings, causes before their effects; what no signature knows as the last exception."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date

from llmcheck.doctor.examine import headline, stamps
from llmcheck.logs.diagnose import Cause, Diagnosis, diagnose
from llmcheck.logs.follow import Follower
from llmcheck.logs.match import Group, ScanResult, TracebackGroup, Undecided
from llmcheck.logs.scan import scan
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import Window, open_log
from llmcheck.progress import bytes_bar
from llmcheck.report.finding import Check, Finding, LastException, Report
from llmcheck.report.gate import Gate
from llmcheck.rules.engine import MAX_VALUE_CHARS, current_confidence, fill
from llmcheck.rules.facts import Location
from llmcheck.rules.rule import Pack, Rule

_EMPTY = "is empty: nothing was checked in it"


def add_logs(report: Report, paths: Sequence[str], packs: Sequence[Pack], gate: Gate, today: date, *, window: Window | None) -> Report:
    """`report` with what the logs of one run (one file, or one for each rank) hold. Raises UserError for a log that cannot be read."""
    signatures = Signatures(_rules(packs, gate))
    results = []
    for path in paths:
        with open_log(path, window=window) as source, bytes_bar(f"reading {path}", source.size_bytes) as watch:
            results.append(scan(source, signatures, watch=watch))
    return with_logs(report, results, packs, gate, today)


def with_logs(report: Report, results: Sequence[ScanResult], packs: Sequence[Pack], gate: Gate, today: date) -> Report:
    """`report` with the diagnosis of scanned logs before its own findings: they say what happened, the others what may."""
    diagnosis = diagnose(results)
    pack_of = {rule.code: pack.id for pack in packs for rule in pack.rules}
    findings = list(findings_of(diagnosis, pack_of, today))
    unread = [(result, why) for result in results if (why := result.unread if result.num_lines else _EMPTY)]
    checks = _checks(
        _rules(packs, gate), findings, pack_of, unread=f"the log {unread[0][1].partition(':')[0]}" if len(unread) == len(results) else ""
    )
    used = {check.pack for check in checks}
    exception = [_exception(diagnosis.exception)] if diagnosis.exception is not None else []
    return replace(
        report,
        findings=(*findings, *report.findings),
        checks=(*checks, *report.checks),
        packs=tuple(dict.fromkeys((*stamps(packs, used), *report.packs))),
        subjects=(*(_title(result) for result in results), *report.subjects),
        notes=(*(f"{_name(result)} {why}" for result, why in unread), *diagnosis.notes, *report.notes),
        exceptions=(*report.exceptions, *exception),
    )


def follow(path: str, packs: Sequence[Pack], gate: Gate, today: date, tell: Callable[[Sequence[Finding], str], None]) -> list[ScanResult]:
    """Follow a log and `tell` what is new (findings, a notice about the file) as the run writes it; ends when a pipe does.

    Raises UserError where it cannot be followed, and lets KeyboardInterrupt through.
    """
    follower = Follower(path, Signatures(_rules(packs, gate)))
    pack_of = {rule.code: pack.id for pack in packs for rule in pack.rules}
    try:
        for update in follower.updates():
            findings = [_finding(group, pack_of, today) for group in update.groups]
            tell(findings, update.notice)
        return follower.finish()
    finally:
        follower.close()


def findings_of(diagnosis: Diagnosis, pack_of: Mapping[str, str], today: date) -> Iterable[Finding]:
    """The findings of a diagnosis in the order in which they should be read."""
    for cause in diagnosis.causes:
        head = _finding(cause.group, pack_of, today)
        yield replace(head, explains=tuple(dict.fromkeys(effect.rule.code for effect in cause.effects)))
        yield from (replace(_finding(group, pack_of, today), explained_by=head.code) for group in _companions(cause))
    for group in diagnosis.context:
        yield _finding(group, pack_of, today)
    for entry in diagnosis.undecided:
        yield _undecided(entry, pack_of, today)


def _companions(cause: Cause) -> Sequence[Group]:
    return (*cause.effects, *cause.context)


def _rules(packs: Sequence[Pack], gate: Gate) -> list[Rule]:
    return [rule for pack in packs for rule in pack.rules if rule.log is not None and rule.status != "removed" and gate.wants(rule.code)]


def _finding(group: Group, pack_of: Mapping[str, str], today: date) -> Finding:
    rule, first = group.rule, group.first
    assert rule.log is not None
    finding = _of_rule(rule, pack_of, today)
    captures = {name: str(value)[:MAX_VALUE_CHARS] for name, value in first.captures.items()}
    return replace(
        finding,
        message=headline(rule, fill(rule.message, lambda name: captures.get(name.removeprefix("cap."), "?"))),
        location=Location(uri=first.source, line=first.line),
        evidence=(first.text,),
        captures=captures,
        count=group.count,
        ranks=tuple(sorted(rank for rank in group.ranks if rank is not None)),
        group=tuple(f"{name}={value}" for name, value in group.key),
        fix=tuple(replace(fix, text=fill(fix.text, lambda name: captures.get(name.removeprefix("cap."), "?"))) for fix in finding.fix),
    )


def _undecided(entry: Undecided, pack_of: Mapping[str, str], today: date) -> Finding:
    return replace(_of_rule(entry.rule, pack_of, today), outcome="unknown", missing=(("log", entry.reason),))


def _of_rule(rule: Rule, pack_of: Mapping[str, str], today: date) -> Finding:
    assert rule.log is not None
    return Finding(
        code=rule.code,
        name=rule.name,
        title=rule.title,
        pack=pack_of[rule.code],
        outcome="fail",
        severity=rule.severity,
        confidence=current_confidence(rule, rule.confidence, today),
        status=rule.status,
        message=rule.title,
        why=rule.why,
        role=rule.log.role,
        cause=rule.log.cause,
        candidates=rule.log.candidates,
        family=rule.log.family,
        fix=rule.fix,
        references=rule.references,
    )


def _checks(rules: Sequence[Rule], findings: Sequence[Finding], pack_of: Mapping[str, str], *, unread: str) -> list[Check]:
    """What became of every signature; `unread`: why none of them was looked for."""
    fired = {finding.code: finding.outcome for finding in findings}
    return [
        Check(
            code=rule.code,
            name=rule.name,
            title=rule.title,
            pack=pack_of[rule.code],
            outcome=fired.get(rule.code, "skip" if unread else "pass"),
            severity=rule.severity,
            note="" if rule.code in fired else unread,
        )
        for rule in rules
    ]


def _exception(group: TracebackGroup) -> LastException:
    raised = group.first.cause
    place = f", line {raised.file_line}" if raised.file_line is not None else ""
    frame = f"{raised.file}{place}" + (f", in {raised.function}" if raised.function else "") if raised.file else ""
    return LastException(type=raised.type, message=raised.message, location=Location(uri=group.first.source, line=raised.line), frame=frame)


def _title(result: ScanResult) -> str:
    return f"log {_name(result)} ({result.num_lines:,} line{'s' if result.num_lines != 1 else ''})"


def _name(result: ScanResult) -> str:
    return "<stdin>" if result.source == "-" else result.source
