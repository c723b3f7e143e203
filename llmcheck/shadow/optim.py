"""Optimizer states and what one optimizer step allocates on the device."""

from __future__ import annotations

from llmcheck.shadow.tape import Storage, cur
from llmcheck.types import Optimizer


class OptimizerState:
    """State of one optimizer over flat partitions, made at the first step (lazily, as torch and DeepSpeed do)."""

    def __init__(self, kind: Optimizer, moment_item: int = 4) -> None:
        self.kind = kind
        self.moment_item = moment_item  # bytes of an element of each moment
        self.states: dict[int, list[Storage]] = {}
        before, cur.category = cur.category, "optimizer_states"
        # FusedAdam keeps a one-element overflow buffer from construction on
        self.overflow = Storage(4) if kind == "fused-adam" else None
        cur.category = before

    def step(self, numels: list[int], first_key: int = 0) -> None:
        """One step over partitions of `numels` elements."""
        before, cur.category = cur.category, "optimizer_states"
        for key, n in enumerate(numels, first_key):
            if key not in self.states:
                self.states[key] = self._make(n)
        cur.category = before

    def _make(self, n: int) -> list[Storage]:
        if self.kind == "adam-8bit":
            if n < 4096:  # bitsandbytes keeps small tensors in fp32
                return [Storage(4 * n), Storage(4 * n)]
            blocks = -(-n // 256)
            # two uint8 states, fp32 absmax a block of 256, and the two shared quantisation maps of 256 fp32 values
            return [Storage(n), Storage(n), Storage(1024), Storage(1024), Storage(4 * blocks), Storage(4 * blocks)]
        return [Storage(self.moment_item * n), Storage(self.moment_item * n)]
