"""The shadow models against event lists of real PyTorch and transformers (tests/golden/oracle, made by benchmarks/oracle/record.py)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmcheck.shadow import attention, families

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "oracle"
# The goldens have 80 rows: below lie only per-row statistics, ids and scalars, which the shadow models may leave out.
MIN_BYTES = 700
END = 3  # later events are frees by the cycle collector, of which there are none


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ROOT / "benchmarks" / "oracle" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = _tool("compare")
simulate = _tool("simulate")


def canonical(events: Iterable[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """(phase, bytes) of the large events; frees that follow one another are sorted, as their order changes nothing."""
    out: list[tuple[int, int]] = []
    run: list[tuple[int, int]] = []
    for phase, num_bytes, _ in events:
        if abs(num_bytes) < MIN_BYTES or phase > END:
            continue
        if num_bytes < 0 and (not run or run[0][0] == phase):
            run.append((phase, num_bytes))
            continue
        out += sorted(run)
        run = [(phase, num_bytes)] if num_bytes < 0 else []
        if num_bytes > 0:
            out.append((phase, num_bytes))
    return out + sorted(run)


def own_name(name: str) -> str:
    """A parameter's name without what peft puts around it."""
    return name.removeprefix("base_model.model.").replace(".default.", ".")


def _files() -> Iterator[Any]:
    for path in sorted(GOLDEN.glob("*.json.gz")):
        data = compare.load(path)
        if data["family"] in families.names():
            yield path, data


def _cases() -> Iterator[Any]:
    for path, data in _files():
        for case in data["cases"]:
            yield pytest.param(path, case, id=f"{path.name.split('.')[0]}-{case}")


@pytest.mark.parametrize(("path", "case"), list(_cases()))
def test_events_are_those_of_pytorch(path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = compare.load(path, case)
    monkeypatch.setattr(attention, "WITHOUT_DEVICE", golden["case"]["sdpa"])

    actual = canonical(simulate.events(golden))

    assert canonical(golden["events"]) == actual


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name.split(".")[0]) for path, _ in _files()])
def test_parameters_are_those_of_transformers(path: Path) -> None:
    data = compare.load(path)
    first = compare.load(path, next(iter(data["cases"])))

    actual = [[name, list(shape)] for name, shape in simulate.params(first)]

    assert [[own_name(name), shape] for name, shape in data["params"]] == actual


def _counted() -> Iterator[Any]:
    """Cases recorded with the number of trainable parameters."""
    for path, data in _files():
        for case, recorded in data["cases"].items():
            if "num_trainable" in recorded:
                yield pytest.param(path, case, id=f"{path.name.split('.')[0]}-{case}")


@pytest.mark.parametrize(("path", "case"), list(_counted()))
def test_as_many_parameters_train_as_in_peft(path: Path, case: str) -> None:
    golden = compare.load(path, case)

    assert golden["num_trainable"] == simulate.num_trainable(golden)
