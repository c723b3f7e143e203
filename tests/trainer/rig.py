"""What the trainer's tests share: tiny models, plans, prepared data, and two ranks that stay up."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from llmcheck.cli import main as llmcheck

ROOT = Path(__file__).resolve().parents[2]
VOCAB, EOS, BOS, PAD = 128, 2, 1, 3
SEQ = 64
SAMPLE = tuple(range(4, 40))  # ids whose logits are compared
CALL_LIMIT_S = 300.0  # a rank that answers later is waiting for one that does not come
NOTHING_BUILT = os.path.join(tempfile.gettempdir(), f"llmcheck-nothing-built-{os.getpid()}")  # what others have compiled is not there

# Small enough to train in seconds; sizes that no two axes share, so that a transposed or mixed-up one fails.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt_neox": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def environment() -> dict[str, str]:
    """For processes of the trainer: on the CPU, quietly, with the packages of this checkout, and where nothing can be compiled."""
    paths = [str(ROOT), str(ROOT / "rules"), str(ROOT / "trainer"), str(ROOT / "tests" / "trainer")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_OPS": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "CC": "false",
        "CXX": "false",
        "TORCH_EXTENSIONS_DIR": NOTHING_BUILT,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def make_model(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """A model of random weights as Hugging Face files."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    fields = {"vocab_size": VOCAB, "eos_token_id": EOS, "bos_token_id": BOS, "pad_token_id": PAD, **MODELS.get(family, {}), **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases other than their initial ones and zeros, so that losing them shows
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def make_plan(path: Path, model: Path, *options: str, gpus: int = 2) -> Path:
    """A plan made by `llmcheck plan`, in fp32 unless `options` say otherwise."""
    command = ["plan", "--model", str(model), "--gpus", str(gpus), "--gpu", "A100-40G", "--seq-len", str(SEQ), "--loss", "chunked"]
    given = {word for word in options if word.startswith("--")}
    defaults = {"--precision": "fp32", "--micro-batch": "2", "--checkpointing": "on", "--zero": "2", "--method": "full"}
    for flag, value in defaults.items():
        command += [] if flag in given else [flag, value]
    with contextlib.redirect_stdout(io.StringIO()):
        code = llmcheck([*command, *options, "--out", str(path), "--force"])
    assert code == 0, command
    return path


def make_data(folder: Path, rows: list[list[int]], supervised: list[list[int]] | None = None, **changes: Any) -> Path:
    """Prepared data; without `supervised`, all tokens but the first half of a row are in the loss."""
    folder.mkdir(parents=True, exist_ok=True)
    supervised = supervised or [[int(i >= len(row) // 2) for i in range(len(row))] for row in rows]
    tokens = np.array([t for row in rows for t in row], dtype="<u2")
    mask = np.array([m for row in supervised for m in row], dtype="u1")
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype("<i8")
    source = np.arange(1, len(rows) + 1, dtype="<i8")
    files = {}
    for name, array in (("tokens.bin", tokens), ("supervised.bin", mask), ("offsets.bin", offsets), ("source.bin", source)):
        array.tofile(folder / name)
        data = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    manifest = {
        "schema": "llmcheck.data/1",
        "num_rows": len(rows),
        "num_tokens": len(tokens),
        "num_supervised_tokens": int(mask.sum()),
        "seq_len": SEQ,
        "token_dtype": "uint16",
        "tokenizer": {"digest": "sha256:0", "vocab_size": VOCAB, "pad_id": PAD, "eos_id": EOS, "bos_id": BOS},
        "files": files,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def some_rows(number: int, *, seed: int = 0, shortest: int = 4, longest: int = SEQ) -> list[list[int]]:
    """Random rows of random lengths."""
    rng = np.random.default_rng(seed)
    return [[BOS, *rng.integers(4, VOCAB, rng.integers(shortest, longest) - 2).tolist(), EOS] for _ in range(number)]


def steps_of(output: Path) -> list[dict[str, Any]]:
    """The steps in log.jsonl."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line and "lr" in line]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Ranks:
    """Processes of one gloo group that run one call after another: importing torch and DeepSpeed takes longer than a test."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: list[list[str]] = []

    def start(self) -> None:
        port = free_port()
        for rank in range(self.number):
            env = {
                **environment(),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.number),
                "LOCAL_WORLD_SIZE": str(self.number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = [sys.executable, "-m", "worker"]
            process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.processes.append(process)
        self.errors = [[] for _ in self.processes]
        for process, lines in zip(self.processes, self.errors, strict=True):
            threading.Thread(target=_drain, args=(process.stderr, lines), daemon=True).start()

    def call(self, function: str, *args: Any) -> list[Any]:
        """`function` of jobs.py on all ranks; what each returned. An exception on a rank is raised here with its text.

        Ranks that wait for each other for ever are ended, which fails this call alone: the next one starts new ones.
        """
        if not self.processes:
            self.start()
        watch = threading.Timer(CALL_LIMIT_S, self._end)
        watch.start()
        try:
            return self._call(function, *args)
        finally:
            watch.cancel()
            if any(process.poll() is not None for process in self.processes):
                self.stop()

    def _call(self, function: str, *args: Any) -> list[Any]:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([function, args]) + "\n")
            process.stdin.flush()
        answers = []
        for rank, process in enumerate(self.processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            while line and not line.startswith("@answer "):
                line = process.stdout.readline()  # what libraries print
            if not line:
                process.wait()
                raise AssertionError(f"rank {rank} is gone:\n" + "".join(self.errors[rank][-40:]))
            answers.append(json.loads(line.removeprefix("@answer ")))
        failed = [answer["raised"] for answer in answers if "raised" in answer]
        if failed:
            raise AssertionError("\n".join(failed))
        return [answer["value"] for answer in answers]

    def train(self, plan: Path, data: Path, output: Path, *options: str) -> list[dict[str, Any]]:
        """Run the trainer; for each rank its exit code, the code of its error, and the logits of SAMPLE before the export."""
        return self.call("train", arguments(plan, data, output, *options))

    def _end(self) -> None:
        for process in self.processes:
            process.kill()

    def stop(self) -> None:
        self._end()
        for process in self.processes:
            process.wait()
        self.processes = []


def arguments(plan: Path, data: Path, output: Path, *options: str) -> list[str]:
    """The trainer's command line."""
    return ["--plan", str(plan), "--data", str(data), "--output", str(output), *options]


def _drain(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
        del lines[:-400]
