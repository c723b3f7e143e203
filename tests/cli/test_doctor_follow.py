"""`llmcheck doctor --follow`: findings come while the run writes; Ctrl-C ends with 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 39.39 GiB.\n"
DEADLINE_S = 60


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "llmcheck", "doctor", "--log", str(path), "--follow"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """What stdout says up to the line that holds `word`; the process is killed at the deadline, which ends the reading."""
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    seen = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if word in line:
                return seen
    finally:
        timer.cancel()
    raise AssertionError(f"{word!r} did not come; stdout: {seen!r}")


def test_what_is_appended_is_told_and_ctrl_c_is_130(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("{'loss': 1.9}\n")
    process = start(log)
    try:
        with log.open("a") as file:
            file.write("{'loss': 1.8}\n" + OOM)
        seen = read_until(process, "llmcheck explain")
        assert "GPU memory ran out" in seen
        assert "run.log:3" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere.log")
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert told.startswith("error[")
