"""Ranks that a launcher has started, as processes: killed, asked to stop, left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import Ranks, arguments, environment, free_port, make_data, make_model, make_plan, some_rows, steps_of

LIMIT_S = 240.0
OPTIONS = ("--lr", "1e-2", "--epochs", "2", "--packing", "off")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return make_plan(folder / "plan.json", make_model(folder / "model", "llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "prepared", some_rows(30))


def with_paths() -> dict[str, str]:
    """The launchers of this environment are found, too."""
    env = environment()
    return {**env, "PATH": os.path.dirname(sys.executable) + os.pathsep + env["PATH"]}


def dying(where: str, step: int, ranks: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    head = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*head, "-m", "dying", where, str(step), ranks, *words]
    return subprocess.run(command, env=with_paths(), capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_killed_while_it_saves_it_goes_on_from_the_last_whole_checkpoint(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    """SIGKILL between the files of a checkpoint and its name; then a run on the same folder."""
    output, options = tmp_path / "out", [*OPTIONS, "--save-every", "3"]
    died = dying("save", 6, "0", arguments(plan, data, output, *options))
    left = {path.name for path in (output / "checkpoints").iterdir()}
    answers = two.train(plan, data, output, *options)
    two.train(plan, data, tmp_path / "straight", *OPTIONS)

    assert died.returncode != 0
    assert "SIGKILL" in died.stderr
    assert left == {"step-00000003", ".step-00000006.part"}
    assert [answer["exit"] for answer in answers] == [0, 0]
    assert not list((output / "checkpoints").glob(".*.part"))
    steps = steps_of(output)
    assert [step["step"] for step in steps] == [*range(1, 7), *range(4, 16)]
    by_step = {step["step"]: step["loss"] for step in steps}  # of those that ran twice, the later one counts
    assert by_step == {step["step"]: step["loss"] for step in steps_of(tmp_path / "straight")}


def test_when_a_rank_is_killed_the_others_say_so(plan: Path, data: Path, tmp_path: Path) -> None:
    died = dying("step", 5, "1", arguments(plan, data, tmp_path / "out", *OPTIONS, "--save-every", "3"))
    said = died.stderr.partition("error[rank-lost] (rank 0): another rank is gone, or cannot be reached, in step ")

    assert died.returncode == 1
    assert said[1], died.stderr[-3000:]
    assert "goes on from step-00000003" in said[2]
    assert "Traceback" not in said[0]


def test_a_run_that_is_whole_ends_so_whatever_the_interpreters_end_meets(plan: Path, data: Path, tmp_path: Path) -> None:
    """DeepSpeed keeps gloo's groups past destroy_process_group; their threads have ended runs by an abort after "finished"."""
    output = tmp_path / "out"
    done = dying("end", 0, "0,1", arguments(plan, data, output, *OPTIONS))

    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((output / "run.json").read_text())["outcome"] == "finished"
    assert done.stderr.rstrip().endswith("finished")


@pytest.mark.parametrize(("launcher", "number"), [("deepspeed", signal.SIGTERM), ("torchrun", signal.SIGINT)])
def test_a_request_to_stop_reaches_the_ranks(launcher: str, number: signal.Signals, plan: Path, data: Path, tmp_path: Path) -> None:
    """The command line's process is asked; the ranks save, it ends, and nobody is left behind."""
    output = tmp_path / "out"
    words = ["--epochs", "900", "--lr", "1e-4", "--packing", "off", "--save-every", "5", "--launcher", launcher]
    command = [sys.executable, "-m", "llmcheck", "train", *arguments(plan, data, output, *words)]
    process = subprocess.Popen(command, env=with_paths(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + LIMIT_S
    while not (output / "checkpoints" / "step-00000005").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_S)[0]
    receipt = json.loads((output / "run.json").read_text())

    assert process.returncode == 0, said[-3000:]
    assert receipt["outcome"] == "stopped"
    assert steps_of(output)[-1]["step"] == receipt["progress"]["step"] < 6000
    assert (output / "checkpoints" / f"step-{receipt['progress']['step']:08d}").is_dir()
    assert ranks_of(output) == []


def test_a_request_that_comes_while_packages_are_imported_is_not_lost(plan: Path, data: Path, tmp_path: Path) -> None:
    """A rank of its own takes seconds to import torch; SIGUSR1 would end it meanwhile, as it ends any process that does not expect it."""
    alone = make_plan(tmp_path / "plan.json", make_model(tmp_path / "model", "llama"), gpus=1)
    words = arguments(alone, data, tmp_path / "out", *OPTIONS)
    command = [sys.executable, "-m", "llmcheck_trainer.train", *words]
    process = subprocess.Popen(command, env=with_paths(), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + LIMIT_S
    while b"SigCgt:\t" not in (status := Path(f"/proc/{process.pid}/status").read_bytes()) or not catches(status, signal.SIGUSR1):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=LIMIT_S)[1]

    assert "libtorch" not in loaded
    assert process.returncode == 0, said[-3000:]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["outcome"] == "stopped"


def catches(status: bytes, number: signal.Signals) -> bool:
    """Whether the process with this /proc/PID/status has a handler for the signal."""
    mask = int(status.split(b"SigCgt:\t", 1)[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def ranks_of(output: Path) -> list[str]:
    """Processes whose command line names `output`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(output).encode() in words:
            found.append(name)
    return found
