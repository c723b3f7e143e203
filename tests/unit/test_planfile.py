"""The plan file: what is written can be read, whole and strictly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmcheck import planfile
from llmcheck.errors import UserError
from llmcheck.planner.plan import Plan, SolveResult

SCHEMA = json.loads((Path(planfile.__file__).parent / "schema" / "plan-1.json").read_text(encoding="utf-8"))
Document = dict[str, Any]


@pytest.fixture
def document(synthetic_plan: Plan) -> Document:
    """A document of our own to spoil."""
    return copy.deepcopy(planfile.document(synthetic_plan))


def with_worse_rank(plan: Plan) -> Plan:
    worst = replace(plan.memory.worst, rank=7, required_bytes=plan.memory.rank0.required_bytes + 1)
    return replace(plan, memory=replace(plan.memory, worst=worst))


def test_the_schema_itself_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("change", [lambda plan: plan, with_worse_rank, lambda plan: replace(plan, data=None, what_if=())])
def test_a_document_satisfies_the_published_schema(synthetic_plan: Plan, change: Callable[[Plan], Plan]) -> None:
    text = planfile.dumps(planfile.document(change(synthetic_plan)))
    assert [e.message for e in Draft202012Validator(SCHEMA).iter_errors(json.loads(text))] == []


@pytest.mark.parametrize("change", [lambda plan: plan, with_worse_rank, lambda plan: replace(plan, data=None, what_if=())])
def test_reading_a_document_gives_the_plan_back(synthetic_plan: Plan, change: Callable[[Plan], Plan]) -> None:
    plan = change(synthetic_plan)
    found = planfile.from_document(json.loads(planfile.dumps(planfile.document(plan))))
    assert found.plan == plan
    assert not found.edited


def test_a_solved_value_is_read_back(synthetic_plan: Plan) -> None:
    solve = SolveResult(
        target="seq-len", value=3072, plan=synthetic_plan, next_value=3200, tried=((3072, 5, "fits"), (3200, 9, "does-not-fit"))
    )
    assert planfile.from_document(json.loads(planfile.dumps(planfile.document(synthetic_plan, solve=solve)))).solve == solve


def test_the_text_is_the_document(document: Document) -> None:
    assert json.loads(planfile.dumps(document)) == json.loads(json.dumps(document))


def test_required_bytes_are_over_all_ranks(synthetic_plan: Plan) -> None:
    plan = with_worse_rank(synthetic_plan)
    estimate = planfile.document(plan)["estimate"]
    assert estimate["required_bytes"] == plan.memory.worst.required_bytes
    assert estimate["worst_rank"]["rank"] == 7


def test_headline_figures_are_rank_0s(synthetic_plan: Plan) -> None:
    assert planfile.document(with_worse_rank(synthetic_plan))["estimate"]["rank"] == 0


@pytest.mark.parametrize("section", ["model", "cluster", "recipe", "deepspeed"])
def test_an_edit_of_what_decides_is_noticed(document: Document, section: str) -> None:
    edit = {"model": ("name", "other"), "cluster": ("inter_node_bytes_per_s", 1.0), "recipe": ("seq_len", 8), "deepspeed": ("steps", 1)}
    key, value = edit[section]
    document[section][key] = value
    assert planfile.from_document(document).edited


def test_an_edit_of_the_estimate_does_not_change_the_digest(document: Document) -> None:
    document["time"]["step_s"] = 99.0
    assert not planfile.from_document(document).edited


def spoil_world(d: Document) -> None:
    d["cluster"]["num_gpus"] = 9


def spoil_batch(d: Document) -> None:
    d["recipe"]["global_batch_size"] = 1


def spoil_lora(d: Document) -> None:
    d["recipe"]["method"] = "lora"


def spoil_unknown(d: Document) -> None:
    d["recipe"]["zero_stgae"] = 3


def spoil_top(d: Document) -> None:
    d["extra"] = 1


def spoil_missing(d: Document) -> None:
    del d["estimate"]


def spoil_type(d: Document) -> None:
    d["estimate"]["peak_allocated_bytes"] = "20 GiB"


def spoil_section(d: Document) -> None:
    d["model"] = []


def spoil_timeline(d: Document) -> None:
    d["estimate"]["timeline"]["bytes"]["weights"].pop()


def spoil_required(d: Document) -> None:
    d["estimate"]["required_bytes"] += 1


def spoil_alternatives(d: Document) -> None:
    d["alternatives"] = {}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (spoil_world, "cluster.num_gpus: expected 8, found 9"),
        (spoil_batch, "recipe.global_batch_size: expected 64, found 1"),
        (spoil_lora, "recipe.lora"),
        (spoil_unknown, "did you mean 'zero_stage'?"),
        (spoil_top, "plan file.extra: unknown key"),
        (spoil_missing, "estimate: missing"),
        (spoil_type, "estimate.peak_allocated_bytes: expected a whole number"),
        (spoil_section, "model: expected an object"),
        (spoil_timeline, "columns of different lengths"),
        (spoil_required, "estimate.required_bytes"),
        (spoil_alternatives, "alternatives: expected a list"),
    ],
)
def test_a_spoilt_document_is_refused_with_the_reason(document: Document, spoil: Callable[[Document], None], word: str) -> None:
    spoil(document)
    with pytest.raises(UserError, match="not a valid plan file") as error:
        planfile.from_document(document, "plan.json")
    assert word in error.value.why
    assert error.value.where == "plan.json"


@pytest.mark.parametrize("schema", ["llmcheck.plan/2", "something else", None, 1])
def test_another_schema_is_refused(document: Document, schema: object) -> None:
    document["schema"] = schema
    with pytest.raises(UserError) as error:
        planfile.from_document(document)
    assert error.value.code == "plan-schema"


def test_a_plan_replaces_an_unedited_plan(synthetic_plan: Plan, document: Document, tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    planfile.write(path, document)
    planfile.write(path, planfile.document(replace(synthetic_plan, verdict="tight")))
    assert planfile.read(path).plan.verdict == "tight"


@pytest.mark.parametrize("content", [b"", b"{}", b"my notes", b'{"schema": "llmcheck.plan/2"}', b"\xff"])
def test_a_plan_does_not_replace_anything_else(document: Document, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="exists"):
        planfile.write(str(path), document)
    assert path.read_bytes() == content


def test_a_plan_does_not_replace_an_edited_plan(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    document["recipe"]["seq_len"] = 8
    path.write_text(planfile.dumps(document))
    with pytest.raises(UserError, match="exists"):
        planfile.write(str(path), document)


@pytest.mark.parametrize(("allocator", "setting"), [("expandable", "True"), ("native", "False")])
def test_the_launch_environment_sets_the_allocator_of_the_plan(synthetic_plan: Plan, allocator: Any, setting: str) -> None:
    plan = replace(synthetic_plan, recipe=replace(synthetic_plan.recipe, allocator=allocator))
    assert set(planfile.launch_of(plan, "p.json").env.values()) == {f"expandable_segments:{setting}"}


def test_one_node_is_launched_with_its_gpus(synthetic_plan: Plan) -> None:
    assert planfile.launch_of(synthetic_plan, "/x/plan.json").argv == (
        "deepspeed",
        "--num_gpus",
        "8",
        "--no_local_rank",
        "--module",
        "llmcheck_trainer.train",
        "--plan",
        "/x/plan.json",
    )


def test_several_nodes_are_launched_with_a_hostfile(synthetic_plan: Plan) -> None:
    plan = replace(synthetic_plan, cluster=replace(synthetic_plan.cluster, num_nodes=2))
    assert planfile.launch_of(plan, "p.json").argv[1:3] == ("--hostfile", "hostfile")
