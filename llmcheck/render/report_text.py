"""Reports for people: the cause first and in full, what it led to in a line each, at the width of the terminal.

Everything that comes from a log, a file name or a pack is spelt out by `escape` first, so that it cannot drive a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmcheck.console import Terminal, escape, inert
from llmcheck.render.draw import Pen, cut, width_of, wrap
from llmcheck.render.report_json import summary
from llmcheck.report.finding import Finding, LastException, Report
from llmcheck.report.gate import hidden_words
from llmcheck.rules.rule import Fix

_STYLES = {"error": "1;31", "warning": "1;33", "info": "1;36", "unknown": "1;35"}
_MAX_UNKNOWN = 8  # undecided rules, or reasons that several share, that are told one by one
_MIN_SHARED = 3  # rules that are undecided for one reason are told together from here on
_MAX_CANDIDATES = 3  # further causes that are named; `explain` has all
_MAX_FIXES = 2
_MAX_EVIDENCE_LINES = 2
_INDENT = 9  # columns of the severity


def render(report: Report, exit_code: int, terminal: Terminal, *, verbose: bool = False) -> str:
    """`report` as text for `terminal`. `verbose`: effects in full, and every rule that passed, was skipped or is suppressed."""
    return _joined(_parts(report, exit_code, Pen(terminal), verbose))


def render_findings(findings: Sequence[Finding], terminal: Terminal) -> str:
    """A few findings by themselves, as a followed log brings them."""
    return _joined(line for finding in findings for line in _finding(finding, Pen(terminal)))


def _joined(lines: Iterator[str]) -> str:
    return inert("".join(f"{line.rstrip()}\n" for line in lines))


def _parts(report: Report, exit_code: int, pen: Pen, verbose: bool) -> Iterator[str]:
    active = report.active()
    seen: set[tuple[str, int | None]] = set()
    for finding in active:
        place = (finding.location.uri, finding.location.line) if finding.location is not None else None
        if not verbose and (finding.explained_by is not None or finding.role == "context"):
            yield from _brief(finding, pen)
        elif not verbose and finding.role is not None and place in seen:
            yield from _also(finding, pen)
        else:
            yield from _finding(finding, pen)
        if place is not None:
            seen.add(place)
    for exception in report.exceptions:
        yield from _exception(exception, pen, known=any(finding.role is not None for finding in active))
    yield from _unknown(report.unknown(), pen, verbose)
    if verbose:
        yield from _rest(report, pen)
    for note in report.notes:
        yield from _styled(pen, "2", _wrapped(f"note: {escape(note)}", pen, 0, 6))
    if active or report.exceptions or report.notes or report.unknown():
        yield ""
    yield from _verdict(report, exit_code, pen)


def _finding(finding: Finding, pen: Pen) -> Iterator[str]:
    indent = 2 if finding.explained_by is not None else 0
    yield from _head(f"{finding.severity:8}", _STYLES[finding.severity], finding, pen, indent)
    left = indent + _INDENT
    if marks := _marks(finding):
        yield from _styled(pen, "2", _wrapped(escape(marks), pen, left, left))
    yield from _evidence(finding, pen, left)
    yield from _fixes(finding, pen, left)
    yield " " * left + pen.dim(f"why: llmcheck explain {finding.code}")


def _brief(finding: Finding, pen: Pen) -> Iterator[str]:
    """An effect, or a note beside a cause, in one line: its cause has the fix."""
    word = "note" if finding.role == "context" else "then"
    indent = 2 if finding.explained_by is not None else 0
    yield from _head(f"{word:{8 - indent}}", "2" if word == "note" else "", finding, pen, indent, count=True)


def _also(finding: Finding, pen: Pen) -> Iterator[str]:
    """Another reading of a line that was shown already."""
    yield from _head(f"{'or':8}", _STYLES[finding.severity], finding, pen, 0)
    yield from _fixes(finding, pen, _INDENT)


def _head(word: str, style: str, finding: Finding, pen: Pen, indent: int, *, count: bool = False) -> Iterator[str]:
    """The severity, code, message and place, wrapped under the message."""
    told = [*escape(finding.message).split()]
    place = _place(finding)
    if count and finding.count > 1:
        place = f"{place} ({_times(finding)})" if place else f"({_times(finding)})"
    left = indent + len(word) + 1 + len(finding.code) + 1
    # One column less: two blanks stand before the place.
    lines = wrap([*told, *([place] if place else [])], pen.terminal.columns - left - 1)
    if place and lines[-1].endswith(place):
        before = lines[-1][: len(lines[-1]) - len(place)].rstrip()
        lines[-1] = f"{before}{'  ' if before else ''}{pen.dim(place)}"
    first, *rest = lines or [""]
    yield f"{' ' * indent}{pen.style(style, word) if style else word} {pen.bold(finding.code)} {first}"
    yield from (" " * left + line for line in rest)


def _marks(finding: Finding) -> str:
    marks = []
    if finding.explained_by is not None:
        marks.append(f"{'beside' if finding.role == 'context' else 'an effect of'} {finding.explained_by}")
    if finding.count > 1:
        marks.append(f"seen {_times(finding)}")
    elif finding.ranks:
        marks.append(f"rank {finding.ranks[0]}")
    if finding.confidence != "high":
        marks.append(f"confidence {finding.confidence}")
    if finding.status == "experimental":
        marks.append("experimental rule")
    if finding.candidates:
        more = len(finding.candidates) - _MAX_CANDIDATES
        marks.append("it may also be " + ", ".join(finding.candidates[:_MAX_CANDIDATES]) + (f" or {more} more" if more > 0 else ""))
    return "; ".join(marks)


def _times(finding: Finding) -> str:
    return f"{finding.count:,} times" + (f" on {len(finding.ranks)} ranks" if len(finding.ranks) > 1 else "")


def _evidence(finding: Finding, pen: Pen, left: int) -> Iterator[str]:
    bar = pen.glyph("│ ", "| ")
    for text in finding.evidence[:1]:
        lines = wrap(escape(text).split(), pen.terminal.columns - left - 2)
        if len(lines) > _MAX_EVIDENCE_LINES:
            lines = [
                *lines[: _MAX_EVIDENCE_LINES - 1],
                cut(" ".join(lines[_MAX_EVIDENCE_LINES - 1 :]), pen.terminal.columns - left - 2, pen),
            ]
        yield from (" " * left + pen.dim(bar + line) for line in lines)


def _fixes(finding: Finding, pen: Pen, left: int) -> Iterator[str]:
    for index, fix in enumerate(finding.fix[:_MAX_FIXES]):
        yield from _styled(pen, "32" if index == 0 else "", _fix("fix: " if index == 0 else "or:  ", fix, pen, left))


def _fix(label: str, fix: Fix, pen: Pen, left: int) -> Iterator[str]:
    """A command stays on one line, whatever its length: it is there to be copied."""
    if not fix.run:
        lines = wrap(escape(fix.text).split(), pen.terminal.columns - left - len(label))
        yield from (" " * left + (label if index == 0 else " " * len(label)) + line for index, line in enumerate(lines))
        return
    command = escape(fix.command())
    text = f"({escape(fix.text)})" if fix.text else ""
    if width_of(command) + width_of(text) + len(label) + 2 <= pen.terminal.columns - left:
        yield " " * left + label + command + (f"  {text}" if text else "")
        return
    yield " " * left + label + command
    yield from _wrapped(text, pen, left + len(label), left + len(label)) if text else ()


def _wrapped(text: str, pen: Pen, first: int, rest: int) -> Iterator[str]:
    """`text` in lines of the terminal's width, the first indented by `first` columns and the others by `rest`."""
    lines = wrap(text.split(), pen.terminal.columns - max(first, rest))
    yield from (" " * (first if index == 0 else rest) + line for index, line in enumerate(lines))


def _styled(pen: Pen, style: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        bare = line.lstrip(" ")
        yield " " * (len(line) - len(bare)) + (pen.style(style, bare) if style else bare)


def _place(finding: Finding) -> str:
    if finding.location is None:
        return ""
    line = f":{finding.location.line}" if finding.location.line is not None else ""
    return escape(("<stdin>" if finding.location.uri == "-" else finding.location.uri) + line)


def _exception(exception: LastException, pen: Pen, *, known: bool) -> Iterator[str]:
    name = "<stdin>" if exception.location.uri == "-" else exception.location.uri
    place = escape(f"{name}:{exception.location.line}")
    told = "no signature knows why; the last exception is at" if known else "no signature matches; the last exception is at"
    yield pen.bold(f"{told} {place}:")
    yield from _wrapped(escape(f"{exception.type}: {exception.message}"[:500]), pen, _INDENT, _INDENT)
    if exception.frame:
        yield from _styled(pen, "2", _wrapped(escape(exception.frame), pen, _INDENT, _INDENT))
    yield from _styled(pen, "2", _wrapped("`llmcheck rules new --kind log` starts a rule for it", pen, _INDENT, _INDENT))


def _unknown(findings: Sequence[Finding], pen: Pen, verbose: bool) -> Iterator[str]:
    """Undecided rules; those that share one reason (an interpreter that does not answer) in one line."""
    by_reason: dict[str, list[Finding]] = {}
    for finding in findings:
        by_reason.setdefault(finding.missing[0][1] if finding.missing else "", []).append(finding)
    lines = []
    for reason, group in by_reason.items():
        if reason and not verbose and len(group) >= _MIN_SHARED:
            codes = ", ".join(finding.code for finding in group[:_MIN_SHARED])
            more = f" and {len(group) - _MIN_SHARED} more" if len(group) > _MIN_SHARED else ""
            lines.append((f"{len(group)} rules:", f"{reason} ({codes}{more})", len(group)))
            continue
        for finding in group:
            missing = "; ".join(f"{name}: {why}" for name, why in finding.missing[:3])
            lines.append((finding.code, f"{finding.title} ({missing})", 1))
    shown = lines if verbose else lines[:_MAX_UNKNOWN]
    for head, text, _ in shown:
        first, *rest = wrap(escape(text).split(), pen.terminal.columns - _INDENT - len(head) - 1)
        yield f"{pen.style(_STYLES['unknown'], 'unknown ')} {pen.bold(head)} {first}"
        yield from (" " * (_INDENT + len(head) + 1) + line for line in rest)
    left = sum(number for _, _, number in lines[len(shown) :])
    if left:
        yield pen.dim(f"{left} more rules could not be decided (--verbose)")


def _rest(report: Report, pen: Pen) -> Iterator[str]:
    """What needs nothing done: --verbose."""
    for check in report.checks:
        if check.outcome in ("pass", "skip"):
            note = f"  ({check.note})" if check.note else ""
            yield from _styled(pen, "2", _wrapped(escape(f"{check.outcome:8} {check.code}  {check.title}{note}"), pen, 0, _INDENT))
    for finding in report.findings:
        if finding.suppressed_by is not None:
            told = f"{finding.suppressed_by:8} {finding.code}  {finding.message} ({finding.suppression})"
            yield from _styled(pen, "2", _wrapped(escape(told), pen, 0, _INDENT))


def _verdict(report: Report, exit_code: int, pen: Pen) -> Iterator[str]:
    counts = summary(report, exit_code)
    active = report.active()
    effects = [finding for finding in active if finding.explained_by is not None]
    own = {severity: sum(f.severity == severity for f in active if f.explained_by is None) for severity in ("error", "warning", "info")}
    parts = [
        _count(own["error"], "error"),
        _count(own["warning"], "warning"),
        *([_count(own["info"], "note")] if own["info"] else []),
        *([_count(len(effects), "effect")] if effects else []),
        f"{counts['rules_passed']} passed",
        f"{counts['rules_skipped']} skipped",
        f"{counts['unknown']} unknown",
        *([f"{counts['suppressed']} suppressed"] if counts["suppressed"] else []),
        *([hidden_words(report)] if report.hidden else []),
    ]
    style = "1;31" if counts["errors"] else "1;33" if counts["warnings"] or counts["unknown"] else "1;32"
    told = ", ".join(parts)
    examined = "examined: " + (", ".join(map(escape, report.subjects)) or "nothing")
    if width_of(told) + width_of(examined) + 3 <= pen.terminal.columns:
        yield f"{pen.style(style, told)}   {pen.dim(examined)}"
        return
    yield from _styled(pen, style, _wrapped(told, pen, 0, 0))
    yield from _styled(pen, "2", _wrapped("   " + examined, pen, 3, 3))


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
