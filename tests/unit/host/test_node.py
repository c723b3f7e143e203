from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcheck import host
from llmcheck.catalog.models import find_model
from llmcheck.dsconfig import ZeroSettings, complete
from llmcheck.host import HostDetail, HostMemory, Parameter, node, simulate
from llmcheck.host.memory import ROUNDING
from llmcheck.host.offload import COPIES, GRADIENTS, MASTER, MOMENTS, PROCESS, SWAP, WEIGHTS
from llmcheck.types import ClusterSpec, GpuSpec, LoraSpec, ModelSpec, TrainingRecipe
from llmcheck.units import GIB

MEASURED = json.loads((Path(__file__).parent / "measured_rss.json").read_text())["rows"]
# Rows that hold states or whole partitions in host memory, against those where it is the process alone.
HELD = [row for row in MEASURED if row["optimizer"] == "offload" or (row["zero"] == 3 and row["world"] < 64)]
BARE = [row for row in MEASURED if row not in HELD]

GPU = GpuSpec(
    name="test",
    title="test",
    source="invented",
    memory_bytes=80 * GIB,
    compute_capability=(9, 0),
    num_sms=100,
    bf16_flops_per_s=1e15,
    fp16_flops_per_s=1e15,
    fp32_flops_per_s=1e14,
    memory_bytes_per_s=3e12,
    link_bytes_per_s=4e11,
    pcie_bytes_per_s=5e10,
    context_bytes=GIB // 2,
)
# LLaMA-7B: 32 layers of four 4096 x 4096 and three 4096 x 11008 matrices and two norms, two embeddings of 32,000 rows, a norm
LAYER = (4096 * 4096,) * 4 + (4096 * 11008,) * 3 + (4096,) * 2
LLAMA_7B = tuple(map(Parameter, (32000 * 4096, *LAYER * 32, 4096, 32000 * 4096)))
P = 6_738_415_616
# Qwen2.5-1.5B: 28 layers of 1536 (q, o), 256 (k, v) and 8960 rows, biases on q, k and v, tied embeddings of 151,936 rows
QWEN_LAYER = (1536 * 1536, 1536, *(256 * 1536, 256) * 2, 1536 * 1536, *(8960 * 1536,) * 3, *(1536,) * 2)
QWEN_1_5B = tuple(map(Parameter, (151_936 * 1536, *QWEN_LAYER * 28, 1536)))

CPU = {"device": "cpu"}
PAGEABLE = {"device": "cpu", "pin_memory": False}


def run(
    parameters: Sequence[Parameter],
    world: int,
    zero: dict[str, Any] | None = None,
    *,
    rank: int = 0,
    free: int | None = None,
    **recipe: Any,
) -> HostMemory:
    """One rank's memory, without the process itself."""
    offload = bool(zero and ("offload_optimizer" in zero or "offload_param" in zero))
    if offload:
        recipe.setdefault("offload", "params" if "offload_param" in (zero or {}) else "optimizer")
        recipe.setdefault("optimizer", "cpu-adam")
    if "nvme" in json.dumps(zero):
        recipe.setdefault("offload_device", "nvme")
    full = TrainingRecipe(**recipe)
    found = ZeroSettings.from_config(complete(full, {"zero_optimization": zero or {}}, world_size=world), world, full.optimizer)
    return simulate(parameters, found, rank=rank, memory=HostMemory(), free_device_bytes=free).memory


def detail(parameters: tuple[Parameter, ...], gpus: int, *, nodes: int = 1, checkpoints: int = 1, **recipe: Any) -> HostDetail:
    cluster = ClusterSpec(gpu=GPU, num_nodes=nodes, gpus_per_node=gpus // nodes)
    full = TrainingRecipe(**recipe)
    full = replace(full, deepspeed=complete(full, None, world_size=gpus))
    return host.of_parameters(parameters, full, cluster, num_checkpoints=checkpoints)


def predicted(row: dict[str, Any]) -> HostMemory:
    """The measured process: construction, initialisation and steps, no checkpoint."""
    parameters: Sequence[Parameter] = (Parameter(row["n_train"]),)
    if row["model"] == "llama-7b":
        parameters = tuple(map(Parameter, (32000 * 4096, *LAYER * row.get("layers", 32), 4096, 32000 * 4096)))
    elif row["model"] == "qwen2.5-1.5b":
        parameters = QWEN_1_5B
    assert sum(p.numel for p in parameters) == row["n_train"]
    offload = "none" if row["optimizer"] != "offload" else "params" if "offload_param" in row["ds"]["zero_optimization"] else "optimizer"
    recipe = TrainingRecipe(
        zero_stage=row["zero"],
        offload=offload,
        optimizer="fused-adam" if offload == "none" else "cpu-adam",
        grad_accum_steps=row.get("accum", 1),
    )
    found = ZeroSettings.from_config(complete(recipe, row["ds"], world_size=row["world"]), row["world"])
    return simulate(
        parameters,
        found,
        rank=0,
        memory=HostMemory(),
        process_bytes=node.PROCESS_INIT_BYTES,
        process_growth_bytes=node.PROCESS_BYTES - node.PROCESS_INIT_BYTES,
    ).memory


def name(row: dict[str, Any]) -> str:
    """A row's name among the tests."""
    zero = row["ds"].get("zero_optimization", {})
    offloads = [("pinned-" if part.get("pin_memory", True) else "") + key for key, part in zero.items()]
    return "-".join([row["model"], f"z{row['zero']}", f"w{row['world']}", f"ga{row.get('accum', 1)}", *offloads])


@pytest.mark.parametrize("row", HELD, ids=name)
def test_the_measured_peak_of_a_process_with_states_is_met(row: dict[str, Any]) -> None:
    assert predicted(row).peak().total_bytes == pytest.approx(row["rss_peak"], rel=0.05)


@pytest.mark.parametrize("row", BARE, ids=name)
def test_the_measured_size_of_a_bare_process_is_met(row: dict[str, Any]) -> None:
    assert predicted(row).peak().total_bytes == pytest.approx(row["rss_peak"], rel=0.08)


@pytest.mark.parametrize("row", [row for row in MEASURED if "pinned_bytes" in row], ids=name)
def test_the_measured_pinned_memory_is_met(row: dict[str, Any]) -> None:
    assert predicted(row).pinned_bytes == pytest.approx(row["pinned_bytes"], abs=64 * 1024)  # scalars are pinned too


def test_stage_3_offload_takes_20_bytes_per_parameter_of_the_partition() -> None:
    # master 4, gradients 4 + 2, moments 8, and at the end the update on its way to the GPU as 16-bit numbers, 2
    peak = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": PAGEABLE}, zero_stage=3).peak()
    n = P // 8
    assert peak.terms == {MASTER: 4 * n, GRADIENTS: 6 * n, MOMENTS: 8 * n, COPIES: 2 * n}


def test_parameter_offload_pins_whatever_pin_memory_says() -> None:
    memory = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": PAGEABLE, "offload_param": PAGEABLE}, zero_stage=3)
    assert memory.pinned_bytes == 2**31  # 2 x 842,301,952 bytes, rounded up


def test_stage_2_offload_without_pinning_takes_18_bytes_per_parameter_of_the_partition() -> None:
    peak = run(LLAMA_7B, 8, {"stage": 2, "offload_optimizer": PAGEABLE}).peak()
    n, largest = P // 8, 32000 * 4096
    assert peak.terms == {MASTER: 4 * n, WEIGHTS: 2 * n, GRADIENTS: 4 * n + 2 * largest, MOMENTS: 8 * n}


def test_stage_2_offload_pins_all_but_the_moments() -> None:
    memory = run(LLAMA_7B, 8, {"stage": 2, "offload_optimizer": CPU})
    n, largest = P // 8, 32000 * 4096
    assert memory.terms[MOMENTS] == 8 * n
    assert memory.pinned_bytes == 2 * 2**32 + 2**31 + 2**28  # 4n twice, 2n, 2 x largest: each rounded up
    assert memory.terms[ROUNDING] == memory.pinned_bytes - (10 * n + 2 * largest)


def test_nvme_in_stage_2_is_host_memory() -> None:
    nvme = run(LLAMA_7B, 8, {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}})
    assert nvme.peak().terms == run(LLAMA_7B, 8, {"stage": 2, "offload_optimizer": CPU}).peak().terms


def test_accumulation_keeps_whole_gradients_of_the_parameters_that_touch_the_partition() -> None:
    parameters = [Parameter(n) for n in (100, 60, 40, 200)]  # two ranks of 200: rank 0 has the first three, rank 1 the last
    grown = [
        run(parameters, 2, {"stage": 2, "offload_optimizer": PAGEABLE}, rank=rank, grad_accum_steps=accum).terms[GRADIENTS]
        for rank in (0, 1)
        for accum in (1, 4)
    ]
    assert (grown[1] - grown[0], grown[3] - grown[2]) == (2 * 200, 2 * 200)


def test_a_parameter_across_the_boundary_counts_on_both_ranks() -> None:
    parameters = [Parameter(300), Parameter(100)]
    grown = [
        run(parameters, 2, {"stage": 2, "offload_optimizer": PAGEABLE}, rank=rank, grad_accum_steps=2).terms[GRADIENTS]
        - run(parameters, 2, {"stage": 2, "offload_optimizer": PAGEABLE}, rank=rank).terms[GRADIENTS]
        for rank in (0, 1)
    ]
    assert grown == [2 * 300, 2 * 400]


def test_small_sub_groups_take_the_copies_away() -> None:
    whole = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": PAGEABLE}, zero_stage=3).peak()
    tiled = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": PAGEABLE, "sub_group_size": 10**8}, zero_stage=3).peak()
    assert whole.total_bytes - tiled.total_bytes > 1.2 * P / 8


def test_states_on_nvme_leave_buffers_as_large_as_the_largest_sub_group() -> None:
    nvme = {"device": "nvme", "nvme_path": "/x"}
    one = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": nvme}, zero_stage=3)
    many = run(LLAMA_7B, 8, {"stage": 3, "offload_optimizer": nvme, "sub_group_size": 10**8}, zero_stage=3)
    assert one.terms[SWAP] == pytest.approx(4 * 4 * P / 8, rel=0.001)  # buffer_count 4: with one sub-group nothing is saved
    assert many.terms[SWAP] < one.terms[SWAP] / 6


def test_parameters_on_nvme_lock_their_buffers() -> None:
    nvme = {"device": "nvme", "nvme_path": "/x", "buffer_count": 3, "buffer_size": 2 * 10**7, "max_in_cpu": 0}
    memory = run(LLAMA_7B, 8, {"stage": 3, "offload_param": nvme}, zero_stage=3, optimizer="fused-adam")
    largest_sub_group = P // 8
    assert memory.terms[SWAP] == pytest.approx(2 * 3 * 2 * 10**7 + 2 * largest_sub_group, rel=0.001)


def test_a_partition_larger_than_its_nvme_buffer_is_warned_of() -> None:
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x", "buffer_size": 10**6}}
    recipe = TrainingRecipe(zero_stage=3, offload="params", offload_device="nvme")
    found = ZeroSettings.from_config(complete(recipe, {"zero_optimization": zero}, world_size=8), 8)
    done = simulate(LLAMA_7B, found, rank=0, memory=HostMemory())
    assert any("buffer_size" in warning for warning in done.warnings)


def test_flattening_goes_through_host_memory_when_the_gpu_is_too_full() -> None:
    full, free = run(LLAMA_7B, 8, free=GIB), run(LLAMA_7B, 8, free=20 * GIB)
    assert (full.peak().terms, free.peak().terms) == ({COPIES: 4 * P}, {})


def test_frozen_weights_take_no_host_memory_unless_offloaded() -> None:
    lora = [Parameter(p.numel, False) for p in LLAMA_7B] + [Parameter(10**6)] * 40
    assert run(lora, 8, {"stage": 3}, zero_stage=3).peak().terms == {COPIES: 2 * 40 * 125_000}
    assert run(lora, 8, {"stage": 3, "offload_param": PAGEABLE}, zero_stage=3, optimizer="fused-adam").terms[WEIGHTS] > 2 * P / 8


SIZES = st.lists(st.builds(Parameter, st.integers(1, 10**7), st.booleans()), min_size=1, max_size=12)
STAGES = st.sampled_from([(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "params"), (0, "none"), (2, "none"), (3, "none")])


@settings(max_examples=60, deadline=None)
@given(SIZES, STAGES, st.integers(1, 16), st.integers(1, 16), st.integers(1, 4))
def test_more_ranks_never_raise_a_ranks_states(
    parameters: list[Parameter], case: tuple[int, str], world: int, times: int, accum: int
) -> None:
    stage, offload = case
    optimizer = "fused-adam" if offload == "none" else "cpu-adam"
    recipe: dict[str, Any] = {"zero_stage": stage, "offload": offload, "optimizer": optimizer}
    few, many = (run(parameters, w, grad_accum_steps=accum, **recipe) for w in (world, world * times))
    padding = 64  # bytes: a partition is padded to whole elements and to 4-byte boundaries
    for term in (MASTER, MOMENTS):
        assert many.terms[term] <= few.terms[term] + padding


@settings(max_examples=60, deadline=None)
@given(SIZES, STAGES, st.integers(1, 16), st.sampled_from(["cpu", "nvme"]), st.integers(1, 3))
def test_terms_sum_to_the_host_memory_of_a_node(
    parameters: list[Parameter], case: tuple[int, str], gpus: int, device: str, accum: int
) -> None:
    stage, offload = case
    optimizer = "fused-adam" if offload == "none" else "cpu-adam"
    found = detail(
        tuple(parameters), gpus, zero_stage=stage, offload=offload, offload_device=device, optimizer=optimizer, grad_accum_steps=accum
    ).estimate
    assert sum(found.terms.values()) == found.host_bytes_per_node
    assert 0 <= found.pinned_bytes_per_node <= found.host_bytes_per_node
    assert found.nvme_bytes_per_node <= found.disk_bytes


def test_a_node_holds_its_ranks() -> None:
    one = detail(LLAMA_7B, 8, zero_stage=3, offload="optimizer", optimizer="cpu-adam")
    two = detail(LLAMA_7B, 8, nodes=2, zero_stage=3, offload="optimizer", optimizer="cpu-adam")
    shared = node.PROCESS_SHARED_BYTES  # once per node
    assert one.estimate.host_bytes_per_node + shared == 2 * two.estimate.host_bytes_per_node


def test_stage_1_accumulates_on_the_gpu() -> None:
    once, often = (run(LLAMA_7B, 8, {"stage": 1, "offload_optimizer": CPU}, zero_stage=1, grad_accum_steps=n) for n in (1, 4))
    assert once.peak().terms == often.peak().terms


def test_offload_of_7b_on_one_node_is_what_eight_measured_ranks_would_take() -> None:
    row = next(r for r in HELD if r["optimizer"] == "offload" and "offload_param" not in r["ds"]["zero_optimization"])
    recipe = TrainingRecipe(zero_stage=3, offload="optimizer", optimizer="cpu-adam")
    recipe = replace(recipe, deepspeed=complete(recipe, row["ds"], world_size=8))
    found = host.of_parameters(LLAMA_7B, recipe, ClusterSpec(gpu=GPU, gpus_per_node=8))
    assert found.estimate.host_bytes_per_node == pytest.approx(8 * row["rss_peak"], rel=0.05)
    assert found.peak_phase == "train"


def test_a_checkpoint_of_a_full_run_takes_14_bytes_per_parameter() -> None:
    found = detail(LLAMA_7B, 8, checkpoints=3)
    assert (found.estimate.checkpoint_bytes, found.estimate.disk_bytes) == (14 * P, 3 * 14 * P)


def test_a_checkpoint_of_adapters_leaves_the_frozen_weights_out() -> None:
    lora = (*(Parameter(p.numel, False) for p in LLAMA_7B), Parameter(10**6))
    assert detail(lora, 1).estimate.checkpoint_bytes == 14 * 10**6


@pytest.mark.parametrize(
    ("bytes_each", "more"),
    [  # measured: what the trainer wrote of a small model, less 0.1 byte for what is not a parameter
        (12, {"zero_stage": 3}),
        (12, {"zero_stage": 3, "precision": "fp32"}),
        (16, {"zero_stage": 2, "precision": "fp32"}),
        (12, {"zero_stage": 0, "precision": "fp32"}),
        (14, {"zero_stage": 0}),
        (6, {"zero_stage": 0, "optimizer": "adam-bf16"}),
        (8, {"zero_stage": 2, "optimizer": "adam-bf16"}),
        (6, {"zero_stage": 3, "optimizer": "adam-bf16"}),
    ],
)
def test_a_checkpoint_has_no_weights_twice(bytes_each: int, more: dict[str, Any]) -> None:
    recipe = TrainingRecipe(**more)
    found = ZeroSettings.from_config(complete(recipe, None, world_size=2), 2, recipe.optimizer)
    assert host.checkpoint_bytes(LLAMA_7B, found, recipe.optimizer) == bytes_each * P


def test_8_bit_moments_make_small_checkpoints() -> None:
    assert detail(LLAMA_7B, 8, optimizer="adam-8bit").estimate.checkpoint_bytes == 6 * P + int(P * 2 * (1 + 4 / 256))


def test_a_full_stage_2_run_peaks_while_rank_0_writes_the_weights() -> None:
    found = detail(LLAMA_7B, 8)
    assert found.peak_phase == "checkpoint"
    assert found.estimate.terms[COPIES] == max(2 * P, 4 * P)  # the 16-bit weights, or all ranks' master weights


def test_one_copy_of_the_weights_per_node_is_read_not_one_per_rank() -> None:
    found = detail(LLAMA_7B, 8)
    assert found.estimate.load_peak_bytes_per_node < found.naive_load_peak_bytes_per_node / 3
    assert found.naive_load_peak_bytes_per_node == 8 * (2 * P + node.PROCESS_INIT_BYTES) - 7 * node.PROCESS_SHARED_BYTES


def test_ranks_that_differ_are_added_one_by_one() -> None:
    parameters = (Parameter(3 * 10**8), Parameter(10**8))
    found = detail(parameters, 2, offload="optimizer", optimizer="cpu-adam", grad_accum_steps=4).estimate
    by_rank = [run(parameters, 2, {"stage": 2, "offload_optimizer": CPU}, rank=r, grad_accum_steps=4).peak_of("train") for r in (0, 1)]
    process = 2 * node.PROCESS_BYTES - node.PROCESS_SHARED_BYTES
    written = 2 * 4 * 10**8  # rank 0 has the 16-bit weights on their way to the checkpoint
    assert found.host_bytes_per_node == sum(s.total_bytes for s in by_rank) + process + written
    assert found.terms[PROCESS] == process


def test_a_models_parameters_come_from_its_shadow() -> None:
    found = host.parameters_of(find_model("llama-7b", allow_network=False), TrainingRecipe())
    assert sorted(found) == sorted(LLAMA_7B)


def test_adapters_are_the_trainable_parameters_of_lora() -> None:
    recipe = TrainingRecipe(method="lora", lora=LoraSpec(rank=16))
    found = host.parameters_of(find_model("llama-7b", allow_network=False), recipe)
    assert sum(p.numel for p in found if p.trainable) == 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert sum(p.numel for p in found if not p.trainable) == P


def test_an_unknown_family_counts_as_one_parameter() -> None:
    unknown = ModelSpec(name="m", family="unheard-of", config={}, source="", num_params=1000)
    assert host.parameters_of(unknown, TrainingRecipe()) == (Parameter(1000),)
