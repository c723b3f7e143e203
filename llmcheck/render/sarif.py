"""Reports as SARIF 2.1.0, as GitHub code scanning takes it.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html and GitHub's "SARIF support for code scanning". A result without
a physical location makes GitHub refuse the whole upload, so each has one: what was read, else the file that pins the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from llmcheck import __version__
from llmcheck.render.report_json import ascii_json
from llmcheck.report.finding import Finding, Report
from llmcheck.report.gate import Gate, gates, hidden_words
from llmcheck.rules.rule import Fix

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MAX_RESULTS = 5_000  # GitHub keeps no more of a run
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def render(report: Report, gate: Gate, *, fallback: str) -> str:
    """`report` as SARIF text. `fallback`: the file that findings about the environment point to."""
    failures = [finding for finding in report.findings if finding.outcome == "fail"][:MAX_RESULTS]
    codes = list(dict.fromkeys(finding.code for finding in failures))
    run = {
        "tool": {
            "driver": {
                # No informationUri, which validators ask for: the project has no public address yet, and one that leads nowhere helps
                # nobody. Rules have a helpUri where they have a source.
                "name": "llmcheck",
                "version": __version__,
                "semanticVersion": re.sub(r"\.?(dev\d+)$", r"-\1", __version__),
                "rules": [_rule(next(finding for finding in failures if finding.code == code)) for code in codes],
            }
        },
        "automationDetails": {"id": "llmcheck/doctor/"},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"SRCROOT": {"description": {"text": "the folder that llmcheck ran in"}}},
        "results": [_result(finding, codes.index(finding.code), gate, fallback) for finding in failures],
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": _notifications(report)}],
    }
    return ascii_json({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(finding: Finding) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": finding.code,
        "name": finding.name,
        "shortDescription": {"text": finding.title},
        "fullDescription": {"text": finding.why or finding.title},
        "help": {"text": _help(finding.fix, finding), "markdown": _help(finding.fix, finding)},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": {"tags": [finding.pack, *([finding.family] if finding.family else [])], "precision": _PRECISION[finding.confidence]},
    }
    if finding.references:
        rule["helpUri"] = finding.references[0]
    return rule


_PRECISION = {"high": "high", "medium": "medium", "low": "low"}


def _help(fixes: Sequence[Fix], finding: Finding) -> str:
    lines = [finding.why or finding.title, *[f"- {fix.words()}" for fix in fixes]]
    return "\n".join([*lines, f"llmcheck explain {finding.code}"])


def _result(finding: Finding, index: int, gate: Gate, fallback: str) -> dict[str, Any]:
    location = finding.location
    uri, line = (location.uri, location.line) if location is not None and location.uri != "-" else (fallback, None)
    # A finding that cannot stop a pipeline must not look as if it had.
    level = _LEVELS[finding.severity] if gates(finding, gate) else "note"
    text = finding.message + (f" Fix: {finding.fix[0].words()}" if finding.fix else "")
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": level,
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(uri), "region": {"startLine": max(line or 1, 1)}}}],
        "partialFingerprints": {"llmcheck/v1": finding.fingerprint},
        "occurrenceCount": finding.count,
        "properties": {"confidence": finding.confidence, **({"cause": finding.cause} if finding.cause else {})},
    }
    if finding.suppressed_by is not None:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.suppression}]
    return result


def _artifact(path: str) -> dict[str, str]:
    """Relative to the folder that we run in where it lies below it; else by its name alone, so that no machine's path is uploaded."""
    from urllib.parse import quote

    relative = os.path.normpath(path)
    if os.path.isabs(relative):
        relative = os.path.relpath(relative)
    if relative.startswith(".."):
        relative = os.path.basename(relative)
    return {"uri": quote(os.fsencode(relative.replace(os.sep, "/"))), "uriBaseId": "SRCROOT"}


def _notifications(report: Report) -> list[dict[str, Any]]:
    told = [
        {
            "level": "warning",
            "descriptor": {"id": finding.code},
            "message": {"text": f"could not be decided: {finding.title} ({', '.join(name for name, _ in finding.missing)})"},
        }
        for finding in report.unknown()
    ]
    notes = [*report.notes, *([hidden_words(report)] if report.hidden else [])]
    return [*told, *({"level": "note", "message": {"text": note}} for note in notes)]
