"""Step time of recipes: laws, regimes, and the measured runs."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.steptime import cases
from benchmarks.steptime.run import SAME_KIND, estimate_case, is_fitted
from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.steptime.model import estimate
from llmcheck.types import ClusterSpec, LoraSpec, TrainingRecipe

LLAMA = find_model("llama-7b", allow_network=False)
NODE = ClusterSpec(gpu=find_gpu("A100-80G"), gpus_per_node=8)
RECIPE = TrainingRecipe(zero_stage=2, micro_batch_size=2, seq_len=1024)


def seconds(recipe: TrainingRecipe, cluster: ClusterSpec = NODE) -> float:
    return estimate(LLAMA, recipe, cluster).step_s


@given(st.integers(1, 4096), st.integers(1, 1024), st.integers(1, 16), st.sampled_from([0, 1, 2, 3]), st.booleans())
def test_longer_sequences_never_take_less_time(seq_len: int, more: int, micro: int, stage: int, checkpointing: bool) -> None:
    recipe = replace(RECIPE, seq_len=seq_len, micro_batch_size=micro, zero_stage=stage, checkpointing=checkpointing)
    assert seconds(recipe) <= seconds(replace(recipe, seq_len=seq_len + more)) * (1 + 1e-9)


@given(st.integers(1, 64), st.sampled_from([1, 2, 3]))
def test_parts_of_a_step_are_never_negative(accum: int, stage: int) -> None:
    e = estimate(LLAMA, replace(RECIPE, grad_accum_steps=accum, zero_stage=stage), NODE)
    parts = (e.compute_s, e.communication_exposed_s, e.optimizer_s, e.offload_s, e.host_s)
    assert min(parts) >= 0
    assert e.step_s >= max(e.compute_s, e.communication_exposed_s, e.optimizer_s, e.offload_s)


def test_tokens_per_second_is_tokens_over_seconds() -> None:
    e = estimate(LLAMA, replace(RECIPE, grad_accum_steps=4), NODE)
    assert e.tokens_per_s == pytest.approx(2 * 1024 * 4 * 8 / e.step_s)
    assert e.tokens_per_s_per_gpu == pytest.approx(e.tokens_per_s / 8)


def test_recomputing_costs_up_to_a_third() -> None:
    recipe = replace(RECIPE, micro_batch_size=16)
    ratio = seconds(recipe) / seconds(replace(recipe, checkpointing=False))
    assert 1.1 < ratio < 1.34


def test_stage_3_at_small_batches_is_bound_by_the_host() -> None:
    times = [
        estimate(LLAMA, replace(RECIPE, zero_stage=3, micro_batch_size=n), ClusterSpec(gpu=find_gpu("H100"), gpus_per_node=8))
        for n in (1, 2, 4)
    ]
    assert all(e.host_bound for e in times)
    assert max(e.step_s for e in times) < 1.1 * min(e.step_s for e in times)


def test_large_batches_are_bound_by_the_gpu() -> None:
    assert estimate(LLAMA, replace(RECIPE, micro_batch_size=16, seq_len=2048), NODE).host_bound is False


def test_overlap_hides_communication() -> None:
    overlapped = replace(RECIPE, deepspeed={"zero_optimization": {"overlap_comm": True}})
    assert estimate(LLAMA, overlapped, NODE).communication_exposed_s < estimate(LLAMA, RECIPE, NODE).communication_exposed_s


def test_accumulation_saves_communication_in_stage_1_only() -> None:
    one, two = (estimate(LLAMA, replace(RECIPE, zero_stage=s, grad_accum_steps=8), NODE).communication_exposed_s for s in (1, 2))
    assert one < two / 3


def test_offload_waits_for_the_cpu() -> None:
    offloaded = replace(RECIPE, offload="optimizer", optimizer="cpu-adam")
    assert estimate(LLAMA, offloaded, NODE).offload_s > 0.3


def test_a_slow_network_shows() -> None:
    two = replace(NODE, num_nodes=2)
    assert seconds(RECIPE, two) < seconds(RECIPE, replace(two, inter_node_bytes_per_s=1.25e9))


def test_lora_trains_faster_than_everything_once_the_gpu_is_busy() -> None:
    lora = replace(RECIPE, method="lora", lora=LoraSpec(), micro_batch_size=16)
    assert seconds(lora) < seconds(replace(RECIPE, micro_batch_size=16))


def test_qlora_pays_for_dequantising() -> None:
    lora = replace(RECIPE, method="lora", lora=LoraSpec(), micro_batch_size=16)
    assert seconds(lora) < seconds(replace(lora, method="qlora"))


def test_hours_and_cost_follow_from_the_tokens() -> None:
    cluster = replace(NODE, gpu=replace(NODE.gpu, usd_per_hour=2.0))
    e = estimate(LLAMA, RECIPE, cluster, num_tokens=10**9)
    assert e.total_s == pytest.approx(1e9 / e.tokens_per_s)
    assert e.cost == pytest.approx(e.total_s / 3600 * 8 * 2.0)


def test_samples_are_full_sequences() -> None:
    e = estimate(LLAMA, RECIPE, NODE, num_samples=1000)
    assert e.total_s == pytest.approx(1000 * 1024 / e.tokens_per_s)


def test_mfu_is_a_share() -> None:
    assert 0.3 < estimate(LLAMA, replace(RECIPE, micro_batch_size=16), NODE).mfu < 0.7


def median_error(rows: list[cases.Case]) -> float:
    return statistics.median(abs(estimate_case(c).step_s / c.measured_s - 1) for c in rows)


def test_median_error_on_our_own_runs() -> None:
    assert median_error([c for c in cases.groundtruth() if c.row["file"] == "peaks"]) <= 0.15


def test_median_error_on_our_runs_that_were_not_fitted() -> None:
    assert median_error([c for c in cases.groundtruth() if c.row["file"] == "boundary"]) <= 0.20


def test_median_error_on_published_steps_of_the_same_kind() -> None:
    assert median_error([c for c in cases.published() if c.row["group"] in SAME_KIND]) <= 0.20


def test_median_error_on_published_steps_that_were_not_fitted() -> None:
    assert median_error([c for c in cases.published() if c.row["group"] in SAME_KIND and not is_fitted(c)]) <= 0.20
