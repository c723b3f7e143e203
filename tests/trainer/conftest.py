"""The trainer's tests need torch, transformers, DeepSpeed and peft: `make test-trainer` has them; `make test` leaves these tests out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "transformers", "deepspeed", "peft", "accelerate", "safetensors", "numpy")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

sys.path[:0] = [str(HERE), str(HERE.parents[1] / "trainer")]

if MISSING:  # their imports would fail; test_installed.py says why they are left out
    collect_ignore = [path.name for path in HERE.glob("test_*.py") if path.name != "test_installed.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(str(item.fspath)).parents:
            item.add_marker(pytest.mark.trainer)


@pytest.fixture(scope="session")
def two() -> Iterator[object]:
    from rig import Ranks

    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def one() -> Iterator[object]:
    from rig import Ranks

    ranks = Ranks(1)
    yield ranks
    ranks.stop()
