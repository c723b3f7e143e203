"""Checkpoints: exact to resume from, whole or not at all, refused when damaged, and good for another number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import Ranks, environment, free_port, make_data, make_model, make_plan, some_rows, steps_of


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "prepared", some_rows(30))


OPTIONS = ("--lr", "1e-2", "--epochs", "2", "--packing", "off")


@pytest.mark.parametrize(
    ("zero", "more"),
    [("0", ()), ("2", ("--method", "lora")), ("3", ()), ("3", ("--method", "lora")), ("1", ("--precision", "bf16"))],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(
    zero: str, more: tuple[str, ...], two: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, *more)
    two.train(plan, data, tmp_path / "straight", *OPTIONS)
    two.call("train_until", ["--plan", str(plan), "--data", str(data), "--output", str(tmp_path / "cut"), *OPTIONS], 5)
    two.train(plan, data, tmp_path / "cut", *OPTIONS)
    straight, cut = steps_of(tmp_path / "straight"), steps_of(tmp_path / "cut")

    assert [step["step"] for step in cut] == list(range(1, len(straight) + 1))
    assert len(straight) > 5
    assert [(step["loss"], step["lr"], step["grad_norm"]) for step in cut] == [(s["loss"], s["lr"], s["grad_norm"]) for s in straight]


@pytest.mark.parametrize("zero", ["1", "2", "3"])
def test_another_number_of_ranks_goes_on_where_the_first_stopped(
    zero: str, one: Ranks, two: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    both = make_plan(tmp_path / "two.json", model, "--zero", zero, "--micro-batch", "2")
    alone = make_plan(tmp_path / "one.json", model, "--zero", zero, "--micro-batch", "4", gpus=1)
    two.train(both, data, tmp_path / "straight", *OPTIONS)
    two.call("train_until", ["--plan", str(both), "--data", str(data), "--output", str(tmp_path / "cut"), *OPTIONS], 5)
    answers = one.train(alone, data, tmp_path / "cut", *OPTIONS)
    straight, cut = steps_of(tmp_path / "straight"), steps_of(tmp_path / "cut")

    assert answers[0]["exit"] == 0, answers
    assert [step["step"] for step in cut] == list(range(1, len(straight) + 1))
    assert [step["loss"] for step in cut] == pytest.approx([step["loss"] for step in straight], rel=1e-3)


def test_a_damaged_checkpoint_is_passed_over_or_refused_by_name(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    output = tmp_path / "out"
    two.train(plan, data, output, *OPTIONS, "--save-every", "4")
    newest, older = sorted((output / "checkpoints").iterdir())[::-1][:2]
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    refused = two.train(plan, data, output, *OPTIONS, "--resume", str(newest))
    before = len(steps_of(output))
    went_on = two.train(plan, data, output, *OPTIONS)

    assert [answer["code"] for answer in refused] == ["checkpoint"] * 2
    assert victim.name in refused[0]["why"]
    assert [answer["exit"] for answer in went_on] == [0, 0]
    assert steps_of(output)[before]["step"] == int(older.name.removeprefix("step-")) + 1


def test_old_checkpoints_go_and_the_best_stays(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    options = ["--save-every", "2", "--keep", "2", "--eval-data", str(data), "--eval-every", "2", "--lr", "0.3", "--warmup", "0"]
    two.train(plan, data, tmp_path / "out", *options, "--packing", "off", "--on-nan", "continue")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line["loss"] for line in lines if line.get("event") == "evaluation"}
    best = min(evaluations, key=evaluations.__getitem__)
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "out" / "checkpoints").iterdir()}

    assert kept == {best, *sorted(evaluations)[-2:]}


def test_another_run_cannot_be_resumed_from(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    two.train(plan, data, tmp_path / "out", *OPTIONS)
    other = make_data(tmp_path / "other", some_rows(30, seed=9))
    answers = two.train(plan, other, tmp_path / "out", *OPTIONS)

    assert [answer["code"] for answer in answers] == ["other-run"] * 2


def start(plan: Path, data: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "llmcheck_trainer.train", "--plan", str(plan), "--data", str(data), "--output", str(output), *options]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[str], limit_s: float = 240.0) -> None:
    until = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


def test_killed_while_it_saves_it_goes_on_from_the_last_whole_checkpoint(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    """SIGKILL between the files of a checkpoint and its name; then a run on the same folder."""
    plan = make_plan(tmp_path / "plan.json", model)
    output = tmp_path / "out"
    options = [*OPTIONS, "--save-every", "3"]
    process = start(plan, data, output, *options)
    wait_for(output / "checkpoints" / "step-00000003", process)
    wait_for(output / "checkpoints" / ".step-00000006.part", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {path.name for path in (output / "checkpoints").iterdir()}
    answers = two.train(plan, data, output, *options)
    two.train(plan, data, tmp_path / "straight", *OPTIONS)

    assert "step-00000003" in left
    assert [answer["exit"] for answer in answers] == [0, 0]
    assert not list((output / "checkpoints").glob("*.part"))
    by_step = {step["step"]: step["loss"] for step in steps_of(output)}  # steps that ran twice: the later one counts
    assert by_step == {step["step"]: step["loss"] for step in steps_of(tmp_path / "straight")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_saves_first(number: signal.Signals, two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    answers = two.call(
        "train_and_signal", ["--plan", str(plan), "--data", str(data), "--output", str(tmp_path / "out"), *OPTIONS], 4, int(number)
    )
    receipt = json.loads((tmp_path / "out" / "run.json").read_text())
    steps = steps_of(tmp_path / "out")

    assert [answer["exit"] for answer in answers] == [0, 0]
    assert receipt["outcome"] == "stopped"
    assert steps[-1]["step"] < 10
    assert (tmp_path / "out" / "checkpoints" / f"step-{steps[-1]['step']:08d}").is_dir()
