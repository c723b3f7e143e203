"""Reports as Markdown: a pull-request comment or a job summary."""

from __future__ import annotations

from llmcheck.render.markdown import escape
from llmcheck.render.report_json import summary
from llmcheck.report.finding import Finding, Report
from llmcheck.report.gate import hidden_words

_SIGNS = {"error": "❌", "warning": "⚠️", "info": "ℹ️"}


def render(report: Report, exit_code: int) -> str:
    """`report` as GitHub-flavoured Markdown."""
    counts = summary(report, exit_code)
    told = f"{counts['errors']} errors, {counts['warnings']} warnings, {counts['unknown']} undecided, {counts['rules_passed']} passed"
    lines = [f"### llmcheck doctor: {told}", ""]
    active = report.active()
    for finding in active:
        lines += [*_finding(finding), ""]
    if not active:
        lines += ["Nothing found." if not report.unknown() else "Nothing found among what could be checked.", ""]
    for exception in report.exceptions:
        place = f"{exception.location.uri}:{exception.location.line}"
        lines += [f"No signature matched; the last exception ({escape(place)}): {escape(exception.type)}: {escape(exception.message)}", ""]
    rest = [f"- undecided: {finding.code} {escape(finding.title)}" for finding in report.unknown()]
    rest += [f"- {escape(note)}" for note in report.notes]
    rest += [f"- {escape(hidden_words(report))}"] if report.hidden else []
    rest += [f"- {finding.suppressed_by}: {finding.code} {escape(finding.message)} ({escape(finding.suppression)})"
             for finding in report.findings if finding.suppressed_by is not None]  # fmt: skip
    if rest:
        lines += ["<details><summary>Not checked, not decided, suppressed</summary>", "", *rest, "", "</details>", ""]
    return "\n".join(lines)


def _finding(finding: Finding) -> list[str]:
    place = ""
    if finding.location is not None:
        line = f":{finding.location.line}" if finding.location.line is not None else ""
        place = f" ({escape(finding.location.uri + line)})"
    lines = [f"{_SIGNS[finding.severity]} **{finding.code}** {escape(finding.message)}{place}"]
    if finding.explained_by is not None:
        lines[0] += f" — an effect of {finding.explained_by}"
    lines += [f"   - {escape(fix.words())}" for fix in finding.fix]
    return lines
