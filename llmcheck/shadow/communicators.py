"""Device memory that NCCL takes in a rank's process, beside torch's allocator: kernels, and buffers of each communicator.

Measured on one H100, for a single rank and for two that talk over sockets; the buffers of NVLink, PCIe and networks are read from NCCL's
sources (``data/nccl.toml``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmcheck import toml
from llmcheck.types import ClusterSpec, GpuSpec

_DATA = Path(__file__).resolve().parent.parent / "data" / "nccl.toml"
_NVLS_CAPABILITY = (9, 0)
_NVLS_GPUS = 3  # of a node, at least: src/transport/nvls.cc, ncclNvlsInit


@lru_cache(maxsize=1)
def _constants() -> Mapping[str, Any]:
    return toml.load(_DATA)


def nccl_bytes(cluster: ClusterSpec) -> int:
    """Device memory of NCCL in each rank's process from the first step on. The trainer starts none for a single rank (its alone.py)."""
    if cluster.num_gpus == 1:
        return 0
    number: int = _constants()["communicator"]["number"]
    return _kernel_bytes(cluster.gpu) + number * communicator_bytes(cluster)


def other_loop_bytes(gpu: GpuSpec) -> int:
    """What a loop that lets DeepSpeed start NCCL has of it with a single rank."""
    alone: int = _constants()["communicator"]["alone_bytes"]
    return _kernel_bytes(gpu) + alone


def _kernel_bytes(gpu: GpuSpec) -> int:
    """The library's kernels for `gpu` and their stacks. A GPU without an image of its own runs the last one before it."""
    table = _constants()["kernels"]
    images: Mapping[str, int] = table["image_bytes"]
    major, minor = gpu.compute_capability
    older = [int(name[2:]) for name in images if int(name[2:]) <= 10 * major + minor]
    image = images[f"sm{max(older)}"] if older else min(images.values())
    return image + int(table["stack_bytes_per_sm"] * max(1, gpu.num_sms))


def communicator_bytes(cluster: ClusterSpec) -> int:
    """One communicator over all ranks that has carried collectives."""
    table = _constants()
    own, buffers = table["communicator"], table["buffers"]
    nvlink = cluster.gpu.link_bytes_per_s > 0
    channels = table["channels"]["nvlink" if nvlink else "pcie"]
    collective: int = channels["collective"]
    total: int = own["page_bytes"] * (own["pages"] + own["pages_per_channel"] * channels["initialised"])
    if cluster.gpus_per_node > 1:
        total += collective * buffers["connection_bytes"]
        if nvlink and cluster.gpu.compute_capability >= _NVLS_CAPABILITY and cluster.gpus_per_node >= _NVLS_GPUS:
            total += cluster.gpus_per_node * buffers["nvls_bytes_per_gpu"]
    if cluster.num_nodes > 1:  # rings and trees: a channel's way out of the node and into it is that of one GPU each
        total += 2 * collective * buffers["network_bytes"] // cluster.gpus_per_node
        if cluster.gpus_per_node > 1:
            total += collective * buffers["connection_bytes"]  # trees go both ways within a node
    return total
