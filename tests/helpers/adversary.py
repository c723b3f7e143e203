"""Texts that are hard for a pattern, built from its own parts; and searches in a process of their own, with a deadline.

A text that costs most begins like a match again and again, goes on for as long as its repeats can, and never ends like one.
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from llmcheck.rules.patterns import _REPEATS, WINDOW_CHARS, _c, _characters, _parser

_CODE = """
import json, re, sys, time
for line in sys.stdin:
    pattern, texts = json.loads(line)
    compiled = re.compile(pattern)
    begin, worst, at = time.process_time(), 0.0, ""
    for text in texts:
        start = time.process_time()
        compiled.search(text)
        took = time.process_time() - start
        if took > worst:
            worst, at = took, text[:60]
    print(json.dumps([pattern, worst, at]), flush=True)
"""


def texts(pattern: str, rng: random.Random, num: int = 24) -> Iterator[str]:
    """Windows full of what `pattern` is made of."""
    tree = list(_parser.parse(pattern))
    for _ in range(num):
        long = rng.choice((1, 3, 40, 500))
        piece = "".join(_sample(tree[: rng.randint(1, len(tree))], rng, long))
        piece = piece[: rng.randint(1, len(piece))] if piece and rng.random() < 0.5 else piece
        other = "".join(_sample(tree, rng, 2))
        filler = rng.choice(("", "", piece[-1:], other[: rng.randint(0, len(other))], rng.choice("\0 a0._/")))
        unit = (piece + filler * rng.choice((1, 1, 20))) or "a"
        yield (rng.choice(("", other[:-1])) + unit * (WINDOW_CHARS // len(unit) + 1))[:WINDOW_CHARS]
        # One beginning, and then nothing but what the last repeat eats.
        yield (piece + (piece[-1:] or "a") * WINDOW_CHARS)[:WINDOW_CHARS]


def _sample(items: Sequence[tuple[Any, Any]], rng: random.Random, long: int) -> Iterator[str]:
    """A text that the items match, its repeats `long` where they may be."""
    for op, argument in items:
        if op is _c.LITERAL:
            yield chr(argument)
        elif op is _c.SUBPATTERN:
            yield from _sample(list(argument[3]), rng, long)
        elif op is _c.BRANCH:
            yield from _sample(list(rng.choice(argument[1])), rng, long)
        elif op in _REPEATS:
            most = long if argument[1] == _c.MAXREPEAT else min(int(argument[1]), long)
            same = rng.random() < 0.7
            one = list(_sample(list(argument[2]), rng, long)) if same else []
            for _ in range(max(int(argument[0]), most)):
                yield from one if same else _sample(list(argument[2]), rng, 1)
        elif op is not _c.AT:
            yield _one_of(_characters(op, argument), rng)


def _one_of(characters: frozenset[int], rng: random.Random) -> str:
    preferred = [c for c in map(ord, "a0 ._/-'\"A:") if c in characters]
    pool = preferred if preferred and rng.random() < 0.8 else sorted(characters)
    code = rng.choice(pool) if pool else 97
    return "é" if code > 127 else chr(code)


def search_all(jobs: Sequence[tuple[str, Sequence[str]]], deadline_s: float) -> dict[str, tuple[float, str]]:
    """Pattern -> the CPU seconds that its worst text took, and how that begins; infinity where its texts took longer than the deadline."""
    found: dict[str, tuple[float, str]] = {}
    process = _process()
    try:
        for pattern, given in jobs:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([pattern, list(given)]) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], deadline_s)
            if ready:
                _, worst, at = json.loads(process.stdout.readline())
                found[pattern] = (worst, at)
            else:
                found[pattern] = (float("inf"), given[0][:60])
                process.kill()
                process.wait()
                process = _process()
    finally:
        process.kill()
        process.wait()
    return found


def _process() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_ATOMS = (
    "a",
    "b",
    "[ab]",
    "[^a]",
    r"\w",
    r"\d",
    r"\s",
    ".",
    "ab",
    "é",
    r"\b",
    "(?:a|ab)",
    "(?:|a)",
    "(?:aa|a)",
    "a?",
    "a{0,20}",
    "$",
    r"[\w.]",
)
_QUANTIFIERS = ("", "", "*", "+", "?", "{0,5}", "{0,50}", "{0,200}", "{2,9}", "*?", "+?", "{1,100}?", "{3}", "{20}", "{100}")


def pattern(rng: random.Random, depth: int = 0) -> str:
    """A pattern of few characters, so that its parts compete."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        part = rng.choice(_ATOMS)
        if depth < 3 and rng.random() < 0.3:
            inner = pattern(rng, depth + 1) + (f"|{pattern(rng, depth + 1)}" if rng.random() < 0.35 else "")
            part = f"(?:{inner})"
        parts.append(part + rng.choice(_QUANTIFIERS))
    return "".join(parts) if depth else rng.choice(("", "lit", "x")) + "".join(parts) + rng.choice(("!", "", "z", "$", "zz", r"\b!"))
