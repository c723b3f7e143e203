"""From segments to arrays: the fast way equals the plain way."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcheck_trainer.dataprep.batch import Batch, assemble
from llmcheck_trainer.dataprep.templates import NO_TAIL

BOS = 1
SEGMENT = st.tuples(st.lists(st.integers(10, 99), max_size=6), st.booleans(), st.sampled_from([NO_TAIL, 2]))
ROW = st.tuples(st.lists(SEGMENT, min_size=1, max_size=4), st.booleans(), st.booleans())


def plainly(rows: list, seq_len: int, drop_long: bool) -> dict:
    """The same, row by row and token by token."""
    out: dict = {"tokens": [], "supervised": [], "lengths": [], "lines": [], "truncated": [], "empty": [], "too_long": [], "lost": 0}
    for line, (segments, bos, plain) in enumerate(rows, 1):
        ids, marks = ([BOS], [0]) if bos else ([], [])
        for text, learnt, tail in segments:
            whole = [*text, tail] if tail != NO_TAIL else text
            ids, marks = [*ids, *whole], [*marks, *[int(learnt)] * len(whole)]
        pieces = (
            [(ids[at : at + seq_len], marks[at : at + seq_len]) for at in range(0, len(ids), seq_len)]
            if plain
            else [(ids[:seq_len], marks[:seq_len])]
        )
        if not plain and drop_long and len(ids) > seq_len:
            out["too_long"].append(line)
            continue
        kept = [(i, [0, *m[1:]]) for i, m in pieces if sum(m[1:])]
        if not kept:
            out["empty"].append(line)
            continue
        if not plain and len(ids) > seq_len:
            out["truncated"].append(line)
            out["lost"] += len(ids) - seq_len
        for piece, mask in kept:
            out["tokens"] += piece
            out["supervised"] += mask
            out["lengths"].append(len(piece))
            out["lines"].append(line)
    return out


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(ROW, max_size=8), seq_len=st.integers(2, 9), drop_long=st.booleans())
def test_assembly_equals_the_plain_way(rows: list, seq_len: int, drop_long: bool) -> None:
    batch, texts = Batch(), []
    for line, (segments, bos, plain) in enumerate(rows, 1):
        batch.add(line, [("x", learnt, tail) for _, learnt, tail in segments], bos=bos, plain=plain)
        texts += [ids for ids, _, _ in segments]
    ids = np.array([token for text in texts for token in text], dtype=np.uint32)
    counts = np.array([len(text) for text in texts], dtype=np.int64)
    got = assemble(batch, ids, counts, seq_len=seq_len, bos_id=BOS, drop_long=drop_long)
    expected = plainly(rows, seq_len, drop_long)
    assert got.tokens.tolist() == expected["tokens"]
    assert got.supervised.tolist() == expected["supervised"]
    assert got.lengths.tolist() == expected["lengths"]
    assert got.lines.tolist() == expected["lines"]
    assert got.truncated_lines.tolist() == expected["truncated"]
    assert got.unsupervised_lines.tolist() == expected["empty"]
    assert got.too_long_lines.tolist() == expected["too_long"]
    assert got.num_tokens_lost == expected["lost"]
    assert got.num_supervised == sum(expected["supervised"])
    assert len(got.full_lengths) == len(rows)
