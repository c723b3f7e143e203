"""What became of the rows: counts by reason with the first lines, lengths, truncation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmcheck_trainer.dataprep.rows import BAD, REASONS

MAX_PLACES = 10  # named for each reason; the count has them all
_MAX_LENGTH = 1 << 20  # longer rows, of megabytes each, are few: they are kept one by one
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
class _Lengths:
    """How many rows have which length, exactly."""

    short: Any = field(default_factory=lambda: np.zeros(_MAX_LENGTH + 1, dtype=np.int64))
    long: list[int] = field(default_factory=list)

    def add(self, lengths: Any) -> None:
        counts = np.bincount(lengths[lengths <= _MAX_LENGTH], minlength=1)
        self.short[: len(counts)] += counts
        self.long += lengths[lengths > _MAX_LENGTH].tolist()

    def counted(self) -> tuple[Any, Any]:
        """The lengths that occur, in order, and how often each does."""
        short = np.nonzero(self.short)[0]
        long, counts = np.unique(np.array(self.long, dtype=np.int64), return_counts=True)
        return np.concatenate((short, long)), np.concatenate((self.short[short], counts))


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
    num_texts_cut: int = 0  # plain texts that became several rows
    num_pieces: int = 0  # those rows
    num_without_tools: int = 0  # conversations whose list of tools the template has no form for
    num_without_thoughts: int = 0  # likewise thoughts beside an answer
    _talks: _Lengths = field(default_factory=_Lengths)
    _texts: _Lengths = field(default_factory=_Lengths)

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

    def measure(self, lengths: Any, plain: Any) -> None:
        """Count the lengths of rows, in tokens, before they were cut; which of them are `plain` text, of which nothing is cut off."""
        self._talks.add(lengths[~plain])
        self._texts.add(lengths[plain])

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

    def pieces(self) -> dict[str, int]:
        """Plain texts longer than the sequence length, and the rows that they became."""
        return {"count": self.num_texts_cut, "num_rows": self.num_pieces}

    def lengths(self, seq_len: int, *, drop_long: bool) -> dict[str, Any]:
        """Tokens of the source rows before cutting: quantiles, a histogram, and what other sequence lengths would cut, or drop."""
        talks, texts = self._talks.counted(), self._texts.counted()
        values, places = np.unique(np.concatenate((talks[0], texts[0])), return_inverse=True)
        counts: Any = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, places, np.concatenate((talks[1], texts[1])))
        if not len(values):
            return {"count": 0, "histogram": [], "by_seq_len": []}
        up_to = np.cumsum(counts)
        total, num_tokens, longest = int(up_to[-1]), int((counts * values).sum()), int(values[-1])
        return {
            "count": total,
            "mean": round(num_tokens / total, 1),
            **{name: int(values[np.searchsorted(up_to, share * total)]) for name, share in _QUANTILES},
            "max": longest,
            "histogram": _histogram(values, up_to),
            "by_seq_len": [_cut(*talks, total, num_tokens, limit, drop_long) for limit in _limits(seq_len, longest)],
        }


def _histogram(values: Any, up_to: Any) -> list[list[int]]:
    """[longest length of the class, rows in it], by powers of two and their halves."""
    bounds: list[int] = []
    bound = 16
    while not bounds or bounds[-1] < values[-1]:
        bounds += [bound, bound + bound // 2]
        bound *= 2
    rows, before = [], 0
    for edge in bounds:
        place = int(np.searchsorted(values, edge, side="right"))
        now = int(up_to[place - 1]) if place else 0
        rows.append([edge, now - before])
        before = now
    used = [index for index, (_, number) in enumerate(rows) if number]
    return rows[used[0] : used[-1] + 1]


def _limits(seq_len: int, longest: int) -> Sequence[int]:
    """Sequence lengths worth comparing: powers of two from a quarter of the one asked for, to the first that cuts nothing."""
    limits = {seq_len}
    power = 1 << max(seq_len.bit_length() - 3, 4)
    while power < 2 * longest and len(limits) < 8:
        limits.add(power)
        power *= 2
    return sorted(limits)


def _cut(values: Any, counts: Any, total: int, num_tokens: int, limit: int, drop_long: bool) -> dict[str, Any]:
    """What the length `limit` costs: of conversations (`values` and `counts`), in parts of all rows and tokens."""
    over = values > limit
    lost = counts[over] * (values[over] - (0 if drop_long else limit))
    return {
        "seq_len": limit,
        "rows_cut_fraction": round(int(counts[over].sum()) / total, 6),
        "tokens_cut_fraction": round(int(lost.sum()) / num_tokens, 6) if num_tokens else 0.0,
    }
