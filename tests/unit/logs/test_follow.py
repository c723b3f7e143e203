from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.logs.samples import OOM, OVERFLOW, SHAPE
from llmcheck.errors import UserError
from llmcheck.logs.follow import Follower, Update
from llmcheck.logs.signatures import Signatures

OOM_LINE = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
CRASH = 'Traceback (most recent call last):\n  File "a.py", line 1, in main\nValueError: x\n'


class Run:
    """Does one thing at each poll; then interrupts. A second passes at each."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.now = 0.0

    def sleep(self, _seconds: float) -> None:
        self.now += 1.0
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def follow(path: Path, *steps: Callable[[], object]) -> tuple[list[Update], Follower]:
    run = Run(*steps)
    follower = Follower(str(path), Signatures([OOM, OVERFLOW, SHAPE], "python"), sleep=run.sleep, clock=lambda: run.now, settle_s=2.0)
    updates: list[Update] = []
    with pytest.raises(KeyboardInterrupt):
        updates.extend(follower.updates())  # extend takes items one by one: those before the interrupt are kept
    follower.close()
    return updates, follower


def append(path: Path, text: str) -> Callable[[], object]:
    def act() -> None:
        with path.open("a") as file:
            file.write(text)

    return act


def told(updates: list[Update]) -> list[str]:
    return [
        update.notice or ",".join([g.rule.code for g in update.groups] + [t.last.cause.type for t in update.tracebacks])
        for update in updates
    ]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.log"
    path.write_text("step 1\n")
    return path


def test_a_finding_is_told_once_when_it_comes(log: Path) -> None:
    updates, follower = follow(log, append(log, OOM_LINE), append(log, OOM_LINE), append(log, CRASH + "bye\n\nbye\n"))
    assert told(updates) == ["OOM", "ValueError"]
    (result,) = follower.finish()
    assert (result.groups[0].count, result.num_lines) == (2, 9)


def test_what_is_there_already_is_told_first(log: Path) -> None:
    log.write_text(OOM_LINE)
    assert told(follow(log)[0]) == ["OOM"]


def test_a_line_waits_for_its_end(log: Path) -> None:
    nothing = follow(log, append(log, OOM_LINE[:-1]))
    assert told(nothing[0]) == []
    assert [group.rule.code for group in nothing[1].finish()[0].groups] == ["OOM"]  # the end of the log ends the line


def test_a_line_written_in_pieces_is_one_line(log: Path) -> None:
    assert told(follow(log, append(log, OOM_LINE[:30]), append(log, OOM_LINE[30:]))[0]) == ["OOM"]


def test_a_count_is_told_when_it_is_reached(log: Path) -> None:
    step = append(log, "OVERFLOW! Rank 0 Skipping step\n")
    assert told(follow(log, step, step, step, step)[0]) == ["OVERFLOW"]


def test_a_window_is_judged_when_the_log_stands_still(log: Path) -> None:
    mismatch = "size mismatch for a.b: copying a param from checkpoint,\n  the shape in current model is x\n"
    assert told(follow(log, append(log, mismatch), lambda: None, lambda: None, lambda: None)[0]) == ["SHAPE"]


def test_a_truncated_log_is_read_from_its_start(log: Path) -> None:
    updates, follower = follow(log, append(log, OOM_LINE), lambda: log.write_text(""), append(log, "a\n" + OOM_LINE))
    assert told(updates) == ["OOM", f"{log} was truncated: reading it from the start", "OOM"]
    assert [result.groups[0].first.line for result in follower.finish()] == [2, 2]


def test_a_rotated_log_is_read_to_its_end_and_then_the_new_one(log: Path) -> None:
    def rotate() -> None:
        append(log, OOM_LINE[:-1])()  # the last line, without an end
        log.rename(log.with_suffix(".1"))
        log.write_text("a\n" + OOM_LINE)

    assert told(follow(log, rotate)[0]) == ["OOM", f"{log} was replaced: following the new file", "OOM"]


def test_a_removed_log_is_waited_for(log: Path) -> None:
    assert told(follow(log, log.unlink, lambda: None, append(log, OOM_LINE))[0])[-1] == "OOM"


def test_a_pipe_ends_the_following(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text(OOM_LINE[:-1]))
    writer.start()
    follower = Follower(str(path), Signatures([OOM], "python"))
    updates = list(follower.updates())
    writer.join()
    follower.close()
    assert told(updates) == ["OOM"]
    assert len(follower.finish()) == 1


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08", "abcdefgh".encode("utf-16")])
def test_what_is_not_plain_text_cannot_be_followed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run.log"
    path.write_bytes(data)
    with pytest.raises(UserError):
        next(Follower(str(path), Signatures([OOM], "python")).updates())


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_what_is_no_file_cannot_be_followed(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError):
        Follower(str(tmp_path / "x"), Signatures([OOM], "python"))
