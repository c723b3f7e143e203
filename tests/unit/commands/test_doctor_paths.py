"""Each option of `doctor` that takes a path says what is wrong with it, where, why and what to do next; and checks nothing in silence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcheck.cli import main

FILES = ("--log", "--ds-config", "--train-args", "--requirements", "--lock", "--data", "--plan", "--python", "--settings", "--baseline")
FOLDERS = ("--tokenizer", "--model", "--rules")


Told = Callable[..., dict[str, str]]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs doctor in a folder with a few things in it, and gives the labels and texts of its error."""
    (tmp_path / "run.txt").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> dict[str, str]:
        assert main(["doctor", *args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error[")
        return dict(line.strip().split(": ", 1) for line in err.splitlines())

    return run


@pytest.mark.parametrize("option", FILES)
@pytest.mark.parametrize(("path", "hint"), [("rnu.txt", "did you mean 'run.txt'?"), ("fodler/run.txt", "did you mean 'folder'?")])
def test_a_missing_file_is_named_by_its_neighbour(told: Told, option: str, path: str, hint: str) -> None:
    error = told(option, path)
    assert path in error["where"]
    assert error["why"].endswith(f"holds nothing called {path.split('/')[0]}")
    assert error["hint"] == hint


@pytest.mark.parametrize("option", FOLDERS)
def test_a_missing_folder_is_named_by_its_neighbour(told: Told, option: str) -> None:
    assert told(option, "fodler")["hint"] == "did you mean 'folder'?"


@pytest.mark.parametrize("option", [*FILES, *FOLDERS, "--hostfile"])
def test_an_empty_path_is_refused_and_not_taken_for_none(told: Told, option: str) -> None:
    error = told(option, "")
    assert error["error[usage]"] == f"{option} is empty"
    assert error["hint"] == f"give the path, or leave {option} out"


@pytest.mark.parametrize("option", [*FILES, *FOLDERS])
@pytest.mark.parametrize("path", ["circle", "pipe", "/dev/zero", "empty/x"])
def test_what_is_no_file_is_refused_at_once_with_a_way_out(told: Told, option: str, path: str) -> None:
    error = told(option, path)
    assert path in error["where"]
    assert error["why"]
    assert error["hint"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("requirements.txt", "# nothing\n\0\n==\n[[[\n"), ("pyproject.toml", "[project]\n"), ("environment.yml", "dependencies: 3\n")],
)
def test_a_list_without_packages_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--requirements", name]) == 0
    assert f"note: {name} names no packages: nothing was checked in it" in capsys.readouterr().out
