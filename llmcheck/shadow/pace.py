"""How fast the CPU hands out work and how fast the GPU does it, as far as the order of frees needs it.

The GPU's rates are those of the time model, the CPU's a table of their own (``data/steptime.toml``), both fitted to step times; nothing
here was fitted to memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmcheck import toml
from llmcheck.types import GpuSpec, Precision

_DATA = Path(__file__).resolve().parent.parent / "data" / "steptime.toml"

# Bytes moved for each byte allocated: a kernel reads about as much as it writes. The time model's counts for a LLaMA layer
# (steptime/flops.py) over what the simulation allocates in it: 1.7.
_TRAFFIC = 2.0
# Views and other calls without a kernel for each kernel: 0.57 to 0.79 in the layers that the time model counts (steptime/flops.py).
_VIEWS = 0.75


@lru_cache(maxsize=1)
def constants() -> Mapping[str, Any]:
    """The constants of the time model with their sources (``data/steptime.toml``)."""
    return toml.load(_DATA)


def architecture(gpu: GpuSpec) -> Mapping[str, float]:
    """The shares of the data sheet that `gpu` reaches: by compute capability, or by vendor."""
    rows: Mapping[str, Mapping[str, float]] = constants()["architecture"]
    if gpu.vendor == "amd":
        return rows["amd"]
    major, minor = gpu.compute_capability
    for key in (f"sm{major}{minor}", f"sm{major}"):
        if key in rows:
            return rows[key]
    return rows["other"]


def peak_flops_per_s(gpu: GpuSpec, precision: Precision) -> float:
    """The data sheet's rate of `precision`; one without matrix units runs at the fp32 rate."""
    peak = {"bf16": gpu.bf16_flops_per_s, "fp16": gpu.fp16_flops_per_s, "fp32": gpu.fp32_flops_per_s}[precision]
    return peak if peak > 0 else gpu.fp32_flops_per_s or 1e12


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of the CPU per event and of the GPU per unit of work."""

    kernel_s: float  # GPU, shortest time of a kernel
    byte_s: float  # GPU, per byte that a kernel writes
    product_s: float  # GPU, per FLOP of a matrix product
    attention_s: float  # GPU, per FLOP of fused attention
    launch_s: float  # CPU, per kernel that Python launches
    backward_launch_s: float  # CPU, per kernel that autograd's engine launches
    visit_s: float  # CPU, ZeRO-3's hooks of a module
    gather_s: float  # CPU, per parameter gathered
    slice_s: float  # CPU, per parameter and rank, where DeepSpeed loops over both
    gradient_s: float  # CPU, hook of a gradient

    @staticmethod
    def of(gpu: GpuSpec, precision: Precision) -> Pace:
        """The pace of `gpu` under the reference host."""
        table = constants()
        host, share, peak = table["pace"], architecture(gpu), peak_flops_per_s(gpu, precision)
        return Pace(
            kernel_s=table["kernels"]["kernel_s"],
            byte_s=_TRAFFIC / (max(gpu.memory_bytes_per_s, 1e9) * share["memory"]),
            product_s=1 / (peak * share["matmul"]),
            attention_s=1 / (peak * share["attention"]),
            launch_s=host["op_s"] + _VIEWS * host["view_s"],
            backward_launch_s=host["backward_op_s"] + _VIEWS * host["view_s"],
            visit_s=host["visit_s"] + host["zero3_visit_s"],
            gather_s=host["zero3_gather_s"],
            slice_s=host["zero3_slice_s"],
            gradient_s=host["gradient_s"],
        )

    def without_host(self) -> Pace:
        """The same GPU under a CPU that takes no time: it is as far ahead as what it has to wait for lets it be."""
        names = ("launch_s", "backward_launch_s", "visit_s", "gather_s", "slice_s", "gradient_s")
        return replace(self, **dict.fromkeys(names, 0.0))
