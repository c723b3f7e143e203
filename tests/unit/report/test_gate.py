"""The gate: what counts, and the exit code."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from llmcheck.console import Terminal
from llmcheck.errors import UserError
from llmcheck.render import annotations, junit, report_json, report_markdown, report_text, sarif
from llmcheck.report import settings
from llmcheck.report.finding import Check, Report
from llmcheck.report.gate import Gate, Ignore, apply, exit_code, sure_enough
from tests.unit.report.conftest import finding

TODAY = date(2026, 11, 24)


def only(*findings: object) -> Report:
    return Report(findings=findings, checks=(), packs=(), subjects=())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("severity", "fail_on", "code"),
    [
        ("error", "error", 1),
        ("warning", "error", 0),
        ("warning", "warning", 1),
        ("info", "warning", 0),
        ("info", "info", 1),
        ("error", "never", 0),
    ],
)
def test_fail_on_is_inclusive(severity: str, fail_on: str, code: int) -> None:
    assert exit_code(only(finding("LCV001", severity=severity)), Gate(fail_on=fail_on)) == code  # type: ignore[arg-type]


def test_unknown_is_never_pass() -> None:
    assert exit_code(only(finding("LCV001", outcome="unknown")), Gate()) == 3


def test_unknown_warnings_stop_only_the_strict() -> None:
    undecided = only(finding("LCV001", outcome="unknown", severity="warning"))
    assert exit_code(undecided, Gate()) == 0
    assert exit_code(undecided, Gate(strict=True)) == 3


def test_findings_win_over_the_undecided() -> None:
    assert exit_code(only(finding("LCV001"), finding("LCV002", outcome="unknown")), Gate()) == 1


def test_the_unsure_and_the_experimental_do_not_gate() -> None:
    assert exit_code(only(finding("LCV001", confidence="low")), Gate(min_confidence="medium")) == 0
    assert exit_code(only(finding("LCV001", status="experimental")), Gate()) == 0


def test_what_is_less_sure_leaves_the_report_and_is_counted() -> None:
    sure, unsure = finding("LCV001", explains=("LCV003",)), finding("LCV002", confidence="low", explains=("LCV004",))
    effects = (finding("LCV003", confidence="low", explained_by="LCV001"), finding("LCV004", explained_by="LCV002"))
    report = sure_enough(
        only(sure, effects[0], unsure, effects[1], finding("LCV005", outcome="unknown", confidence="low")), Gate(min_confidence="medium")
    )
    assert [(f.code, f.explained_by, f.explains) for f in report.findings] == [("LCV001", None, ()), ("LCV004", None, ())]
    assert report.hidden == 3


def test_every_form_tells_how_many_are_not_told() -> None:
    gate = Gate(min_confidence="high")
    check = Check(code="LCV002", name="n", title="t", pack="versions", outcome="fail", severity="error")
    report = sure_enough(replace(only(finding("LCV002", confidence="low", message="hidden thing")), checks=(check,)), gate)
    forms = {
        "text": report_text.render(report, 0, Terminal()),
        "json": report_json.render(report, 0),
        "sarif": sarif.render(report, gate, fallback="llmcheck.toml"),
        "junit": junit.render(report, gate),
        "github": annotations.render(report, gate),
        "markdown": report_markdown.render(report, 0),
    }
    told = {name: "hidden thing" not in text and ("less sure" in text or '"hidden": 1' in text) for name, text in forms.items()}
    assert told == dict.fromkeys(forms, True)


def test_allowed_unknown() -> None:
    gate = Gate(allow_unknown=("LCV001",))
    assert exit_code(apply(only(finding("LCV001", outcome="unknown")), gate, TODAY), gate) == 0


IGNORE = Ignore(code="LCV001", reason="ticket 7", expires=date(2026, 12, 1))


def test_an_ignore_suppresses_with_its_reason() -> None:
    report = apply(only(finding("LCV001")), Gate(ignores=(IGNORE,)), TODAY)
    assert (report.findings[0].suppressed_by, report.findings[0].suppression) == ("ignored", "ticket 7")


def test_an_expired_ignore_brings_the_finding_back_and_says_so() -> None:
    gate = Gate(ignores=(replace(IGNORE, expires=date(2026, 11, 23)),))
    report = apply(only(finding("LCV001")), gate, TODAY)
    assert exit_code(report, gate) == 1
    assert "expired on 2026-11-23" in report.notes[0]


def test_an_ignore_that_covers_nothing_is_told() -> None:
    assert "covers nothing" in apply(only(), Gate(ignores=(IGNORE,)), TODAY).notes[0]


def test_an_ignore_may_be_narrowed_to_a_path() -> None:
    gate = Gate(ignores=(replace(IGNORE, path="logs/*.log"),))
    assert apply(only(finding("LCV001")), gate, TODAY).findings[0].suppressed_by is None


def test_the_baseline_knows_findings_by_fingerprint() -> None:
    one = finding("LCV001")
    gate = Gate(baseline=frozenset({one.fingerprint}))
    assert exit_code(apply(only(one), gate, TODAY), gate) == 0


def test_the_fingerprint_does_not_depend_on_line_folder_or_message(report: Report) -> None:
    one = report.findings[0]
    assert one.location is not None
    moved = replace(one, message="other", count=3, location=replace(one.location, uri="elsewhere/run.log", line=999))
    assert moved.fingerprint == one.fingerprint
    assert replace(one, group=("ALLREDUCE",)).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[ignore]]\ncode = 'LCV001'\nexpires = 2026-12-01\n", "reason: missing"),
        ("[[ignore]]\ncode = 'LCV001'\nreason = 'x'\n", "expires: missing"),
        ("[[ignore]]\ncode = 'LCV001'\nreason = 'x'\nexpires = '2026-12-01'\n", "expected a date"),
        ("fail_onn = 'error'\n", "did you mean 'fail_on'"),
        ("fail_on = ", "not valid TOML"),
    ],
)
def test_settings_are_strict(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "llmcheck.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        settings.load(str(file))
    assert told in caught.value.what + caught.value.why


def test_an_ignore_of_a_code_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "llmcheck.toml"
    file.write_text("[[ignore]]\ncode = 'LCV999'\nreason = 'x'\nexpires = 2026-12-01\n")
    with pytest.raises(UserError, match="faults"):
        settings.check(settings.load(str(file)), ["LCV001"], str(file))
