"""Locks of an output folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from llmcheck import lock
from llmcheck.errors import UserError


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / lock.RUN)
    held = lock.hold(path)
    assert held is not None
    with pytest.raises(UserError) as caught:
        lock.hold(path)
    os.close(held)
    again = lock.hold(path)
    assert again is not None
    os.close(again)

    assert caught.value.code == "output-in-use"
    assert f"process {os.getpid()} on " in caught.value.why
    assert caught.value.where == f"--output {tmp_path}"


@pytest.mark.parametrize("inherited", [False, True])
def test_a_program_that_follows_keeps_only_what_it_is_to_keep(inherited: bool, tmp_path: Path) -> None:
    held = lock.hold(str(tmp_path / lock.RUN), inherited=inherited)
    assert held is not None
    found = os.get_inheritable(held)
    os.close(held)

    assert found is inherited


def test_a_holder_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / lock.TRAINER)
    first = lock.hold(path)
    assert first is not None
    timer = threading.Timer(0.3, os.close, [first])
    timer.start()
    second = lock.hold(path, wait_s=60)
    timer.join()
    assert second is not None
    os.close(second)


def test_a_file_system_without_locks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert lock.hold(str(tmp_path / lock.RUN)) is None
    with lock.waiting(str(tmp_path / lock.DATA), "never said"):
        pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        lock.hold(str(tmp_path / "none" / lock.RUN))
    assert caught.value.code == "output"
