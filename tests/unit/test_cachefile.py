"""Kept results: data of this user alone, whole or not at all, and never needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcheck import cachefile
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_shipped

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners of files cannot be told")
KEY = cachefile.key_of(b"made", b"from")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv(cachefile.VARIABLE, str(path))
    return path


def test_what_is_kept_is_found_again(folder: Path) -> None:
    cachefile.store("thing", KEY, b"payload")
    assert cachefile.load("thing", KEY) == b"payload"
    assert cachefile.load("thing", cachefile.key_of(b"madefrom")) is None


def test_only_this_user_may_read_and_write_it(folder: Path) -> None:
    cachefile.store("thing", KEY, b"payload")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_same_thing_made_from_something_else_takes_its_place(folder: Path) -> None:
    other = cachefile.key_of(b"other")
    cachefile.store("thing", KEY, b"old")
    cachefile.store("thing-b", KEY, b"another thing")
    cachefile.store("thing", other, b"new")
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"thing-{other}", f"thing-b-{KEY}"])


@pytest.mark.parametrize("damage", [b"", b"x", b"llmcheck.cache/1\n"])
def test_what_is_damaged_is_not_there(folder: Path, damage: bytes) -> None:
    cachefile.store("thing", KEY, b"payload")
    (folder / f"thing-{KEY}").write_bytes(damage)
    assert cachefile.load("thing", KEY) is None


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    cachefile.store("thing", KEY, b"payload")
    path = folder / f"thing-{KEY}"
    path.write_bytes(path.read_bytes()[:-1] + b"D")
    assert cachefile.load("thing", KEY) is None


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_not_trusted(folder: Path, mode: int) -> None:
    cachefile.store("thing", KEY, b"payload")
    (folder / f"thing-{KEY}").chmod(mode)
    assert cachefile.load("thing", KEY) is None


def test_a_folder_that_others_may_write_is_neither_read_nor_written(folder: Path) -> None:
    cachefile.store("thing", KEY, b"payload")
    folder.chmod(0o777)
    cachefile.store("more", KEY, b"payload")
    assert cachefile.load("thing", KEY) is None
    assert len(list(folder.iterdir())) == 1


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    cachefile.store("thing", KEY, b"payload")
    os.rename(folder / f"thing-{KEY}", tmp_path / "elsewhere")
    (folder / f"thing-{KEY}").symlink_to(tmp_path / "elsewhere")
    assert cachefile.load("thing", KEY) is None


def test_it_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("", str(tmp_path / "file"), "/dev/null/cache"):
        monkeypatch.setenv(cachefile.VARIABLE, folder)
        cachefile.store("thing", KEY, b"payload")
        assert cachefile.load("thing", KEY) is None
    assert (tmp_path / "file").read_text() == ""


def test_packs_that_were_kept_are_the_packs(folder: Path) -> None:
    registry = load_registry()
    first = load_shipped(registry)
    assert {path.name.rpartition("-")[0] for path in folder.iterdir()} == {f"rules-{pack.id}" for pack in first}
    assert load_shipped(registry) == first


def test_a_kept_database_finds_what_the_compiled_one_finds(folder: Path) -> None:
    pytest.importorskip("hyperscan")
    from llmcheck.logs.prefilter import make_prefilter

    literals = [b"CUDA out of memory", b"Watchdog caught", b"exitcode"]
    text = b"a CUDA out of memory\nexitcode: 1\n"
    compiled = make_prefilter(literals, "hyperscan").hits(text)
    assert len(list(folder.iterdir())) == 1
    assert make_prefilter(literals, "hyperscan").hits(text) == compiled
