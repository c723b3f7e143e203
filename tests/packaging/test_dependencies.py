"""The declared dependencies are those that the code imports."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from llmcheck import toml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = toml.load(ROOT / "pyproject.toml")["project"]


MODULES = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}  # packages whose module is called otherwise


def declared(requirements: list[str]) -> set[str]:
    names = (re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0] for requirement in requirements)
    return {MODULES.get(name, name) for name in names}


def imported() -> set[str]:
    roots: set[str] = set()
    for path in (ROOT / "llmcheck").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(str(node.module).split(".")[0])
    return {root for root in roots if root not in sys.stdlib_module_names and root != "llmcheck"}


def test_every_core_dependency_is_imported_somewhere() -> None:
    assert declared(PROJECT["dependencies"]) - imported() == set()


def test_every_import_is_a_core_dependency_or_in_an_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = {name.replace("-", "_") for extra in ("hub", "plot", "fast", "yaml") for name in declared(extras[extra])}
    assert imported() - declared(PROJECT["dependencies"]) - optional == set()


def test_the_extras_are_there() -> None:
    assert {"train", "kernels", "fast", "dev"} <= set(PROJECT["optional-dependencies"])
