"""Reports for people. rich lays them out; it is imported here and nowhere near the machine forms.

Everything that comes from a log, a file name or a pack is spelt out by `escape` first: rich passes escape sequences on, to a pipe too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llmcheck.console import Terminal, escape
from llmcheck.render.report_json import summary
from llmcheck.report.finding import Finding, LastException, Report
from llmcheck.report.gate import visible
from llmcheck.rules.rule import Confidence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan", "unknown": "bold magenta"}
_MAX_UNKNOWN = 8  # undecided rules that are told one by one


def render(report: Report, exit_code: int, terminal: Terminal, *, min_confidence: Confidence = "low", verbose: bool = False) -> str:
    """`report` as text for `terminal`."""
    return _print(_parts(report, exit_code, terminal, min_confidence, verbose), terminal)


def render_findings(findings: Sequence[Finding], terminal: Terminal) -> str:
    """A few findings by themselves, as a followed log brings them."""
    return _print((part for finding in findings for part in _finding(finding, terminal)), terminal)


def _print(parts: Iterable[RenderableType], terminal: Terminal) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=terminal.columns,
        force_terminal=terminal.colour,
        color_system="256" if terminal.colour else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in stream.getvalue().split("\n"))


def _parts(report: Report, exit_code: int, terminal: Terminal, min_confidence: Confidence, verbose: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    active = visible(report.active(), min_confidence)
    for finding in active:
        yield from _finding(finding, terminal)
    for exception in report.exceptions:
        yield from _exception(exception)
    yield from _unknown(report.unknown(), verbose)
    if verbose:
        for check in report.checks:
            if check.outcome in ("pass", "skip"):
                note = f"  ({escape(check.note)})" if check.note else ""
                yield Text(f"{check.outcome:8} {check.code}  {escape(check.title)}{note}", style="dim")
        for finding in report.findings:
            if finding.suppressed_by is not None:
                yield Text(
                    f"{finding.suppressed_by:8} {finding.code}  {escape(finding.message)} ({escape(finding.suppression)})", style="dim"
                )
    for note in report.notes:
        yield Text(f"note: {escape(note)}", style="dim")
    if active or report.exceptions or report.notes or report.unknown():
        yield Text()
    yield _verdict(report, exit_code)


def _finding(finding: Finding, terminal: Terminal) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    indent = 2 if finding.explained_by is not None else 0
    head = Text()
    head.append(f"{finding.severity:8}", style=_STYLES[finding.severity])
    head.append(f" {finding.code} ", style="bold")
    head.append(escape(finding.message))
    if (place := _place(finding)) != "":
        head.append(f"  {place}", style="dim")
    yield Padding(head, (0, 0, 0, indent))
    rows = list(_details(finding, terminal))
    for style, text in rows:
        yield Padding(Text(text, style=style), (0, 0, 0, indent + 9))


def _details(finding: Finding, terminal: Terminal) -> Iterator[tuple[str, str]]:
    marks = []
    if finding.explained_by is not None:
        marks.append(f"an effect of {finding.explained_by}")
    if finding.count > 1:
        ranks = f" on {len(finding.ranks)} ranks" if len(finding.ranks) > 1 else ""
        marks.append(f"seen {finding.count} times{ranks}")
    elif finding.ranks:
        marks.append(f"rank {finding.ranks[0]}")
    if finding.confidence != "high":
        marks.append(f"confidence {finding.confidence}")
    if finding.status == "experimental":
        marks.append("experimental rule")
    if finding.candidates:
        marks.append("or: " + ", ".join(finding.candidates))
    if marks:
        yield "dim", escape("; ".join(marks))
    for line in finding.evidence[:1]:
        yield "dim", ("│ " if terminal.unicode else "| ") + escape(line[:300])
    for index, fix in enumerate(finding.fix[:2]):
        yield "green" if index == 0 else "", ("fix: " if index == 0 else "or:  ") + escape(fix.words())
    yield "dim", f"why: llmcheck explain {finding.code}"


def _place(finding: Finding) -> str:
    if finding.location is None:
        return ""
    line = f":{finding.location.line}" if finding.location.line is not None else ""
    return escape(("<stdin>" if finding.location.uri == "-" else finding.location.uri) + line)


def _exception(exception: LastException) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    place = escape(f"{exception.location.uri}:{exception.location.line}")
    yield Text(f"no signature matches; the last exception is at {place}:", style="bold")
    yield Padding(Text(escape(f"{exception.type}: {exception.message}"[:500])), (0, 0, 0, 9))
    if exception.frame:
        yield Padding(Text(escape(exception.frame), style="dim"), (0, 0, 0, 9))
    yield Padding(Text("`llmcheck rules new --kind log` starts a rule for it", style="dim"), (0, 0, 0, 9))


def _unknown(findings: Sequence[Finding], verbose: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    shown = findings if verbose else findings[:_MAX_UNKNOWN]
    for finding in shown:
        head = Text()
        head.append("unknown ", style=_STYLES["unknown"])
        head.append(f" {finding.code} ", style="bold")
        missing = "; ".join(f"{name}: {why}" for name, why in finding.missing[:3])
        head.append(escape(f"{finding.title} ({missing})"))
        yield head
    if len(findings) > len(shown):
        yield Text(f"{len(findings) - len(shown)} more rules could not be decided (--verbose)", style="dim")


def _verdict(report: Report, exit_code: int) -> Text:
    from rich.text import Text

    counts = summary(report, exit_code)
    parts = [
        _count(counts["errors"], "error"),
        _count(counts["warnings"], "warning"),
        *([_count(counts["infos"], "note")] if counts["infos"] else []),
        f"{counts['rules_passed']} passed",
        f"{counts['rules_skipped']} skipped",
        f"{counts['unknown']} unknown",
        *([f"{counts['suppressed']} suppressed"] if counts["suppressed"] else []),
    ]
    style = "bold red" if counts["errors"] else "bold yellow" if counts["warnings"] or counts["unknown"] else "bold green"
    examined = "examined: " + (", ".join(map(escape, report.subjects)) or "nothing")
    return Text.assemble((", ".join(parts), style), ("   " + examined, "dim"))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"
