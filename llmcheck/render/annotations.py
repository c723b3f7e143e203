"""Reports as GitHub workflow commands: annotations on files.

Source: GitHub's "Workflow commands": data escapes %, CR and LF, properties also : and ,. A step shows at most 10 errors, 10 warnings and
10 notices; the rest is counted.
"""

from __future__ import annotations

from llmcheck.console import escape
from llmcheck.report.finding import Finding, Report
from llmcheck.report.gate import Gate, gates, hidden_words

MAX_EACH = 10
_KINDS = {"error": "error", "warning": "warning", "info": "notice"}


def render(report: Report, gate: Gate) -> str:
    """`report` as lines that begin with ``::``; nothing of what a log or configuration says can begin such a line."""
    lines: list[str] = []
    left: dict[str, int] = {}
    shown: dict[str, int] = {}
    for finding in report.active():
        kind = _KINDS[finding.severity] if gates(finding, gate) else "notice"
        if shown.get(kind, 0) < MAX_EACH:
            shown[kind] = shown.get(kind, 0) + 1
            lines.append(_command(finding, kind))
        else:
            left[kind] = left.get(kind, 0) + 1
    lines += [f"::notice title=llmcheck::{number} more of kind {kind}; the whole report has them" for kind, number in left.items()]
    unknown = report.unknown()
    if unknown:
        lines.append(
            f"::warning title=llmcheck::{len(unknown)} rules could not be decided: {', '.join(f.code for f in unknown[:MAX_EACH])}"
        )
    if report.hidden:
        lines.append(f"::notice title=llmcheck::{hidden_words(report)}")
    return "\n".join(lines) + "\n" if lines else ""


def _command(finding: Finding, kind: str) -> str:
    properties = [f"title={_property(f'{finding.code} {finding.title}')}"]
    if finding.location is not None and finding.location.uri != "-":
        properties.insert(0, f"file={_property(finding.location.uri)},line={max(finding.location.line or 1, 1)}")
    text = finding.message + (f"\nfix: {finding.fix[0].words()}" if finding.fix else "")
    return f"::{kind} {','.join(properties)}::{_data(text)}"


def _data(text: str) -> str:
    return "%0A".join(escape(line).replace("%", "%25") for line in text.splitlines())


def _property(text: str) -> str:
    return escape(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
