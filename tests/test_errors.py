"""Every error of the user's says where it is and what to do next: read in the source, so that no message is left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcheck.cli import main

ROOT = Path(__file__).resolve().parent.parent
ERRORS = {"UserError", "CouldNotCheckError", "StoppedError"}
FILES = sorted([*(ROOT / "llmcheck").rglob("*.py"), *(ROOT / "trainer" / "llmcheck_trainer").rglob("*.py")])


def errors(path: Path) -> Iterator[tuple[int, set[str]]]:
    """(line, keywords) of every error that the module makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            yield node.lineno, {keyword.arg or "**" for keyword in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_where_and_what_next_are_said(path: Path) -> None:
    lacking = [(line, sorted({"code", "where", "hint"} - found)) for line, found in errors(path) if "**" not in found]
    assert [entry for entry in lacking if entry[1]] == []


def test_there_are_errors_to_look_at() -> None:
    assert sum(1 for path in FILES for _ in errors(path)) > 300


@pytest.mark.parametrize(
    "text",
    ['{"zero_optimization": {"stage": 7}}', '{"zero_optimization": 3}', '{"optimizer": {"type": 5}}', '{"bf16": {"enabled": "x"}}'],
)
def test_every_error_of_a_deepspeed_configuration_says_what_to_do(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)

    assert main(["plan", "--model", "bloomz-560m", "--gpus", "8", "--gpu", "A100-40G", "--ds-config", str(file)]) == 2
    assert "\n  hint: " in capsys.readouterr().err
