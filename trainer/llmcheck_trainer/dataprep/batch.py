"""Segments of many rows, and from their tokens the arrays that are written: pure functions over numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcheck_trainer.dataprep.templates import NO_TAIL, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Batch:
    """Rows as they go to the encoder: flat lists over the segments, and one entry for each row."""

    texts: list[str] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)
    num_segments: list[int] = field(default_factory=list)  # of each row
    lines: list[int] = field(default_factory=list)
    bos: list[bool] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)  # plain text: cut into pieces, not cut off

    def add(self, line: int, segments: Sequence[Segment], *, bos: bool, plain: bool = False) -> None:
        """Add the row of source line `line`."""
        for text, learnt, tail in segments:
            self.texts.append(text)
            self.learnt.append(learnt)
            self.tails.append(tail)
        self.num_segments.append(len(segments))
        self.lines.append(line)
        self.bos.append(bos)
        self.plain.append(plain)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """What is written for a batch, and what became of its rows."""

    tokens: NDArray[np.uint32]
    supervised: NDArray[np.uint8]
    lengths: NDArray[np.int64]  # tokens of each row written
    lines: NDArray[np.int64]  # its source line
    full_lengths: NDArray[np.int64]  # tokens of each row of the source before anything was cut
    truncated_lines: NDArray[np.int64]
    num_tokens_lost: int  # cut off from truncated rows
    unsupervised_lines: NDArray[np.int64]  # rows left out: nothing to learn is left
    too_long_lines: NDArray[np.int64]  # rows left out because they were to be dropped
    num_supervised: int


def assemble(
    batch: Batch,
    ids: NDArray[np.uint32],
    counts: NDArray[np.int64],
    *,
    seq_len: int,
    bos_id: int | None,
    drop_long: bool,
) -> Arrays:
    """Rows from their segments' tokens: bos before, tails after, cut at `seq_len`, rows without a supervised token left out."""
    tokens, supervised, row_starts = _join(batch, ids, counts, bos_id)
    lines = np.array(batch.lines, dtype=np.int64)
    full = np.diff(row_starts)
    starts, ends, owners, truncated, dropped = _spans(row_starts, np.array(batch.plain, dtype=bool), seq_len, drop_long)
    supervised[starts[starts < len(tokens)]] = 0  # nothing comes before a row's first token that it could be predicted from
    before = np.concatenate(([0], np.cumsum(supervised, dtype=np.int64)))
    num_supervised = before[ends] - before[starts]
    kept = num_supervised > 0
    whole = np.bincount(owners[kept], minlength=len(full)) > 0  # a row of which at least one piece is kept
    starts, ends, owners = starts[kept], ends[kept], owners[kept]
    edges: Any = np.zeros(len(tokens) + 1, dtype=np.int8)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    inside = np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
    if not inside.all():
        tokens, supervised = tokens[inside], supervised[inside]
    return Arrays(
        tokens=tokens,
        supervised=supervised,
        lengths=ends - starts,
        lines=lines[owners],
        full_lengths=full,
        truncated_lines=lines[truncated & whole],
        num_tokens_lost=int((full[truncated & whole] - seq_len).sum()),
        unsupervised_lines=lines[~whole & ~dropped],
        too_long_lines=lines[dropped],
        num_supervised=int(num_supervised[kept].sum()),
    )


def _join(
    batch: Batch, ids: NDArray[np.uint32], counts: NDArray[np.int64], bos_id: int | None
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.int64]]:
    """All tokens with begin and end tokens in their places, which of them are learnt, and where each row starts (and the last ends)."""
    tails = np.array(batch.tails, dtype=np.int64)
    has_tail = tails != NO_TAIL
    first_of_row = np.concatenate(([0], np.cumsum(np.array(batch.num_segments, dtype=np.int64))))
    heads: Any = np.zeros(len(counts), dtype=np.int64)
    if bos_id is not None and len(batch.bos):
        heads[first_of_row[:-1]] = np.array(batch.bos, dtype=np.int64)
    sizes = heads + counts + has_tail
    segment_starts = np.concatenate(([0], np.cumsum(sizes)))
    tokens = np.empty(segment_starts[-1], dtype=np.uint32)
    if len(ids):
        text_starts = np.cumsum(counts) - counts
        shifts = segment_starts[:-1] + heads - text_starts
        tokens[np.arange(len(ids)) + np.repeat(shifts, counts)] = ids
    tokens[segment_starts[1:][has_tail] - 1] = tails[has_tail]
    supervised: Any = np.repeat(np.array(batch.learnt, dtype=np.uint8), sizes)
    begin = segment_starts[:-1][heads > 0]
    if bos_id is not None:
        tokens[begin] = bos_id
    supervised[begin] = 0
    return tokens, supervised, segment_starts[first_of_row]


def _spans(
    row_starts: NDArray[np.int64], plain: NDArray[np.bool_], seq_len: int, drop_long: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Starts, ends and rows of what is kept of the rows; which rows are cut off, which are dropped for their length.

    Plain text longer than `seq_len` becomes several pieces; of a conversation the beginning is kept, or nothing.
    """
    lengths = np.diff(row_starts)
    long = lengths > seq_len
    dropped = long & ~plain if drop_long else np.zeros_like(long)
    pieces = np.where(plain, np.maximum(-(-lengths // seq_len), 1), 1)
    pieces[dropped] = 0
    owners: Any = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = row_starts[:-1][owners] + nth * seq_len
    ends = np.minimum(starts + seq_len, row_starts[1:][owners])
    return starts, ends, owners, long & ~plain & ~dropped, dropped
