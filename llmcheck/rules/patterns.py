"""What a pattern may be: RE2's subset, and no way to run away in Python's own engine.

Python's `re` backtracks. A pattern is refused when it uses what RE2 has not (look-around, back-references), repeats without bound inside an
unbounded repeat, or may cost more than a bounded number of steps on the 8 KiB that a pattern gets to see. The steps are counted on the
parsed pattern, from above: every repeat that competes with what follows for the same characters multiplies the ways in which a line can be
divided, and each way is tried from each place at which a match may begin.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    from re import _constants as _c  # type: ignore[attr-defined]
    from re import _parser
else:  # pragma: no cover - exercised by the 3.10 job only
    import sre_constants as _c
    import sre_parse as _parser

WINDOW_CHARS = 8_192  # what a pattern gets to see of a line
# Steps of the engine on one window. Measured: a step takes some 5 ns, so that no line takes over a few seconds. `.*` before a word, tried
# from any place, has 7e7.
MAX_STEPS = 5e8
_SIMPLE_STEP = 0.1  # of a repeat of one character, against any other step: the engine has a loop for it
_ENDLESS = 1e30  # more steps than anyone waits for: beyond it nothing is counted
MAX_PATTERN_CHARS = 2_000

_OTHER = 128  # stands for every character beyond ASCII: they are not told apart
_ALL = frozenset(range(129))
_SPACE = frozenset(map(ord, " \t\n\r\f\v"))
_DIGIT = frozenset(range(48, 58))
_WORD = _DIGIT | frozenset(range(65, 91)) | frozenset(range(97, 123)) | {95}
_CATEGORIES = {
    _c.CATEGORY_DIGIT: _DIGIT | {_OTHER},
    _c.CATEGORY_NOT_DIGIT: _ALL - _DIGIT,
    _c.CATEGORY_SPACE: _SPACE | {_OTHER},
    _c.CATEGORY_NOT_SPACE: _ALL - _SPACE,
    _c.CATEGORY_WORD: _WORD | {_OTHER},
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
    elif not found and (steps := num_steps(tree)) > MAX_STEPS:
        told = f"{steps:.0e}" if steps < _ENDLESS else "endless"
        found.append(
            f"its repeats and branches compete for the same characters ({told} steps): bound them, or let each stop at what it excludes"
        )
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


class _Cost(NamedTuple):
    """Of one part of a pattern, from one place: in how many ways it may match, and the steps for trying all of them."""

    ways: float
    steps: float


def num_steps(tree: Any) -> float:
    """How many steps a search in one window may take, from above; `_ENDLESS` where that cannot be bounded.

    The worst text either begins like a match once, and goes on for as long as it can, or begins like one wherever there is room for it.
    """
    items = list(tree)
    if len(items) == 1 and items[0][0] is _c.BRANCH:  # each has a beginning of its own
        return min(_ENDLESS, sum(_search(list(branch), tree.state.flags) for branch in items[0][1][1]))
    return _search(items, tree.state.flags)


def _search(items: Sequence[tuple[Any, Any]], flags: int) -> float:
    begin = frozenset(min(ord(c), _OTHER) for c in _fixed(items))
    once = _Counter(begin, WINDOW_CHARS).sequence(items, frozenset()).steps
    if items and items[0] == (_c.AT, _c.AT_BEGINNING) and not flags & re.MULTILINE:
        return min(_ENDLESS, once)
    apart = _spacing(items)
    often = _Counter(begin, math.ceil(apart)).sequence(items, frozenset()).steps
    # A text without such a beginning costs a step a character.
    return min(_ENDLESS, max(once, often * WINDOW_CHARS / apart) + WINDOW_CHARS)


def _fixed(items: Sequence[tuple[Any, Any]]) -> str:
    """The fixed characters that every match begins with."""
    text = ""
    for op, argument in items:
        if op is _c.LITERAL:
            text += chr(argument)
            continue
        if op is _c.SUBPATTERN:
            inner = list(argument[3])
            text += _fixed(inner)
            if all(part is _c.LITERAL for part, _ in inner):
                continue
        break
    return text


def _spacing(items: Sequence[tuple[Any, Any]]) -> float:
    """How many characters lie between two places, at the least, where the fixed beginning of `items` can stand."""
    text = _fixed(items)
    if text:
        # A text holds a word at most once per period of it: "abab" has the period 2.
        return next((n for n in range(1, len(text)) if text[n:] == text[:-n]), len(text))
    for op, argument in items[:1]:
        if op is _c.SUBPATTERN:
            return _spacing(list(argument[3]))
        if op is _c.BRANCH:
            return max(1.0, 1.0 / sum(1.0 / _spacing(list(branch)) for branch in argument[1]))
    return 1.0


def _num_exits(items: Sequence[tuple[Any, Any]], inside: frozenset[int]) -> float:
    """In how many places after a run of `inside` characters `items` can begin: a word that leaves the run stands at its very end."""
    if any(min(ord(c), _OTHER) not in inside for c in _fixed(items)):
        return 1.0
    for op, argument in items[:1]:
        if op is _c.SUBPATTERN:
            return _num_exits(list(argument[3]), inside)
        if op is _c.BRANCH:
            return float(sum(_num_exits(list(branch), inside) for branch in argument[1]))
    return _ENDLESS


class _Counter:
    """Counts ways and steps from one place.

    Args:
        begin: the characters of the pattern's fixed beginning.
        run: how far a repeat can go that cannot pass over another such beginning, in characters.
    """

    def __init__(self, begin: frozenset[int], run: int) -> None:
        self._begin, self._run = begin, run

    def sequence(self, items: Sequence[tuple[Any, Any]], follow: frozenset[int], apart: float = 1.0) -> _Cost:
        """Of `items` one after the other; `follow`: what may come after them, and `apart` how far apart that can be."""
        ways, steps = 1.0, 1.0
        for index, (op, argument) in enumerate(items):
            rest = items[index + 1 :]
            part = self._part(op, argument, _first(rest, follow), _spacing(rest) if rest else apart)
            if op in _REPEATS and part.ways > 1 and _is_simple(argument[2]):
                part = part._replace(ways=min(part.ways, _num_exits(rest, _first(argument[2], frozenset()))))
            steps = min(_ENDLESS, steps + ways * part.steps)
            ways = min(_ENDLESS, ways * part.ways)
        return _Cost(ways, steps)

    def _part(self, op: Any, argument: Any, after: frozenset[int], spacing: float) -> _Cost:
        if op in _REPEATS:
            high = WINDOW_CHARS if argument[1] == _c.MAXREPEAT else int(argument[1])
            return self._repeat(int(argument[0]), high, list(argument[2]), after, spacing)
        if op is _c.SUBPATTERN:
            return self.sequence(list(argument[3]), after, spacing)
        if op is _c.BRANCH:
            return self._branch([list(branch) for branch in argument[1]], after, spacing)
        return _Cost(1.0, 1.0)

    def _repeat(self, low: int, high: int, child: Sequence[tuple[Any, Any]], after: frozenset[int], spacing: float) -> _Cost:
        high = min(high, WINDOW_CHARS if self._begin <= _alphabet(child) else max(low, self._run))
        begin = _first(child, frozenset())
        inner = self.sequence(child, after | begin) if high > 1 else self.sequence(child, after, spacing)
        # Where it may stop: wherever what follows can begin, and that is not everywhere if it begins with a word.
        ways = max(1.0, (high - low) / spacing) + 1 if high > low and begin & after else 1.0
        if inner.ways <= 1:
            return _Cost(ways, max(1.0, high * (_SIMPLE_STEP if _is_simple(child) else inner.steps)))
        exponent = high * math.log10(inner.ways)  # each round multiplies the ways of those before it
        if exponent > 30:
            return _Cost(_ENDLESS, _ENDLESS)
        ways *= 10**exponent
        return _Cost(ways, ways * inner.steps)

    def _branch(self, branches: Sequence[Sequence[tuple[Any, Any]]], after: frozenset[int], spacing: float) -> _Cost:
        costs = [self.sequence(branch, after, spacing) for branch in branches]
        begins = [_first(branch, after) for branch in branches]
        # Given the next character, only the branches that may begin with it are gone into; each other one costs a step.
        steps = len(branches) + max(sum(cost.steps for cost, begin in zip(costs, begins, strict=True) if c in begin) for c in _ALL)
        if all(op is _c.LITERAL for branch in branches for op, _ in branch):
            # Words: one text can begin with two of them only if one is the beginning of the other.
            words = [tuple(argument for _, argument in branch) for branch in branches]
            ways = float(max(sum(word[: len(other)] == other for other in words) for word in words))
        else:
            ways = max(sum(cost.ways for cost, begin in zip(costs, begins, strict=True) if c in begin) for c in _ALL)
        return _Cost(min(_ENDLESS, max(1.0, ways)), min(_ENDLESS, steps))


def _is_simple(items: Sequence[tuple[Any, Any]]) -> bool:
    """True for one character, of whatever class."""
    return len(items) == 1 and (items[0][0] in _SINGLE or items[0][0] is _c.ANY)


def _alphabet(items: Sequence[tuple[Any, Any]]) -> frozenset[int]:
    """Characters that may stand anywhere in a match of `items`."""
    found: frozenset[int] = frozenset()
    for op, argument in items:
        children = _children(op, argument)
        found |= frozenset().union(*(_alphabet(list(child)) for child in children)) if children else _characters(op, argument)
    return found


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
        return frozenset({min(argument, _OTHER)})
    if op is _c.NOT_LITERAL:
        return _ALL - {argument}  # beyond ASCII too: there are others
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
            found |= {min(argument, _OTHER)}
        elif op is _c.RANGE:
            found |= frozenset(range(min(argument[0], _OTHER), min(argument[1], _OTHER) + 1))
        elif op is _c.CATEGORY:
            found |= _CATEGORIES.get(argument, _ALL)
    return _ALL - found | {_OTHER} if negate else found


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
