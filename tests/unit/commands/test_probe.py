"""``llmcheck probe``: options, the trainer's process and its errors, the comparison as text and JSON. The trainer itself: tests/trainer."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmcheck import planfile
from llmcheck.commands import probe
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.planner.plan import Plan


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    probe.configure(parser)
    return parser.parse_args(argv)


@pytest.fixture
def plan_path(synthetic_plan: Plan, tmp_path: Path) -> str:
    path = str(tmp_path / "plan.json")
    planfile.write(path, planfile.document(synthetic_plan))
    return path


def measured(plan: Plan, **changes: Any) -> dict[str, Any]:
    """A record that agrees with the plan of rank 0."""
    rank = plan.memory.rank0
    return {
        "outcome": "measured",
        "rank": 0,
        "world_size": plan.cluster.num_gpus,
        "device": plan.cluster.gpu.title,
        "device_memory_bytes": plan.cluster.gpu.memory_bytes,
        "peak_allocated_bytes": rank.peak_allocated_bytes,
        "peak_reserved_bytes": rank.peak_reserved_bytes,
        "process_bytes": rank.process_bytes,
        "num_alloc_retries": 0,
        "host_peak_bytes": 1,
        "step_s": plan.time.step_s - plan.time.communication_exposed_s,
        "num_steps_timed": 2,
        "num_skipped": 0,
        "steps": 6,
        "versions": {"torch": "2.11.0"},
        "phases": [vars(phase) for phase in rank.phases],
        **changes,
    }


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ((), "usage"),
        (("--plan", "p", "--calibrate"), "conflict"),
        (("--calibrate", "--steps", "3"), "conflict"),
        (("--plan", "p", "--out", "o"), "conflict"),
        (("--plan", "/no/such/plan.json"), "unreadable"),
    ],
)
def test_bad_options_are_refused_before_anything_is_started(argv: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda *_: pytest.fail("started"))

    with pytest.raises(UserError) as caught:
        probe.run(arguments(*argv))

    assert (caught.value.exit_code, caught.value.code) == (2, code)


def test_a_rank_that_the_plan_has_not_is_refused(plan_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda *_: pytest.fail("started"))

    with pytest.raises(UserError, match="there is no rank 4096"):
        probe.run(arguments("--plan", plan_path, "--rank", "4096"))


def test_without_torch_the_way_out_is_said(plan_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(CouldNotCheckError) as caught:
        probe.run(arguments("--plan", plan_path))

    assert (caught.value.exit_code, caught.value.code) == (3, "missing-package")
    assert "llmcheck[train]" in caught.value.hint


def fake_trainer(monkeypatch: pytest.MonkeyPatch, *, document: dict[str, Any] | None, log: bytes = b"", code: int = 0) -> None:
    def run(argv: list[str], *, stdout: Any, **_: Any) -> Any:
        stdout.write(log)
        if document is not None:
            Path(argv[argv.index("--out") + 1]).write_text(json.dumps(document))
        return argparse.Namespace(returncode=code)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(("exit_code", "kind"), [(3, CouldNotCheckError), (2, UserError)])
def test_an_error_of_the_trainer_is_shown_as_its_own(exit_code: int, kind: type, plan_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"what": "PyTorch sees no GPU here", "code": "no-gpu", "where": "w", "why": "y", "hint": "h", "exit_code": exit_code}
    fake_trainer(monkeypatch, document={"outcome": "error", "error": fields}, code=exit_code)

    with pytest.raises(UserError, match="no GPU") as caught:
        probe.run(arguments("--plan", plan_path))

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.hint) == ("no-gpu", "h")


def test_a_trainer_that_dies_leaves_its_last_words(plan_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_trainer(monkeypatch, document=None, log=b"one\n" * 5000 + b"\nsegmentation fault\n", code=-11)

    with pytest.raises(CouldNotCheckError, match="did not come to its end") as caught:
        probe.run(arguments("--plan", plan_path))

    assert "exit code -11" in caught.value.why
    assert caught.value.why.endswith("segmentation fault")
    assert len(caught.value.why) < 2000


def test_a_measurement_as_planned_is_a_success(
    synthetic_plan: Plan, plan_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trainer(monkeypatch, document=measured(synthetic_plan))

    assert probe.run(arguments("--plan", plan_path)) == 0
    out = capsys.readouterr().out
    assert "every measurement is within the plan's band" in out
    assert all(phase.name in out for phase in synthetic_plan.memory.rank0.phases)


def test_json_has_the_figures_and_the_verdict(
    synthetic_plan: Plan, plan_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peak = synthetic_plan.memory.rank0.peak_allocated_bytes
    fake_trainer(monkeypatch, document=measured(synthetic_plan, peak_allocated_bytes=2 * peak))

    assert probe.run(arguments("--plan", plan_path, "--format", "json")) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["within"], found["rank"]) == ("llmcheck.probe/1", False, 0)
    row = next(row for row in found["totals"] if row["name"] == "peak allocated")
    assert (row["predicted"], row["measured"], row["within"], row["error_fraction"]) == (peak, 2 * peak, False, -0.5)


def test_on_another_gpu_times_are_not_compared(
    synthetic_plan: Plan, plan_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = measured(synthetic_plan, device="No Such GPU", device_memory_bytes=synthetic_plan.cluster.gpu.memory_bytes // 2)
    fake_trainer(monkeypatch, document=record)

    assert probe.run(arguments("--plan", plan_path)) == 0
    out = capsys.readouterr().out
    assert "step times are not compared" in out
    assert "step without communication" not in out


def test_few_steps_have_no_time(
    synthetic_plan: Plan, plan_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trainer(monkeypatch, document=measured(synthetic_plan, steps=3, step_s=100.0))

    assert probe.run(arguments("--plan", plan_path, "--steps", "3")) == 0
    assert "no step was timed" in capsys.readouterr().out


def test_memory_that_runs_out_is_a_finding(synthetic_plan: Plan, plan_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_trainer(monkeypatch, document=measured(synthetic_plan, outcome="out-of-memory", phase="step 2"))

    with pytest.raises(UserError, match="out of memory in step 2") as caught:
        probe.run(arguments("--plan", plan_path))

    assert caught.value.exit_code == 1


def test_hostile_names_are_escaped(
    synthetic_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(synthetic_plan, model=replace(synthetic_plan.model, name="m\x1b[31m"))
    planfile.write(str(tmp_path / "p.json"), planfile.document(plan))
    fake_trainer(monkeypatch, document=measured(plan, device="gpu\x1b[2J"))

    probe.run(arguments("--plan", str(tmp_path / "p.json")))

    assert "\x1b[31m" not in (out := capsys.readouterr().out)
    assert "\x1b[2J" not in out


PROFILE = Path(__file__).parents[3] / "benchmarks" / "probe" / "data" / "profile-h100-2026-11.json"


def test_calibrate_writes_a_profile_and_does_not_replace_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = json.loads(PROFILE.read_text())
    fake_trainer(monkeypatch, document=profile)
    path = tmp_path / "profile.json"

    assert probe.run(arguments("--calibrate", "--out", str(path))) == 0
    assert json.loads(path.read_text()) == profile
    assert "NVIDIA H100" in capsys.readouterr().out
    assert probe.run(arguments("--calibrate", "--out", str(path))) == 0  # its own is replaced
    path.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        probe.run(arguments("--calibrate", "--out", str(path)))
