"""`llmcheck train` as a process: what becomes the launcher, a kill while data is prepared, and two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model

pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

from llmcheck import lock

Run = Callable[..., Any]
ROW = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
LONG = {**ROW, "output": "Blue, green and red. " * 200}
LAUNCHER = """#!{python}
import fcntl, json, os, sys
held = open(sys.argv[sys.argv.index("--output") + 1] + "/.run.lock", "rb")
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locked = False
except BlockingIOError:
    locked = True
print(json.dumps([sys.argv[1:], os.environ["PYTORCH_ALLOC_CONF"], locked]))
"""


@pytest.fixture
def place(tmp_path: Path, llmcheck: Run) -> Path:
    """A model, its plan, a launcher, and empty packages where the real ones would be."""
    tiny_model.write(tmp_path / "model")
    words = ["--gpus", "1", "--gpu", "A100-40G", "--seq-len", "64", "--micro-batch", "1"]
    outcome = llmcheck("plan", "--model", str(tmp_path / "model"), *words, "--out", str(tmp_path / "plan.json"))
    assert outcome.code == 0, outcome.stderr
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "deepspeed"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    for name in ("torch", "transformers", "deepspeed"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text("")
    return tmp_path


def start(place: Path, data: Path, *words: str) -> subprocess.Popen[bytes]:
    # `-c`: what is beside this interpreter may be a real launcher, which would be taken before the one in PATH.
    code = "import sys; from llmcheck import cli; from llmcheck.commands import train; train._own_folder = lambda name: None; "
    paths = [path for path in sys.path if path]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, str(place / "packages")]),
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["train", "--plan", str(place / "plan.json"), "--data", str(data), "--output", str(place / "out"), "--template", "belle"]
    argv = [sys.executable, "-c", code + f"sys.exit(cli.main({[*command, '--fast', 'off', *words]!r}))"]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env=env, stdout=pipe, stderr=pipe, start_new_session=True, cwd=place)


def rows(place: Path, row: dict[str, str], number: int) -> Path:
    path = place / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * number)
    return path


def wait_until(found: Callable[[], Any]) -> Any:
    for _ in range(600):
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_it_becomes_the_launcher_with_the_plans_environment_and_the_lock(place: Path) -> None:
    process = start(place, rows(place, ROW, 3))
    out, err = process.communicate(timeout=120)
    words, allocator, locked = json.loads(out)
    expected = ["--module", "llmcheck_trainer.train", "--plan", str(place / "plan.json"), "--data", str(place / "out" / "data")]

    assert process.returncode == 0, err
    assert words[3:] == [*expected, "--output", str(place / "out")]
    assert allocator == "expandable_segments:True"
    assert locked
    assert b"3 rows of 3" in err


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_while_data_is_prepared_leaves_nothing_that_is_believed(sign: int, place: Path) -> None:
    killed = start(place, rows(place, LONG, 6000))
    wait_until(lambda: list((place / "out").glob(".data.*.part/.lock")) if (place / "out").is_dir() else None)
    os.killpg(killed.pid, sign)
    out, err = killed.communicate(timeout=60)
    prepared = (place / "out" / "data").exists()
    again = start(place, rows(place, ROW, 3))
    _, said = again.communicate(timeout=120)

    assert (prepared, out) == (False, b"")
    assert b"Traceback" not in err
    assert killed.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(sign)]
    assert again.returncode == 0, said
    assert b"3 rows of 3" in said
    assert list((place / "out").glob(".data.*.part")) == []


def test_one_that_comes_second_is_told_who_came_first(place: Path) -> None:
    first = start(place, rows(place, LONG, 6000))
    wait_until(lambda: list((place / "out").glob(".data.*.part")) if (place / "out").is_dir() else None)
    second = start(place, place / "rows.jsonl")
    _, err = second.communicate(timeout=60)
    os.killpg(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)

    assert second.returncode == 2
    assert b"error[output-in-use]" in err
    assert f"process {first.pid} on ".encode() in err


def test_several_nodes_prepare_one_after_the_other(place: Path, llmcheck: Run) -> None:
    """torchrun is started on each node, and they share the output folder: one prepares, the others wait and use it."""
    words = ["--gpus", "2", "--nodes", "2", "--gpu", "A100-40G", "--seq-len", "64", "--micro-batch", "1"]
    llmcheck("plan", "--model", str(place / "model"), *words, "--out", str(place / "plan.json"))
    launcher = place / "bin" / "torchrun"
    launcher.write_text(f"#!{sys.executable}\nprint('launched')\n")
    launcher.chmod(0o755)
    (place / "out").mkdir()
    data = rows(place, ROW, 3)
    with lock.waiting(str(place / "out" / lock.DATA), "not said"):
        nodes = [start(place, data, "--launcher", "torchrun", "--rendezvous", "a:1") for _ in range(2)]
        for node in nodes:
            assert node.stderr is not None
            lines = iter(node.stderr.readline, b"")
            assert any(b"another llmcheck prepares data" in line for line in lines)
    said = [node.communicate(timeout=120) for node in nodes]

    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out for out, _ in said] == [b"launched\n"] * 2
    assert sorted(b"nothing has changed" in err for _, err in said) == [False, True]
