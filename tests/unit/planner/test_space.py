"""What a request leaves open."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmcheck.errors import UserError
from llmcheck.planner.plan import PlanRequest
from llmcheck.planner.space import Batch, Space, space_of
from llmcheck.steptime.reading import read_shape

Make = Callable[..., PlanRequest]


def space(request: PlanRequest) -> Space:
    return space_of(request, read_shape(request.model))


def test_everything_open_tries_full_fine_tuning_first(request_of: Make) -> None:
    assert space(request_of()).methods == ("full", "lora", "qlora")


def test_adapter_options_ask_for_adapters(request_of: Make) -> None:
    assert space(request_of(lora_rank=8)).methods == ("lora", "qlora")


def test_one_gpu_needs_no_other_stage_than_2(request_of: Make) -> None:
    recipes = list(space(request_of(gpus=1)).recipes("full"))
    assert {(r.zero_stage, r.offload) for r in recipes} == {(2, "none"), (2, "optimizer"), (3, "params")}


def test_several_gpus_try_stages_1_to_3(request_of: Make) -> None:
    assert {r.zero_stage for r in space(request_of()).recipes("full")} == {1, 2, 3}


def test_quantised_weights_are_not_sharded(request_of: Make) -> None:
    assert {(r.zero_stage, r.offload) for r in space(request_of()).recipes("qlora")} == {(2, "none")}


def test_offload_takes_the_cpu_optimizer(request_of: Make) -> None:
    assert {r.optimizer for r in space(request_of(offload="optimizer")).recipes("full")} == {"cpu-adam"}


def test_extras_are_never_chosen_unasked(request_of: Make) -> None:
    recipes = list(space(request_of()).recipes("full"))
    assert {r.loss for r in recipes} == {"hf", "chunked"}
    assert {r.attention for r in recipes} == {"sdpa"}


def test_a_model_without_fused_attention_runs_eager(request_of: Make) -> None:
    assert {r.attention for r in space(request_of("mpt-7b")).recipes("full")} == {"eager"}


def test_bloom_runs_the_trainers_fused_attention(request_of: Make) -> None:
    assert {r.attention for r in space(request_of("bloomz-7b1")).recipes("full")} == {"sdpa"}


def test_bf16_where_the_gpu_has_it(request_of: Make) -> None:
    assert [space(request_of(gpu=g)).base.precision for g in ("A100-40G", "T4")] == ["bf16", "fp16"]


def test_the_global_batch_is_kept(request_of: Make) -> None:
    batches = space(request_of(global_batch_size=64)).batches
    assert batches == (Batch(1, 8), Batch(2, 4), Batch(4, 2), Batch(8, 1))


def test_a_global_batch_that_does_not_divide_is_reported(request_of: Make) -> None:
    found = space(request_of(global_batch_size=60))
    assert {b.micro * b.accum * 8 for b in found.batches} == {56}
    assert [f.code for f in found.findings] == ["LCM004"]


def test_accumulation_follows_from_micro_and_global_batch(request_of: Make) -> None:
    assert space(request_of(global_batch_size=64, micro_batch_size=2)).batches == (Batch(2, 4),)


def test_three_batch_sizes_must_agree(request_of: Make) -> None:
    with pytest.raises(UserError) as caught:
        space(request_of(global_batch_size=64, micro_batch_size=2, grad_accum_steps=2))
    assert caught.value.code == "batch-identity"


@pytest.mark.parametrize(
    "fields",
    [
        {"offload": "params", "zero_stage": 2},
        {"offload": "optimizer", "zero_stage": 0},
        {"method": "qlora", "zero_stage": 3},
        {"method": "qlora", "offload": "optimizer"},
        {"optimizer": "cpu-adam", "offload": "none"},
        {"optimizer": "fused-adam", "offload": "optimizer"},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_contradictions_are_errors(request_of: Make, fields: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        space(request_of(**fields))
    assert caught.value.code == "conflict"
    assert caught.value.hint


def test_the_file_fixes_the_stage(request_of: Make) -> None:
    request = request_of(ds_config={"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}})
    assert {r.zero_stage for r in space(request).recipes("full")} == {3}


def test_what_the_user_fixed_is_in_every_recipe(request_of: Make) -> None:
    request = request_of(zero_stage=2, offload="none", checkpointing=True, loss="hf", micro_batch_size=4, seq_len=333, method="full")
    (recipe,) = space(request).recipes("full")
    assert (recipe.zero_stage, recipe.offload, recipe.checkpointing, recipe.loss, recipe.micro_batch_size, recipe.seq_len) == (
        2, "none", True, "hf", 4, 333,
    )  # fmt: skip
