"""Judges rules by facts. Pure: takes values and gives values.

Four outcomes by Kleene's three-valued logic: a condition that is false makes the rule pass (or skip), else one that cannot be told makes
it unknown, else it fails. Unknown is never pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from llmcheck.rules.facts import ABSENT, Fact, Facts, Location, Registry
from llmcheck.rules.rule import CONFIDENCES, Affects, Condition, Confidence, Fix, Outcome, Rule, Severity, reference
from llmcheck.rules.versions import is_affected, parse
from llmcheck.units import human_bytes, human_seconds

MAX_VALUE_CHARS = 200  # of a fact or capture inside a message
_WORDS: dict[str, Callable[[float], str]] = {"_bytes": human_bytes, "_s": human_seconds, "_fraction": lambda value: f"{value:.1%}"}
_MIN_WORDS = 3  # of a message beside its slots, to stand alone
_SLOT = re.compile(r"\{([A-Za-z][A-Za-z0-9_.\-]*)\}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one rule. `reason` says why it was skipped, `missing` which facts it lacked (fact, why)."""

    rule: Rule
    outcome: Outcome
    severity: Severity
    confidence: Confidence
    message: str = ""
    location: Location | None = None
    reason: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()  # what it was judged by, as shown
    fix: tuple[Fix, ...] = ()  # the rule's, with the facts that it names


@dataclass
class _Judgement:
    """A truth value, None for unknown, and the facts that are missing for one."""

    value: bool | None
    missing: tuple[str, ...] = ()


def evaluate(rules: Iterable[Rule], facts: Facts, registry: Registry, today: date) -> list[Result]:
    """The outcome of every rule that is no log signature and not removed."""
    return [judge(rule, facts, registry, today) for rule in rules if rule.log is None and rule.status != "removed"]


def judge(rule: Rule, facts: Facts, registry: Registry, today: date) -> Result:
    """The outcome of `rule`."""
    if rule.until is not None and today > rule.until:
        return _result(rule, "skip", today, reason=f"withdrawn after {rule.until}")
    needs = _all(rule.needs, facts, registry)
    if needs.value is False:
        return _result(rule, "skip", today, reason="does not apply")
    if any(_not_installed(affects, facts) for affects in rule.affects):
        return _result(rule, "skip", today, reason="not installed")
    applies = _and([needs, *[_affected(affects, facts) for affects in rule.affects], _all(rule.when, facts, registry)])
    if applies.value is False:
        return _result(rule, "pass", today)
    level, chosen = _level(rule, facts, registry)
    whole = _and([applies, level])
    if whole.value is False:
        return _result(rule, "pass", today)
    if whole.value is None:
        return _undecided(rule, whole.missing, facts, registry, today)
    severity, confidence = chosen or (rule.severity, rule.confidence)

    def told(name: str) -> str:
        return shown(name, facts.get(name))

    return Result(
        rule=rule,
        outcome="fail",
        severity=severity,
        confidence=current_confidence(rule, confidence, today),
        message=fill(rule.message, told),
        location=_location(rule, facts),
        facts=tuple((name, told(name)) for name in rule.facts()),
        fix=tuple(replace(fix, text=fill(fix.text, told)) for fix in rule.fix),
    )


def current_confidence(rule: Rule, confidence: Confidence, today: date) -> Confidence:
    """`confidence`, one level lower when the rule's review is overdue."""
    if rule.review_by is None or today <= rule.review_by:
        return confidence
    return CONFIDENCES[min(CONFIDENCES.index(confidence) + 1, len(CONFIDENCES) - 1)]


def fill(template: str, lookup: Callable[[str], str]) -> str:
    """`template` with each ``{name}`` replaced by ``lookup(name)``. Never str.format, which reaches attributes."""
    return _SLOT.sub(lambda slot: lookup(slot[1]), template)


def slots(template: str) -> list[str]:
    """The names in a template's braces."""
    return _SLOT.findall(template)


def shown(name: str, fact: Fact | None) -> str:
    """A fact for people: bytes, seconds and fractions by the ending of its name, lists with commas, at most 200 characters."""
    if fact is None:
        return "(unknown)"
    value = fact.value
    if value is ABSENT:
        return "(none)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        for ending, words in _WORDS.items():
            if name.endswith(ending):
                return words(value)
    text = ", ".join(map(_word, value)) if isinstance(value, (list, tuple)) else _word(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _word(value: object) -> str:
    """An empty text is shown as such: a sentence must not have a hole."""
    return str(value) if value != "" else '""'


def is_fragment(template: str) -> bool:
    """True for a message that says what and not what of it: a slot with fewer than three words around it. It goes after the title."""
    return "{" in template and len(re.findall(r"\w+", _SLOT.sub("", template))) < _MIN_WORDS


def _result(rule: Rule, outcome: Outcome, today: date, reason: str = "", missing: tuple[tuple[str, str], ...] = ()) -> Result:
    confidence = current_confidence(rule, rule.confidence, today)
    return Result(rule=rule, outcome=outcome, severity=rule.severity, confidence=confidence, reason=reason, missing=missing)


def _undecided(rule: Rule, missing: Sequence[str], facts: Facts, registry: Registry, today: date) -> Result:
    """Unknown; or skipped where something is missing that nobody gave us: without it the rule cannot be decided, whatever else is found."""
    names = tuple(dict.fromkeys(missing))
    for name in names:
        if (why_open := facts.why_open(name)) is not None:
            return _result(rule, "skip", today, reason=why_open)
    kinds = [kind for name in names if (kind := registry.kind(name)) is not None]
    strangers = {kind.subject for kind in kinds if kind.subject not in facts.subjects}
    if strangers:
        return _result(rule, "skip", today, reason="not examined: " + ", ".join(sorted(strangers)))
    why = tuple((name, facts.why_unknown(name) or "not found out") for name in names)
    return _result(rule, "unknown", today, missing=why)


def _not_installed(affects: Affects, facts: Facts) -> bool:
    fact = facts.get(affects.name)
    return fact is not None and fact.value is ABSENT and not affects.absent


def _affected(affects: Affects, facts: Facts) -> _Judgement:
    fact = facts.get(affects.name)
    if fact is None:
        return _Judgement(None, (affects.name,))
    if fact.value is ABSENT or affects.absent:
        return _Judgement(affects.absent and fact.value is ABSENT)
    found = is_affected(str(fact.value), affects)
    return _Judgement(found, (affects.name,) if found is None else ())


def _level(rule: Rule, facts: Facts, registry: Registry) -> tuple[_Judgement, tuple[Severity, Confidence] | None]:
    """The first of the rule's levels that holds. An unknown one above it makes the whole unknown: it could be worse."""
    if not rule.level:
        return _Judgement(True), None
    for level in rule.level:
        judged = _all(level.when, facts, registry)
        if judged.value is None:
            return judged, None
        if judged.value:
            return judged, (level.severity, level.confidence)
    return _Judgement(False), None


def _all(conditions: Iterable[Condition], facts: Facts, registry: Registry) -> _Judgement:
    return _and([_truth(condition, facts, registry) for condition in conditions])


def _and(parts: Iterable[_Judgement]) -> _Judgement:
    missing: list[str] = []
    unknown = False
    for part in parts:
        if part.value is False:
            return _Judgement(False)
        if part.value is None:
            unknown = True
            missing += part.missing
    return _Judgement(None if unknown else True, tuple(missing))


def _truth(condition: Condition, facts: Facts, registry: Registry) -> _Judgement:
    if condition.all:
        return _all(condition.all, facts, registry)
    if condition.any:
        parts = [_truth(part, facts, registry) for part in condition.any]
        if any(part.value for part in parts):
            return _Judgement(True)
        missing = tuple(name for part in parts for name in part.missing)
        return _Judgement(None, missing) if any(part.value is None for part in parts) else _Judgement(False)
    return _compare(condition, facts, registry)


def _compare(condition: Condition, facts: Facts, registry: Registry) -> _Judgement:
    left = facts.get(condition.left)
    if left is None:
        return _Judgement(None, (condition.left,))
    if condition.op == "present":
        return _Judgement((left.value is not ABSENT) == condition.right)
    right = condition.right
    if (other := reference(right)) is not None:
        fact = facts.get(other)
        if fact is None:
            return _Judgement(None, (other,))
        right = fact.value
    elif isinstance(right, str) and right.startswith("$$"):
        right = right[1:]
    if left.value is ABSENT or right is ABSENT:
        return _Judgement(False)
    kind = registry.kind(condition.left)
    assert condition.op is not None, "the loader refuses a condition without an operator"
    value = _operate(condition.op, left.value, right, versions=kind is not None and kind.type == "version")
    return _Judgement(value, (condition.left,) if value is None else ())


def _operate(op: str, left: Any, right: Any, *, versions: bool) -> bool | None:
    """`left op right`; None where the two cannot be compared."""
    if op.startswith("not "):
        value = _operate(op[4:], left, right, versions=versions)
        return None if value is None else not value
    if op == "!=":
        value = _operate("==", left, right, versions=versions)
        return None if value is None else not value
    if op == "in":
        answers = [_operate("==", left, item, versions=versions) for item in right]
        return True if True in answers else None if None in answers else False
    if op == "contains":
        if isinstance(left, str):
            return str(right) in left
        return right in left if isinstance(left, (list, tuple)) else None
    if op == "matches":
        return re.search(right, left) is not None if isinstance(left, str) else None
    if versions:
        left, right = parse(str(left)), parse(str(right))
    return _order(op, left, right)


def _order(op: str, left: Any, right: Any) -> bool | None:
    if left is None or right is None:
        return None
    if op == "==":
        # 1 == True in Python; in a configuration they are different things.
        return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
    if isinstance(left, bool) or isinstance(right, bool):
        return None
    try:
        return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op])
    except TypeError:
        return None


def _location(rule: Rule, facts: Facts) -> Location | None:
    """Where the first of the rule's facts that has a place was read."""
    places = (fact.location for name in rule.facts() if (fact := facts.get(name)) is not None)
    return next((place for place in places if place is not None), None)
