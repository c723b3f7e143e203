"""The learning rate as a function of how much of the run is done; no state to save."""

from __future__ import annotations

import math


def learning_rate(peak: float, kind: str, done: float, *, warmup: float, floor: float) -> float:
    """`done`: fraction of the run after the step that it is for, in (0, 1]. Linear warm-up over `warmup`, then down to `floor` x `peak`."""
    if done < warmup:
        return peak * done / warmup
    if kind == "constant":
        return peak
    left = 1.0 - (done - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
    left = min(max(left, 0.0), 1.0)
    shape = left if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return peak * (floor + (1.0 - floor) * shape)
