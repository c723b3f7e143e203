"""The GitHub Action, the recipes and the hooks: valid in their platforms' own schemas, and their scripts run here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides" / "gate"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-actions", ROOT / "action.yml"),
        ("vendor.github-workflows", GUIDES / "github-workflow.yml"),
        ("vendor.gitlab-ci", GUIDES / "gitlab-ci.yml"),
    ],
    ids=["action", "workflow", "gitlab"],
)
def test_valid_for_the_platform(schema: str, file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_gives_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load((GUIDES / "github-workflow.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["llmcheck"]["steps"]
    given = next(step["with"] for step in steps if step.get("id") == "llmcheck")
    assert set(given) <= set(ACTION["inputs"])


def test_no_script_holds_an_expression() -> None:
    """An input inside a script's text could become part of the script."""
    assert [step["name"] for step in ACTION["runs"]["steps"] if "${{" in step["run"]] == []


def run_step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run one step of the action as the runner does: its script by bash, inputs in the environment."""
    step = next(step for step in ACTION["runs"]["steps"] if step["name"] == name)
    values = {key: entry.get("default", "") for key, entry in ACTION["inputs"].items()} | {"python": sys.executable} | inputs
    environment = {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text) for key, text in step["env"].items()}
    for file in ("output", "summary"):
        (folder / file).touch()
    environment |= {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary"), "PATH": os.environ["PATH"]}
    script = folder / "step.sh"
    script.write_text(step["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=120)


FITS = "--model\nbloomz-560m\n--gpus\n1\n--gpu\nA100-40G\n"


def test_a_plan_that_fits_passes_and_is_told(tmp_path: Path) -> None:
    done = run_step("plan", tmp_path, plan=FITS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == "verdict=fits\n"
    assert "bloomz-560m" in (tmp_path / "summary").read_text()
    assert (tmp_path / "llmcheck-plan.json").exists()


def test_a_plan_that_does_not_fit_fails_the_job(tmp_path: Path) -> None:
    done = run_step("plan", tmp_path, plan="--model\nllama-2-70b\n--gpus\n1\n--gpu\nT4\n--method\nfull\n--offload\nnone\n")
    assert done.returncode == 1
    assert "verdict=does-not-fit" in (tmp_path / "output").read_text()
    assert "::error title=llmcheck plan::" in done.stdout


def test_doctor_annotates_writes_sarif_and_fails_the_job(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("peft==0.17.1\ntransformers==5.1.0\n")
    done = run_step("doctor", tmp_path, doctor="--requirements\nrequirements.txt\n")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("::error file=requirements.txt,line=1,")
    assert (tmp_path / "output").read_text() == "sarif=llmcheck.sarif\n"
    assert (tmp_path / "llmcheck.sarif").exists()
    assert "### llmcheck doctor" in (tmp_path / "summary").read_text()


def test_an_input_cannot_run_a_command(tmp_path: Path) -> None:
    run_step("doctor", tmp_path, doctor="--requirements\n$(touch owned)`touch owned`; touch owned\n")
    assert not (tmp_path / "owned").exists()


def test_the_job_that_the_recipe_of_gitlab_runs(tmp_path: Path) -> None:
    """Its llmcheck lines, with this interpreter in place of the one that it installs."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ds_config.json").write_text('{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}}')
    (tmp_path / "requirements.txt").write_text("transformers==4.57.6\n")
    script = yaml.safe_load((GUIDES / "gitlab-ci.yml").read_text(encoding="utf-8"))["preflight"]["script"]
    for line in script[1:]:
        command = line.replace("llmcheck ", f"{sys.executable} -m llmcheck ", 1)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
        assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / "llmcheck.xml").read_text().startswith("<?xml")


@pytest.mark.parametrize("hook", yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")), ids=lambda hook: hook["id"])
def test_hooks_take_the_files_that_they_are_for(hook: dict[str, Any], tmp_path: Path) -> None:
    """A hook's command with two matching files, as pre-commit calls it."""
    files = {
        "llmcheck-requirements": {"requirements.txt": "transformers==4.57.6\n", "requirements-dev.txt": "transformers==4.57.6\n"},
        "llmcheck-deepspeed": {"ds_config.json": '{"train_batch_size": 8}', "deepspeed_z3.json": '{"train_batch_size": 8}'},
        "llmcheck-plan": {},
    }[hook["id"]]
    if not files:
        command = [sys.executable, "-m", "llmcheck", "plan", *FITS.split(), "--out", str(tmp_path / "plan.json")]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        files = {"plan.json": (tmp_path / "plan.json").read_text()}
    for name, text in files.items():
        assert re.search(hook["files"], name)
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", *hook["entry"].split(), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
