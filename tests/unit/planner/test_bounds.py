"""The lower bound is certain, against measured and simulated peaks; the closed forms obey their laws."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.steptime import cases
from llmcheck import dsconfig
from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner import bounds
from llmcheck.planner.evaluate import complete
from llmcheck.shadow.run import simulate_rank
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ClusterSpec, LoraSpec, TrainEmbeddings, TrainingRecipe

LLAMA = find_model("llama-7b", allow_network=False)
SHAPE = read_shape(LLAMA)
GPU = find_gpu("A100-80G")
MEASURED = [c for c in cases.groundtruth() if c.row["file"] == "peaks"]

RAW = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2752,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
SMALL = spec_of_config(RAW, name="small", source="test", where="test")

RECIPES = st.builds(
    lambda pair, **more: TrainingRecipe(precision=pair[0], optimizer=pair[1], **more),
    pair=st.sampled_from([("bf16", "adam-bf16"), *itertools.product(("bf16", "fp16"), ("fused-adam", "adamw", "adam-8bit"))]),
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    checkpointing=st.booleans(),
    attention=st.sampled_from(["sdpa", "eager"]),
    loss=st.sampled_from(["hf", "chunked"]),
    micro_batch_size=st.sampled_from([1, 3, 8]),
    grad_accum_steps=st.sampled_from([1, 2]),
    seq_len=st.sampled_from([128, 512, 1024]),
)


@pytest.mark.parametrize("case", MEASURED, ids=lambda c: c.name)
def test_the_bound_is_below_the_measured_peak(case: cases.Case) -> None:
    bound = bounds.lower_bound_bytes(case.model, read_shape(case.model), case.recipe, case.cluster)
    assert bound <= case.row["peak_alloc_train"]


@settings(max_examples=40, deadline=None)
@given(RECIPES, st.sampled_from([1, 2, 8]), st.booleans(), st.sampled_from([None, "in-place", "modules-to-save"]))
def test_the_bound_is_below_the_simulated_peak(recipe: TrainingRecipe, gpus: int, lora: bool, embeddings: TrainEmbeddings | None) -> None:
    cluster = ClusterSpec(gpu=GPU, gpus_per_node=gpus)
    if lora:
        recipe = replace(recipe, method="lora", lora=LoraSpec(train_embeddings=embeddings))
    recipe = complete(SMALL, recipe, cluster)
    peak = simulate_rank(SMALL, recipe, cluster).peak_allocated_bytes
    assert bounds.lower_bound_bytes(SMALL, read_shape(SMALL), recipe, cluster) <= peak


@given(RECIPES, st.integers(1, 512), st.integers(1, 512))
def test_more_gpus_never_raise_the_states(recipe: TrainingRecipe, gpus: int, more: int) -> None:
    few, many = (bounds.states(LLAMA, SHAPE, recipe, ClusterSpec(gpu=GPU, gpus_per_node=n)) for n in (gpus, gpus + more))
    assert many.resident <= few.resident
    assert many.gradients <= few.gradients


@given(RECIPES, st.integers(1, 512))
def test_adapters_never_need_more_states_than_full_fine_tuning(recipe: TrainingRecipe, gpus: int) -> None:
    cluster = ClusterSpec(gpu=GPU, gpus_per_node=gpus)
    recipe = replace(recipe, zero_stage=3)
    lora = replace(recipe, method="lora", lora=LoraSpec())
    full_states, lora_states = (bounds.states(LLAMA, SHAPE, r, cluster) for r in (recipe, lora))
    assert lora_states.resident <= full_states.resident


@given(RECIPES, st.integers(1, 4096))
def test_longer_sequences_never_lower_bound_or_guess(recipe: TrainingRecipe, more: int) -> None:
    cluster = ClusterSpec(gpu=GPU, gpus_per_node=8)
    longer = replace(recipe, seq_len=recipe.seq_len + more)
    assert bounds.lower_bound_bytes(LLAMA, SHAPE, recipe, cluster) <= bounds.lower_bound_bytes(LLAMA, SHAPE, longer, cluster)
    assert bounds.guess_bytes(LLAMA, SHAPE, recipe, cluster) <= bounds.guess_bytes(LLAMA, SHAPE, longer, cluster)


def test_mixed_precision_adam_takes_sixteen_bytes_a_parameter() -> None:
    kept = bounds.states(LLAMA, SHAPE, TrainingRecipe(zero_stage=0), ClusterSpec(gpu=GPU))
    assert kept.resident + kept.gradients == 16 * LLAMA.num_params


def test_stage_3_divides_everything() -> None:
    kept = bounds.states(LLAMA, SHAPE, TrainingRecipe(zero_stage=3), ClusterSpec(gpu=GPU, gpus_per_node=8))
    assert kept.resident + kept.gradients == 2 * LLAMA.num_params


def test_four_bit_weights_take_a_quarter_of_sixteen_bit_ones() -> None:
    cluster = ClusterSpec(gpu=GPU)
    lora, qlora = (
        bounds.states(LLAMA, SHAPE, TrainingRecipe(method=m, lora=LoraSpec(rank=1)), cluster).resident for m in ("lora", "qlora")
    )
    assert 0.25 * lora < qlora < 0.33 * lora


def test_the_guess_is_near_the_measured_process() -> None:
    ratios = sorted(bounds.guess_bytes(c.model, read_shape(c.model), c.recipe, c.cluster) / c.row["nvml_proc"] for c in MEASURED)
    assert 0.85 < ratios[len(ratios) // 2] < 1.15


def test_the_bound_follows_a_file_with_bf16_masters() -> None:
    cluster = ClusterSpec(gpu=GPU, gpus_per_node=1)
    recipe = TrainingRecipe(zero_stage=2, checkpointing=True, micro_batch_size=1, seq_len=128)
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    usual, file = (replace(recipe, deepspeed=dsconfig.complete(recipe, user, world_size=1)) for user in ({}, {"bf16": bf16}))
    peaks = [simulate_rank(SMALL, r, cluster).peak_allocated_bytes for r in (usual, file)]
    assert peaks[1] < peaks[0] - 5 * SMALL.num_params  # 2 bytes a parameter of masters and 4 of moments, and of gradients at times
    assert bounds.lower_bound_bytes(SMALL, read_shape(SMALL), file, cluster) <= peaks[1]
