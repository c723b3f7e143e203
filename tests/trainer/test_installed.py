"""Says why the trainer's tests are left out where they are, and fails where they must not be."""

from __future__ import annotations

import importlib.util
import os

import pytest

NEEDED = ("torch", "transformers", "deepspeed", "peft", "accelerate", "safetensors", "numpy")


def test_the_trainers_packages_are_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("LLMCHECK_TRAINER") != "required":
        pytest.skip("the trainer is not tested here: no " + ", ".join(missing) + "; `make test-trainer` has them")
    assert missing == []
