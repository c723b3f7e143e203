"""Seconds that kernels take on the GPU: a roofline with tile and wave quantisation for matrix products.

All rates of a GPU are in :class:`GpuRates`, so that a measured profile of the local GPU can replace them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf

from llmcheck.shadow.pace import architecture, constants, peak_flops_per_s
from llmcheck.steptime.flops import FusedAttention, Matmul, Work
from llmcheck.types import GpuSpec, Precision


@dataclass(frozen=True, kw_only=True)
class GpuRates:
    """What a GPU reaches in practice. FLOP/s and bytes/s are sustained, not data-sheet peaks."""

    matmul_flops_per_s: float  # large matrix products in the run's precision
    attention_flops_per_s: float  # flash-like forward; backward runs at `attention_backward_ratio` of it
    attention_backward_ratio: float
    memory_bytes_per_s: float  # element-wise kernels, reads plus writes
    kernel_s: float  # shortest time between two kernels on the GPU
    num_sms: int
    link_bytes_per_s: float  # collectives within a node, bus bandwidth
    pcie_bytes_per_s: float  # copies between pinned host memory and the GPU
    peak_flops_per_s: float  # data sheet, for MFU

    @staticmethod
    def from_spec(gpu: GpuSpec, precision: Precision) -> GpuRates:
        """Data-sheet rates times the efficiencies of the GPU's architecture. A precision without matrix units runs at the fp32 rate."""
        table = constants()
        eff = architecture(gpu)
        peak = peak_flops_per_s(gpu, precision)
        link = gpu.link_bytes_per_s * table["collectives"]["link_efficiency"] if gpu.link_bytes_per_s > 0 else 0.0
        pcie = max(gpu.pcie_bytes_per_s, 1e9)
        return GpuRates(
            matmul_flops_per_s=peak * eff["matmul"],
            attention_flops_per_s=peak * eff["attention"],
            attention_backward_ratio=table["kernels"]["attention_backward_ratio"],
            memory_bytes_per_s=max(gpu.memory_bytes_per_s, 1e9) * eff["memory"],
            kernel_s=table["kernels"]["kernel_s"],
            num_sms=max(1, gpu.num_sms),
            link_bytes_per_s=link or pcie * table["collectives"]["pcie_efficiency"],
            pcie_bytes_per_s=pcie * table["offload"]["pcie_efficiency"],
            peak_flops_per_s=peak,
        )


# Output tiles of cuBLAS kernels (rows, columns, rate relative to the best). Large tiles reuse operands more.
# Source: NVIDIA, "Matrix Multiplication Background User's Guide", sections on tile and wave quantisation.
_TILES: tuple[tuple[int, int, float], ...] = ((128, 256, 1.0), (128, 128, 0.92), (128, 64, 0.75), (64, 64, 0.5))
_PROLOGUE_K = 64  # elements of K that filling the pipeline costs, per tile


@lru_cache(maxsize=8192)
def _launch_s(rates: GpuRates, m: int, n: int, k: int, batch: int, element_bytes: int) -> float:
    """One launch of `batch` products, with the fastest of the tiles."""
    traffic = batch * (m * k + k * n + m * n) * element_bytes / rates.memory_bytes_per_s
    per_sm = rates.matmul_flops_per_s / rates.num_sms
    best = inf
    for rows, cols, rate in _TILES:
        for tile_m, tile_n in ((rows, cols), (cols, rows)):
            tiles = ceil(m / tile_m) * ceil(n / tile_n) * batch
            tile_s = 2.0 * tile_m * tile_n * (k + _PROLOGUE_K) / (per_sm * rate)
            if tiles < rates.num_sms:  # split along K: more blocks, each shorter, at most until the GPU is filled once
                tile_s /= max(1, min(rates.num_sms // tiles, k // 512))
            best = min(best, ceil(tiles / rates.num_sms) * tile_s)
    return max(best, traffic) + rates.kernel_s


def matmul_s(rates: GpuRates, product: Matmul, element_bytes: int) -> float:
    """Seconds of a matrix product, all its launches."""
    return product.times * _launch_s(rates, product.m, product.n, product.k, product.batch, element_bytes)


def attention_s(rates: GpuRates, call: FusedAttention) -> float:
    """Seconds of `call.times` fused attention kernels; a head narrower than 128 keeps the matrix units less busy."""
    rate = rates.attention_flops_per_s * (rates.attention_backward_ratio if call.backward else 1.0)
    rate *= min(1.0, 0.5 + call.head_dim / 256)
    return call.times * (max(call.flops / rate, call.num_bytes / rates.memory_bytes_per_s) + rates.kernel_s)


def gpu_s(work: Work, rates: GpuRates, element_bytes: int) -> float:
    """Seconds that the GPU is busy with `work`, kernels one after the other."""
    total = work.num_bytes / rates.memory_bytes_per_s
    total += sum(matmul_s(rates, x, element_bytes) for x in work.matmuls)
    total += sum(attention_s(rates, x) for x in work.attention)
    return total + max(0.0, work.kernels - sum(x.times for x in work.matmuls)) * rates.kernel_s
