"""From options to a request, and from a plan to an exit code and the next command."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck import cli
from llmcheck.catalog.gpus import find_gpu
from llmcheck.commands import plan as command
from llmcheck.commands.next_steps import next_steps
from llmcheck.commands.request import request_of
from llmcheck.errors import UserError
from llmcheck.planner.plan import Finding, Lever, Plan, SolveResult
from llmcheck.probe import nvml
from llmcheck.shellwords import quoted
from llmcheck.units import GIB


def parsed(*words: str) -> argparse.Namespace:
    return cli.parser_of("plan").parse_strictly(["--model", "bloomz-560m", *words])


def local(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make this machine have these GPUs; a name that the catalogue does not hold is an unknown GPU."""

    def spec(name: str) -> Any:
        try:
            return find_gpu(name)
        except UserError:
            return None

    gpus = tuple(
        nvml.LocalGpu(
            index=i, name=name, uuid=f"GPU-{i}", total_bytes=1, used_bytes=0, driver="1", compute_capability=(8, 0), spec=spec(name)
        )
        for i, name in enumerate(names)
    )
    monkeypatch.setattr(nvml, "local_gpus", lambda: gpus)


def test_without_any_gpu_the_faqs_is_assumed_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch)
    request, notes = request_of(parsed())
    assert (request.cluster.gpu.name, request.cluster.num_gpus) == ("A100-40G", 1)
    assert [note.code for note in notes] == ["LCM090"]


def test_the_gpus_of_this_machine_are_taken_all(monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch, *["T4"] * 4)
    request, notes = request_of(parsed())
    assert (request.cluster.gpu.name, request.cluster.gpus_per_node, request.cluster.num_nodes) == ("T4", 4, 1)
    assert [note.code for note in notes] == ["LCM092"]


def test_of_several_kinds_the_most_numerous_is_taken_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch, "T4", "L4", "L4")
    request, notes = request_of(parsed())
    assert (request.cluster.gpu.name, request.cluster.num_gpus) == ("L4", 2)
    assert "its other 1 GPUs are left out" in notes[0].message


def test_a_gpu_that_the_catalogue_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch, "Mystery 9000")
    _, notes = request_of(parsed())
    assert "Mystery 9000" in notes[0].message


def test_a_named_gpu_beats_the_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    local(monkeypatch, "T4")
    assert request_of(parsed("--gpu", "L4"))[0].cluster.gpu.name == "L4"


@pytest.mark.parametrize(
    ("words", "nodes", "per_node"),
    [
        (["--gpus", "8"], 1, 8),
        (["--gpus", "6"], 1, 6),
        (["--gpus", "16"], 2, 8),
        (["--gpus", "12"], 2, 6),
        (["--gpus", "11"], 11, 1),
        (["--gpus", "16", "--nodes", "1"], 1, 16),
        (["--gpus", "16", "--nodes", "4"], 4, 4),
        (["--nodes", "3"], 3, 1),
    ],
)
def test_gpus_are_spread_over_nodes(words: list[str], nodes: int, per_node: int) -> None:
    cluster = request_of(parsed("--gpu", "T4", *words))[0].cluster
    assert (cluster.num_nodes, cluster.gpus_per_node) == (nodes, per_node)


def test_machine_options_reach_the_cluster() -> None:
    words = ["--gpu", "T4", "--gpu-memory", "14.5", "--host-memory", "64", "--disk", "100", "--inter-node", "100", "--price", "0.5"]
    cluster = request_of(parsed(*words))[0].cluster
    assert cluster.gpu.memory_bytes == 14.5 * GIB
    assert (cluster.host_memory_bytes, cluster.disk_bytes) == (64 * GIB, 100 * GIB)
    assert cluster.inter_node_bytes_per_s == 12.5e9
    assert cluster.gpu.usd_per_hour == 0.5


def test_auto_is_the_same_as_silence() -> None:
    autos = [word for flag in ("method", "zero", "offload", "checkpointing", "attention", "loss") for word in (f"--{flag}", "auto")]
    assert request_of(parsed("--gpu", "T4", *autos)) == request_of(parsed("--gpu", "T4"))


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], None),
        (["--train-embeddings"], "in-place"),
        (["--train-embeddings", "--zero", "2"], "in-place"),
        (["--train-embeddings", "in-place"], "in-place"),
        (["--train-embeddings", "modules-to-save"], "modules-to-save"),
    ],
)
def test_embeddings_train_in_place_unless_peft_copies_them(words: list[str], how: str | None) -> None:
    assert request_of(parsed("--gpu", "T4", "--method", "lora", *words))[0].train_embeddings == how


def test_recipe_options_reach_the_request() -> None:
    words = "--method lora --lora-rank 8 --lora-targets q_proj,v_proj --zero 3 --checkpointing off --samples 2M --seq-len 512".split()
    request, _ = request_of(parsed("--gpu", "T4", *words))
    assert (request.method, request.lora_rank, request.lora_targets) == ("lora", 8, "q_proj,v_proj")
    assert (request.zero_stage, request.checkpointing, request.num_samples, request.seq_len) == (3, False, 2_000_000, 512)


def finding(severity: Any) -> Finding:
    return Finding(code="LCM099", severity=severity, message="invented")


@pytest.mark.parametrize(
    ("verdict", "severity", "fail_on", "code"),
    [
        ("fits", "note", "error", 0),
        ("fits", "note", "warning", 0),
        ("fits", "warning", "error", 0),
        ("fits", "warning", "warning", 1),
        ("fits", "error", "error", 1),
        ("tight", "note", "error", 0),
        ("tight", "note", "warning", 1),
        ("does-not-fit", "note", "error", 1),
        ("does-not-fit", "error", "never", 0),
    ],
)
def test_exit_codes(synthetic_plan: Plan, verdict: Any, severity: str, fail_on: str, code: int) -> None:
    plan = replace(synthetic_plan, verdict=verdict, findings=(finding(severity),))
    assert command.exit_code(plan, None, fail_on) == code


def test_an_unsolved_question_fails(synthetic_plan: Plan) -> None:
    solved = SolveResult(target="gpus", value=None, plan=synthetic_plan)
    assert command.exit_code(synthetic_plan, solved, "error") == 1


def lever(verdict: Any, *flags: str) -> Lever:
    return Lever(title="x", flags=flags, delta_bytes=-1, speed_ratio=1.0, quality="none", verdict=verdict)


def test_what_does_not_fit_ends_on_the_change_that_makes_it_fit(synthetic_plan: Plan) -> None:
    levers = (lever("does-not-fit", "--loss", "chunked"), lever("tight", "--zero", "2"), lever("fits", "--zero", "3"))
    plan = replace(synthetic_plan, verdict="does-not-fit", what_if=levers)
    steps = next_steps(plan, parsed("--gpus", "8", "--zero", "1", "--out", "p.json"), explicit=False)
    assert steps == ("llmcheck plan --model bloomz-560m --gpus 8 --zero 3",)


def test_what_no_change_makes_fit_ends_on_no_command_but_says_where_to_look(synthetic_plan: Plan) -> None:
    plan = replace(synthetic_plan, verdict="does-not-fit", what_if=(lever("does-not-fit", "--zero", "3"),))
    (step,) = next_steps(plan, parsed(), explicit=False)
    assert step.startswith("no single change tried makes it fit")


def test_what_fits_ends_on_the_users_own_command_with_the_file(synthetic_plan: Plan) -> None:
    steps = next_steps(synthetic_plan, parsed("--gpus", "8", "--verbose", "--format", "text"), explicit=False)
    assert steps == ("llmcheck plan --model bloomz-560m --gpus 8 --out plan.json",)


def test_the_explicit_command_spells_every_choice_out(synthetic_plan: Plan) -> None:
    (step,) = next_steps(synthetic_plan, parsed("--gpus", "8"), explicit=True)
    words = shlex.split(step)
    assert words[-2:] == ["--out", "plan.json"]
    assert cli.parser_of("plan").parse_strictly(words[2:]).grad_accum == 4


def test_what_was_saved_ends_on_what_to_do_with_it(synthetic_plan: Plan) -> None:
    run, saved, _ = next_steps(synthetic_plan, parsed("--out", "p.json"), explicit=False)
    assert run == "llmcheck train --plan p.json --data FILE... --output run"
    assert "saved p.json" in saved


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_quoted_word_is_one_word_to_a_shell(word: str) -> None:
    assert shlex.split(quoted(word)) == [word]
