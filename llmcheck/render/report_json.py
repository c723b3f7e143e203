"""Reports as JSON, schema ``llmcheck.report/1`` (llmcheck/schema/report-1.json)."""

from __future__ import annotations

import json
import re
from typing import Any

from llmcheck import __version__
from llmcheck.codec import to_plain
from llmcheck.report.finding import Finding, Report

SCHEMA = "llmcheck.report/1"
# A whole pair (kept), an escaped backslash (kept: what follows it is no escape), or half of a pair.
_LONE_SURROGATE = re.compile(r"(\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|\\\\)|\\ud[89a-f][0-9a-f]{2}")


def document(report: Report, exit_code: int) -> dict[str, Any]:
    """`report` as plain values."""
    return {
        "schema": SCHEMA,
        "llmcheck_version": __version__,
        "subjects": list(report.subjects),
        "packs": [{"id": pack.id, "version": pack.version, "sha256": pack.digest} for pack in report.packs],
        "findings": [finding_document(finding) for finding in report.findings],
        "exceptions": [to_plain(exception) for exception in report.exceptions],
        "summary": summary(report, exit_code),
        "notes": list(report.notes),
    }


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding as plain values, its fingerprint included."""
    plain: dict[str, Any] = to_plain(finding)
    del plain["group"]
    plain["missing"] = [{"fact": name, "why": why} for name, why in finding.missing]
    plain["fingerprint"] = finding.fingerprint
    return plain


def summary(report: Report, exit_code: int) -> dict[str, int]:
    """How many of what. Suppressed findings count as such and as nothing else."""
    active = report.active()
    return {
        "errors": sum(finding.severity == "error" for finding in active),
        "warnings": sum(finding.severity == "warning" for finding in active),
        "infos": sum(finding.severity == "info" for finding in active),
        "unknown": len(report.unknown()),
        "suppressed": sum(finding.suppressed_by is not None for finding in report.findings),
        "hidden": report.hidden,
        "rules_passed": report.counted("pass"),
        "rules_skipped": report.counted("skip"),
        "exit_code": exit_code,
    }


def render(report: Report, exit_code: int) -> str:
    """`report` as JSON text."""
    return ascii_json(document(report, exit_code))


def ascii_json(value: Any) -> str:
    """`value` as JSON that nobody acts on but a JSON parser.

    Control characters are escaped by the encoder, everything beyond ASCII by choice. Undecodable bytes of file names become replacement
    characters: half of a surrogate pair is no text to most parsers. ``##[`` is a command to the runners of pipelines wherever it stands.
    """
    text = json.dumps(value, indent=1, ensure_ascii=True)
    if "\\ud" in text:
        text = _LONE_SURROGATE.sub(lambda match: match[1] or "\\ufffd", text)
    return (text.replace("##", "#\\u0023") if "##" in text else text) + "\n"
