"""Literals that healthy lines have too, such as ``'loss': ``: one search of the pattern over the whole chunk, instead of one for each line.

It may only leave out lines that cannot match. So it is for patterns that look at one line and do not ask where they stand
(:func:`llmcheck.rules.patterns.is_searchable`): what matches in the cleaned line then matches in the chunk as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from llmcheck.logs.prefilter import Hits

_LINE_ENDS = bytes.maketrans(b"\r", b"\n")  # no match may run on from one line to the next

Patterns = Callable[[int], Sequence[re.Pattern[str]] | None]

DENSE_HITS = 200  # of one literal in one chunk: from here on, a search of the chunk costs less than cleaning the lines


PAUSE_CHUNKS = 15  # that a literal is let through after a chunk in which most of its lines did match: the next ones are like it


def thin_out(hits: Hits, data: bytes, literals: Sequence[bytes], patterns: Patterns, paused: dict[int, int] | None = None) -> Hits:
    """`hits` less those whose lines cannot match. `patterns` gives the patterns of a literal, or None to keep all that it finds.

    `paused` is kept from chunk to chunk: literals that are not worth a search for now, and for how many chunks.
    """
    if len(hits) < DENSE_HITS:
        return hits
    paused = {} if paused is None else paused
    counts = Counter(index for _, index in hits)
    dense = {}
    for index, count in counts.items():
        if count < DENSE_HITS:
            continue
        if paused.get(index):
            paused[index] -= 1
        elif (found := patterns(index)) is not None:
            dense[index] = found
    if not dense or b'{"log":"' in data:  # messages inside JSON are not as they will be
        return hits
    try:
        text = data.translate(_LINE_ENDS).decode("utf-8")
    except UnicodeDecodeError:
        return hits  # the lines decide for themselves how they are read
    kept: Hits = []
    left_out: set[int] = set()
    for index, searches in dense.items():
        starts: set[int] = set()
        for pattern in searches:
            starts |= _lines(pattern, text, counts[index] // 2)
        if len(starts) * 2 > counts[index]:
            paused[index] = PAUSE_CHUNKS  # most lines do match
            continue
        left_out.add(index)
        for start in _bytes_of(sorted(starts), text, ascii_only=len(text) == len(data)):
            at = data.find(literals[index], start)
            if at >= 0:
                kept.append((at, index))
    if not left_out:
        return hits
    return sorted(kept + [hit for hit in hits if hit[1] not in left_out])


def _lines(pattern: re.Pattern[str], text: str, most: int) -> set[int]:
    """Beginnings of the lines that match; stops when there are more than `most`."""
    starts: set[int] = set()
    for match in pattern.finditer(text):
        starts.add(text.rfind("\n", 0, match.start()) + 1)
        if len(starts) > most:
            break
    return starts


def _bytes_of(places: Sequence[int], text: str, *, ascii_only: bool) -> list[int]:
    """Positions in the bytes of `text` of ascending positions in its characters."""
    if ascii_only:
        return list(places)
    out, last, num_bytes = [], 0, 0
    for place in places:
        num_bytes += len(text[last:place].encode("utf-8"))
        last = place
        out.append(num_bytes)
    return out
