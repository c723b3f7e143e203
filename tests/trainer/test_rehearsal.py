"""The rehearsal of a plan's first steps, on the CPU: any rank, each method; and what simulation and trainer must say alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rig import environment, make_model, make_plan

from llmcheck.shadow.attention import PACKED_FAMILIES, ROW_FAMILIES
from llmcheck_trainer import placement, varlen

RUN = """
import json, sys
from llmcheck import planfile
from llmcheck_trainer import rehearsal
found = rehearsal.measure(planfile.read(sys.argv[1]), rank=int(sys.argv[2]), steps=int(sys.argv[3]), on_cpu=True)
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    return {family: make_model(folder / family, family) for family in ("llama", "bloom")}


def rehearse(plan: Path, rank: int = 0, steps: int = 5) -> dict[str, Any]:
    """Each in a process of its own, as the command does it: a process joins one group."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(plan), str(rank), str(steps)], env=environment(), capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


@pytest.mark.parametrize(
    ("family", "rank", "options"),
    [
        ("llama", 0, ("--zero", "2", "--grad-accum", "2", "--packing", "on")),
        ("llama", 3, ("--zero", "3")),
        ("llama", 1, ("--zero", "2", "--method", "lora")),
        ("llama", 2, ("--zero", "3", "--method", "lora", "--offload", "params")),
        ("bloom", 0, ("--zero", "1", "--attention", "sdpa", "--packing", "on")),
        ("bloom", 0, ("--zero", "0", "--precision", "bf16", "--loss", "hf", "--attention", "eager")),
    ],
)
def test_any_rank_of_any_recipe_runs_alone(family: str, rank: int, options: tuple[str, ...], models: Any, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", models[family], *options, gpus=4)
    found = rehearse(plan, rank)

    assert (found["outcome"], found["rank"], found["world_size"], found["num_skipped"]) == ("measured", rank, 4, 0)
    assert (found["num_steps_timed"], found["step_s"] > 0) == (1, True)
    assert found["phases"] == []  # memory is the GPU's


def test_the_command_says_that_there_is_no_gpu(models: Any, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", models["llama"])
    argv = [sys.executable, "-m", "llmcheck", "probe", "--plan", str(plan)]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error[no-gpu]: PyTorch sees no GPU here")


def test_calibration_says_so_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "llmcheck", "probe", "--calibrate", "--out", str(tmp_path / "p.json")]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, (tmp_path / "p.json").exists()) == (3, False)
    assert "error[no-gpu]" in done.stderr


def test_trainer_and_simulation_pack_the_same_families_in_the_same_way() -> None:
    assert placement.PACKED == PACKED_FAMILIES
    assert varlen.FAMILIES == ROW_FAMILIES
