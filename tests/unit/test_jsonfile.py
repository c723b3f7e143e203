"""JSON that strangers wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcheck import jsonfile
from llmcheck.errors import UserError


def test_a_document_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null, true, "é"]}', encoding="utf-8")
    assert jsonfile.load(str(tmp_path / "a.json"), what="file") == {"a": [1, 2.5, None, True, "é"]}


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert jsonfile.load(str(tmp_path / "a.json"), what="file") == {}


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"", "not-json", "ends too early"),
        (b'{"a": 1', "not-json", "ends too early"),
        (b'{"a": 1}}', "not-json", "valid JSON"),
        (b"{'a': 1}", "not-json", "valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not-json", "UTF-8"),
        (b'{"a": NaN}', "not-json", "acceptable"),
        (b'{"a": -Infinity}', "not-json", "acceptable"),
        (b'{"a": 1e999}', "not-json", "acceptable"),
        (b'{"a": 1, "a": 2}', "not-json", "acceptable"),
        (b"[" * 200_000, "not-json", "deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not-json", "too long"),
    ],
)
def test_a_bad_document_is_a_user_error(data: bytes, code: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        jsonfile.loads(data, what="file", where="x.json")
    assert (error.value.code, error.value.exit_code) == (code, 2)
    assert "x.json" in error.value.where
    assert error.value.why
    assert error.value.hint


def test_what_python_prints_is_told_from_json() -> None:
    with pytest.raises(UserError) as error:
        jsonfile.loads(b"{'a': True, }", what="file", where="x.json")
    assert "double quotes" in error.value.hint


def test_a_file_beyond_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # sparse: takes no disk
    with pytest.raises(UserError, match="larger than 1 MiB"):
        jsonfile.load(str(path), what="file", max_bytes=1 << 20)


@pytest.mark.parametrize("name", ["missing.json", "with\0nul.json", "."])
def test_a_path_that_cannot_be_read_is_a_user_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        jsonfile.load(f"{tmp_path}/{name}", what="file")
    assert error.value.code == "unreadable"
    assert error.value.why
    assert error.value.hint


def test_a_misspelt_file_is_named_by_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "ds_config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        jsonfile.load(f"{tmp_path}/ds_confg.json", what="file")
    assert error.value.hint == "did you mean 'ds_config.json'?"


def test_a_missing_folder_is_told_from_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        jsonfile.load(f"{tmp_path}/no/a.json", what="file")
    assert error.value.why == f"{tmp_path} holds nothing called no"


def test_a_device_is_refused() -> None:
    with pytest.raises(UserError, match="regular file"):
        jsonfile.load("/dev/zero", what="file")


def test_an_object_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="must be a JSON object, not a list"):
        jsonfile.load_object(str(tmp_path / "a.json"), what="file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot read"):
        jsonfile.load(str(path), what="file")


@pytest.mark.parametrize(("name", "words"), [("file", "not a file in it"), ("nowhere", "check the spelling"), ("a\0b", "check the path")])
def test_a_folder_that_cannot_be_listed_is_a_user_error(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as told:
        jsonfile.list_folder(str(tmp_path / name), what="model's folder")
    assert told.value.code == "no-folder"
    assert words in told.value.hint


def test_a_folder_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError) as told:
        jsonfile.list_folder(str(tmp_path), what="model's folder")
    assert (told.value.why, told.value.hint) == ("Permission denied", "let this user read it, or give a copy")
