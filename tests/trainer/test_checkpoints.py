"""Checkpoints: exact to resume from, whole or not at all, refused when damaged, and good for another number of ranks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from rig import Ranks, arguments, make_data, make_model, make_plan, some_rows, steps_of

from llmcheck import lock


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "prepared", some_rows(30))


OPTIONS = ("--lr", "1e-2", "--epochs", "2", "--packing", "off")


@pytest.mark.parametrize(
    ("zero", "packing", "more"),
    [
        ("0", "off", ()),
        ("1", "off", ("--precision", "bf16")),
        ("2", "on", ()),
        ("2", "off", ("--method", "lora")),
        ("3", "off", ()),
        ("3", "on", ("--method", "lora")),
        *((zero, "off", ("--precision", "bf16", "--optimizer", "adam-bf16")) for zero in "023"),
    ],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(
    zero: str, packing: str, more: tuple[str, ...], two: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, *more)
    options = ["--lr", "1e-2", "--epochs", "2" if packing == "off" else "4", "--packing", packing]
    two.train(plan, data, tmp_path / "straight", *options)
    two.call("train_until", arguments(plan, data, tmp_path / "cut", *options), 5)
    two.train(plan, data, tmp_path / "cut", *options)
    straight, cut = steps_of(tmp_path / "straight"), steps_of(tmp_path / "cut")
    written = [next((tmp_path / name).glob("*/*model.safetensors")).read_bytes() for name in ("straight", "cut")]

    assert [step["step"] for step in cut] == list(range(1, len(straight) + 1))
    assert len(straight) > 5
    assert [(step["loss"], step["lr"], step["grad_norm"]) for step in cut] == [(s["loss"], s["lr"], s["grad_norm"]) for s in straight]
    assert written[0] == written[1]


ADAPTERS = ("--method", "lora", "--lora-dropout", "0")  # what dropout drops is another thing on each rank


@pytest.mark.parametrize(
    ("zero", "more"),
    [("0", ()), ("0", ("--precision", "bf16")), ("1", ()), ("2", ()), ("3", ()), ("2", ADAPTERS), ("3", ADAPTERS)]
    + [(zero, ("--precision", "bf16", "--optimizer", "adam-bf16")) for zero in "03"],
)
def test_another_number_of_ranks_goes_on_where_the_first_stopped(
    zero: str, more: tuple[str, ...], one: Ranks, two: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    both = make_plan(tmp_path / "two.json", model, "--zero", zero, "--micro-batch", "2", *more)
    alone = make_plan(tmp_path / "one.json", model, "--zero", zero, "--micro-batch", "4", *more, gpus=1)
    two.train(both, data, tmp_path / "straight", *OPTIONS)
    two.call("train_until", arguments(both, data, tmp_path / "cut", *OPTIONS), 5)
    answers = one.train(alone, data, tmp_path / "cut", *OPTIONS)
    straight, cut = steps_of(tmp_path / "straight"), steps_of(tmp_path / "cut")

    assert answers[0]["exit"] == 0, answers
    assert [step["step"] for step in cut] == list(range(1, len(straight) + 1))
    # rounding at random, the bits of one rank's part of the weights are not those of a half
    tolerance = 0.02 if "adam-bf16" in more else 1e-3
    assert [step["loss"] for step in cut] == pytest.approx([step["loss"] for step in straight], rel=tolerance)


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


def test_checkpoints_of_another_course_do_not_push_out_those_of_this_one(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    """--resume never, then auto: by number the newest are those of the first run, which nobody wants to go on from any more."""
    plan = make_plan(tmp_path / "plan.json", model)
    output, options = tmp_path / "out", [*OPTIONS, "--save-every", "2"]
    two.train(plan, data, output, *options)
    old = {path.name for path in (output / "checkpoints").iterdir()}
    two.call("train_until", arguments(plan, data, output, *options, "--resume", "never"), 5)
    left = {path.name for path in (output / "checkpoints").iterdir()}
    before = len(steps_of(output))
    went_on = two.train(plan, data, output, *options)

    assert old == {"step-00000014", "step-00000015"}
    assert left == {"step-00000004", "step-00000006", "step-00000014.aside", "step-00000015.aside"}
    assert [answer["exit"] for answer in went_on] == [0, 0]
    assert steps_of(output)[before]["step"] == 7


def test_room_is_asked_for_what_is_not_there_yet(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    """Two checkpoints are there, and two are kept: one more is all that there must be room for."""
    plan = make_plan(tmp_path / "plan.json", model)
    output, options = tmp_path / "out", [*OPTIONS, "--save-every", "2"]
    two.call("train_until", arguments(plan, data, output, *options), 7)
    size = sum(path.stat().st_size for path in (output / "checkpoints" / "step-00000006").rglob("*"))
    answers = two.call("train_with_free_bytes", arguments(plan, data, output, *options), [2 * size])

    assert [answer["exit"] for answer in answers] == [0, 0], answers


def test_a_conversion_that_is_killed_is_not_taken_for_done(one: Ranks, two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    both = make_plan(tmp_path / "two.json", model, "--micro-batch", "2")
    alone = make_plan(tmp_path / "one.json", model, "--micro-batch", "4", gpus=1)
    two.call("train_until", arguments(both, data, tmp_path / "out", *OPTIONS), 5)
    killed = one.call("train_and_kill_the_conversion", arguments(alone, data, tmp_path / "out", *OPTIONS))
    went_on = one.train(alone, data, tmp_path / "out", *OPTIONS)

    assert (killed[0]["code"], killed[0]["why"]) == ("checkpoint", "its process ended with -9")
    assert went_on[0]["exit"] == 0


def test_a_folder_above_the_checkpoints_is_told_apart(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    output = tmp_path / "out"
    two.train(plan, data, output, *OPTIONS)
    for folder in (output, output / "checkpoints"):
        answers = two.train(plan, data, output, *OPTIONS, "--resume", str(folder))
        assert [answer["code"] for answer in answers] == ["checkpoint"] * 2
        assert answers[0]["hint"] == f"did you mean {output}/checkpoints/step-00000015?"


def test_old_checkpoints_go_and_the_best_stays(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    options = ["--save-every", "2", "--keep", "2", "--eval-data", str(data), "--eval-every", "2", "--warmup", "0"]
    options += ["--packing", "off", "--epochs", "2", "--on-nan", "continue"]
    # The first run learns, the second unlearns: the best is one that only the first has evaluated.
    two.call("train_until", arguments(plan, data, tmp_path / "out", *options, "--lr", "1e-3"), 5)
    two.train(plan, data, tmp_path / "out", *options, "--lr", "0.5")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line["loss"] for line in lines if line.get("event") == "evaluation"}
    best = min(evaluations, key=evaluations.__getitem__)
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "out" / "checkpoints").iterdir()}

    assert best < sorted(evaluations)[-2]  # else keeping the newest would be enough
    assert kept == {best, *sorted(evaluations)[-2:]}


def test_another_run_cannot_be_resumed_from(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    two.train(plan, data, tmp_path / "out", *OPTIONS)
    other = make_data(tmp_path / "other", some_rows(30, seed=9))
    answers = two.train(plan, other, tmp_path / "out", *OPTIONS)

    assert [answer["code"] for answer in answers] == ["other-run"] * 2


def test_what_another_run_learned_is_taken_where_that_is_allowed(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    """All of the other data is trained on, and a later resume is of this run."""
    plan = make_plan(tmp_path / "plan.json", model)
    output = tmp_path / "out"
    two.train(plan, data, output, *OPTIONS)
    other = make_data(tmp_path / "other", some_rows(30, seed=9))
    answers = two.call("train_until", arguments(plan, other, output, *OPTIONS, "--allow", "other-run"), 5)
    went_on = two.train(plan, other, output, *OPTIONS)
    steps = steps_of(output)

    assert [answer["exit"] for answer in (*answers, *went_on)] == [0] * 4
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert [step["position"] for step in steps[15:]] == [step["position"] for step in steps[:15]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--zero", "3"), "zero stage 2, not 3"),
        (("--precision", "bf16"), "precision fp32, not bf16"),
        (("--method", "lora"), "method full, not lora"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    options: tuple[str, str], said: str, two: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    before = make_plan(tmp_path / "before.json", model)
    after = make_plan(tmp_path / "after.json", model, *options)
    two.call("train_until", arguments(before, data, tmp_path / "out", *OPTIONS), 3)
    answers = two.train(after, data, tmp_path / "out", *OPTIONS)

    assert [answer["code"] for answer in answers] == ["other-recipe"] * 2
    assert said in answers[0]["what"]


def test_states_that_a_deepspeed_file_keeps_in_bf16_are_not_those_in_fp32(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    section = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    (tmp_path / "ds.json").write_text(json.dumps({"bf16": section}))
    before = make_plan(tmp_path / "before.json", model, "--precision", "bf16")
    after = make_plan(tmp_path / "after.json", model, "--precision", "bf16", "--ds-config", str(tmp_path / "ds.json"))
    for output in ("out", "other"):
        plan = before if output == "out" else after
        assert [answer["exit"] for answer in two.call("train_until", arguments(plan, data, tmp_path / output, *OPTIONS), 3)] == [0, 0]
    refused = two.train(after, data, tmp_path / "out", *OPTIONS)
    went_on = two.train(after, data, tmp_path / "other", *OPTIONS)

    assert "optimizer states fp32, not bf16" in refused[0]["what"]
    assert [answer["exit"] for answer in went_on] == [0, 0]


def test_two_runs_do_not_write_into_one_folder(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    output = tmp_path / "out"
    output.mkdir()
    held = lock.hold(str(output / lock.TRAINER))
    assert held is not None
    refused = two.call("train_without_patience", arguments(plan, data, output, *OPTIONS))
    os.close(held)
    went_on = two.train(plan, data, output, *OPTIONS)

    assert [(answer["exit"], answer["code"]) for answer in refused] == [(2, "output-in-use")] * 2
    assert f"process {os.getpid()}" in refused[0]["why"]
    assert [answer["exit"] for answer in went_on] == [0, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_write_that_one_rank_cannot_make_costs_one_checkpoint(rank: int, two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    """A quota, say: the file system shows room, and the system refuses all the same. Zero-3, so that ranks write files of their own."""
    plan = make_plan(tmp_path / "plan.json", model, "--zero", "3")
    output = tmp_path / "out"
    answers = two.call("train_on_a_disk_that_refuses", arguments(plan, data, output, "--save-every", "2", "--packing", "off"), rank, 1, 3)

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    assert [step["step"] for step in steps_of(output)] == list(range(1, 9))


def test_when_the_last_save_fails_all_ranks_say_so_and_the_one_before_stays(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model, "--zero", "3")
    output, options = tmp_path / "out", ["--save-every", "4", "--packing", "off"]
    refused = two.call("train_on_a_disk_that_refuses", arguments(plan, data, output, *options), 1, 5, 10**6)
    left = [path.name for path in (output / "checkpoints").iterdir()]
    exported = (output / "model" / "model.safetensors").read_bytes()
    went_on = two.train(plan, data, output, *options)
    two.train(plan, data, tmp_path / "straight", *options)

    assert [(answer["exit"], answer["code"]) for answer in refused] == [(1, "not-saved")] * 2
    assert "rank 1: " in refused[0]["why"]
    assert left == ["step-00000004"]
    assert exported == (tmp_path / "straight" / "model" / "model.safetensors").read_bytes()  # rank 0 had room for it
    assert [answer["exit"] for answer in went_on] == [0, 0]
    by_step = {step["step"]: step["loss"] for step in steps_of(output)}
    assert by_step == {step["step"]: step["loss"] for step in steps_of(tmp_path / "straight")}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_that_the_disk_refuses_is_made_up_for(method: str, two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model, "--zero", "3", "--method", method)
    output = tmp_path / "out"
    refused = two.call("train_and_refuse_the_export", arguments(plan, data, output, *OPTIONS))
    steps, left = steps_of(output), sorted(path.name for path in output.iterdir() if path.is_dir())
    went_on = two.train(plan, data, output, *OPTIONS)

    assert [(answer["exit"], answer["code"]) for answer in refused] == [(1, "export")] * 2
    assert left == ["checkpoints"]
    assert [answer["exit"] for answer in went_on] == [0, 0]
    assert steps_of(output) == steps  # nothing was trained again
    assert (output / ("model" if method == "full" else "adapter")).is_dir()


def test_a_log_that_cannot_be_written_does_not_end_the_run(two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").symlink_to("/dev/full")

    assert [answer["exit"] for answer in two.train(plan, data, tmp_path / "out")] == [0, 0]
    assert (tmp_path / "out" / "model").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_asked_to_stop_it_saves_first(number: signal.Signals, two: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model)
    answers = two.call("train_and_signal", arguments(plan, data, tmp_path / "out", *OPTIONS), 4, int(number))
    receipt = json.loads((tmp_path / "out" / "run.json").read_text())
    steps = steps_of(tmp_path / "out")

    assert [answer["exit"] for answer in answers] == [0, 0]
    assert receipt["outcome"] == "stopped"
    assert steps[-1]["step"] < 10
    assert (tmp_path / "out" / "checkpoints" / f"step-{steps[-1]['step']:08d}").is_dir()
