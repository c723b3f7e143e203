"""From a recipe to peaks, verdict, smallest GPU and the ranks worth a look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.dsconfig import complete
from llmcheck.shadow import run
from llmcheck.types import AllocatorKind, ClusterSpec, LoraSpec, ModelSpec, TrainingRecipe
from llmcheck.units import MIB

SMOL = find_model("smollm-135m", allow_network=False)
BOTH = pytest.mark.parametrize("kind", ["native", "expandable"])


def cluster_of(num_gpus: int, gpu: str = "h100") -> ClusterSpec:
    return ClusterSpec(gpu=find_gpu(gpu), gpus_per_node=num_gpus)


def recipe_of(num_gpus: int = 1, bucket: int = 10_000_000, **fields: Any) -> TrainingRecipe:
    recipe = TrainingRecipe(**{"seq_len": 256, **fields})
    return replace(recipe, deepspeed=complete(recipe, {"zero_optimization": {"reduce_bucket_size": bucket}}, world_size=num_gpus))


def tiny_llama() -> ModelSpec:
    """Embedding 64,000; two layers of 41,088 (4 x 4,096, 3 x 8,192, 2 x 64); norm 64; head 64,000: 210,240 elements."""
    config = {
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    return spec_of_config(config, name="tiny", source="tests", where="tiny")


# --- the CPU ahead of the GPU ------------------------------------------------------------------------------------------------------


def test_gathered_weights_that_wait_for_the_gpu_widen_what_is_reserved() -> None:
    estimate = run.simulate_rank(SMOL, recipe_of(4, zero_stage=3), cluster_of(4))

    assert estimate.peak_reserved_low_bytes <= estimate.peak_reserved_bytes < estimate.peak_reserved_high_bytes
    assert estimate.runs_at_high


def test_without_overlap_comm_blocks_of_the_one_stream_come_back_at_once() -> None:
    recipe = recipe_of(4, zero_stage=3)
    config = complete(recipe, {"zero_optimization": {"overlap_comm": False}}, world_size=4)
    estimate = run.simulate_rank(SMOL, replace(recipe, deepspeed=config), cluster_of(4))

    assert estimate.peak_reserved_low_bytes == estimate.peak_reserved_bytes == estimate.peak_reserved_high_bytes


def test_the_interval_under_a_cap_stays_below_it() -> None:
    recipe, cluster = recipe_of(4, zero_stage=3), cluster_of(4)
    free = run.simulate_rank(SMOL, recipe, cluster)
    required = free.required_bytes - run.overhead_bytes(recipe, cluster.gpu)
    caps = range(required - 64 * MIB, required + 64 * MIB, 2 * MIB)
    found = [run.simulate_rank(SMOL, recipe, cluster, cap_bytes=cap) for cap in caps]

    assert all(f.peak_reserved_high_bytes <= cap for f, cap in zip(found, caps, strict=True) if f.out_of_memory is None)
    assert not any(f.runs_at_high for f in found if f.out_of_memory is not None)


# --- overhead --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "attention", "gpu", "loaded"),
    [
        (2, "sdpa", "h100", 216),
        (3, "eager", "h100", 200),
        (0, "sdpa", "h100", 146),
        (0, "eager", "h100", 130),
        (2, "sdpa", "a100-80gb", 200),
    ],
)
def test_what_the_process_loads_beside_the_context(stage: int, attention: Any, gpu: str, loaded: int) -> None:
    # nvidia-smi less torch's reserved bytes of 146 runs on an H100: 130 MiB, 70 more where DeepSpeed makes a stream (it makes none in
    # stage 0), 16 more with cuDNN's attention
    found = find_gpu(gpu)

    assert found.context_bytes + loaded * MIB == run.overhead_bytes(recipe_of(zero_stage=stage, attention=attention), found)


def test_stage_3_without_overlap_has_no_streams() -> None:
    # h27-seed_oss and h46-arcee of benchmarks/holdout: 146 MiB with cuDNN's attention
    cluster = cluster_of(1)
    recipe = replace(recipe_of(zero_stage=3), deepspeed={"zero_optimization": {"stage": 3, "overlap_comm": False}})

    assert cluster.gpu.context_bytes + 146 * MIB == run.overhead_bytes(recipe, cluster.gpu)


def test_fp32_loads_no_attention_of_cudnn() -> None:
    # h31-mistral of benchmarks/holdout, pk-llama-3.2-1b-full-z2-w2-b2-s1024-fp32 of the campaign
    cluster = cluster_of(1)

    assert cluster.gpu.context_bytes + 200 * MIB == run.overhead_bytes(recipe_of(zero_stage=2, precision="fp32"), cluster.gpu)


def test_the_process_is_what_is_reserved_and_the_overhead() -> None:
    recipe, cluster = recipe_of(), cluster_of(1)
    estimate = run.simulate_rank(SMOL, recipe, cluster)

    assert estimate.peak_reserved_bytes + run.overhead_bytes(recipe, cluster.gpu) == estimate.process_bytes


# --- weights and states that arithmetic gives ------------------------------------------------------------------------------------------


def test_the_weights_after_construction_are_two_bytes_a_parameter() -> None:
    estimate = run.simulate_rank(SMOL, recipe_of(), cluster_of(1))
    model = estimate.phases[0]

    # each parameter is a multiple of 512 B but none of the blocks exceeds its request; the tied head's own weight is dropped
    assert model.name == "model"
    assert 0 <= model.allocated_bytes - 2 * 134_515_008 < MIB


@pytest.mark.parametrize(("num_gpus", "per_parameter"), [(1, 2 + 12), (2, 2 + 6), (4, 2 + 3)])
def test_stage_2_leaves_weights_and_a_share_of_the_states_after_the_step(num_gpus: int, per_parameter: int) -> None:
    # ZeRO (arXiv 1910.02054), section 5: 2 bytes of weights, and K = 12 bytes of fp32 copy and moments shared by the ranks
    estimate = run.simulate_rank(SMOL, recipe_of(num_gpus), cluster_of(num_gpus))
    after = next(p for p in estimate.phases if p.name == "step1").allocated_bytes
    workspaces = 2 * 32 * MIB  # cuBLAS, forward and backward thread (Hopper)

    assert 0 <= after - workspaces - per_parameter * 134_515_008 < MIB


def test_the_phases_of_a_run_are_in_order() -> None:
    names = [p.name for p in run.simulate_rank(SMOL, recipe_of(), cluster_of(1)).phases]

    assert names[:8] == ["model", "init", "fwd0", "bwd0", "step0", "fwd1", "bwd1", "step1"]


# --- the cap ---------------------------------------------------------------------------------------------------------------------------


@BOTH
def test_below_the_allocated_peak_it_runs_out(kind: AllocatorKind) -> None:
    recipe, cluster = recipe_of(allocator=kind), cluster_of(1)
    free = run.simulate_rank(SMOL, recipe, cluster)
    capped = run.simulate_rank(SMOL, recipe, cluster, cap_bytes=free.peak_allocated_bytes - 1)

    assert free.out_of_memory is None
    assert capped.out_of_memory is not None


@BOTH
def test_the_failing_request_is_reported_with_the_state_it_met(kind: AllocatorKind) -> None:
    recipe, cluster = recipe_of(allocator=kind), cluster_of(1)
    free = run.simulate_rank(SMOL, recipe, cluster)
    cap = free.peak_allocated_bytes - 1
    error = run.simulate_rank(SMOL, recipe, cluster, cap_bytes=cap).out_of_memory

    assert error is not None
    assert error.phase in {p.name for p in free.phases}
    assert error.category in {"activations", "gradients", "logits", "optimizer_states", "weights", "workspace", "zero_buffers"}
    assert error.allocated_bytes <= error.reserved_bytes <= cap
    assert error.reserved_bytes + error.requested_bytes > cap - 20 * MIB  # a page or segment may be larger than the request


def test_the_numbers_shown_of_a_run_that_fails_are_those_without_a_cap() -> None:
    recipe, cluster = recipe_of(), cluster_of(1)
    free = run.simulate_rank(SMOL, recipe, cluster)
    capped = run.simulate_rank(SMOL, recipe, cluster, cap_bytes=200 * MIB)

    assert free == replace(capped, out_of_memory=None, num_alloc_retries=0, runs_at_high=True)


def test_construction_that_does_not_fit_fails_in_its_phase() -> None:
    capped = run.simulate_rank(SMOL, recipe_of(), cluster_of(1), cap_bytes=200 * MIB)

    assert capped.out_of_memory is not None
    assert (capped.out_of_memory.phase, capped.out_of_memory.category) == ("model", "weights")


def test_without_a_cap_the_gpus_memory_less_the_overhead_counts() -> None:
    recipe, cluster = recipe_of(), cluster_of(1)
    peak = run.simulate_rank(SMOL, recipe, cluster).peak_allocated_bytes
    small = replace(cluster, gpu=replace(cluster.gpu, memory_bytes=peak + run.overhead_bytes(recipe, cluster.gpu) - 1))

    assert run.simulate_rank(SMOL, recipe, small).out_of_memory is not None


# --- the smallest GPU ---------------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_required_size_runs(kind: AllocatorKind, stage: int) -> None:
    recipe, cluster = recipe_of(zero_stage=stage, allocator=kind), cluster_of(1)
    needed = run.simulate_rank(SMOL, recipe, cluster).required_bytes - run.overhead_bytes(recipe, cluster.gpu)

    assert run.simulate_rank(SMOL, recipe, cluster, cap_bytes=needed).out_of_memory is None


@BOTH
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_required_size_is_no_more_than_16_mib_too_large(kind: AllocatorKind, stage: int) -> None:
    recipe, cluster = recipe_of(zero_stage=stage, allocator=kind), cluster_of(1)
    estimate = run.simulate_rank(SMOL, recipe, cluster)
    needed = estimate.required_bytes - run.overhead_bytes(recipe, cluster.gpu)
    step = max(16 * MIB, estimate.peak_reserved_bytes // 256)

    assert run.simulate_rank(SMOL, recipe, cluster, cap_bytes=needed - step - 1).out_of_memory is not None


def test_a_gpu_of_the_required_size_runs_it_though_flattening_through_the_host_needs_less() -> None:
    # 64 MiB would do if the parameters were flattened through the host; with 64 MiB DeepSpeed flattens on the device, and that takes 84
    config = {
        "model_type": "cohere", "vocab_size": 1100, "hidden_size": 384, "intermediate_size": 688, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    model = spec_of_config(config, name="cohere", source="tests", where="cohere")
    recipe = recipe_of(2, 20_000, precision="fp32", zero_stage=1, checkpointing=False, seq_len=2)
    cluster = cluster_of(2, "a100-40gb")
    estimate = run.simulate_rank(model, recipe, cluster, rank=1)
    smallest = replace(cluster, gpu=replace(cluster.gpu, memory_bytes=estimate.required_bytes))

    assert run.simulate_rank(model, recipe, smallest, rank=1).out_of_memory is None


def test_a_gpu_of_the_required_size_runs_it_with_expandable_segments() -> None:
    config = {
        "model_type": "mixtral", "vocab_size": 1100, "hidden_size": 384, "intermediate_size": 688, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128, "num_local_experts": 6,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    model = spec_of_config(config, name="mixtral", source="tests", where="mixtral")
    recipe, cluster = recipe_of(1, 20_000, zero_stage=0, checkpointing=False, seq_len=2), cluster_of(1)
    needed = run.simulate_rank(model, recipe, cluster).required_bytes - run.overhead_bytes(recipe, cluster.gpu)

    assert run.simulate_rank(model, recipe, cluster, cap_bytes=needed).out_of_memory is None


# --- ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "num_gpus"), [(0, 4), (3, 4), (2, 1), (1, 1)])
def test_where_all_ranks_are_alike_none_is_suspect(stage: int, num_gpus: int) -> None:
    assert run.suspect_ranks(tiny_llama(), recipe_of(num_gpus, zero_stage=stage), cluster_of(num_gpus)) == ()


def test_the_rank_that_touches_most_parameters_is_suspect() -> None:
    # 52,560 elements a rank. Rank 0 touches the embedding (64,000); rank 1 embedding, layer 0 and 32 elements of layer 1's q_proj
    # (109,184); rank 2 layer 1, norm and head (105,152); rank 3 the head (64,000). Largest pieces: 52,560 on ranks 0 and 3.
    assert run.suspect_ranks(tiny_llama(), recipe_of(4, zero_stage=1), cluster_of(4)) == (1,)


def test_in_stage_2_the_last_rank_is_suspect_too() -> None:
    # backward reaches its parameters first: it holds their gradients while most activations live
    assert run.suspect_ranks(tiny_llama(), recipe_of(4, zero_stage=2), cluster_of(4)) == (1, 3)


def test_where_rank_0_touches_most_none_is_suspect() -> None:
    config = {
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = spec_of_config(config, name="tied", source="tests", where="tied")

    # 146,240 elements, 73,120 a rank: rank 0 touches the embedding and q, k, v of layer 0 (76,288), rank 1 all from that v on (74,048)
    assert run.suspect_ranks(model, recipe_of(2, zero_stage=1), cluster_of(2)) == ()


def test_the_rank_with_the_largest_piece_is_suspect() -> None:
    recipe = recipe_of(4, method="lora", lora=LoraSpec(rank=4), zero_stage=1)

    # adapters alone: 8,704 elements, 2,176 a rank; a layer is q, k, v, o (A and B of 256), gate, up (256, 512), down (512, 256). Ranks 0
    # and 1 touch 2,304 elements each, but the largest piece of rank 0 has 256, that of rank 1 512. Ranks 2 and 3 repeat them.
    assert run.suspect_ranks(tiny_llama(), recipe, cluster_of(4)) == (1,)


def test_no_rank_is_suspect_where_none_needs_more() -> None:
    assert run.suspect_ranks(SMOL, recipe_of(4, zero_stage=3), cluster_of(4)) == ()


def test_the_rank_that_needs_the_largest_gpu_is_rank_0_or_a_suspect() -> None:
    recipe, cluster = recipe_of(4, zero_stage=2), cluster_of(4)
    needs = [run.simulate_rank(SMOL, recipe, cluster, rank=rank).required_bytes for rank in range(4)]
    worst = max(needs[rank] for rank in (0, *run.suspect_ranks(SMOL, recipe, cluster)))

    assert max(needs) == worst


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_what_runs_in_less_memory_is_told_without_looking_for_the_least(stage: int) -> None:
    rank = run.Rank(SMOL, recipe_of(zero_stage=stage), cluster_of(2))

    assert rank.runs_in(rank.required_bytes)
    assert not rank.runs_in(rank.least_bytes - 1)
    assert rank.least_bytes <= rank.required_bytes <= rank.process_bytes + 64 * MIB
    assert rank.estimate().least_bytes == rank.least_bytes
