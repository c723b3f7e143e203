"""High-water marks of every golden case: the recorded events against the simulated ones, the smallest included.

`tests/unit/shadow/test_oracle.py` compares the sequences, size by size, down to 700 B. It sorts frees that follow one another, since their
order changes nothing (a law in `tests/unit/shadow/test_allocator.py`). Here everything counts, in the order in which PyTorch did it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmcheck.shadow import attention, families
from llmcheck.shadow.replay import replay
from llmcheck.shadow.tape import Tape

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "oracle"
# What the simulation may leave out altogether: less than one event of those that the comparison of sequences looks at.
SLACK_BYTES = 700
NAMES = ("model", "forward", "backward", "end")
SCALE = 4096  # makes the goldens' 60 kB tensors large enough for the large pool


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", ROOT / "benchmarks" / "oracle" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = _tool("compare")
simulate = _tool("simulate")


def _cases() -> Iterator[Any]:
    for path in sorted(GOLDEN.glob("*.json.gz")):
        data = compare.load(path)
        if data["family"] in families.names():
            for case in data["cases"]:
                yield pytest.param(path, case, id=f"{path.name.split('.')[0]}-{case}")


def high_water(events: Iterable[Any]) -> dict[str, int]:
    """The most bytes that live in each phase."""
    out: dict[str, int] = {}
    live = 0
    for phase, num_bytes, _ in events:
        if phase < len(NAMES):
            live += num_bytes
            out[NAMES[phase]] = max(out.get(NAMES[phase], 0), live)
    return out


def tape_of(events: Iterable[Any]) -> Tape:
    """Events of at least `SLACK_BYTES`, scaled, as a tape: a free takes the youngest block of its size."""
    tape = Tape()
    open_blocks: dict[int, list[int]] = {}
    before = 0
    for phase, num_bytes, _ in events:
        if phase >= len(NAMES) or abs(num_bytes) < SLACK_BYTES:
            continue
        while before < phase:
            tape.mark("phase", NAMES[before])
            before += 1
        if num_bytes > 0:
            open_blocks.setdefault(num_bytes, []).append(len(tape.sizes))
            tape.events.append(len(tape.sizes))
            tape.sizes.append(num_bytes * SCALE)
            tape.categories.append("")
            tape.streams.append(0)
        else:
            tape.events.append(~open_blocks[-num_bytes].pop())
    for name in NAMES[before:]:
        tape.mark("phase", name)
    return tape


@pytest.mark.parametrize(("path", "case"), list(_cases()))
def test_memory_of_each_phase_is_that_of_pytorch(path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = compare.load(path, case)
    monkeypatch.setattr(attention, "WITHOUT_DEVICE", golden["case"]["sdpa"])
    simulated = simulate.events(golden)

    expected, actual = high_water(golden["events"]), high_water(simulated)
    assert dict.fromkeys(expected, True) == {phase: abs(expected[phase] - actual.get(phase, 0)) < SLACK_BYTES for phase in expected}
    for kind in ("native", "expandable"):
        assert replay(tape_of(golden["events"]), kind).phases == replay(tape_of(simulated), kind).phases
