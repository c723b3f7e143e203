"""The forms of a report: each valid in its own schema, and none driven by what a log says."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from sarif_pydantic import Sarif

from llmcheck.console import Terminal
from llmcheck.render import annotations, junit, report_json, report_markdown, report_text, sarif
from llmcheck.report.finding import Report
from llmcheck.report.gate import Gate
from llmcheck.rules.rule import Fix
from tests.unit.report.conftest import finding

GATE = Gate()


def sarif_of(report: Report) -> dict[str, object]:
    document: dict[str, object] = json.loads(sarif.render(report, GATE, fallback="requirements.txt"))
    return document


def test_sarif_is_sarif(report: Report) -> None:
    Sarif.model_validate(sarif_of(report))


def test_every_sarif_result_has_a_place_and_a_fingerprint(report: Report) -> None:
    results = sarif_of(report)["runs"][0]["results"]  # type: ignore[index]
    assert [r["ruleId"] for r in results] == ["LCS001", "LCS002", "LCV003", "LCV005", "LCV006"]
    for result in results:
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] >= 1
        assert result["partialFingerprints"]["llmcheck/v1"].startswith("sha256:")


def test_sarif_points_environment_findings_at_what_pins_the_environment(report: Report) -> None:
    results = sarif_of(report)["runs"][0]["results"]  # type: ignore[index]
    assert results[3]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "requirements.txt"


def test_sarif_tells_suppressions_and_what_was_not_decided(report: Report) -> None:
    run = sarif_of(report)["runs"][0]  # type: ignore[index]
    assert run["results"][3]["suppressions"][0]["justification"] == "known, ticket 5"
    assert run["invocations"][0]["toolExecutionNotifications"][0]["descriptor"]["id"] == "LCV004"


def test_experimental_rules_are_notes_in_sarif(report: Report) -> None:
    assert sarif_of(report)["runs"][0]["results"][4]["level"] == "note"  # type: ignore[index]


def test_sarif_paths_carry_no_folder_of_this_machine(report: Report, tmp_path: object) -> None:
    from llmcheck.rules.facts import Location

    far = replace(report.findings[0], location=Location(uri=f"{tmp_path}/secret/run.log", line=1))
    text = sarif.render(replace(report, findings=(far,)), GATE, fallback="x")
    assert "secret" not in text
    assert '"run.log"' in text


def test_junit_is_xml_with_a_case_for_each_rule(report: Report) -> None:
    suites = ElementTree.fromstring(junit.render(report, GATE))
    cases = {str(case.get("name")).split()[0]: [child.tag for child in case] for case in suites.iter("testcase")}
    assert cases == {
        "LCV003": ["system-out"],
        "LCV004": ["error"],
        "LCV005": ["skipped"],
        "LCV006": ["system-out"],
        "LCV007": [],
        "LCV008": ["skipped"],
    }
    suite = next(suites.iter("testsuite"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("6", "0", "1", "2")


def test_annotations_cannot_be_injected(report: Report) -> None:
    text = annotations.render(report, GATE)
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in text.splitlines())
    assert "::stop-commands::" not in [line[:17] for line in text.splitlines()]
    assert "\r" not in text
    assert "\x1b" not in text
    assert "file=a%25b%2Cc%3Ad.txt,line=3" in text


def test_annotations_stop_at_ten_of_a_kind(report: Report) -> None:
    many = replace(report, findings=report.findings[:1] * 25)
    lines = annotations.render(many, GATE).splitlines()
    assert len(lines) == 11
    assert "15 more" in lines[-1]


@pytest.mark.parametrize("colour", [False, True])
def test_text_lets_no_escape_sequence_through(report: Report, colour: bool) -> None:
    text = report_text.render(report, 1, Terminal(columns=100, colour=colour), verbose=True)
    assert "\x1b[31m" not in text.replace("\x1b[1;31m", "")
    assert "\r" not in text
    assert "\u202e" not in text
    assert ("\x1b" in text) == colour
    assert not any(line.startswith(("::", "##[")) for line in text.splitlines())


def test_text_says_what_where_fix_and_how_to_learn_why(report: Report) -> None:
    text = report_text.render(report, 1, Terminal(columns=100))
    for part in (
        "error",
        "LCS001",
        "logs/run.log:12",
        "seen 8 times on 2 ranks",
        "fix: pip install",
        "llmcheck explain LCS001",
        "then   LCS002",
    ):
        assert part in text
    assert "llmcheck explain LCS002" not in text  # an effect takes one line
    assert "unknown  LCV004" in text
    assert "2 errors, 1 warning, 1 effect, 1 passed, 1 skipped, 1 unknown, 1 suppressed" in text


def test_verbose_text_tells_effects_in_full(report: Report) -> None:
    text = report_text.render(report, 1, Terminal(columns=100), verbose=True)
    assert "an effect of LCS001" in text
    assert "llmcheck explain LCS002" in text


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_text_keeps_to_the_width_but_for_what_is_to_be_copied(report: Report, columns: int) -> None:
    long = replace(report.findings[0], message="many words " * 30, evidence=("more of them " * 40,), candidates=("a-slug",) * 20)
    command = Fix(kind="command", run=("pip", "install", *["package"] * 40))
    shown = replace(long, fix=(command, Fix(kind="advice", text="a piece of advice " * 20)))
    harmless = tuple(replace(f, message="a message") for f in report.findings[1:])
    told = replace(report, findings=(shown, *harmless), exceptions=(replace(report.exceptions[0], message="an exception"),))
    text = report_text.render(told, 1, Terminal(columns=columns), verbose=True)
    wide = [line for line in text.splitlines() if len(line) > columns]
    assert [line.strip() for line in wide] == [f"fix: {command.words()}"]


def test_one_reason_for_many_undecided_rules_is_told_once(report: Report) -> None:
    undecided = tuple(finding(f"LCV{n:03}", outcome="unknown", message="", missing=((f"pkg.p{n}", "no answer"),)) for n in range(200))
    text = report_text.render(replace(report, findings=undecided), 3, Terminal(columns=100))
    assert text.count("no answer") == 1
    assert "200 rules:" in text


def test_two_readings_of_one_line_show_it_once(report: Report) -> None:
    first = replace(report.findings[0], evidence=("the line itself",))
    other = replace(first, code="LCS009", message="another reading")
    text = report_text.render(replace(report, findings=(first, other)), 1, Terminal(columns=100))
    assert text.count("the line itself") == 1
    assert "or       LCS009 another reading" in text


def test_markdown_escapes(report: Report) -> None:
    text = report_markdown.render(report, 1)
    assert "<b>" not in text
    assert "\x1b" not in text


def test_json_counts(report: Report) -> None:
    document = json.loads(report_json.render(report, 1))
    assert document["schema"] == "llmcheck.report/1"
    assert document["summary"] == {
        "errors": 3,
        "warnings": 1,
        "infos": 0,
        "unknown": 1,
        "suppressed": 1,
        "hidden": 0,
        "rules_passed": 1,
        "rules_skipped": 1,
        "exit_code": 1,
    }
    assert document["findings"][3]["missing"] == [{"fact": "pkg.torch", "why": "not pinned"}]
