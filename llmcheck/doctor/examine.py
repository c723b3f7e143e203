"""Judges what was gathered by the packs, and puts the findings in the order in which they should be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

from llmcheck.doctor.subjects import Gathered
from llmcheck.report.finding import Check, Finding, PackStamp, Report, worst_first
from llmcheck.report.gate import Gate
from llmcheck.rules.engine import Result, is_fragment, judge
from llmcheck.rules.facts import Facts, Registry
from llmcheck.rules.rule import Pack, Rule


def examine(packs: Sequence[Pack], gathered: Gathered, registry: Registry, gate: Gate, today: date) -> Report:
    """The report of all rules that touch a subject that was asked for. Log signatures are diagnosed elsewhere (logs)."""
    findings: list[Finding] = []
    checks: list[Check] = []
    for pack in packs:
        for rule in pack.rules:
            if rule.log is not None or rule.status == "removed" or not gate.wants(rule.code):
                continue
            subjects = subjects_of(rule, registry)
            if not subjects & gathered.wanted:
                continue
            results = [judge(rule, facts, registry, today) for facts in _instances(subjects, gathered)]
            findings += _distinct(finding_of(result, pack) for result in results if result.outcome in ("fail", "unknown"))
            checks.append(_check(results, pack))
    findings.sort(key=worst_first)
    return Report(
        findings=tuple(findings),
        checks=tuple(checks),
        packs=stamps(packs, {check.pack for check in checks}),
        subjects=tuple(gathered.titles),
        notes=tuple(gathered.notes),
    )


def subjects_of(rule: Rule, registry: Registry) -> set[str]:
    """The subjects whose facts a rule reads."""
    return {kind.subject for name in rule.facts() if (kind := registry.kind(name)) is not None}


def stamps(packs: Iterable[Pack], used: set[str]) -> tuple[PackStamp, ...]:
    """Which of `packs` judged, and in which state."""
    return tuple(PackStamp(id=pack.id, version=pack.version, digest=pack.digest) for pack in packs if pack.id in used)


def finding_of(result: Result, pack: Pack) -> Finding:
    """A result that failed or could not be decided, as a finding."""
    rule = result.rule
    shown = dict(result.facts)
    return Finding(
        code=rule.code,
        name=rule.name,
        title=rule.title,
        pack=pack.id,
        outcome=result.outcome,
        severity=result.severity,
        confidence=result.confidence,
        status=rule.status,
        message=headline(rule, result.message),
        why=rule.why,
        location=result.location,
        captures=shown,
        missing=result.missing,
        fix=result.fix or rule.fix,
        references=rule.references,
    )


def headline(rule: Rule, message: str) -> str:
    """`message`, after the rule's title where it is no more than a value: reports have nothing else to say what it is about."""
    if not message or message == rule.title:
        return rule.title
    return f"{rule.title}: {message}" if is_fragment(rule.message) else message


def _instances(subjects: set[str], gathered: Gathered) -> list[Facts]:
    """The facts to judge a rule by: the common ones, and once more for each further file of a subject that the rule is about."""
    further = [gathered.facts.merged(found) for found in gathered.files if subjects & found.subjects]
    return [gathered.facts, *further]


def _check(results: Sequence[Result], pack: Pack) -> Check:
    """The outcome that counts: the worst over the instances."""
    order = ("fail", "unknown", "pass", "skip")
    worst = min(results, key=lambda result: order.index(result.outcome))
    note = worst.reason or "; ".join(f"{name}: {why}" for name, why in worst.missing)
    rule = worst.rule
    return Check(code=rule.code, name=rule.name, title=rule.title, pack=pack.id, outcome=worst.outcome, severity=worst.severity, note=note)


def _distinct(findings: Iterable[Finding]) -> list[Finding]:
    """Without repeats: a rule about two subjects may fail for the same reason with each further file of one of them."""
    kept: list[Finding] = []
    for finding in findings:
        if finding not in kept:
            kept.append(finding)
    return kept
