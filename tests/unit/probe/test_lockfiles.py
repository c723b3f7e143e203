from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcheck.errors import UserError
from llmcheck.probe import requirements
from llmcheck.rules.facts import ABSENT, Facts

UV = """version = 1
revision = 3
requires-python = ">=3.11"

[[package]]
name = "project"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "torch" },
]

[[package]]
name = "numpy"
version = "1.26.4"
source = { registry = "https://index.example.org/simple" }
resolution-markers = [
    "sys_platform == 'nowhere'",
]

[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "https://index.example.org/simple" }
resolution-markers = [
    "sys_platform != 'nowhere'",
]

[[package]]
name = "torch"
version = "2.5.1+cu124"
source = { registry = "https://download.pytorch.org/whl/cu124" }
wheels = [
    { url = "https://example.com/torch.whl", hash = "sha256:aa" },
]

[package.optional-dependencies]
name = "evil"
version = "6.6.6"

[[package]]
name = "trl"
version = "0.12.0"
source = { git = "https://example.com/trl?rev=main#0123456789abcdef0123456789abcdef01234567" }
"""


def read(tmp_path: Path, name: str, text: str) -> Facts:
    (tmp_path / name).write_text(text)
    return requirements.facts(str(tmp_path / name), "--lock")


def pin(facts: Facts, name: str) -> Any:
    fact = facts.get(f"pkg.{name}")
    return None if fact is None else fact.value


def test_uv(tmp_path: Path) -> None:
    facts = read(tmp_path, "uv.lock", UV)
    assert {name: pin(facts, name) for name in ("torch", "numpy", "trl")} == {"torch": "2.5.1+cu124", "numpy": "2.4.6", "trl": "0.12.0"}
    fact = facts.get("pkg.torch")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.line == UV.splitlines().index('name = "torch"')
    assert facts.known["build.trl"].value == "0123456789abcdef0123456789abcdef01234567"
    assert facts.known["packages.other_indexes"].value == ["https://download.pytorch.org/whl/cu124"]


def test_what_a_lock_does_not_name_is_not_there(tmp_path: Path) -> None:
    facts = read(tmp_path, "uv.lock", UV)
    assert pin(facts, "deepspeed") is ABSENT
    assert pin(facts, "evil") is ABSENT
    assert pin(facts, "project") is ABSENT


def test_versions_for_several_platforms_are_not_known(tmp_path: Path) -> None:
    text = '[[package]]\nname = "torch"\nversion = "2.5.1"\n\n[[package]]\nname = "torch"\nversion = "2.5.1+cpu"\n'
    facts = read(tmp_path, "uv.lock", text)
    assert pin(facts, "torch") is None
    assert "several versions" in str(facts.why_unknown("pkg.torch"))


def test_poetry_and_pdm(tmp_path: Path) -> None:
    poetry = (
        '[[package]]\nname = "accelerate"\nversion = "1.2.1"\noptional = false\nmarkers = "python_version >= \\"3.7\\""\n\n'
        '[metadata]\nlock-version = "2.1"\n'
    )
    assert pin(read(tmp_path, "poetry.lock", poetry), "accelerate") == "1.2.1"
    pdm = (
        '[metadata]\nstrategy = []\n\n[[package]]\nname = "peft"\nversion = "0.14.0"\nmarker = "sys_platform == \'nowhere\'"\n'
        '[[package]]\nname = "trl"\nversion = "0.13"\n'
    )
    facts = read(tmp_path, "pdm.lock", pdm)
    assert (pin(facts, "peft"), pin(facts, "trl")) == (ABSENT, "0.13")


def test_pylock(tmp_path: Path) -> None:
    facts = read(tmp_path, "pylock.train.toml", 'lock-version = "1.0"\n[[packages]]\nname = "torch"\nversion = "2.13.0"\n')
    assert pin(facts, "torch") == "2.13.0"


def test_pipfile(tmp_path: Path) -> None:
    document = {
        "_meta": {"sources": [{"url": "https://index.example.org/simple"}, {"url": "https://example.com/whl"}]},
        "default": {"torch": {"version": "==2.5.1", "hashes": []}, "x": {"git": "https://example.com"}, "y": {"version": "*"}},
        "develop": {"pytest": {"version": "==8.0"}},
    }
    facts = read(tmp_path, "Pipfile.lock", json.dumps(document, indent=4))
    assert (pin(facts, "torch"), pin(facts, "x"), pin(facts, "pytest")) == ("2.5.1", None, ABSENT)
    assert facts.known["packages.other_indexes"].value == ["https://example.com/whl"]


def test_pyproject(tmp_path: Path) -> None:
    text = (
        '[project]\nname = "p"\ndependencies = [\n  "torch==2.5.1",\n  "peft>=0.10",\n]\n'
        '[tool.poetry.dependencies]\npython = "^3.11"\ntrl = "0.12.0"\ndatasets = "^3.0"\n'
        'accelerate = { version = "==1.2.0", extras = ["x"] }\n'
    )
    facts = read(tmp_path, "pyproject.toml", text)
    assert {name: pin(facts, name) for name in ("torch", "peft", "trl", "datasets", "accelerate")} == {
        "torch": "2.5.1", "peft": None, "trl": "0.12.0", "datasets": None, "accelerate": "1.2.0",
    }  # fmt: skip
    fact = facts.get("pkg.torch")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.line == 4


def test_conda(tmp_path: Path) -> None:
    text = """name: train
channels:
  - pytorch   # not a package
  - defaults
dependencies:
  - python=3.11
  - pytorch::pytorch=2.5.1=py3.11_cuda12.4_cudnn9.1.0_0
  - pytorch-cuda=12.4
  - numpy==1.26.4
  - conda-forge::ninja
  - pip
  - pip:
      - transformers==4.46.1
      - "peft>=0.10"
      - --extra-index-url https://example.com/whl
  - gcc=12.3.0
prefix: /opt/conda
"""
    facts = read(tmp_path, "environment.yml", text)
    pins = {
        name: pin(facts, name) for name in ("torch", "pytorch-cuda", "numpy", "ninja", "transformers", "peft", "gcc", "pytorch", "python")
    }
    assert pins == {
        "torch": "2.5.1", "pytorch-cuda": None, "numpy": "1.26.4", "ninja": None, "transformers": "4.46.1", "peft": None, "gcc": "12.3.0",
        "pytorch": None, "python": None,
    }  # fmt: skip
    assert facts.known["packages.other_indexes"].value == ["https://example.com/whl"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uv.lock", ""),
        ("uv.lock", "version = 1\n"),
        ("uv.lock", '[[package]]\nname = "a\nversion = "1"\n'),
        ("uv.lock", '<<<<<<< HEAD\n[[package]]\nname = "a"\nversion = "1"\n'),
        ("Pipfile.lock", "{"),
        ("Pipfile.lock", "[]"),
        ("Pipfile.lock", '{"default": 3}'),
        ("Pipfile.lock", "[" * 100_000),
        ("pyproject.toml", "[project\n"),
        ("environment.yml", "hello: 1\n"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError):
        read(tmp_path, name, text)


def test_odd_values_are_left_out(tmp_path: Path) -> None:
    facts = read(
        tmp_path,
        "uv.lock",
        '[[package]]\nname = 3\nversion = "1"\n[[package]]\nname = "a"\nversion = 7\n'
        '[[package]]\nname = "b"\nversion = "1"\nsource = 3\nmarkers = 4\n',
    )
    assert (pin(facts, "a"), pin(facts, "b")) == (None, "1")


ODD = [None, True, 3, 1.5, "x", [], ["x"], [["x"]], {"x": 1}]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize(
    "key",
    [
        "project",
        "project.dependencies",
        "tool",
        "tool.poetry",
        "tool.poetry.dependencies",
        "tool.poetry.dependencies.trl",
        "tool.uv",
        "tool.uv.index",
    ],
)
def test_a_pyproject_of_other_shapes_is_no_bug(tmp_path: Path, key: str, odd: Any) -> None:
    text = key + " = " + _toml(odd) + "\n"
    try:
        read(tmp_path, "pyproject.toml", text)
    except UserError as error:
        assert error.hint  # noqa: PT017 - either is right, and neither is a bug


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("key", ["_meta", "sources", "default", "torch"])
def test_a_pipfile_lock_of_other_shapes_is_no_bug(tmp_path: Path, key: str, odd: Any) -> None:
    document: dict[str, Any] = {"_meta": {"sources": [{"url": "a"}, {"url": "b"}]}, "default": {"torch": {"version": "==2.5.1"}}}
    {"_meta": document, "sources": document["_meta"], "default": document, "torch": document["default"]}[key][key] = odd
    try:
        read(tmp_path, "Pipfile.lock", json.dumps(document))
    except UserError as error:
        assert "object has no attribute" not in error.why  # noqa: PT017
        assert error.hint  # noqa: PT017


def _toml(value: Any) -> str:
    """`value` in TOML, which has no null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + "}"
    return '""' if value is None else json.dumps(value)
