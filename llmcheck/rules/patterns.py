"""What a pattern may be: RE2's subset, and no way to run away in Python's own engine.

Python's `re` backtracks. A pattern is refused when it uses what RE2 has not (look-around, back-references), repeats without bound inside an
unbounded repeat, or has several repeats that compete for the same characters, so that matching costs more than a bounded number of steps on
the 8 KiB that a pattern gets to see.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as _c  # type: ignore[attr-defined]
    from re import _parser
else:  # pragma: no cover - exercised by the 3.10 job only
    import sre_constants as _c
    import sre_parse as _parser

WINDOW_CHARS = 8_192  # what a pattern gets to see of a line
MAX_CHOICES = WINDOW_CHARS * 512  # ways to divide one window among competing repeats, so that no line takes over a second
MAX_PATTERN_CHARS = 2_000

_ALL = frozenset(range(128))
_SPACE = frozenset(map(ord, " \t\n\r\f\v"))
_DIGIT = frozenset(range(48, 58))
_WORD = _DIGIT | frozenset(range(65, 91)) | frozenset(range(97, 123)) | {95}
_CATEGORIES = {
    _c.CATEGORY_DIGIT: _DIGIT,
    _c.CATEGORY_NOT_DIGIT: _ALL - _DIGIT,
    _c.CATEGORY_SPACE: _SPACE,
    _c.CATEGORY_NOT_SPACE: _ALL - _SPACE,
    _c.CATEGORY_WORD: _WORD,
    _c.CATEGORY_NOT_WORD: _ALL - _WORD,
}
_REPEATS = {op for name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") if (op := getattr(_c, name, None)) is not None}
_SINGLE = {_c.LITERAL, _c.NOT_LITERAL, _c.IN}  # match one character; so does ANY, but no line feed
_REFUSED = {
    getattr(_c, name): words
    for name, words in (
        ("ASSERT", "look-around"),
        ("ASSERT_NOT", "look-around"),
        ("GROUPREF", "a back-reference"),
        ("GROUPREF_EXISTS", "a back-reference"),
        ("GROUPREF_IGNORE", "a back-reference"),
        ("ATOMIC_GROUP", "an atomic group"),
        ("POSSESSIVE_REPEAT", "a possessive repeat"),
    )
    if hasattr(_c, name)
}


def complaints(pattern: str) -> list[str]:
    """Why `pattern` is refused; empty when it may be used."""
    if len(pattern) > MAX_PATTERN_CHARS:
        return [f"longer than {MAX_PATTERN_CHARS} characters"]
    try:
        tree: Any = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as reason:
        return [f"not a regular expression: {reason}"]
    found = sorted({f"{_REFUSED[op]} is not allowed (RE2 has none)" for op, _ in _walk(tree) if op in _REFUSED})
    if tree.state.flags & re.IGNORECASE:
        found.append("(?i) is not allowed: literals are looked for as they are written; say [Ee]rror")
    if _nested(tree, inside=False):
        found.append("a repeat without bound inside a repeat without bound runs away")
    elif not found and (choices := _choices(list(tree), frozenset())) > MAX_CHOICES:
        found.append(f"its repeats compete for the same characters in {choices:.0e} ways: bound them, or let each stop at what it excludes")
    return found


def contains_literal(pattern: str, literals: Iterable[str]) -> bool:
    """True when every text that `pattern` matches is certain to contain one of `literals`."""
    wanted = tuple(literals)
    tree: Any = _parser.parse(pattern)
    return all(any(literal in run for run in runs for literal in wanted) for runs in _alternatives(list(tree)))


def is_searchable(pattern: str) -> bool:
    """True when `pattern` can be searched in many lines at once as well as in one.

    It begins with a certain character (quick to look for), never matches a line feed, and does not ask where it stands (by ``^``, ``$``
    or ``\\b``).
    """
    tree: Any = _parser.parse(pattern)
    if not tree or tree[0][0] is not _c.LITERAL or tree.state.flags & re.DOTALL:
        return False
    return not any(
        op is _c.AT or (op in _SINGLE and 10 in _characters(op, argument)) or (op is _c.SUBPATTERN and argument[1])  # (?s:...)
        for op, argument in _walk(tree)
    )


def groups(pattern: str) -> set[str]:
    """Names of the pattern's groups."""
    return set(re.compile(pattern).groupindex)


def _children(op: Any, argument: Any) -> list[Any]:
    if op is _c.SUBPATTERN:
        return [argument[3]]
    if op is _c.BRANCH:
        return list(argument[1])
    if op in _REPEATS:
        return [argument[2]]
    if op in (_c.ASSERT, _c.ASSERT_NOT):
        return [argument[1]]
    return [argument] if str(op) == "ATOMIC_GROUP" else []


def _walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    for op, argument in tree:
        yield op, argument
        for child in _children(op, argument):
            yield from _walk(child)


def _nested(tree: Any, *, inside: bool) -> bool:
    for op, argument in tree:
        unbounded = op in _REPEATS and argument[1] == _c.MAXREPEAT
        if inside and unbounded:
            return True
        if any(_nested(child, inside=inside or unbounded) for child in _children(op, argument)):
            return True
    return False


def _choices(items: Sequence[tuple[Any, Any]], follow: frozenset[int]) -> float:
    """In how many ways a failing match may divide its window among the repeats of `items`; `follow`: what may come after them."""
    total = 1.0
    for index, (op, argument) in enumerate(items):
        after = _first(items[index + 1 :], follow)
        if op in _REPEATS:
            low, high, child = argument
            span = (WINDOW_CHARS if high == _c.MAXREPEAT else min(int(high), WINDOW_CHARS)) - int(low) + 1
            inner = _choices(list(child), after | _first(list(child), frozenset()))
            if span > 1 and _first(list(child), frozenset()) & after:
                total *= span
            total *= inner
        elif op is _c.BRANCH:
            total *= max(_choices(list(branch), after) for branch in argument[1])
        elif op is _c.SUBPATTERN:
            total *= _choices(list(argument[3]), after)
    return total


def _first(items: Sequence[tuple[Any, Any]], follow: frozenset[int]) -> frozenset[int]:
    """Characters (ASCII) that the sequence may begin with."""
    found: frozenset[int] = frozenset()
    for op, argument in items:
        if op is _c.AT:
            continue
        found |= _characters(op, argument)
        if not (op in _REPEATS and argument[0] == 0) and not _may_be_empty(op, argument):
            return found
    return found | follow


def _may_be_empty(op: Any, argument: Any) -> bool:
    if op in _REPEATS:
        return bool(argument[0] == 0) or all(_may_be_empty(*item) for item in argument[2])
    if op is _c.SUBPATTERN:
        return all(_may_be_empty(*item) for item in argument[3])
    if op is _c.BRANCH:
        return any(all(_may_be_empty(*item) for item in branch) for branch in argument[1])
    return op is _c.AT


def _characters(op: Any, argument: Any) -> frozenset[int]:
    if op is _c.LITERAL:
        return frozenset({argument})
    if op is _c.NOT_LITERAL:
        return _ALL - {argument}
    if op is _c.ANY:
        return _ALL
    if op is _c.IN:
        return _class(argument)
    if op in _REPEATS:
        return _first(list(argument[2]), frozenset())
    if op is _c.SUBPATTERN:
        return _first(list(argument[3]), frozenset())
    if op is _c.BRANCH:
        return frozenset().union(*[_first(list(branch), frozenset()) for branch in argument[1]])
    return _ALL


def _class(items: Iterable[tuple[Any, Any]]) -> frozenset[int]:
    found: frozenset[int] = frozenset()
    negate = False
    for op, argument in items:
        if op is _c.NEGATE:
            negate = True
        elif op is _c.LITERAL:
            found |= {argument}
        elif op is _c.RANGE:
            found |= frozenset(range(argument[0], min(argument[1], 127) + 1))
        elif op is _c.CATEGORY:
            found |= _CATEGORIES.get(argument, _ALL)
    return _ALL - found if negate else found


_MAX_ALTERNATIVES = 256  # more branches than this are not followed
_MAX_COPIES = 8  # of a repeat that is followed


def _alternatives(items: Sequence[tuple[Any, Any]]) -> list[list[str]]:
    """For every way through the branches of `items`: the runs of fixed characters that its matches are certain to hold."""
    ways: list[list[str]] = [[""]]
    for op, argument in items:
        if op is _c.LITERAL:
            tails = [[chr(argument)]]
        elif op is _c.AT:
            continue  # `^`, `$`, `\b` take no characters
        elif op is _c.SUBPATTERN:
            tails = _alternatives(list(argument[3]))
        elif op is _c.BRANCH:
            tails = [way for branch in argument[1] for way in _alternatives(list(branch))]
        elif op in _REPEATS and argument[0] >= 1:
            tails = _alternatives(list(argument[2]) * min(int(argument[0]), _MAX_COPIES))
            if argument[1] != argument[0] or argument[0] > _MAX_COPIES:
                tails = [[*way, ""] for way in tails]
        elif op in _REPEATS and argument[1] == 1:
            tails = [[""], *_alternatives(list(argument[2]))]  # optional: without it and with it
        elif op is _c.IN and len(argument) <= 4 and all(part is _c.LITERAL for part, _ in argument):
            tails = [[chr(code)] for _, code in argument]
        else:
            tails = [["", ""]]
        ways = [_joined(way, tail) for way in ways for tail in tails]
        if len(ways) > _MAX_ALTERNATIVES:  # nothing is claimed that is not certain
            ways = [["", ""]]
    return ways


def _joined(left: list[str], right: list[str]) -> list[str]:
    """Two runs one after the other: the last of `left` goes on in the first of `right`."""
    return [*left[:-1], left[-1] + right[0], *right[1:]]
