"""Every error that a user can make says what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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
