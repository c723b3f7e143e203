"""NCCL's device memory in a rank's process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog.gpus import find_gpu
from llmcheck.shadow.communicators import communicator_bytes, nccl_bytes, other_loop_bytes
from llmcheck.types import ClusterSpec
from llmcheck.units import MIB


def cluster(gpu: str, gpus: int, nodes: int = 1) -> ClusterSpec:
    return ClusterSpec(gpu=find_gpu(gpu), gpus_per_node=gpus, num_nodes=nodes)


DATA = Path(__file__).parents[3] / "benchmarks/ranks/data"
RANKS = DATA / "h100-shared-2026-11.jsonl"
SOCKET_COMMUNICATOR_BYTES = 16 * MIB  # the second one of `nccl` in the same file, a rank's half


def beyond_allocator(found: dict[str, Any]) -> int:
    return int(found["process_bytes"] - found["peak_reserved_bytes"])


@pytest.mark.parametrize("name", ["llama-3.2-1b-z2", "llama-3.2-1b-z3"])
def test_the_kernels_on_an_h100_are_those_measured_with_two_ranks(name: str) -> None:
    lines = [line for line in map(json.loads, RANKS.read_text().splitlines()) if line["id"] == name]
    alone = next(line["probe"] for line in lines if "probe" in line)
    rank = next(line["ranks"][0] for line in lines if "ranks" in line)
    kernels = nccl_bytes(cluster("h100", 2)) - 2 * communicator_bytes(cluster("h100", 2))

    grown = beyond_allocator(rank) - beyond_allocator(alone) - 2 * SOCKET_COMMUNICATOR_BYTES
    assert kernels == pytest.approx(grown, abs=2 * MIB)


def test_a_single_rank_has_none_of_the_trainer_and_of_deepspeed_as_measured() -> None:
    assert nccl_bytes(cluster("h100", 1)) == 0
    probed = 828 * MIB  # beside the allocator where collectives are left out: benchmarks/probe, runs without packing
    for line in map(json.loads, (DATA / "train-h100-2026-11.jsonl").read_text().splitlines()):
        assert other_loop_bytes(find_gpu("h100")) == pytest.approx(beyond_allocator(line["measured"]) - probed, abs=4 * MIB)


def test_two_gpus_on_nvlink_have_a_ring_of_24_channels_and_32_that_are_initialised() -> None:
    # NCCL#1781 for the channels, NCCL#1685 for the 10 and 2 MiB of a connection's ends
    assert communicator_bytes(cluster("h200", 2)) == (24 * (10 + 2) + 32 * 6 + 4) * MIB


def test_multicast_buffers_come_with_the_third_gpu() -> None:
    # eight H100 say: nvlsTotalSize 268435456
    assert communicator_bytes(cluster("h100", 8)) - communicator_bytes(cluster("h100", 2)) == 268_435_456
    assert communicator_bytes(cluster("a100-80gb", 8)) == communicator_bytes(cluster("a100-80gb", 2))


def test_without_nvlink_there_are_few_channels() -> None:
    assert communicator_bytes(cluster("l4", 4)) < 100 * MIB


@pytest.mark.parametrize("name", ["t4", "a100-40g", "l40s", "h200", "b200", "mi300x"])
@given(gpus=st.integers(1, 8), nodes=st.integers(1, 64))
def test_ranks_that_talk_have_nccl_and_a_further_node_only_adds(name: str, gpus: int, nodes: int) -> None:
    here = cluster(name, gpus, nodes)

    if here.num_gpus > 1:
        assert nccl_bytes(here) > 0
        assert nccl_bytes(here) <= nccl_bytes(replace(here, num_nodes=nodes + 1))
