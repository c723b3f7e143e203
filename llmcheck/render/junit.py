"""Reports as JUnit XML, as GitLab and Jenkins take it: a test case for each rule, unknown as an error, skipped as skipped.

Source of the form: the schema of Jenkins' xunit plugin (junit-10.xsd).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llmcheck.console import escape, inert
from llmcheck.report.finding import Check, Finding, Report
from llmcheck.report.gate import Gate, gates

if TYPE_CHECKING:
    from xml.etree import ElementTree as Xml

# What XML 1.0 has no way to write, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report, gate: Gate) -> str:
    """`report` as JUnit XML."""
    from xml.etree import ElementTree as Xml  # where it is needed: the other forms do without

    findings: dict[str, list[Finding]] = {}
    for finding in report.findings:
        findings.setdefault(finding.code, []).append(finding)
    suites = Xml.Element("testsuites", name="llmcheck")
    packs = dict.fromkeys(check.pack for check in report.checks)
    for pack in packs:
        checks = [check for check in report.checks if check.pack == pack]
        suite = Xml.SubElement(suites, "testsuite", name=f"llmcheck.{pack}", tests=str(len(checks)))
        counts = {"failures": 0, "errors": 0, "skipped": 0}
        for check in checks:
            kind = _case(Xml.SubElement(suite, "testcase", name=_legal(f"{check.code} {check.title}"), classname=f"llmcheck.{pack}"), check,
                         findings.get(check.code, []), gate)  # fmt: skip
            if kind:
                counts[kind] += 1
        for name, number in counts.items():
            suite.set(name, str(number))
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + inert(Xml.tostring(suites, encoding="unicode")) + "\n"


def _case(case: Xml.Element, check: Check, findings: list[Finding], gate: Gate) -> str:
    from xml.etree import ElementTree as Xml

    active = [finding for finding in findings if finding.suppressed_by is None]
    failures = [finding for finding in active if finding.outcome == "fail"]
    if any(gates(finding, gate) and finding.severity == "error" for finding in failures):
        failure = Xml.SubElement(case, "failure", message=_legal(failures[0].message), type=check.code)
        failure.text = "\n".join(map(_words, failures))
        return "failures"
    if failures:  # warnings and notes are told, not failed
        Xml.SubElement(case, "system-out").text = "\n".join(map(_words, failures))
        return ""
    if active:
        missing = ", ".join(f"{name}: {why}" for name, why in active[0].missing)
        Xml.SubElement(case, "error", message=_legal(f"could not be decided: {missing}"), type="unknown")
        return "errors"
    if findings:
        Xml.SubElement(case, "skipped", message=_legal(f"{findings[0].suppressed_by}: {findings[0].suppression}"))
        return "skipped"
    if check.outcome == "skip":
        Xml.SubElement(case, "skipped", message=_legal(check.note))
        return "skipped"
    return ""


def _words(finding: Finding) -> str:
    place = f"{finding.location.uri}:{finding.location.line or 1}: " if finding.location is not None else ""
    lines = [f"{place}{finding.severity}: {finding.message}", *(f"  fix: {fix.words()}" for fix in finding.fix)]
    return "\n".join(map(_legal, lines))


def _legal(text: str) -> str:
    """`text` on one line, with what XML cannot hold, or a terminal would act on, spelt out."""
    return _ILLEGAL.sub("�", escape(text))
