"""Writing whole files and losing none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llmcheck.errors import UserError
from llmcheck.files import write_atomically


def write(path: Path, data: bytes = b"new", *, ours: bytes = b"ours", force: bool = False) -> None:
    write_atomically(str(path), data, flag="--out", replaceable=lambda old: old == ours, force=force)


def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    write(tmp_path / "a")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_our_own_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ours")
    path.chmod(0o600)
    write(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)


def test_a_file_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="exists") as error:
        write(path)
    assert path.read_bytes() == b"precious"
    assert "--force" in error.value.hint


def test_force_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    write(path, force=True)
    assert path.read_bytes() == b"new"


def test_what_a_link_points_to_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"ours")
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ours")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write"):
        write(path)
    assert path.read_bytes() == b"ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("name", ["missing/a", "."])
def test_a_place_that_cannot_hold_a_file_is_a_user_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(f"{tmp_path}/{name}", b"", flag="--out", replaceable=lambda old: True)


def test_a_device_is_refused() -> None:
    with pytest.raises(UserError, match="not a regular file"):
        write(Path("/dev/null"))
