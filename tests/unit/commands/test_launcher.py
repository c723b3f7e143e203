"""The process that runs a launcher, with a launcher and ranks of a few lines; the real ones are in tests/trainer/test_processes.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0

# Writes its process id, then waits; asked by SIGUSR1 it ends well, unless it is a stubborn one.
RANK = """
import os, signal, sys, time
if sys.argv[2] == "willing":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
else:
    signal.signal(signal.SIGUSR1, lambda *_: print("no", flush=True))
open(sys.argv[3], "w").write(str(os.getpid()))
time.sleep(600)
"""

# Starts one rank and has its exit code.
LAUNCHER = """
import os, subprocess, sys
rank = [sys.executable, "-c", sys.argv[1], "llmcheck_trainer.train", sys.argv[2], sys.argv[3]]
sys.exit(subprocess.run(rank, env={**os.environ, "RANK": "0"}).returncode)
"""


def started(manner: str, place: Path) -> tuple[subprocess.Popen[str], int]:
    """The process under test and the rank's id."""
    command = [sys.executable, "-m", "llmcheck_trainer.launcher", sys.executable, "-c", LAUNCHER, RANK, manner, str(place)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "trainer")))}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and not (place.is_file() and place.read_text()):
        time.sleep(0.02)
    return process, int(place.read_text())


def is_alive(pid: int) -> bool:
    """Whether the process still runs; one that is only not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="ranks are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_each_request_asks_the_ranks(number: signal.Signals, tmp_path: Path) -> None:
    process, rank = started("willing", tmp_path / "rank")
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_S)[1]

    assert process.returncode == 0
    assert said.startswith(f"{number.name}: the ranks save")
    assert not is_alive(rank)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="ranks are found in /proc")
def test_a_second_request_ends_ranks_that_do_not_stop(tmp_path: Path) -> None:
    process, rank = started("stubborn", tmp_path / "rank")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "no\n"
    assert is_alive(rank)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)

    assert process.returncode != 0
    assert not is_alive(rank)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="ranks are found in /proc")
def test_a_launcher_that_is_killed_leaves_no_rank_behind(tmp_path: Path) -> None:
    process, rank = started("willing", tmp_path / "rank")
    launcher = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(launcher, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    until = time.monotonic() + LIMIT_S
    while is_alive(rank) and time.monotonic() < until:
        time.sleep(0.02)

    assert process.returncode == 128 + signal.SIGKILL
    assert not is_alive(rank)


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "trainer")))}
    argv = [sys.executable, "-m", "llmcheck_trainer.launcher", sys.executable, "-c", "raise SystemExit(7)"]

    assert subprocess.run(argv, env=env, check=False).returncode == 7


# Two ranks that fail one after the other with an error of their own, then a launcher that says much and ends with 1.
FAILING = """
import subprocess, sys
rank = "import sys; from llmcheck_trainer import last_words; last_words.keep(int(sys.argv[1]), sys.argv[2])"
subprocess.run([sys.executable, "-c", rank, "2", "error[data-length] (rank 1): a row is too long\\n"])
subprocess.run([sys.executable, "-c", rank, "1", "error[rank-lost] (rank 0): another rank is gone\\n"])
print("Traceback (most recent call last):\\n" + "noise\\n" * 40, file=sys.stderr)
sys.exit(1)
"""


def test_the_first_error_of_a_rank_is_said_last_and_its_exit_code_is_the_runs() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "trainer")))}
    argv = [sys.executable, "-m", "llmcheck_trainer.launcher", sys.executable, "-c", FAILING]
    ended = subprocess.run(argv, env=env, check=False, capture_output=True, text=True)

    assert ended.returncode == 2
    assert ended.stderr.endswith("noise\n\n\nthe run ended with\nerror[data-length] (rank 1): a row is too long\n")
