"""`llmcheck explain`: every code that any command can print has its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmcheck.cli import main
from llmcheck.commands import explain
from llmcheck.commands.explain import plan_findings
from llmcheck.console import Terminal
from llmcheck.render.draw import Pen, width_of
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_all

ROOT = Path(__file__).resolve().parents[3]


def codes_in_source() -> set[str]:
    files = [ROOT / "llmcheck" / "planner" / "findings.py", ROOT / "llmcheck" / "commands" / "request.py"]
    return {code for file in files for code in re.findall(r'"(LCM\d{3})"', file.read_text(encoding="utf-8"))}


def test_every_finding_of_the_planner_is_explained_and_no_other() -> None:
    assert {entry["code"] for entry in plan_findings()} == codes_in_source()


@pytest.mark.parametrize("code", sorted(codes_in_source()))
def test_explanation_has_all_parts(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "llmcheck.explanation/1"
    assert [name for name in ("title", "why", "example", "fix", "references") if not told[name]] == []


def test_case_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "lcm001"]) == 0
    assert "LCM001" in capsys.readouterr().out


def test_a_mistyped_code_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "LCM0001"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "did you mean 'LCM001'" in told.err


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("LCS88", "did you mean 'LCS088'?"),
        ("lcm1", "did you mean 'LCM001'?"),
        ("LCS 088", "did you mean 'LCS088'?"),
        ("LCS08", "did you mean 'LCS008'?"),
        ("LCV", "`llmcheck rules list --select LCV` lists those that begin so"),
        ("", "`llmcheck rules list` shows all"),
        ("x" * 5000, "`llmcheck rules list` shows all"),
    ],
    ids=lambda text: text[:20],
)
def test_what_was_meant_is_told(wanted: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", wanted]) == 2
    told = capsys.readouterr().err
    assert told.endswith(f"  hint: {hint}\n")
    assert len(told) < 500


def test_hostile_code_is_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "\x1b[31mLCM"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 100])
def test_every_explanation_has_its_parts_and_fits_the_terminal(columns: int) -> None:
    rules = [(rule, pack) for pack in load_all(load_registry(), examples=True) for rule in pack.rules if rule.status != "removed"]
    assert len(rules) > 1000
    for rule, pack in rules:
        told = explain._of_rule(rule, pack)
        assert [name for name in ("title", "why", "example", "fix", "references") if not told[name]] == [], rule.code
        for line in explain._lines(told, Pen(Terminal()), columns):
            # A word that cannot be broken (an address, a path) may be wider by itself.
            assert width_of(line) <= columns or len(line.split()) <= 2, (rule.code, line)
