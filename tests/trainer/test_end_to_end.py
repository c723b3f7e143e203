"""From text to a model that answers: plan, data prepare, train through each launcher, compare; as processes, as a user has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rig import EOS, PAD, environment, make_model, make_plan, steps_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = {"What is red?": "A colour.", "What is two?": "A number.", "What is an oak?": "A tree.", "What is a cat?": "An animal."}
SIZE = 320


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE with the special ids of the tiny models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*QUESTIONS, *QUESTIONS.values(), "Human: \n", "\n\nAssistant: \n"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    told["tokenizer_class"] = "PreTrainedTokenizerFast"  # else transformers takes Llama's, which drops the spaces (LCT012)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def llmcheck(*words: object, limit_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    env = environment()
    env["PATH"] = str(Path(sys.executable).parent) + ":" + env["PATH"]
    command = [sys.executable, "-m", "llmcheck", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s, check=False)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_from_text_to_a_model_that_answers(launcher: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", vocab_size=SIZE)
    make_tokenizer(model)
    text = tmp_path / "rows.jsonl"
    turns = [[{"from": "human", "value": q}, {"from": "assistant", "value": a}] for q, a in QUESTIONS.items()]
    text.write_text("".join(json.dumps({"id": str(i), "conversations": turn}) + "\n" for i, turn in enumerate(turns)))
    plan = make_plan(tmp_path / "plan.json", model, "--zero", "3", "--micro-batch", "1")
    prepared = llmcheck("data", "prepare", text, "--model", model, "--seq-len", 64, "--template", "belle", "--out", tmp_path / "data")
    assert prepared.returncode == 0, prepared.stderr
    options = ["--epochs", 60, "--lr", "1e-2", "--launcher", launcher, "--packing", "off", "--save-every", 0]
    done = llmcheck("train", "--plan", plan, "--data", tmp_path / "data", "--output", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    compared = llmcheck("compare", plan, tmp_path / "out" / "run.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")

    assert steps_of(tmp_path / "out")[-1]["loss"] < 0.05
    assert compared.returncode == 3, "there is no GPU here, so nothing that a plan predicts was measured"
    for question, answer in QUESTIONS.items():
        prompt = tokenizer(f"Human: \n{question}\n\nAssistant: \n", return_tensors="pt", add_special_tokens=False).input_ids
        made = trained.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)[0, prompt.shape[1] :]
        assert tokenizer.decode(made, skip_special_tokens=False) == answer + "</s>"
