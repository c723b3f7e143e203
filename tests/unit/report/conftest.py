"""A report with one of everything: errors, warnings, a cascade, something undecided, suppressed, hostile."""

from __future__ import annotations

import pytest

from llmcheck.report.finding import Check, Finding, LastException, PackStamp, Report
from llmcheck.rules.facts import Location
from llmcheck.rules.rule import Fix

HOSTILE = "evil \x1b[31m\r::stop-commands::x\n##[error] %0A <b>&\u202e ]]> \x00"


def finding(code: str, **fields: object) -> Finding:
    given: dict[str, object] = {
        "name": f"rule-{code.lower()}",
        "title": f"Title of {code}",
        "pack": "versions",
        "outcome": "fail",
        "severity": "error",
        "confidence": "high",
        "status": "stable",
        "message": f"message of {code}",
        "why": "Because.",
        "fix": (Fix(kind="command", run=("pip", "install", "transformers>=4.46.1"), text="or wait"),),
        "references": ("https://example.org/a",),
    }
    return Finding(code=code, **{**given, **fields})  # type: ignore[arg-type]


def check(code: str, outcome: str, note: str = "") -> Check:
    return Check(
        code=code, name=f"rule-{code.lower()}", title=f"Title of {code}", pack="versions", outcome=outcome, severity="error", note=note
    )  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    return Report(
        findings=(
            finding(
                "LCS001",
                pack="signatures",
                role="root",
                cause="a-cause",
                family="fam",
                location=Location(uri="logs/run.log", line=12),
                count=8,
                ranks=(0, 1),
            ),
            finding("LCS002", pack="signatures", role="cascade", explained_by="LCS001", location=Location(uri="logs/run.log", line=90)),
            finding("LCV003", severity="warning", message=HOSTILE, location=Location(uri="a%b,c:d.txt", line=3)),
            finding("LCV004", outcome="unknown", message="", missing=(("pkg.torch", "not pinned"),)),
            finding("LCV005", suppressed_by="ignored", suppression="known, ticket 5"),
            finding("LCV006", status="experimental"),
        ),
        checks=(
            check("LCV003", "fail"),
            check("LCV004", "unknown"),
            check("LCV005", "fail"),
            check("LCV006", "fail"),
            check("LCV007", "pass"),
            check("LCV008", "skip", "not installed"),
        ),
        packs=(PackStamp(id="versions", version="2026.11.1", digest="ab" * 32),),
        subjects=("requirements.txt",),
        notes=("the middle of run.log was not read",),
        exceptions=(
            LastException(type="ValueError", message=HOSTILE, location=Location(uri="run.log", line=7), frame="train.py:3 in main"),
        ),
    )
