"""Host memory per node, pinned and not, and disk: what a run takes beside its GPUs."""

from __future__ import annotations

from llmcheck.host.memory import HostMemory
from llmcheck.host.node import HostDetail, checkpoint_bytes, detail, estimate, of_parameters, parameters_of
from llmcheck.host.offload import Parameter, simulate

__all__ = ["HostDetail", "HostMemory", "Parameter", "checkpoint_bytes", "detail", "estimate", "of_parameters", "parameters_of", "simulate"]
