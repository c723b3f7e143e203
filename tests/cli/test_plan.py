"""`plan` as a process, on real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

import llmcheck as package
from llmcheck import planfile

Run = Callable[..., Any]

VALIDATOR = Draft202012Validator(json.loads((Path(package.__file__).parent / "schema" / "plan-1.json").read_text(encoding="utf-8")))
FITS = ("plan", "--model", "bloomz-560m", "--gpus", "1", "--gpu", "A100-40G", "--method", "full")
DOES_NOT_FIT = (
    "plan --model llama-13b --gpus 1 --gpu A100-40G --method full --zero 0 --offload none --checkpointing off --micro-batch 1"
).split()
LORA = ("plan", "--model", "llama-7b", "--gpus", "8", "--gpu", "A100-40G", "--method", "lora")
TWO_NODES = ("plan", "--model", "llama-7b", "--gpus", "16", "--nodes", "2", "--gpu", "A100-80G-SXM", "--zero", "3", "--samples", "2M")


def document(outcome: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.mark.parametrize("command", [FITS, DOES_NOT_FIT, LORA, TWO_NODES], ids=["fits", "does-not-fit", "lora", "two-nodes"])
def test_json_output_satisfies_the_published_schema(llmcheck: Run, command: tuple[str, ...]) -> None:
    outcome = llmcheck(*command, "--format", "json")
    assert outcome.stderr == ""
    assert [f"{e.json_path}: {e.message[:200]}" for e in VALIDATOR.iter_errors(document(outcome))] == []


@pytest.mark.parametrize("command", [FITS, DOES_NOT_FIT, LORA, TWO_NODES], ids=["fits", "does-not-fit", "lora", "two-nodes"])
def test_json_output_can_be_read_back(llmcheck: Run, command: tuple[str, ...]) -> None:
    found = document(llmcheck(*command, "--format", "json"))
    plan_file = planfile.from_document(found)
    assert not plan_file.edited
    assert json.loads(json.dumps(planfile.document(plan_file.plan, solve=plan_file.solve))) == found


def test_the_breakdown_sums_to_the_peak(llmcheck: Run) -> None:
    estimate = document(llmcheck(*LORA, "--format", "json"))["estimate"]
    assert sum(estimate["breakdown"].values()) == estimate["peak_allocated_bytes"]


def test_the_host_terms_sum_to_the_host_memory(llmcheck: Run) -> None:
    estimate = document(llmcheck(*LORA, "--format", "json"))["estimate"]
    assert sum(estimate["host_terms"].values()) == estimate["host_bytes_per_node"]


def test_the_deepspeed_configuration_is_complete(llmcheck: Run) -> None:
    assert '"auto"' not in json.dumps(document(llmcheck(*FITS, "--format", "json"))["deepspeed"])


@pytest.mark.parametrize(
    ("command", "fail_on", "code"),
    [(FITS, "error", 0), (DOES_NOT_FIT, "error", 1), (DOES_NOT_FIT, "warning", 1), (DOES_NOT_FIT, "never", 0)],
)
def test_the_exit_code_is_the_verdict(llmcheck: Run, command: tuple[str, ...], fail_on: str, code: int) -> None:
    assert llmcheck(*command, "--fail-on", fail_on).code == code


def test_text_fits_100_columns_and_a_screen(llmcheck: Run) -> None:
    outcome = llmcheck(*TWO_NODES)
    lines = outcome.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 60


def test_text_in_a_pipe_has_no_escapes(llmcheck: Run) -> None:
    assert "\x1b" not in llmcheck(*FITS).stdout


def test_force_color_colours_a_pipe(llmcheck: Run) -> None:
    assert "\x1b[1;32mFITS\x1b[0m" in llmcheck(*FITS, env={"FORCE_COLOR": "1"}).stdout


def test_an_ascii_terminal_gets_ascii(llmcheck: Run) -> None:
    outcome = llmcheck(*FITS, encoding="ascii")
    assert outcome.code == 0
    assert outcome.stdout.isascii()


def test_the_command_that_is_proposed_gives_the_same_plan(llmcheck: Run, tmp_path: Path) -> None:
    text = llmcheck(*FITS).stdout
    command = text[text.index("llmcheck plan --model") :].replace("\\\n", " ").split()
    again = llmcheck(*command[1:], cwd=tmp_path)
    assert again.code == 0
    first = document(llmcheck(*FITS, "--format", "json"))
    second = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert second["digest"] == first["digest"]


def test_out_is_what_json_prints(llmcheck: Run, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    outcome = llmcheck(*FITS, "--out", str(path), "--format", "json")
    assert path.read_text(encoding="utf-8") == outcome.stdout
    assert document(outcome)["launch"]["argv"][-1] == str(path)


def test_out_replaces_an_earlier_plan(llmcheck: Run, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert llmcheck(*FITS, "--out", str(path)).code == 0
    assert llmcheck(*FITS, "--seq-len", "512", "--out", str(path)).code == 0
    assert planfile.read(str(path)).plan.recipe.seq_len == 512


def test_a_timeline_is_drawn(llmcheck: Run, tmp_path: Path) -> None:
    assert llmcheck(*FITS, "--timeline", str(tmp_path / "step.svg")).code == 0
    assert ElementTree.parse(tmp_path / "step.svg").getroot().tag.endswith("svg")


def test_markdown_has_the_verdict_as_heading(llmcheck: Run) -> None:
    assert llmcheck(*FITS, "--format", "markdown").stdout.startswith("### ✅ FITS: bloomz-560m")


def test_without_a_gpu_the_assumed_one_is_named(llmcheck: Run) -> None:
    outcome = llmcheck("plan", "--model", "bloomz-560m", "--gpus", "1")
    assert "LCM090" in outcome.stdout


def test_gpu_memory_overrides_the_catalogue(llmcheck: Run) -> None:
    assert document(llmcheck(*FITS, "--gpu-memory", "24", "--format", "json"))["cluster"]["gpu"]["memory_bytes"] == 24 << 30


def test_more_gpus_than_a_node_holds_are_spread_and_it_is_said(llmcheck: Run) -> None:
    found = document(llmcheck("plan", "--model", "bloomz-560m", "--gpu", "A100-40G", "--gpus", "16", "--format", "json"))
    assert (found["cluster"]["num_nodes"], found["cluster"]["gpus_per_node"]) == (2, 8)
    assert "LCM091" in [finding["code"] for finding in found["findings"]]


@pytest.mark.parametrize("target", ["seq-len", "micro-batch"])
def test_a_solved_value_fits_and_the_next_one_does_not(llmcheck: Run, target: str) -> None:
    solve = document(llmcheck(*FITS, "--solve", target, "--format", "json"))["solve"]
    verdicts = {value: verdict for value, _, verdict in solve["tried"]}
    assert verdicts[solve["value"]] != "does-not-fit"
    if solve["next_value"] is not None:
        assert verdicts[solve["next_value"]] == "does-not-fit"


def test_the_same_command_gives_the_same_bytes(llmcheck: Run) -> None:
    again = llmcheck(*FITS, "--format", "json", env={"PYTHONHASHSEED": "7"})
    assert again.stdout == llmcheck(*FITS, "--format", "json").stdout
