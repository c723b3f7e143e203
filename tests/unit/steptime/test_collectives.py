"""Ring collectives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog.gpus import find_gpu
from llmcheck.steptime.collectives import bus_bytes_per_s, collective_s
from llmcheck.steptime.kernels import GpuRates
from llmcheck.types import ClusterSpec

GPU = find_gpu("A100-80G")
RATES = GpuRates.from_spec(GPU, "bf16")
NODE = ClusterSpec(gpu=GPU, gpus_per_node=8)


def test_one_gpu_communicates_nothing() -> None:
    assert collective_s("all-reduce", 1e9, 1, ClusterSpec(gpu=GPU), RATES) == 0


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    one, two, both = (collective_s(k, 64e9, 1, NODE, RATES) for k in ("reduce-scatter", "all-gather", "all-reduce"))
    assert both == pytest.approx(one + two, rel=1e-3)


def test_a_large_all_gather_runs_at_bus_bandwidth() -> None:
    assert collective_s("all-gather", 80e9, 1, NODE, RATES) == pytest.approx(80e9 * 7 / 8 / RATES.link_bytes_per_s, rel=0.01)


def test_nodes_are_bound_by_their_network() -> None:
    two = replace(NODE, num_nodes=2)
    assert bus_bytes_per_s(two, RATES) < bus_bytes_per_s(NODE, RATES)


def test_without_a_link_the_ring_goes_over_pcie() -> None:
    rates = GpuRates.from_spec(find_gpu("A100-40G-PCIe"), "bf16")
    assert rates.link_bytes_per_s < RATES.link_bytes_per_s / 5


@given(st.floats(1e3, 1e11), st.floats(1e3, 1e11), st.integers(1, 8), st.integers(1, 16))
def test_more_bytes_never_take_less_time(a: float, b: float, nodes: int, calls: int) -> None:
    cluster = replace(NODE, num_nodes=nodes)
    few, many = sorted((a, b))
    assert collective_s("all-reduce", few, calls, cluster, RATES) <= collective_s("all-reduce", many, calls, cluster, RATES)
