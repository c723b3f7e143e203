"""What must stop a run, and what it then says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rig import EOS, PAD, VOCAB, Ranks, arguments, make_data, make_model, make_plan, some_rows


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    return make_plan(tmp_path / "plan.json", model)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", some_rows(20))


def test_an_edited_plan(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    document["recipe"]["gradient_clipping"] = 0.5
    plan.write_text(json.dumps(document))

    assert [answer["code"] for answer in two.train(plan, data, tmp_path / "out")] == ["plan-edited"] * 2
    assert [answer["exit"] for answer in two.train(plan, data, tmp_path / "out", "--allow", "plan-edited")] == [0, 0]


@pytest.mark.parametrize("export", ["adapter", "merged"])
def test_a_result_that_the_method_does_not_have(export: str, two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.train(plan, data, tmp_path / "out", "--export", export)

    assert [answer["code"] for answer in answers] == ["conflict"] * 2
    assert not (tmp_path / "out").exists()  # before the training, not after it


def test_a_tensor_that_no_file_holds_is_told_before_the_training(one: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", model, gpus=1)
    (answer,) = one.call("train_with_buffer", arguments(plan, data, tmp_path / "out"), "complex128")

    assert (answer["exit"], answer["code"], answer["num_steps"]) == (2, "export", 0)
    assert "turns" in answer["what"]
    (answer,) = one.call("train_with_buffer", arguments(plan, data, tmp_path / "none", "--export", "none"), "complex128")
    assert answer["exit"] == 0


def test_a_tensor_of_complex_numbers_is_written(one: Ranks, model: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    plan = make_plan(tmp_path / "plan.json", model, gpus=1)
    (answer,) = one.call("train_with_buffer", arguments(plan, data, tmp_path / "out"), "complex64")

    assert answer["exit"] == 0
    assert load_file(tmp_path / "out" / "model" / "model.safetensors")["turns"].tolist() == [0, 1, 2, 3, 4]


def test_another_number_of_ranks(one: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    (answer,) = one.train(plan, data, tmp_path / "out")

    assert (answer["exit"], answer["code"]) == (2, "world-size")
    assert "1 ranks were started, the plan is for 2" in answer["what"]


def test_a_batch_that_is_not_the_product(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    document["deepspeed"]["train_batch_size"] = 7
    plan.write_text(json.dumps(document))
    answers = two.train(plan, data, tmp_path / "out", "--allow", "plan-edited")

    assert [answer["code"] for answer in answers] == ["batch"] * 2


@pytest.mark.parametrize(
    ("tokenizer", "code"),
    [
        ({"vocab_size": VOCAB + 1}, "vocabulary"),
        ({"eos_id": EOS + 3}, "special-ids"),
        ({"bos_id": 77}, "special-ids"),
        ({"pad_id": EOS}, "pad-is-eos"),
    ],
)
def test_another_tokenizer(tokenizer: dict[str, int], code: str, two: Ranks, plan: Path, tmp_path: Path) -> None:
    whole = {"digest": "sha256:0", "vocab_size": VOCAB, "pad_id": PAD, "eos_id": EOS, "bos_id": 1, **tokenizer}
    data = make_data(tmp_path / "data", some_rows(20), tokenizer=whole)

    assert [answer["code"] for answer in two.train(plan, data, tmp_path / "out")] == [code] * 2


def test_weights_of_another_model(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "llama", hidden_size=64)
    answers = two.train(plan, data, tmp_path / "out", "--weights", str(other))

    assert [answer["code"] for answer in answers] == ["weights-model"] * 2
    assert "hidden_size is 64, the plan has 48" in answers[0]["what"]


def test_weights_that_are_cut_off(two: Ranks, plan: Path, data: Path, model: Path, tmp_path: Path) -> None:
    broken = make_model(tmp_path / "broken", "llama")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    answers = two.train(plan, data, tmp_path / "out", "--weights", str(broken))

    assert [answer["code"] for answer in answers] == ["weights"] * 2


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("model.safetensors.index.json", "{", "weights"),
        ("model.safetensors.index.json", '{"weight_map": 5}', "weights"),
        ("config.json", "{", "weights"),
        ("config.json", "[]", "weights"),
        ("config.json", {"hidden_size": "wide"}, "weights"),
        ("config.json", {"rope_parameters": {"rope_type": "none"}}, "weights-model"),
        ("tokenizer_config.json", "{}", "tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer"),
    ],
)
def test_files_of_a_model_that_are_not_what_they_should_be(
    name: str, content: str | dict[str, object], code: str, one: Ranks, model: Path, data: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan.json", model, gpus=1)
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    if isinstance(content, dict):
        content = json.dumps({**json.loads((model / name).read_text()), **content})
    (broken / name).write_text(content)
    (answer,) = one.train(plan, data, tmp_path / "out", "--weights", str(broken))

    assert (answer["exit"], answer["code"]) == (2, code)
    assert answer["why"]


def test_rows_longer_than_the_plan(two: Ranks, plan: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "long", [[1, *range(4, 100), 2]])
    answers = two.train(plan, data, tmp_path / "out")

    assert [answer["code"] for answer in answers] == ["data-length"] * 2


def test_data_that_was_cut_off(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    tokens = data / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    answers = two.train(plan, data, tmp_path / "out")

    assert [answer["code"] for answer in answers] == ["data"] * 2
    assert "tokens.bin" in answers[0]["why"]


@pytest.mark.parametrize("flag", ["--data", "--eval-data"])
def test_data_that_has_changed_since(flag: str, two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    """A token is another one, of files that are as long as they were: nothing is learnt, written or set aside."""
    other = make_data(tmp_path / "other", some_rows(20, seed=1))
    tokens = bytearray((other / "tokens.bin").read_bytes())
    tokens[100] ^= 1
    (other / "tokens.bin").write_bytes(tokens)
    given, held_out = (other, data) if flag == "--data" else (data, other)
    answers = two.train(plan, given, tmp_path / "out", "--eval-data", str(held_out))

    assert [(answer["exit"], answer["code"]) for answer in answers] == [(2, "data")] * 2
    assert "changed since" in answers[0]["what"]
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize(("nodes", "read"), [([0, 0], [["data"], []]), ([0, 1], [["data"], ["data"]])])
@pytest.mark.parametrize("rank", [0, 1])
def test_each_node_reads_its_own_data_once(
    rank: int, nodes: list[int], read: list[list[str]], two: Ranks, plan: Path, data: Path, tmp_path: Path
) -> None:
    """Whichever node's data is another one, all ranks say so."""
    answers = two.call("train_with_other_data_on", arguments(plan, data, tmp_path / "out"), rank, nodes)

    assert [answer["read"] for answer in answers] == read
    assert [(answer["exit"], answer["code"]) for answer in answers] == [(2, "data")] * 2


@pytest.mark.parametrize(
    "change", [{"tokenizer": None}, {"files": {"tokens.bin": 1}}, {"token_dtype": []}, {"num_rows": "many"}, {"files": 7}]
)
def test_a_manifest_of_other_types(change: dict[str, object], two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, **change}))

    assert [answer["code"] for answer in two.train(plan, data, tmp_path / "out")] == ["data"] * 2


def test_nothing_in_the_loss(two: Ranks, plan: Path, tmp_path: Path) -> None:
    rows = some_rows(4)
    data = make_data(tmp_path / "silent", rows, [[0] * len(row) for row in rows])

    assert [answer["code"] for answer in two.train(plan, data, tmp_path / "out")] == ["data"] * 2


def test_packing_a_model_that_sees_across_rows(two: Ranks, data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", make_model(tmp_path / "bloom", "bloom"), "--attention", "eager")
    answers = two.train(plan, data, tmp_path / "out", "--packing", "on")

    assert [answer["code"] for answer in answers] == ["packing"] * 2


def test_a_full_disk_is_seen_before_training(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_with_free_bytes", arguments(plan, data, tmp_path / "out"), [1000])

    assert [answer["code"] for answer in answers] == ["disk-full"] * 2
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_disk_that_fills_up_does_not_end_the_run_until_the_last_save(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    """Room at the start and at the end, none in between: one checkpoint is missing, with a warning, and nothing else."""
    words = arguments(plan, data, tmp_path / "out", "--save-every", "2", "--packing", "off")
    answers = two.call("train_with_free_bytes", words, [10**12, 1000, 10**12])
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())

    assert [answer["exit"] for answer in answers] == [0, 0]
    assert kept == ["step-00000004", "step-00000005"]


def test_a_loss_that_is_not_a_number_names_the_rows(two: Ranks, plan: Path, tmp_path: Path) -> None:
    """One token's embedding is broken, and one row has the token."""
    import torch
    from safetensors.torch import load_file, save_file

    broken = make_model(tmp_path / "broken", "llama")
    state = load_file(broken / "model.safetensors")
    state["model.embed_tokens.weight"][VOCAB - 1] = torch.nan
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    rows = [[token if token != VOCAB - 1 else 5 for token in row] for row in some_rows(20, shortest=8)]
    rows[13][1] = VOCAB - 1
    data = make_data(tmp_path / "data", rows)
    answers = two.train(plan, data, tmp_path / "out", "--weights", str(broken), "--packing", "off")

    assert [(answer["exit"], answer["code"]) for answer in answers] == [(1, "nan")] * 2
    (bad,) = [json.loads(line) for line in (tmp_path / "out" / "bad_steps.jsonl").read_text().splitlines()]
    assert bad["kind"] == "nan"
    assert len(bad["rows"]) == 4
    assert {"row": 13, "source": "file 0 line 14"} in bad["rows"]


def strictly(text: str) -> list[dict[str, object]]:
    """Lines of JSON as other programs read them: without NaN and Infinity, which Python alone writes."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_gradients_that_are_not_numbers_are_told_with_their_rows(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_with_bad_gradients", arguments(plan, data, tmp_path / "out", "--packing", "off"), 3, 3)
    lines = strictly((tmp_path / "out" / "log.jsonl").read_text())
    (bad,) = strictly((tmp_path / "out" / "bad_steps.jsonl").read_text())

    assert [answer["exit"] for answer in answers] == [0, 0]
    assert [(line["step"], line["grad_norm"]) for line in lines if line.get("event") == "gradient"] == [(3, "inf")]
    assert (bad["step"], bad["kind"], len(bad["rows"])) == (3, "gradient", 4)  # type: ignore[arg-type]


def test_a_run_whose_gradients_stay_bad_is_stopped(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    words = arguments(plan, data, tmp_path / "out", "--packing", "off", "--epochs", "4")
    answers = two.call("train_with_bad_gradients", words, 2, 100)

    assert [(answer["exit"], answer["code"]) for answer in answers] == [(1, "nan")] * 2
    assert "10 steps in a row" in answers[0]["what"]
    assert "up to step 11" in answers[0]["what"]


def test_a_loss_scale_that_gives_up(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_and_lose_the_scale", arguments(plan, data, tmp_path / "out"))

    assert [(answer["exit"], answer["code"]) for answer in answers] == [(1, "nan")] * 2
    assert "--precision bf16" in answers[0]["hint"]


def test_held_out_data_whose_loss_is_not_a_number_is_never_the_best(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = make_model(tmp_path / "broken", "llama", tie_word_embeddings=False)
    state = load_file(broken / "model.safetensors")
    state["model.embed_tokens.weight"][VOCAB - 1] = torch.nan
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    rows = [[token if token != VOCAB - 1 else 5 for token in row] for row in some_rows(20)]
    held_out = make_data(tmp_path / "held-out", [[1, VOCAB - 1, 7, 8, 2]])
    output = tmp_path / "out"
    options = ["--weights", str(broken), "--eval-data", str(held_out), "--eval-every", "2", "--packing", "off"]
    answers = two.train(plan, make_data(tmp_path / "rows", rows), output, *options)
    evaluations = [line for line in strictly((output / "log.jsonl").read_text()) if line.get("event") == "evaluation"]
    newest = max((output / "checkpoints").iterdir())

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert {line["loss"] for line in evaluations} == {"nan"}
    assert json.loads((output / "run.json").read_text())["progress"]["eval_loss"] is None
    assert json.loads((newest / "checkpoint.json").read_text())["state"]["best_loss"] is None


def test_running_out_of_memory_names_parts_and_levers(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_out_of_memory", arguments(plan, data, tmp_path / "out"))
    document = json.loads(plan.read_text())
    levers = [lever for lever in document["what_if"] if lever["delta_bytes"] < 0]

    assert [(answer["exit"], answer["code"]) for answer in answers] == [(1, "out-of-memory")] * 2
    assert "step 1 at full length" in answers[0]["what"]
    assert "weights" in answers[0]["why"]
    assert all(" ".join(lever["flags"]) in answers[0]["hint"] for lever in levers)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["outcome"] == "out-of-memory"


def test_an_unknown_tracker(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.train(plan, data, tmp_path / "out", "--trackers", "tensorbord")

    assert [answer["code"] for answer in answers] == ["tracker"] * 2
    assert "tensorboard" in answers[0]["hint"]
    assert not (tmp_path / "out").exists()  # before anything is loaded


@pytest.mark.parametrize("fails_in", ["log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(fails_in: str, two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_with_tracker", arguments(plan, data, tmp_path / "out", "--trackers", "tensorboard"), fails_in)

    assert [answer["exit"] for answer in answers] == [0, 0]
    assert answers[0]["told"] == (1 if fails_in == "log" else len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) - 1)


def test_a_tracker_that_does_not_start(two: Ranks, plan: Path, data: Path, tmp_path: Path) -> None:
    answers = two.call("train_with_tracker", arguments(plan, data, tmp_path / "out", "--trackers", "tensorboard"), "start")

    assert [answer["code"] for answer in answers] == ["tracker"] * 2
    assert answers[0]["why"] == "ConnectionError: no network"
