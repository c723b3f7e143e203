"""What became of the rows: counts by reason with the first lines, lengths, truncation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmcheck_trainer.dataprep.rows import BAD, REASONS

MAX_PLACES = 10  # named for each reason; the count has them all
_MAX_LENGTH = 1 << 20  # longer rows are counted together
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


@dataclass
class _Places:
    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, label: str, line: int, detail: str = "") -> None:
        self.count += 1
        if len(self.first) < MAX_PLACES:
            self.first.append({"file": label, "line": line, **({"detail": detail} if detail else {})})


@dataclass
class Tally:
    """Counts over one preparation."""

    num_source_rows: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_tokens_lost: int = 0
    _left_out: dict[str, _Places] = field(default_factory=dict)
    _truncated: _Places = field(default_factory=_Places)
    _lengths: Any = field(default_factory=lambda: np.zeros(_MAX_LENGTH + 1, dtype=np.int64))
    _longest: int = 0

    def leave_out(self, reason: str, label: str, line: int, detail: str = "") -> None:
        """A row is not used, for a reason of REASONS."""
        assert reason in REASONS
        self._left_out.setdefault(reason, _Places()).add(label, line, detail)

    def leave_all_out(self, reason: str, label: str, lines: Iterable[int]) -> None:
        """Likewise several."""
        for line in lines:
            self.leave_out(reason, label, line)

    def truncate(self, label: str, lines: Iterable[int]) -> None:
        """These rows are cut off at the sequence length."""
        for line in lines:
            self._truncated.add(label, line)

    def measure(self, lengths: Any) -> None:
        """Count the lengths of rows, in tokens, before they were cut."""
        if len(lengths):
            self._longest = max(self._longest, int(lengths.max()))
            counts = np.bincount(np.minimum(lengths, _MAX_LENGTH))
            self._lengths[: len(counts)] += counts

    @property
    def num_bad(self) -> int:
        """Rows that could not be read."""
        return sum(places.count for reason, places in self._left_out.items() if reason in BAD)

    def dropped(self) -> dict[str, Any]:
        """Reason to count and first places, the most frequent first."""
        ordered = sorted(self._left_out.items(), key=lambda item: (-item[1].count, item[0]))
        return {reason: {"count": places.count, "first": places.first} for reason, places in ordered}

    def truncated(self) -> dict[str, Any]:
        """Rows cut off, and the tokens lost by it."""
        return {"count": self._truncated.count, "num_tokens_lost": self.num_tokens_lost, "first": self._truncated.first}

    def lengths(self, seq_len: int) -> dict[str, Any]:
        """Tokens of the source rows before cutting: quantiles, a histogram, and what other sequence lengths would cut."""
        counts = self._lengths
        total = int(counts.sum())
        if not total:
            return {"count": 0, "histogram": [], "by_seq_len": []}
        up_to = np.cumsum(counts)
        values = np.arange(len(counts))
        quantiles = {name: int(np.searchsorted(up_to, share * total)) for name, share in _QUANTILES}
        return {
            "count": total,
            "mean": round(float((counts * values).sum() / total), 1),
            **quantiles,
            "max": self._longest,
            "histogram": _histogram(up_to, self._longest),
            "by_seq_len": [_cut(counts, values, total, limit) for limit in _limits(seq_len, self._longest)],
        }


def _histogram(up_to: Any, longest: int) -> list[list[int]]:
    """[longest length of the class, rows in it], by powers of two and their halves."""
    bounds: list[int] = []
    bound = 16
    while not bounds or bounds[-1] < min(longest, _MAX_LENGTH):
        bounds += [bound, bound + bound // 2]
        bound *= 2
    rows, before = [], 0
    for edge in bounds:
        now = int(up_to[min(edge, _MAX_LENGTH)])
        rows.append([edge, now - before])
        before = now
    used = [index for index, (_, number) in enumerate(rows) if number]
    return rows[used[0] : used[-1] + 1]


def _limits(seq_len: int, longest: int) -> Sequence[int]:
    """Sequence lengths worth comparing: powers of two from a quarter of the one asked for, to the first that cuts nothing."""
    limits = {seq_len}
    power = 1 << max(seq_len.bit_length() - 3, 4)
    while power < 2 * longest and power <= _MAX_LENGTH and len(limits) < 8:
        limits.add(power)
        power *= 2
    return sorted(limits)


def _cut(counts: Any, values: Any, total: int, limit: int) -> dict[str, Any]:
    over = counts[limit + 1 :]
    lost = int((over * (values[limit + 1 :] - limit)).sum()) if len(over) else 0
    num_tokens = int((counts * values).sum())
    return {
        "seq_len": limit,
        "rows_cut_fraction": round(float(over.sum() / total), 6) if len(over) else 0.0,
        "tokens_cut_fraction": round(lost / num_tokens, 6) if num_tokens else 0.0,
    }
