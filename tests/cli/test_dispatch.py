"""The command line around the commands: help, mistakes, bugs, pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcheck import __version__
from llmcheck.cli import COMMANDS

Run = Callable[..., Any]

# Runs the command line with the planner replaced by `{body}`.
WITH_RUN = """
import sys
import llmcheck.cli, llmcheck.commands.plan
def run(args):
    {body}
llmcheck.commands.plan.run = run
sys.exit(llmcheck.cli.main(["plan", "--model", "x"]))
"""


def run_body(body: str, scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TMPDIR": str(scratch)} if scratch else None  # where bug reports go
    return subprocess.run([sys.executable, "-c", WITH_RUN.format(body=body)], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["help"], []])
def test_help_lists_every_command(llmcheck: Run, args: list[str]) -> None:
    outcome = llmcheck(*args)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert all(f"  {name} " in outcome.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_within_100_columns(llmcheck: Run, command: str) -> None:
    outcome = llmcheck(command, "--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert max(map(len, outcome.stdout.splitlines())) <= 100


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(llmcheck: Run, flag: str) -> None:
    assert llmcheck(flag).stdout == f"llmcheck {__version__}\n"


@pytest.mark.parametrize(
    ("args", "first", "hint"),
    [
        (["paln"], "error[usage]: unknown command 'paln'", "did you mean 'plan'?"),
        (["--verison"], "error[usage]: unknown option '--verison'", "did you mean '--version'?"),
        (["zzz"], "error[usage]: unknown command 'zzz'", "commands: plan"),
        (["plan", "--modle", "x"], "error[usage]: unknown option '--modle'", "did you mean '--model'"),
        (["plan", "--gpu-mem=3"], "error[usage]: unknown option '--gpu-mem'", "--gpu-memory"),
        (["plan", "bloomz-7b1"], "error[usage]: unexpected argument 'bloomz-7b1'", "every value follows its option"),
        (["plan", "--model"], "error[usage]: --model needs a value", "`llmcheck plan --help`"),
        (["plan", "--force=yes"], "error[usage]: --force: ignored explicit argument 'yes'", "--help"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(llmcheck: Run, args: list[str], first: str, hint: str) -> None:
    outcome = llmcheck(*args)
    assert (outcome.code, outcome.stdout) == (2, "")
    lines = outcome.stderr.splitlines()
    assert lines[0] == first
    assert hint in lines[-1]


def test_an_abbreviated_option_is_not_guessed(llmcheck: Run) -> None:
    assert llmcheck("plan", "--mod", "bloomz-7b1").code == 2


def test_a_bug_is_reported_as_one_and_not_as_the_users_fault(tmp_path: Path) -> None:
    done = run_body("raise ZeroDivisionError('oh no')", tmp_path)
    assert (done.returncode, done.stdout) == (70, "")
    assert "Traceback" not in done.stderr
    for part in ("bug: ZeroDivisionError: oh no", f"llmcheck {__version__}", "'--model', 'x'", "in run"):
        assert part in done.stderr


def test_a_bug_leaves_a_full_report(tmp_path: Path) -> None:
    done = run_body("raise KeyError(1)", tmp_path)
    (report,) = tmp_path.iterdir()
    assert "Traceback" in report.read_text(encoding="utf-8")
    assert str(report) in done.stderr


def test_a_bug_is_reported_even_where_no_file_can_be_written() -> None:
    done = run_body("import tempfile; tempfile.tempdir = '/nowhere'; raise KeyError(1)")
    assert (done.returncode, "no full report" in done.stderr) == (70, True)


def test_a_bug_that_exhausts_the_stack_is_reported_too(tmp_path: Path) -> None:
    done = run_body("return run(args)", tmp_path)
    assert done.returncode == 70
    assert "RecursionError" in done.stderr


def test_an_interrupt_is_quiet_and_exits_130() -> None:
    done = run_body("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_user_error_has_its_parts_one_per_line_and_cannot_drive_the_terminal() -> None:
    body = "from llmcheck.errors import UserError; raise UserError('what\\x1b[2J', code='c', where='here', why='because', hint='do')"
    done = run_body(body)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error[c]: what\\x1b[2J\n  where: here\n  why: because\n  hint: do\n"


def test_what_could_not_be_checked_exits_3() -> None:
    assert run_body("from llmcheck.errors import CouldNotCheckError; raise CouldNotCheckError('no network')").returncode == 3


def test_a_closed_pipe_is_not_an_error() -> None:
    body = "from llmcheck.console import emit; [emit('x' * 1000) for _ in range(1000)]; return 1"
    process = subprocess.Popen([sys.executable, "-c", WITH_RUN.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 1  # the command's own verdict
    assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmcheck", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error[output]: cannot write the answer: No space left on device")


def test_a_closed_stderr_does_no_harm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys; os.close(2); from llmcheck.cli import main; sys.exit(main(['paln']))"],
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_real_interrupt_during_a_command() -> None:
    body = "import sys, time; print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", WITH_RUN.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == b""
