"""Every command and option is documented, and generated pages are those of this code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmcheck.cli import COMMANDS, parser_of

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "cli.md"
OPTIONS = [(command, flag) for command in COMMANDS for action in parser_of(command)._actions for flag in action.option_strings]


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("command", "flag"), [(c, f) for c, f in OPTIONS if f not in ("-h", "--help")])
def test_every_option_is_in_the_reference(command: str, flag: str) -> None:
    section = REFERENCE.read_text(encoding="utf-8").split(f"## llmcheck {command}\n")[1].split("\n## ")[0]
    assert f"`{flag}`" in section


@pytest.mark.parametrize(("command", "flag"), OPTIONS)
def test_every_option_has_help(command: str, flag: str) -> None:
    (action,) = (a for a in parser_of(command)._actions if flag in a.option_strings)
    assert action.help


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda p: p.name)
def test_pages_name_only_options_that_exist(page: Path) -> None:
    known = {flag for _, flag in OPTIONS} | {"--version", "--help"}
    commands = re.findall(r"llmcheck (?:plan|models|gpus)[^\n`|]*", page.read_text(encoding="utf-8"))
    used = {flag for command in commands for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", command)}
    assert used - known == set()


def test_the_readme_shows_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert "llmcheck plan --model bloomz-7b1 --gpus 8" in first_screen
    assert "make test" in first_screen


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
