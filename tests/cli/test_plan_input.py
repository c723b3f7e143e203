"""Bad input to `plan`: exit 2, a message with what, where and what to do, nothing on stdout, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
MODEL = ("--model", "bloomz-560m", "--gpu", "A100-40G")


def refused(outcome: Any) -> str:
    """The message, after checking the manners that every refusal shares."""
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error[")
    assert "Traceback" not in outcome.stderr
    assert "  where: " in outcome.stderr
    assert outcome.stderr.isascii() or outcome.stderr.replace("\n", "").isprintable()
    return str(outcome.stderr)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gpus", "8"], ["which model?", "llmcheck plan --model bloomz-7b1"]),
        (["--model", "", "--gpus", "8"], ["which model?"]),
        (["--model", "blomz-7b1"], ["blomz-7b1", "did you mean", "'bloomz-7b1'"]),
        (["--model", "\x1b[2Jx"], ["\\x1b[2Jx"]),
        ([*MODEL[:2], "--gpu", "A100-4OG"], ["A100-4OG", "did you mean"]),
        ([*MODEL, "--gpus", "0"], ["--gpus 0 is out of range", "1 to 1,000,000 GPUs"]),
        ([*MODEL, "--gpus", "-8"], ["--gpus -8 is out of range"]),
        ([*MODEL, "--gpus", "8.5"], ["--gpus needs a whole number of GPUs, not '8.5'"]),
        ([*MODEL, "--gpus", "8", "--nodes", "3"], ["3 nodes do not divide 8 GPUs", "--gpus 24"]),
        ([*MODEL, "--gpus", "1", "--nodes", "2"], ["2 nodes do not divide 1 GPUs"]),
        ([*MODEL, "--gpu-memory", "nan"], ["--gpu-memory needs a number of GiB"]),
        ([*MODEL, "--gpu-memory", "1e9"], ["--gpu-memory 1000000000.0 is out of range"]),
        ([*MODEL, "--seq-len", "0"], ["--seq-len 0 is out of range"]),
        ([*MODEL, "--seq-len", "99999999999999999999999999999999999"], ["--seq-len needs a whole number"]),
        ([*MODEL, "--micro-batch", "0"], ["--micro-batch 0 is out of range"]),
        ([*MODEL, "--method", "loar"], ["--method cannot be 'loar'", "did you mean 'lora'"]),
        ([*MODEL, "--zero", "4"], ["--zero cannot be '4'", "auto, 0, 1, 2, 3"]),
        ([*MODEL, "--lora-dropout", "1"], ["--lora-dropout 1.0 is out of range"]),
        ([*MODEL, "--method", "full", "--lora-rank", "8"], ["--lora-rank has no meaning with --method full"]),
        ([*MODEL, "--method", "lora", "--lora-targets", "q_proj,,v_proj"], ["--lora-targets needs names"]),
        ([*MODEL, "--samples", "2M", "--tokens", "1B"], ["--samples and --tokens", "give one"]),
        ([*MODEL, "--samples", "-1"], ["--samples -1 is out of range"]),
        ([*MODEL, "--solve", "gpus", "--gpus", "8"], ["--solve gpus looks for the number that --gpus gives"]),
        ([*MODEL, "--solve", "seq-len", "--seq-len", "8"], ["--solve seq-len looks for"]),
        ([*MODEL, "--timeline", "plan.gif"], ["must end in .svg or .png"]),
        ([*MODEL, "--out", "/nowhere/plan.json"], ["cannot write /nowhere/plan.json", "make its folder first"]),
        ([*MODEL, "--out", "/dev/null"], ["it is not a regular file"]),
        ([*MODEL, "--gpus", "8", "--micro-batch", "2", "--grad-accum", "2", "--global-batch", "33"], ["33"]),
    ],
    ids=lambda value: " ".join(value)[-40:].replace("\x1b", "ESC") if isinstance(value, list) else "",
)
def test_it_is_refused_with_the_reason(llmcheck: Run, args: list[str], words: list[str]) -> None:
    message = refused(llmcheck("plan", *args))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"llama"',
        b"\x80\x02not json",
        b'{"model_type": "llama"',
        b'{"model_type": "llama"}trailing',
        b'{"model_type": "llama", "hidden_size": "4096"}',
        b'{"model_type": "llama", "hidden_size": -1, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8}',
        b'{"model_type": "llama", "hidden_size": 1e400}',
        b'{"model_type": "llama", "num_hidden_layers": 99999999999999999999}',
        b'{"model_type": "llama", "num_hidden_layers": ' + b"9" * 6000 + b"}",
        b'{"model_type": ["llama"]}',
        b'{"model_type": "llama", "hidden_size": true}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(16),
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_bad_model_configuration(llmcheck: Run, tmp_path: Path, content: bytes, as_folder: bool) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(llmcheck("plan", "--model", str(tmp_path if as_folder else path), "--gpu", "A100-40G", cwd=tmp_path))


def test_a_huge_model_configuration_is_not_read_whole(llmcheck: Run, tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10 << 30)  # sparse
    refused(llmcheck("plan", "--model", str(tmp_path), "--gpu", "A100-40G"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"zero_optimization": {"stage": 7}}',
        b'{"zero_optimization": {"stage": "three"}}',
        b'{"zero_optimization": 3}',
        b'{"zero_optimization": {"stage": 3, "reduce_bucket_size": -1}}',
        b'{"bf16": {"enabled": true}, "fp16": {"enabled": true}}',
        b'{"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}',
        b'{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 2}}',
    ],
    ids=range(10),
)
def test_a_bad_deepspeed_configuration(llmcheck: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    refused(llmcheck("plan", *MODEL, "--gpus", "8", "--ds-config", str(path)))


def test_a_deepspeed_configuration_that_contradicts_a_flag(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    message = refused(llmcheck("plan", *MODEL, "--gpus", "8", "--zero", "2", "--ds-config", str(tmp_path / "ds.json")))
    assert "--zero" in message


@pytest.mark.parametrize("path", ["missing.json", ".", "/dev/zero"])
def test_a_deepspeed_configuration_that_cannot_be_read(llmcheck: Run, tmp_path: Path, path: str) -> None:
    assert "cannot read" in refused(llmcheck("plan", *MODEL, "--ds-config", path, cwd=tmp_path)) or path != "missing.json"


def test_a_file_that_is_not_a_plan_is_not_replaced(llmcheck: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    message = refused(llmcheck("plan", *MODEL, "--gpus", "1", "--out", str(notes)))
    assert notes.read_text() == "precious"
    assert "--force" in message


def test_a_picture_of_someone_else_is_not_replaced(llmcheck: Run, tmp_path: Path) -> None:
    picture = tmp_path / "mine.svg"
    picture.write_text("<svg/>")
    refused(llmcheck("plan", *MODEL, "--gpus", "1", "--timeline", str(picture)))
    assert picture.read_text() == "<svg/>"
