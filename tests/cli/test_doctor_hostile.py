"""`llmcheck doctor` against what strangers leave about: pipes, names, commands to runners, streams that are closed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from sarif_pydantic import Sarif

Run = Callable[..., Any]
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
COMMAND = re.compile(r"^\s*::|##\[|##vso\[", re.MULTILINE)
OURS = re.compile(r"^::(?:error|warning|notice) [^:]*::", re.MULTILINE)
NAMES = (
    b"a\n::error::x.log", b"b\x1b[31m.log", b"c%0A::error::.log", b"d,line=1::x.log", b"<img src=x>.log", b"[x](javascript:1)`.log",
    "e\u202e.log".encode(), b"f\xff\xfe.log", b" sp ace.log", b"g\r::add-mask::x.log", b"|x|.log", b"##[error]h.log", b"i\x9b31m.log",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_files_name_is_text_in_every_form(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(f"{OOM} a total\n".encode())
    forms = [part for form in ("json", "sarif", "junit", "markdown", "github") for part in ("--format", f"{form}={tmp_path}/r.{form}")]
    command = [sys.executable, "-m", "llmcheck", "doctor", "--log", path, *forms, "--format", "text"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")
    written = {path.suffix[1:]: path.read_bytes().decode("utf-8") for path in tmp_path.glob("r.*")}
    for form, text in {**written, "text": done.stdout.decode("utf-8")}.items():
        assert all(c.isprintable() or c == "\n" for c in text), form
        assert COMMAND.search(OURS.sub("", text) if form == "github" else text) is None, form
    Sarif.model_validate(json.loads(written["sarif"]))
    assert ElementTree.fromstring(written["junit"]).tag == "testsuites"
    json.dumps(json.loads(written["json"]), ensure_ascii=False).encode()  # whole characters only


@pytest.mark.parametrize("form", ["text", "json", "sarif", "junit", "markdown"])
@pytest.mark.parametrize("command", ["::error file=x::y", "::add-mask::y", "::stop-commands::y", "##[set-output name=x]y", "##vso[task.x]"])
def test_a_line_of_a_log_is_no_command_wherever_it_is_wrapped(llmcheck: Run, tmp_path: Path, form: str, command: str) -> None:
    # Every offset, so that some wrapped line begins with it.
    words = ["w" * n for n in range(0, 100, 9)]
    lines = "".join(f"[rank{n}]: KeyError: '{word} {command} {command}'\n{OOM} {word} {command}\n" for n, word in enumerate(words))
    (tmp_path / "run.log").write_text(lines + f'Traceback (most recent call last):\n  File "{command}", line 1\nmy.Odd: x\n\n{command}\n')
    outcome = llmcheck("doctor", "run.log", "--verbose", "--format", form, cwd=tmp_path)
    assert outcome.code == 1
    assert COMMAND.search(outcome.stdout) is None


OPTIONS = ["--ds-config", "--train-args", "--data", "--plan", "--settings", "--baseline", "--log", "--hostfile", ""]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_pipe_does_not_keep_us(llmcheck: Run, tmp_path: Path, option: str) -> None:
    for name in ("pipe.json", "requirements.txt"):
        os.mkfifo(tmp_path / name)
        outcome = llmcheck("doctor", *([option] if option else []), name, cwd=tmp_path)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert "pipe" in outcome.stderr


@pytest.mark.parametrize("option", ["--model", "--tokenizer"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "model.safetensors"])
def test_a_pipe_in_a_folder_does_not_keep_us(llmcheck: Run, tmp_path: Path, option: str, name: str) -> None:
    os.mkfifo(tmp_path / name)
    outcome = llmcheck("doctor", option, str(tmp_path), cwd=tmp_path)
    assert outcome.code in (1, 2, 3)
    assert "Traceback" not in outcome.stderr


def test_a_pipe_as_settings_of_the_folder_does_not_keep_us(llmcheck: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "llmcheck.toml")
    (tmp_path / "run.log").write_text("x\n")
    assert llmcheck("doctor", "run.log", cwd=tmp_path).code == 2


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 2), ("2>&-", 1), (">/dev/full", 2), ("<&-", 1)])
def test_a_closed_stream_is_no_bug(tmp_path: Path, redirection: str, code: int) -> None:
    (tmp_path / "run.log").write_text(f"{OOM} a total\n")
    line = f'"{sys.executable}" -m llmcheck doctor run.log {redirection}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stderr


def test_an_error_without_a_stream_for_it_is_still_2(tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m llmcheck doctor nowhere 2>&-'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 2


def test_several_faults_are_told_line_by_line(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "llmcheck.toml").write_text('fail_on = "fatal"\nmin_confidence = "sure"\n"::error::x" = 1\n')
    outcome = llmcheck("doctor", cwd=tmp_path)
    assert outcome.code == 2
    assert len(outcome.stderr.splitlines()) == 6
    assert COMMAND.search(outcome.stderr) is None
    assert "\\n" not in outcome.stderr
