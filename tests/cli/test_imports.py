"""`plan` is light: what it loads is checked by name, not by the clock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FORBIDDEN = (
    "torch", "numpy", "transformers", "deepspeed", "accelerate", "peft", "safetensors", "huggingface_hub", "yaml", "rich", "pydantic",
    "packaging", "matplotlib", "importlib.metadata", "logging", "urllib.request", "asyncio",
)  # fmt: skip

CODE = """
import contextlib, io, json, sys
from llmcheck.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    code = main(json.loads(sys.argv[1]))
print(json.dumps([code, sorted(sys.modules)]))
"""

EXPLICIT = (
    "plan --model llama-7b --gpus 8 --gpu A100-40G --method full --zero 3 --offload none --micro-batch 1 --checkpointing on "
    "--attention sdpa --precision bf16 --loss hf --optimizer fused-adam --allocator expandable"
).split()


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["plan", "--help"],
        EXPLICIT,
        [*EXPLICIT, "--format", "json"],
        ["plan", "--model", "bloomz-560m", "--gpus", "1"],
    ],
    ids=["help", "plan-help", "explicit", "json", "search"],
)
def test_nothing_heavy_is_loaded(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(args)], capture_output=True, text=True, check=True, timeout=120)
    code, loaded = json.loads(done.stdout)
    assert code in (0, 1)
    assert [name for name in FORBIDDEN if name in loaded] == []


DOCTOR = tuple(name for name in FORBIDDEN if name not in ("packaging", "logging"))  # these two order versions


@pytest.mark.parametrize(
    "args",
    [
        ["doctor"],
        ["doctor", "--log", "-"],
        ["doctor", "--format", "json"],
        ["doctor", "--format", "sarif"],
        ["explain", "LCM010"],
        ["rules", "list"],
    ],
    ids=" ".join,
)
def test_doctor_explain_and_rules_load_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(args)], capture_output=True, text=True, check=True, timeout=120, input="{'loss': 1.9}\n"
    )
    code, loaded = json.loads(done.stdout)
    assert code in (0, 1, 3)
    assert [name for name in DOCTOR if name in loaded] == []


def test_help_loads_no_command() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, '["--help"]'], capture_output=True, text=True, check=True, timeout=60)
    assert [name for name in json.loads(done.stdout)[1] if name.startswith("llmcheck.commands")] == []
