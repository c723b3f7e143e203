"""Every error that a user can make says what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcheck.cli import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"UserError", "CouldNotCheckError", "StoppedError"}


def errors_without(field: str, *folders: str) -> Iterator[str]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
                    given = {keyword.arg for keyword in node.keywords}
                    if field not in given and None not in given:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_error_of_a_command_says_where_and_what_to_do() -> None:
    folders = ("llmcheck/commands", "trainer/llmcheck_trainer/dataprep")
    assert list(errors_without("hint", *folders)) == []
    assert list(errors_without("where", *folders)) == []


@pytest.mark.parametrize(
    "text",
    ['{"zero_optimization": {"stage": 7}}', '{"zero_optimization": 3}', '{"optimizer": {"type": 5}}', '{"bf16": {"enabled": "x"}}'],
)
def test_every_error_of_a_deepspeed_configuration_says_what_to_do(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)

    assert main(["plan", "--model", "bloomz-560m", "--gpus", "8", "--gpu", "A100-40G", "--ds-config", str(file)]) == 2
    assert "\n  hint: " in capsys.readouterr().err
