"""Where the literals of all signatures occur in a chunk: one interface, three engines, the same answer.

The core's engine rests on how logs of runs look: the same lines over and over, with other numbers. A line less its digits and
punctuation is a *shape*; a shape once found to hold no literal is not looked at again. Two calls of the interpreter (translate, split)
make the shapes of a chunk, and two operations on sets leave those that are new.

New shapes are read in blocks of eight bytes, as integers, one at every second byte. Whatever holds a literal of nine bytes holds its first
eight as a block, or the eight after its first byte: a look-up of all blocks in a table of these leaves few literals to search for. Blocks
of four would do for shorter ones, but in a MiB of words almost any four letters stand side by side: these are searched for as they are.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal, Protocol, get_args

from llmcheck import cachefile

Engine = Literal["hyperscan", "ahocorasick", "python"]
ENGINES: tuple[Engine, ...] = get_args(Engine)  # fastest first

# (position of the literal, its index), in order of position. The first occurrence of a literal in each line is there; more may be.
Hits = list[tuple[int, int]]

_LINE_ENDS = bytes.maketrans(b"\r", b"\n")
_NOISE = b"0123456789 .,+-%:"  # what differs between lines of one shape
_MIN_SHAPE_BYTES = 4  # a literal that has less without the noise is searched as it is
_BLOCK_BYTES = 8  # of shapes that are looked up: one integer
_STRIDE_BYTES = 2  # from one block to the next
_MAX_KEPT_BYTES = 1024  # of a shape that is remembered: longer ones seldom come back
_MAX_MEMORY_BYTES = 8 << 20  # of remembered shapes, before all are forgotten
_OVERHEAD_BYTES = 100  # of a bytes object in a set (CPython: 33 for the object, and up to 64 for its slot)


class Prefilter(Protocol):
    """Finds literals in chunks of whole lines."""

    name: Engine

    def hits(self, data: bytes) -> Hits:
        """The occurrences of literals in `data`."""


def make_prefilter(literals: Sequence[bytes], engine: Engine | None = None) -> Prefilter:
    """The engine of that name (ImportError when it is not installed), or the fastest one that is there and finds every literal."""
    if engine is not None:
        return _MAKERS[engine](literals)
    for name in ENGINES[:-1]:
        try:
            prefilter = _MAKERS[name](literals)
            found = {index for _, index in prefilter.hits(b"\n".join(literals))}
        except Exception:  # noqa: S112 - whatever an optional engine fails of (no wheel, another processor), ours does not
            continue
        if len(found) == len(literals):
            return prefilter
    return PythonPrefilter(literals)


class PythonPrefilter:
    """Remembered shapes, and ``bytes.find`` for new ones."""

    name: Engine = "python"

    def __init__(self, literals: Sequence[bytes]) -> None:
        self._literals = list(literals)
        self._cold: set[bytes] = set()  # shapes without a literal
        self._hot: dict[bytes, tuple[int, ...]] = {}  # shapes with what may be in their lines
        self._memory_bytes = 0
        self._shapes: dict[bytes, tuple[int, ...]] = {}  # shape -> literals that have it
        self._plain: list[tuple[bytes, int]] = []  # literals made of digits and punctuation
        for index, literal in enumerate(literals):
            shape = literal.translate(_LINE_ENDS, _NOISE)
            if len(shape) >= _MIN_SHAPE_BYTES:
                self._shapes[shape] = (*self._shapes.get(shape, ()), index)
            else:
                self._plain.append((literal, index))
        table: dict[int, list[bytes]] = {}  # block -> shapes
        for shape in self._shapes:
            for at in range(_STRIDE_BYTES) if len(shape) >= _BLOCK_BYTES + _STRIDE_BYTES - 1 else ():
                table.setdefault(int.from_bytes(shape[at : at + _BLOCK_BYTES], sys.byteorder), []).append(shape)
        self._table = table
        self._blocks = frozenset(table)
        self._always = [shape for shape in self._shapes if len(shape) < _BLOCK_BYTES + _STRIDE_BYTES - 1]

    def hits(self, data: bytes) -> Hits:
        """The first occurrence of each literal in each line."""
        found = self._in_shapes(data)
        for literal, index in self._plain:
            at = data.find(literal)
            while at >= 0:
                found.append((at, index))
                at = data.find(literal, at + 1)
        found.sort()
        return found

    def _in_shapes(self, data: bytes) -> Hits:
        if self._memory_bytes > _MAX_MEMORY_BYTES:
            self._cold.clear()
            self._hot.clear()
            self._memory_bytes = 0
        shapes = data.translate(_LINE_ENDS, _NOISE).split(b"\n")
        distinct = set(shapes)
        new = distinct - self._cold
        hot = new & self._hot.keys()
        new -= hot
        once: dict[bytes, tuple[int, ...]] = {}
        if new:
            once = self._judge(new)
            hot |= once.keys()
        found: Hits = []
        if hot:
            start = 0
            for shape, line in zip(shapes, data.translate(_LINE_ENDS).split(b"\n"), strict=True):
                if shape in hot:
                    for index in self._hot.get(shape) or once[shape]:
                        at = line.find(self._literals[index])
                        if at >= 0:
                            found.append((start + at, index))
                start += len(line) + 1
        return found

    def _judge(self, new: set[bytes]) -> dict[bytes, tuple[int, ...]]:
        """Search the shapes in `new`, remember the outcome, and return those that hold something."""
        lines = list(new)
        text = b"\n".join(lines)
        starts: list[int] = []
        hot: dict[bytes, tuple[int, ...]] = {}
        for shape in self._possible(text):
            at = text.find(shape)
            while at >= 0:
                if not starts:
                    starts = [0, *accumulate(len(line) + 1 for line in lines)]
                after = bisect_right(starts, at)
                line = lines[after - 1]
                hot[line] = (*hot.get(line, ()), *self._shapes[shape])
                at = text.find(shape, starts[after])
        kept = {line for line in new if len(line) <= _MAX_KEPT_BYTES}
        self._memory_bytes += sum(map(len, kept)) + _OVERHEAD_BYTES * len(kept)
        self._cold |= kept - hot.keys()
        self._hot.update((line, indices) for line, indices in hot.items() if line in kept)
        return hot

    def _possible(self, text: bytes) -> set[bytes]:
        """The literals' shapes that may be in `text`."""
        found = set(self._always)
        view = memoryview(text + bytes(_BLOCK_BYTES))
        for start in range(0, _BLOCK_BYTES, _STRIDE_BYTES):
            size = (len(view) - start) // _BLOCK_BYTES * _BLOCK_BYTES
            for block in self._blocks.intersection(view[start : start + size].cast("Q")):
                found.update(self._table[block])
        return found


class _Hyperscan:
    """Vectorscan, a descendant of Intel's Hyperscan, in block mode: it reports where a literal ends."""

    name: Engine = "hyperscan"

    def __init__(self, literals: Sequence[bytes]) -> None:
        import hyperscan  # optional: llmcheck[fast]

        self._lengths = [len(literal) for literal in literals]
        self._database = hyperscan.Database()
        if not literals:
            return
        key = cachefile.key_of(*literals)
        kept = cachefile.load("literals", key)
        if kept is not None:
            try:  # it knows the release and the processor that it is for
                self._database = hyperscan.loadb(kept, hyperscan.HS_MODE_BLOCK)
                self._database.scratch = hyperscan.Scratch(self._database)
                return
            except Exception:  # then it is compiled
                self._database = hyperscan.Database()
        self._database.compile(
            expressions=[re.escape(literal) for literal in literals], ids=list(range(len(literals))), flags=[0] * len(literals)
        )
        cachefile.store("literals", key, hyperscan.dumpb(self._database))

    def hits(self, data: bytes) -> Hits:
        found: Hits = []
        lengths = self._lengths
        if not lengths or not data:
            return found

        def note(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            found.append((end - lengths[index], index))

        self._database.scan(data, match_event_handler=note)
        found.sort()
        return found


class _AhoCorasick:
    """ahocorasick-rs: one automaton over all literals."""

    name: Engine = "ahocorasick"

    def __init__(self, literals: Sequence[bytes]) -> None:
        import ahocorasick_rs  # optional: used where it is installed

        # A full automaton: several times faster than the default, for a few MiB at some hundred literals.
        kind = ahocorasick_rs.Implementation.DFA
        self._find: Callable[..., list[tuple[int, int, int]]] | None = None
        if literals:
            self._find = ahocorasick_rs.BytesAhoCorasick(list(literals), implementation=kind).find_matches_as_indexes

    def hits(self, data: bytes) -> Hits:
        if self._find is None:
            return []
        found = [(start, index) for index, start, _ in self._find(data, overlapping=True)]
        found.sort()
        return found


_MAKERS: dict[Engine, Callable[[Sequence[bytes]], Prefilter]] = {
    "hyperscan": _Hyperscan,
    "ahocorasick": _AhoCorasick,
    "python": PythonPrefilter,
}
