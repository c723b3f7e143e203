"""Seconds of ring collectives over the links of a cluster.

Volumes and the ring model: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 7; NCCL tests' notes on bus bandwidth
(all-reduce 2(N-1)/N, reduce-scatter and all-gather (N-1)/N of the buffer per rank).
"""

from __future__ import annotations

from typing import Literal

from llmcheck.shadow.pace import constants
from llmcheck.steptime.kernels import GpuRates
from llmcheck.types import ClusterSpec

Collective = Literal["all-reduce", "reduce-scatter", "all-gather"]


def bus_bytes_per_s(cluster: ClusterSpec, rates: GpuRates) -> float:
    """Bandwidth of the slowest hop of a ring through all GPUs. Across nodes the whole ring passes each node's network once."""
    inner = rates.link_bytes_per_s if cluster.gpus_per_node > 1 else float("inf")
    if cluster.num_nodes == 1:
        return inner
    network: float = cluster.inter_node_bytes_per_s * constants()["collectives"]["network_efficiency"]
    return min(inner, network)


def collective_s(kind: Collective, num_bytes: float, num_calls: float, cluster: ClusterSpec, rates: GpuRates) -> float:
    """Seconds of `num_calls` collectives over all GPUs that together move buffers of `num_bytes` (the unsharded size)."""
    ranks = cluster.num_gpus
    if ranks < 2 or num_bytes <= 0:
        return 0.0
    table = constants()["collectives"]
    passes = 2.0 if kind == "all-reduce" else 1.0
    hops = cluster.num_gpus - cluster.num_nodes, cluster.num_nodes if cluster.num_nodes > 1 else 0
    latency: float = table["latency_s"] + passes * (min(hops[0], 8 * cluster.num_nodes) * table["hop_s"] + hops[1] * table["network_hop_s"])
    return passes * num_bytes * (ranks - 1) / ranks / bus_bytes_per_s(cluster, rates) + max(1.0, num_calls) * latency
