"""From files of rows to a trained model with one command; what the trainer itself compares; what the receipt keeps of the data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rig import SEQ, Ranks, environment, make_data, make_model, make_plan, some_rows, steps_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmcheck import lock
from llmcheck.cli import main

SIZE = 320
PAIRS = {"What is red?": "A colour.", "What is two?": "A number.", "What is an oak?": "A tree.", "What is a cat?": "An animal."}


def write_tokenizer(folder: Path, size: int = SIZE) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials, alphabet = ["<unk>", "<s>", "</s>", "<pad>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*PAIRS, *PAIRS.values(), "Human: \n", "\n\nAssistant: \n"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    told["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("raw") / "model", "llama", vocab_size=SIZE)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    return make_plan(tmp_path / "plan.json", model, gpus=1)


def rows(folder: Path) -> list[Path]:
    """BELLE's, alpaca's and ShareGPT's shape, in a file each."""
    belle = [{"id": "1", "conversations": [{"from": "human", "value": q}, {"from": "assistant", "value": a}]} for q, a in PAIRS.items()]
    alpaca = [{"instruction": q, "input": "", "output": a} for q, a in PAIRS.items()]
    sharegpt = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS.items()]
    paths = []
    for name, found in (("belle", belle), ("alpaca", alpaca), ("sharegpt", sharegpt)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        paths.append(path)
    return paths


def train(*words: object) -> subprocess.CompletedProcess[str]:
    # Not by way of an activated environment: the launcher beside this interpreter is found without it.
    env = {**environment(), "PATH": os.defpath}
    command = [sys.executable, "-m", "llmcheck", "train", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def prepare(folder: Path, model: Path, file: Path) -> Path:
    words = ["data", "prepare", file, "--model", model, "--seq-len", SEQ, "--template", "belle", "--out", folder, "--fast", "off"]
    assert main([str(word) for word in words]) == 0
    return folder


def sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_command_from_rows_to_a_model(model: Path, tmp_path: Path) -> None:
    out, files = tmp_path / "out", rows(tmp_path)
    words: list[object] = ["--model", model, "--seq-len", 64, "--micro-batch", 4, "--output", out, "--template", "belle"]
    words += ["--data", *files[:2], "--eval-data", files[2], "--epochs", 30, "--lr", "1e-2", "--save-every", 0]
    done = train(*words)
    again = train(*words, "--dry-run")
    receipt = json.loads((out / "run.json").read_text())
    manifest = json.loads((out / "data" / "manifest.json").read_text())

    assert done.returncode == 0, done.stderr[-3000:]
    assert " FITS " in done.stderr
    assert steps_of(out)[-1]["loss"] < steps_of(out)[0]["loss"] / 4
    assert (out / "model" / "model.safetensors").is_file()
    assert receipt["outcome"] == "finished"
    assert receipt["plan_digest"] == json.loads((out / "plan.json").read_text())["digest"]
    assert receipt["data"] == {
        "folder": str(out / "data"),
        "digest": sha256(out / "data" / "manifest.json"),
        "num_rows": 8,
        "num_tokens": manifest["num_tokens"],
        "num_supervised_tokens": manifest["num_supervised_tokens"],
        "seq_len": 64,
        "tokenizer_digest": manifest["tokenizer"]["digest"],
    }
    assert receipt["eval_data"]["digest"] == sha256(out / "eval-data" / "manifest.json")
    assert "nothing has changed" in again.stderr


def test_both_sides_know_the_same_codes() -> None:
    from llmcheck.commands.preflight import TRAINER_CODES
    from llmcheck_trainer.identity import ALLOWABLE

    assert TRAINER_CODES == ALLOWABLE


def test_reasons_are_in_the_receipt(one: Ranks, plan: Path, model: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    plan.write_text(json.dumps({**document, "allowed": [{"code": "LCM104", "reason": "a trial on the CPU"}]}))
    data = prepare(tmp_path / "data", model, rows(tmp_path)[0])
    (answer,) = one.train(plan, data, tmp_path / "out", "--max-steps", "1", "--export", "none", "--save-every", "0")

    assert answer["exit"] == 0, answer
    assert json.loads((tmp_path / "out" / "run.json").read_text())["allowed"] == [{"code": "LCM104", "reason": "a trial on the CPU"}]


def test_another_tokenizer_than_the_weights(one: Ranks, plan: Path, model: Path, tmp_path: Path) -> None:
    """The same size and special ids, other merges: only the digest tells. Refused before anything is loaded, and the data is as it was."""
    data = prepare(tmp_path / "data", model, rows(tmp_path)[0])
    weights = shutil.copytree(model, tmp_path / "weights")
    found = json.loads((weights / "tokenizer.json").read_text())
    found["model"]["merges"].reverse()
    (weights / "tokenizer.json").write_text(json.dumps(found))
    before = {path: path.read_bytes() for path in data.iterdir()}
    words = ("--weights", str(weights), "--max-steps", "1", "--export", "none", "--save-every", "0")
    (refused,) = one.train(plan, data, tmp_path / "out", *words)
    kept = (tmp_path / "out").exists()
    (allowed,) = one.train(plan, data, tmp_path / "out", *words, "--allow", "tokenizer")

    assert (refused["exit"], refused["code"]) == (2, "tokenizer")
    assert not kept
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    assert allowed["exit"] == 0, allowed


def test_held_out_data_of_another_tokenizer(one: Ranks, plan: Path, model: Path, tmp_path: Path) -> None:
    file = rows(tmp_path)[0]
    other = shutil.copytree(model, tmp_path / "other")
    write_tokenizer(other, 280)
    data, held_out = prepare(tmp_path / "data", model, file), prepare(tmp_path / "held-out", other, file)
    (answer,) = one.train(plan, data, tmp_path / "out", "--eval-data", str(held_out))

    assert (answer["exit"], answer["code"]) == (2, "tokenizer")
    assert str(other) in answer["why"]


def test_rows_cut_shorter_than_the_plans_sequences(one: Ranks, plan: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", some_rows(8, longest=SEQ // 2), seq_len=SEQ // 2, truncated={"count": 3})
    (refused,) = one.train(plan, data, tmp_path / "out")

    assert (refused["exit"], refused["code"]) == (2, "seq-len")
    assert "3 rows" in refused["why"]


def test_ranks_of_an_earlier_run_are_waited_for(one: Ranks, plan: Path, tmp_path: Path) -> None:
    """They outlive a launcher that is killed, and would go on to write checkpoints beside those of the next run."""
    data = make_data(tmp_path / "data", some_rows(8))
    (tmp_path / "out").mkdir()
    held = lock.hold(str(tmp_path / "out" / lock.TRAINER))
    assert held is not None
    words = ("--max-steps", "1", "--export", "none", "--save-every", "0", "--allow", "tokenizer")
    released: list[bool] = []
    timer = threading.Timer(1.5, lambda: (released.append((tmp_path / "out" / "log.jsonl").exists()), os.close(held)))
    timer.start()
    (first,) = one.train(plan, data, tmp_path / "out", *words)
    timer.join()
    (second,) = one.train(plan, data, tmp_path / "out", *words, "--resume", "never")  # this process lets go of it at the end of a run

    assert released == [False]
    assert (first["exit"], second["exit"]) == (0, 0), (first, second)
