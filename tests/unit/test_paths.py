"""What is said of paths that cannot be read: which part is wrong, and what was probably meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcheck.paths import trouble, trouble_with, unreadable


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.log").write_text("x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "why", "hint"),
    [
        ("trian.log", "{here} holds nothing called trian.log", "did you mean 'train.log'?"),
        ("run/train.log", "{here} holds nothing called run", "did you mean 'runs'?"),  # the part that is wrong, not the last
        ("zzz", "{here} holds nothing called zzz", "paths count from the folder that llmcheck runs in, {here}"),
        ("{here}/zzz", "{here} holds nothing called zzz", "check the spelling"),
        ("runs", "it is a folder", "give the file in it"),
        ("train.log/x", "{here}/train.log is a file, not a folder", "check the path"),
        ("dangling", "it is a link to gone, which leads nowhere", "name what is meant, or mend the link"),
        ("dangling/x", "{here}/dangling is a link to gone, which leads nowhere", "name what is meant, or mend the link"),
        ("circle", "its links lead round in a circle", "name what is meant, or mend the link"),
        ("", "the path is empty: an unset variable of the shell?", "name a file"),
        ("x" * 5000, "File name too long", "check the path: is it the content of a file, where its name is wanted?"),
        ("a\0b", "embedded null byte", "check the path"),
    ],
)
def test_a_file_that_is_not_there(here: Path, path: str, why: str, hint: str) -> None:
    assert trouble_with(path.format(here=here)) == (why.format(here=here), hint.format(here=here))


@pytest.mark.parametrize(
    ("path", "why", "hint"),
    [
        ("rnus", "{here} holds nothing called rnus", "did you mean 'runs'?"),
        ("trian.log", "{here} holds nothing called trian.log", "paths count from the folder that llmcheck runs in, {here}"),  # no folder
        ("train.log", "it is a file, not a folder", "give the folder, not a file in it"),
        ("", "the path is empty: an unset variable of the shell?", "name a folder"),
    ],
)
def test_a_folder_that_is_not_there(here: Path, path: str, why: str, hint: str) -> None:
    assert trouble_with(path, folder=True) == (why.format(here=here), hint.format(here=here))


def test_what_is_there_is_no_trouble(here: Path) -> None:
    assert (trouble_with("train.log"), trouble_with("runs", folder=True)) == (None, None)


def test_other_advice_stands_where_no_name_is_near(here: Path) -> None:
    assert [trouble_with(name, otherwise="else")[1] for name in ("trian.log", "zzz")] == ["did you mean 'train.log'?", "else"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("reason", "why", "hint"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied", "let this user read it, or give a copy"),
        (OSError(5, "Input/output error"), "Input/output error", "give a copy on a disk that works"),
    ],
)
def test_what_the_system_says_is_repeated(reason: OSError, why: str, hint: str) -> None:
    assert trouble("train.log", reason) == (why, hint)


def test_a_folder_that_was_removed_under_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert trouble_with("x") == ("the folder that llmcheck runs in is gone", "change to one that is there")
    monkeypatch.chdir(tmp_path)


def test_the_error_says_what_where_why_and_what_next(here: Path) -> None:
    reason = FileNotFoundError(2, os.strerror(2))
    error = unreadable("trian.log", what="plan file", where="--plan trian.log", reason=reason)
    assert (error.what, error.code, error.where) == ("cannot read the plan file: trian.log", "unreadable", "--plan trian.log")
    assert (error.why, error.hint) == (f"{here} holds nothing called trian.log", "did you mean 'train.log'?")
