"""Best-fit-decreasing packing: rows into sequences of a fixed capacity."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Packs(NamedTuple):
    """Sequence `i` holds the rows ``rows[starts[i]:starts[i + 1]]``."""

    rows: np.ndarray
    starts: np.ndarray


def best_fit(lengths: np.ndarray, capacity: int, seed: int) -> Packs:
    """Pack rows of `lengths` tokens, longest first, each into the fullest sequence that still has room. Rows of equal length by `seed`.

    The open sequences are stacks by free tokens, with a bit set for each stack that is not empty: the best fit is the lowest bit at or
    above the length. Two million rows take seconds.
    """
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    free_stacks: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0
    count = 0
    sequence_of: Any = np.empty(len(lengths), dtype=np.int64)
    for place, length in enumerate(lengths[order].tolist()):
        fitting = occupied >> length
        if fitting and length:
            free = length + (fitting & -fitting).bit_length() - 1
            sequence = free_stacks[free].pop()
            if not free_stacks[free]:
                occupied &= ~(1 << free)
        else:
            free, sequence = capacity, count
            count += 1
        rest = free - length
        sequence_of[place] = sequence
        if rest:
            free_stacks[rest].append(sequence)
            occupied |= 1 << rest
    by_sequence = np.argsort(sequence_of, kind="stable")
    starts: Any = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(sequence_of, minlength=count), out=starts[1:])
    return Packs(order[by_sequence], starts)
