"""One recipe, evaluated: verdicts, ranks, evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmcheck.planner.evaluate import ERROR_FRACTIONS, Evaluator, Tools, evaluate, likely_rank
from llmcheck.planner.plan import Plan, PlanRequest
from llmcheck.types import ClusterSpec, LoraSpec, RankEstimate, TrainingRecipe
from llmcheck.units import GIB

RECIPE = TrainingRecipe(zero_stage=2, micro_batch_size=1, seq_len=1024)


@pytest.fixture
def run(request_of: Callable[..., PlanRequest], tools: Tools) -> Callable[..., Plan]:
    def go(recipe: TrainingRecipe = RECIPE, *, memory: float | None = None, **cluster: object) -> Plan:
        request = request_of(cluster=cluster)
        machine = request.cluster
        if memory is not None:
            machine = replace(machine, gpu=replace(machine.gpu, memory_bytes=int(memory * GIB)))
        return evaluate(request.model, recipe, machine, tools=tools)

    return go


def required(run: Callable[..., Plan]) -> float:
    return run(memory=1000).memory.worst.required_bytes / GIB


def test_ample_memory_fits(run: Callable[..., Plan]) -> None:
    assert run(memory=1.5 * required(run)).verdict == "fits"


def test_a_margin_inside_the_band_is_tight(run: Callable[..., Plan]) -> None:
    plan = run(memory=1.01 * required(run))
    assert plan.verdict == "tight"
    assert "error band" in plan.reasons[0]


def test_too_little_memory_does_not_fit(run: Callable[..., Plan]) -> None:
    plan = run(memory=0.9 * required(run))
    assert plan.verdict == "does-not-fit"
    assert "more than there is" in plan.reasons[0]


def test_too_little_host_memory_does_not_fit(run: Callable[..., Plan]) -> None:
    offloaded = replace(RECIPE, offload="optimizer", optimizer="cpu-adam")
    plan = run(offloaded, memory=1000, host_memory_bytes=64 * GIB)
    assert plan.verdict == "does-not-fit"
    assert plan.findings[0].code == "LCM001"


def test_the_configuration_is_completed(run: Callable[..., Plan]) -> None:
    config = run().recipe.deepspeed
    assert config["train_batch_size"] == 8
    assert config["zero_optimization"]["stage"] == 2


def test_the_verdict_is_over_all_ranks(request_of: Callable[..., PlanRequest], tools: Tools, simulation) -> None:  # type: ignore[no-untyped-def]
    request = request_of()
    simulation.extra = {3: 100 * GIB}
    plan = evaluate(request.model, RECIPE, request.cluster, tools=tools._replace(suspects=lambda *_: (3,)))
    assert (plan.memory.rank0.rank, plan.memory.worst.rank, plan.verdict) == (0, 3, "does-not-fit")


def test_a_suspect_that_is_no_worse_leaves_rank_0(request_of: Callable[..., PlanRequest], tools: Tools) -> None:
    request = request_of()
    plan = evaluate(request.model, RECIPE, request.cluster, tools=tools._replace(suspects=lambda *_: (3,)))
    assert plan.memory.worst is plan.memory.rank0


def test_what_runs_only_where_the_gpu_keeps_up_is_tight(request_of: Callable[..., PlanRequest], tools: Tools, simulation) -> None:  # type: ignore[no-untyped-def]
    request = request_of()

    def late(*args: object, **kwargs: int) -> RankEstimate:
        return replace(simulation(*args, **kwargs), runs_at_high=False)

    plan = evaluate(request.model, RECIPE, request.cluster, tools=tools._replace(simulate=late))
    assert plan.verdict == "tight"
    assert "while the GPU keeps up" in plan.reasons[0]


def test_a_recipe_is_simulated_once(request_of: Callable[..., PlanRequest], tools: Tools, simulation) -> None:  # type: ignore[no-untyped-def]
    request = request_of()
    evaluator = Evaluator(request.model, request.cluster, tools=tools)
    evaluator.check(RECIPE)
    evaluator.plan(RECIPE)
    assert len(simulation.calls) == 1


def test_unmeasured_kernels_widen_the_band(request_of: Callable[..., PlanRequest], tools: Tools) -> None:
    fractions = []
    for gpu in ("H100", "A100-40G"):
        request = request_of(gpu=gpu)
        fractions.append(evaluate(request.model, RECIPE, request.cluster, tools=tools).memory.error_fraction)
    assert fractions == [ERROR_FRACTIONS["simulated-measured-kernels"], ERROR_FRACTIONS["simulated-unmeasured-kernels"]]


def test_an_unknown_family_is_called_a_stand_in(request_of: Callable[..., PlanRequest], tools: Tools) -> None:
    request = request_of()
    plan = evaluate(replace(request.model, family_known=False), RECIPE, request.cluster, tools=tools)
    assert plan.memory.evidence == "conservative-stand-in"
    assert "LCM012" in {f.code for f in plan.findings}


def test_samples_bring_hours_and_data_preparation(request_of: Callable[..., PlanRequest], tools: Tools) -> None:
    request = request_of()
    plan = evaluate(request.model, RECIPE, request.cluster, tools=tools, num_samples=2_000_000)
    assert plan.time.total_s == pytest.approx(2_000_000 * 1024 / plan.time.tokens_per_s)
    assert plan.data is not None
    assert plan.data.naive.host_bytes > plan.data.ours.host_bytes


def test_the_rank_with_a_large_foreign_parameter_is_looked_at(request_of: Callable[..., PlanRequest]) -> None:
    bloom = request_of("bloomz-7b1")
    assert likely_rank(bloom.model, RECIPE, bloom.cluster) == 1  # its part begins inside the embedding, which rank 0's does too


@pytest.mark.parametrize("recipe", [replace(RECIPE, zero_stage=3), replace(RECIPE, method="lora", lora=LoraSpec())])
def test_ranks_are_alike_in_stage_3_and_under_lora(request_of: Callable[..., PlanRequest], recipe: TrainingRecipe) -> None:
    request = request_of("bloomz-7b1")
    assert likely_rank(request.model, recipe, request.cluster) == 0


def test_one_gpu_has_one_rank(request_of: Callable[..., PlanRequest]) -> None:
    request = request_of("bloomz-7b1")
    assert likely_rank(request.model, RECIPE, ClusterSpec(gpu=request.cluster.gpu)) == 0
