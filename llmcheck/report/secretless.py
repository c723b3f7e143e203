"""A report without the secrets that logs, files and packs put into it: what every form is rendered from."""

from __future__ import annotations

from dataclasses import replace

from llmcheck.report.finding import Finding, LastException, Report
from llmcheck.report.redact import hide_secrets as hide
from llmcheck.rules.facts import Location


def without_secrets(report: Report) -> Report:
    """`report` with secrets replaced by what they were (``<token>``). Pipelines keep and upload reports."""
    return replace(
        report,
        findings=tuple(finding_without_secrets(finding) for finding in report.findings),
        subjects=tuple(map(hide, report.subjects)),
        notes=tuple(map(hide, report.notes)),
        exceptions=tuple(map(_exception, report.exceptions)),
        checks=tuple(replace(check, note=hide(check.note)) if check.note else check for check in report.checks),
    )


def finding_without_secrets(finding: Finding) -> Finding:
    """One finding likewise."""
    return replace(
        finding,
        message=hide(finding.message),
        location=_location(finding.location),
        evidence=tuple(map(hide, finding.evidence)),
        captures={name: hide(value) for name, value in finding.captures.items()},
        missing=tuple((name, hide(why)) for name, why in finding.missing),
        fix=tuple(replace(fix, run=tuple(map(hide, fix.run)), text=hide(fix.text)) for fix in finding.fix),
        group=tuple(map(hide, finding.group)),
    )


def _exception(exception: LastException) -> LastException:
    uri, line = hide(exception.location.uri), exception.location.line
    return replace(exception, message=hide(exception.message), frame=hide(exception.frame), location=Location(uri=uri, line=line))


def _location(location: Location | None) -> Location | None:
    return None if location is None else Location(uri=hide(location.uri), line=location.line)
