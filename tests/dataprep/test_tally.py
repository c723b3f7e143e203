"""What is said of lengths is what counting them one by one gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck_trainer.dataprep import tally
from llmcheck_trainer.dataprep.tally import Tally

ROWS = st.lists(st.tuples(st.integers(1, 200) | st.integers(1 << 19, 1 << 23), st.booleans()), max_size=30)


def told(rows: list[tuple[int, bool]], seq_len: int, *, drop_long: bool) -> dict[str, Any]:
    counts = Tally()
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        lengths, plain = (np.array([row[at] for row in part], dtype=kind) for at, kind in ((0, np.int64), (1, bool)))
        counts.measure(lengths, plain)
    return counts.lengths(seq_len, drop_long=drop_long)


@given(ROWS, st.sampled_from([16, 64, 1 << 12, 1 << 21]), st.booleans())
def test_lengths_are_counted_exactly(rows: list[tuple[int, bool]], seq_len: int, drop_long: bool) -> None:
    found = told(rows, seq_len, drop_long=drop_long)
    lengths = sorted(length for length, _ in rows)
    assert found["count"] == len(rows)
    assert sum(number for _, number in found["histogram"]) == len(rows)
    if not rows:
        return
    assert found["mean"] == round(sum(lengths) / len(lengths), 1)
    assert found["max"] == lengths[-1]
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] == min(each for each in lengths if sum(other <= each for other in lengths) >= share * len(lengths))
    below = 0
    for edge, number in found["histogram"]:
        assert number == sum(below < length <= edge for length in lengths)
        below = edge
    assert seq_len in [cut["seq_len"] for cut in found["by_seq_len"]]
    for cut in found["by_seq_len"]:
        over = [length for length, plain in rows if not plain and length > cut["seq_len"]]
        lost = sum(over) if drop_long else sum(length - cut["seq_len"] for length in over)
        assert cut["rows_cut_fraction"] == round(len(over) / len(rows), 6)
        assert cut["tokens_cut_fraction"] == round(lost / sum(lengths), 6)


def test_plain_text_loses_nothing_at_any_length() -> None:
    assert {(cut["rows_cut_fraction"], cut["tokens_cut_fraction"]) for cut in told([(5000, True)], 64, drop_long=False)["by_seq_len"]} == {
        (0.0, 0.0)
    }


@pytest.mark.parametrize("length", [tally._MAX_LENGTH, tally._MAX_LENGTH + 1, 8_000_011])
def test_a_row_of_megabytes_has_its_own_length(length: int) -> None:
    found = told([(length, False), (12, False)], 64, drop_long=False)
    assert (found["mean"], found["max"], found["p99"]) == (round((length + 12) / 2, 1), length, length)
    assert found["histogram"][-1][0] >= length
