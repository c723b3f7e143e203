"""The search: the fastest that fits, with few simulations, and what it says about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmcheck.errors import UserError
from llmcheck.planner import bounds
from llmcheck.planner.evaluate import Evaluator, Tools
from llmcheck.planner.plan import Plan, PlanRequest
from llmcheck.planner.search import search
from llmcheck.planner.space import space_of
from llmcheck.steptime.reading import read_shape
from llmcheck.units import GIB

Make = Callable[..., PlanRequest]


def codes(plan: Plan) -> set[str]:
    return {f.code for f in plan.findings}


def test_the_fastest_that_fits_is_found(request_of: Make, tools: Tools) -> None:
    request = request_of(method="full")
    plan = search(request, tools=tools)
    evaluator = Evaluator(request.model, request.cluster, tools=tools)
    shape = read_shape(request.model)
    fitting = [
        evaluator.time(r).tokens_per_s
        for r in space_of(request, shape).recipes("full")
        if 1.04 * bounds.guess_bytes(request.model, shape, r, request.cluster) <= request.cluster.gpu.memory_bytes
    ]
    assert plan.verdict == "fits"
    assert plan.time.tokens_per_s > 0.9 * max(fitting)  # nearly equal ones give way to plainer ones


@pytest.mark.parametrize("model", ["llama-7b", "bloomz-7b1", "llama-2-70b", "qwen3-4b", "llama-3.2-1b"])
@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_few_simulations_suffice(request_of: Make, tools: Tools, simulation, model: str, gpus: int, factor: float) -> None:  # type: ignore[no-untyped-def]
    simulation.factor = factor
    search(request_of(model, gpus=gpus), tools=tools)
    assert len(simulation.calls) <= 24


def test_full_fine_tuning_is_kept_where_it_fits(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-3.2-1b"), tools=tools)
    assert plan.recipe.method == "full"
    assert any("every weight" in reason for reason in plan.reasons)


def test_adapters_where_the_rest_needs_unknown_host_memory(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-7b", gpus=1), tools=tools)
    assert plan.recipe.method == "lora"
    assert any("--host-memory" in reason for reason in plan.reasons)


def test_offload_where_the_host_memory_is_known(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-7b", gpus=1, cluster={"host_memory_bytes": 512 * GIB}), tools=tools)
    assert (plan.recipe.method, plan.recipe.offload) == ("full", "optimizer")


def test_the_method_that_was_asked_for_is_never_changed(request_of: Make, tools: Tools) -> None:
    assert search(request_of("llama-2-70b", gpus=1, method="full", offload="none"), tools=tools).recipe.method == "full"


def test_the_precision_that_was_asked_for_is_never_changed(request_of: Make, tools: Tools) -> None:
    assert search(request_of("llama-3.2-1b", precision="fp16"), tools=tools).recipe.precision == "fp16"


def test_what_does_not_fit_comes_with_what_would(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-2-70b", gpus=8, method="full", offload="none"), tools=tools)
    assert plan.verdict == "does-not-fit"
    assert any("more than there is" in reason for reason in plan.reasons)
    assert any(lever.verdict == "fits" for lever in plan.what_if)


def test_levers_that_free_nothing_are_not_offered_when_it_does_not_fit(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-2-70b", gpus=8, method="full", offload="none"), tools=tools)
    assert all(lever.verdict != "does-not-fit" or lever.delta_bytes < 0 for lever in plan.what_if)


def test_at_most_five_levers(request_of: Make, tools: Tools) -> None:
    assert len(search(request_of(), tools=tools).what_if) <= 5


def test_a_lever_is_what_planning_it_gives(request_of: Make, tools: Tools) -> None:
    request = request_of(method="full", zero_stage=2, offload="none", loss="hf")
    plan = search(request, tools=tools)
    lever = next(lv for lv in plan.what_if if lv.flags == ("--loss", "chunked"))
    other = Evaluator(request.model, request.cluster, tools=tools).check(replace(plan.recipe, loss="chunked", deepspeed={}))
    assert lever.delta_bytes == other.worst.required_bytes - plan.memory.worst.required_bytes
    assert lever.speed_ratio == pytest.approx(other.time.tokens_per_s / plan.time.tokens_per_s)


def test_a_larger_gpu_is_no_way_where_the_host_lacks_memory(request_of: Make, tools: Tools) -> None:
    request = request_of("llama-2-70b", gpus=8, method="full", offload="optimizer")
    poor = replace(request, cluster=replace(request.cluster, host_memory_bytes=GIB))
    assert any(
        "--gpu" in lever.flags for lever in search(request_of("llama-2-70b", gpus=8, method="full", offload="none"), tools=tools).what_if
    )
    assert not any("--gpu" in lever.flags for lever in search(poor, tools=tools).what_if)


def test_alternatives_are_of_another_kind(request_of: Make, tools: Tools) -> None:
    plan = search(request_of(), tools=tools)
    kinds = [(r.method, r.zero_stage, r.offload, r.checkpointing, r.loss) for r in (plan.recipe, *(a.recipe for a in plan.alternatives))]
    assert len(kinds) == len(set(kinds))
    assert plan.alternatives


def test_alternatives_that_fit_come_first_and_fastest_first(request_of: Make, tools: Tools) -> None:
    ranked = [(a.verdict != "fits", -a.tokens_per_s) for a in search(request_of(), tools=tools).alternatives]
    assert ranked == sorted(ranked)


def test_a_recipe_spelt_out_is_simulated_once(request_of: Make, tools: Tools, simulation) -> None:  # type: ignore[no-untyped-def]
    request = request_of(method="full", zero_stage=3, offload="none", checkpointing=True, loss="hf", micro_batch_size=1)
    plan = search(request, tools=tools)
    assert (plan.verdict, len(simulation.calls), plan.alternatives, plan.what_if) == ("fits", 1, (), ())


def test_extras_are_levers_only(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("bloomz-7b1"), tools=tools)
    assert plan.recipe.loss != "liger"
    assert plan.recipe.attention != "flash"


def test_a_rank_that_fails_sends_the_search_on(request_of: Make, tools: Tools, simulation) -> None:  # type: ignore[no-untyped-def]
    simulation.extra = {5: 20 * GIB}
    suspects = tools._replace(suspects=lambda _m, recipe, _c: (5,) if recipe.zero_stage < 3 else ())
    plan = search(request_of(method="full", offload="none"), tools=suspects)
    assert plan.verdict != "does-not-fit"


def test_stage_3_that_is_slower_than_stage_2_is_a_finding(request_of: Make, tools: Tools) -> None:
    request = request_of("llama-3.2-1b", gpu="H100", method="full", zero_stage=3, micro_batch_size=1, offload="none", checkpointing=True)
    assert "LCM002" in codes(search(request, tools=tools))


def test_a_large_vocabulary_points_to_the_chunked_loss(request_of: Make, tools: Tools) -> None:
    request = request_of("bloomz-560m", gpus=1, method="full", loss="hf", micro_batch_size=8, checkpointing=True)
    assert "LCM010" in codes(search(request, tools=tools))


@pytest.mark.parametrize(
    ("fields", "code", "severity"),
    [
        ({"gpu": "T4", "precision": "bf16"}, "LCM006", "error"),
        ({"gpu": "A100-40G", "precision": "fp16"}, "LCM005", "warning"),
        ({"gpu": "T4", "attention": "flash"}, "LCM007", "error"),
        ({"seq_len": 4096}, "LCM003", "warning"),
        ({"gpu": "A100-40G"}, "LCM009", "note"),
    ],
)
def test_findings(request_of: Make, tools: Tools, fields: dict[str, object], code: str, severity: str) -> None:
    request = request_of("llama-7b", method="lora", zero_stage=2, micro_batch_size=1, **fields)
    plan = search(request, tools=tools)
    assert [f.severity for f in plan.findings if f.code == code] == [severity]


@pytest.mark.parametrize(
    ("model", "how", "said"),
    [("bloomz-560m", "modules-to-save", True), ("bloomz-560m", "in-place", False), ("llama-7b", "modules-to-save", False)],
)
def test_copies_of_a_tied_pair_are_said_to_part(request_of: Make, tools: Tools, model: str, how: str, said: bool) -> None:
    plan = search(request_of(model, method="lora", zero_stage=2, micro_batch_size=1, train_embeddings=how), tools=tools)
    assert ("LCM017" in codes(plan)) == said


def test_eager_only_models_say_so(request_of: Make, tools: Tools) -> None:
    assert "LCM014" in codes(search(request_of("mpt-7b"), tools=tools))
    with pytest.raises(UserError, match="no SDPA attention"):
        search(request_of("mpt-7b", attention="sdpa"), tools=tools)


def test_blooms_fused_attention_is_the_trainers(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("bloomz-560m", attention="eager"), tools=tools)
    (note,) = [finding for finding in plan.findings if finding.code == "LCM014"]
    assert (plan.recipe.attention, note.fix) == ("eager", "--attention sdpa, where the bundled trainer runs the plan")

    plan = search(request_of("bloomz-560m"), tools=tools)
    (note,) = [finding for finding in plan.findings if finding.code == "LCM014"]
    assert plan.recipe.attention == "sdpa"
    assert "any other loop runs eager" in note.message


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        ("bloomz-560m", {"attention": "eager"}, "ignores where rows begin"),
        ("mpt-7b", {}, "no test shows"),
        ("mistral-7b", {"seq_len": 8192, "attention": "sdpa"}, "attention window"),
    ],
)
def test_what_the_trainer_cannot_pack_is_refused(request_of: Make, tools: Tools, model: str, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match="cannot be packed") as caught:
        search(request_of(model, packing=True, **changes), tools=tools)
    assert why in caught.value.why


def test_packing_is_in_the_recipe_where_it_is_asked_for(request_of: Make, tools: Tools) -> None:
    assert search(request_of("llama-7b", packing=True), tools=tools).recipe.packing
    assert not search(request_of("llama-7b"), tools=tools).recipe.packing


def test_adapters_are_the_trainers_below_stage_3(request_of: Make, tools: Tools) -> None:
    for stage, fused in ((2, True), (3, False)):
        plan = search(request_of("llama-7b", method="lora", zero_stage=stage, micro_batch_size=1), tools=tools)
        assert plan.recipe.fused_adapters is fused


def test_ligers_kernels_are_offered_where_they_are_modelled(request_of: Make, tools: Tools) -> None:
    with pytest.raises(UserError, match="Liger's kernels are not modelled"):
        search(request_of("gpt2", loss="liger"), tools=tools)
    assert search(request_of("llama-7b", loss="liger"), tools=tools).recipe.loss == "liger"


def test_findings_put_errors_first(request_of: Make, tools: Tools) -> None:
    severities = [f.severity for f in search(request_of("llama-7b", gpu="T4", precision="bf16", seq_len=4096), tools=tools).findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)


def test_the_users_file_is_in_the_configuration(request_of: Make, tools: Tools) -> None:
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 12345678}, "bf16": {"enabled": True}}
    plan = search(request_of(ds_config=config, method="full"), tools=tools)
    assert plan.recipe.deepspeed["zero_optimization"]["reduce_bucket_size"] == 12345678


def test_hours_and_cost(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-3.2-1b", num_tokens=10**9), tools=tools)
    assert plan.time.total_s == pytest.approx(1e9 / plan.time.tokens_per_s)


def test_without_known_host_memory_what_needs_none_goes_first(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("qwen3-4b", gpus=4, gpu="RTX-4090", method="full"), tools=tools)
    assert plan.recipe.offload == "none"


def test_options_that_leave_no_recipe_are_an_error(request_of: Make, tools: Tools) -> None:
    config = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    with pytest.raises(UserError) as caught:
        search(request_of(ds_config=config, method="qlora"), tools=tools)
    assert caught.value.code == "conflict"


def test_offload_with_unknown_host_memory_is_noted(request_of: Make, tools: Tools) -> None:
    assert "LCM016" in codes(search(request_of("llama-7b", gpus=1, method="full"), tools=tools))


@pytest.mark.parametrize(("zero", "expected"), [(None, 0), (2, 2)])
def test_adam_in_bf16_is_a_lever_of_the_stage_that_its_flags_give(zero: int | None, expected: int, request_of: Make, tools: Tools) -> None:
    request = request_of("llama-3.2-1b", gpus=1, method="full", zero_stage=zero, offload="none", precision="bf16")
    plan = search(request, tools=tools)
    lever = next(lv for lv in plan.what_if if lv.flags == ("--optimizer", "adam-bf16"))
    changed = replace(plan.recipe, optimizer="adam-bf16", zero_stage=expected, deepspeed={})
    other = Evaluator(request.model, request.cluster, tools=tools).check(changed)
    assert lever.delta_bytes == other.worst.required_bytes - plan.memory.worst.required_bytes


def test_levers_of_adam_in_bf16_on_one_gpu_leave_stage_0_and_name_their_optimizer(request_of: Make, tools: Tools) -> None:
    plan = search(request_of("llama-2-13b", gpus=1, method="full", optimizer="adam-bf16", precision="bf16"), tools=tools)
    flags = {lever.flags for lever in plan.what_if}
    assert (plan.verdict, plan.recipe.zero_stage) == ("does-not-fit", 0)
    assert ("--gpus", "2") in flags
    assert ("--offload", "optimizer", "--optimizer", "cpu-adam") in flags
    assert ("--method", "lora", "--optimizer", "fused-adam") in flags


def test_adam_in_bf16_is_a_lever_where_8_bit_states_do_not_fit(request_of: Make, tools: Tools) -> None:
    request = request_of("llama-2-7b", gpus=1, gpu="a100-80g", method="full", optimizer="adam-8bit", precision="bf16")
    plan = search(request, tools=tools)
    verdicts = {lever.flags: lever.verdict for lever in plan.what_if}
    assert (plan.verdict, verdicts[("--optimizer", "adam-bf16")]) == ("does-not-fit", "fits")
