"""Seconds of the CPU: Python, dispatcher, kernel launches, module hooks, DeepSpeed's bookkeeping.

A step takes the longer of what the CPU needs to issue the work and what the GPU needs to do it. Small steps, many small modules
(LoRA) and ZeRO-3's hooks are bound by the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmcheck.shadow.pace import constants
from llmcheck.steptime.flops import Work


@dataclass(frozen=True, kw_only=True)
class HostRates:
    """Seconds of CPU per event, of one process on one core."""

    op_s: float  # an operator of the forward pass that launches a kernel: Python, dispatch, autograd node, allocation, launch
    view_s: float  # a view, a check, a call without kernel
    backward_op_s: float  # a kernel of the backward pass (C++ engine, no Python)
    visit_s: float  # the call of an nn.Module
    checkpoint_s: float  # per segment of activation checkpointing: random states kept and set again, a second graph
    zero3_visit_s: float  # ZeRO-3's hooks of a module: fetch, wait, prefetch, release, in forward, recomputation or backward
    zero3_gather_s: float  # per parameter that is gathered
    zero3_slice_s: float  # a turn of DeepSpeed's loops over parameters and ranks: a gather copied apart, gradients cut for the reduction
    gradient_s: float  # the hook of a trained parameter: bucket copy, bookkeeping of the partition
    micro_s: float  # micro-step, fixed part: masks and rotary tables, the engine's forward and backward, the epilogue of gradients
    step_tensor_s: float  # per tensor of the partition in the optimizer step: norm, flattening, copies
    step_s: float  # optimizer step, fixed part, while the GPU waits: overflow and norm are read back, clip, loss scale, timers

    @staticmethod
    def reference() -> HostRates:
        """The rates measured on the reference host (see ``data/steptime.toml``)."""
        row = constants()["host"]
        return HostRates(**{name: float(row[name]) for name in HostRates.__dataclass_fields__})


def forward_s(work: Work, rates: HostRates, zero_stage: int, num_gathers: float, num_ranks: int = 1) -> float:
    """CPU seconds of a forward pass (or a recomputation) of `work` that gathers `num_gathers` parameters from `num_ranks`."""
    total = work.kernels * rates.op_s + work.views * rates.view_s + work.visits * rates.visit_s
    if zero_stage == 3:
        total += work.visits * rates.zero3_visit_s + num_gathers * (rates.zero3_gather_s + _turns(num_ranks) * rates.zero3_slice_s)
    return total


def _turns(num_ranks: int) -> int:
    return num_ranks if num_ranks > 1 else 0  # nothing is cut for a single rank


_BACKWARD_VIEW = 0.25  # a view of the backward pass over a kernel of it, as in the forward


def backward_s(
    work: Work, rates: HostRates, zero_stage: int, num_gathers: float, num_gradients: float, num_ranks: int = 1, num_segments: int = 0
) -> float:
    """CPU seconds of a backward pass without recomputation; `num_gradients` parameters have a gradient hook.

    `num_segments`: of activation checkpointing, 0: none.
    """
    total = (work.kernels + _BACKWARD_VIEW * work.views) * rates.backward_op_s + num_segments * rates.checkpoint_s
    if zero_stage > 0:
        total += num_gradients * rates.gradient_s
    if zero_stage == 3:
        total += work.visits * rates.zero3_visit_s + num_gathers * (rates.zero3_gather_s + _turns(num_ranks) * rates.zero3_slice_s)
        total += num_gradients * _turns(num_ranks) * rates.zero3_slice_s
    return total


def optimizer_s(rates: HostRates, num_tensors: float) -> float:
    """CPU seconds over `num_tensors` tensors of this rank's partition in the optimizer step; `step_s` comes on top and hides nothing."""
    return num_tensors * rates.step_tensor_s
