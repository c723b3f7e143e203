"""The layers of the house: imports go downwards only. This table is the one place where they are written down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up. A module may import from the lines below its own, and from its own name; not from its neighbours on the line.
# A longer name beats a shorter one: planner.plan holds values and so lies far below the rest of planner.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("llmcheck.errors", "llmcheck.units", "llmcheck.types", "llmcheck.collector", "llmcheck.shellwords"),
    ("llmcheck.paths",),
    ("llmcheck.toml", "llmcheck.jsonfile", "llmcheck.files", "llmcheck.console", "llmcheck.cachefile"),
    ("llmcheck.progress", "llmcheck.lock"),
    ("llmcheck.planner.plan", "llmcheck.codec"),
    ("llmcheck.dsconfig",),
    ("llmcheck.shadow",),
    ("llmcheck.catalog",),
    ("llmcheck.host", "llmcheck.dataprep", "llmcheck.steptime"),
    ("llmcheck.planfile",),
    ("llmcheck.rules",),
    ("llmcheck.logs",),
    ("llmcheck.rulecheck", "llmcheck.report"),
    ("llmcheck.probe",),
    ("llmcheck.planner",),
    ("llmcheck.render",),
    ("llmcheck.doctor",),
    ("llmcheck.commands",),
    ("llmcheck.cli",),
    ("llmcheck.__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# What takes values and gives values: no environment, clock, network, process or file system.
PURE = ("llmcheck.shadow", "llmcheck.steptime", "llmcheck.planner", "llmcheck.host", "llmcheck.units", "llmcheck.types", "llmcheck.codec")
IMPURE_MODULES = {"os", "subprocess", "socket", "urllib", "http", "time", "random", "tempfile", "shutil", "datetime"}

# Everything else that a module may import at its top: the standard library without what costs more to import than `plan` does to run.
HEAVY = {"logging", "asyncio", "urllib", "http", "email", "multiprocessing", "unittest", "xml", "shutil", "tempfile", "inspect"}
HEAVY_SUBMODULES = {"importlib.metadata", "importlib.resources", "importlib.util"}
THIRD_PARTY_AT_TOP = {("llmcheck.toml", "tomli")}

TRAINER_MAY_USE = {
    "llmcheck", "llmcheck.planfile", "llmcheck.types", "llmcheck.units", "llmcheck.errors", "llmcheck.paths", "llmcheck.jsonfile",
    "llmcheck.toml", "llmcheck.console", "llmcheck.progress", "llmcheck.lock",
}  # fmt: skip


def modules(folder: Path, package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


HOUSE = dict(modules(ROOT, "llmcheck"))
TRAINER = dict(modules(ROOT / "trainer", "llmcheck_trainer"))
RULES = dict(modules(ROOT / "rules", "llmcheck_rules"))


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Full names of the modules that `tree` imports; `from package import module` counts as the module."""
    nodes = top_level(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in HOUSE else str(node.module)


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported; what stands under TYPE_CHECKING does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from top_level(node)


def layer_of(module: str) -> str | None:
    """The entry of the table that `module` belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), None)


def test_every_module_has_a_layer() -> None:
    assert [m for m in HOUSE if m != "llmcheck" and layer_of(m) is None] == []


@pytest.mark.parametrize("module", [m for m in HOUSE if m != "llmcheck"])
def test_imports_go_downwards_only(module: str) -> None:
    own = layer_of(module)
    assert own is not None
    wrong = []
    for target in imports(HOUSE[module]):
        other = layer_of(target)
        if other is not None and other != own and LEVEL[other] >= LEVEL[own]:
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("module", [m for m in HOUSE if layer_of(m) in PURE])
def test_what_computes_does_not_touch_the_machine(module: str) -> None:
    assert [target for target in imports(HOUSE[module]) if target.split(".")[0] in IMPURE_MODULES] == []


@pytest.mark.parametrize("module", HOUSE)
def test_nothing_heavy_is_imported_with_a_module(module: str) -> None:
    import sys

    heavy = [
        target
        for target in imports(HOUSE[module], top_only=True)
        if (root := target.split(".")[0]) != "llmcheck"
        and (root in HEAVY or target in HEAVY_SUBMODULES or root not in sys.stdlib_module_names)
        and (module, root) not in THIRD_PARTY_AT_TOP
    ]
    assert heavy == []


@pytest.mark.parametrize("module", HOUSE)
def test_the_house_does_not_import_the_trainer_or_the_rules(module: str) -> None:
    assert [t for t in imports(HOUSE[module]) if t.split(".")[0] in ("llmcheck_trainer", "llmcheck_rules")] == []


@pytest.mark.parametrize("module", TRAINER)
def test_the_trainer_uses_only_the_plan_file_and_the_values(module: str) -> None:
    ours = {target for target in imports(TRAINER[module]) if target.split(".")[0] == "llmcheck"}
    assert ours <= TRAINER_MAY_USE


@pytest.mark.parametrize("module", RULES)
def test_the_rules_are_data(module: str) -> None:
    assert list(imports(RULES[module])) == []


@pytest.mark.parametrize("module", [*HOUSE, *TRAINER, *RULES])
def test_no_module_runs_text_as_code(module: str) -> None:
    tree = {**HOUSE, **TRAINER, **RULES}[module]
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [name for name in calls if name in ("eval", "exec", "compile")] == []
    assert "trust_remote_code=True" not in ast.unparse(tree)
    assert "shell=True" not in ast.unparse(tree)


def test_packages_have_no_generic_names() -> None:
    """Top-level `rules` and `trainer` belong to other projects, whose files an installed wheel would overwrite."""
    assert not (ROOT / "rules" / "__init__.py").exists()
    assert not (ROOT / "trainer" / "__init__.py").exists()
