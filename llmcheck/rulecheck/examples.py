"""Runs the examples inside the rules: each must have the outcome that it names, and no signature may fire on another's sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from llmcheck.rules.engine import judge
from llmcheck.rules.facts import Facts, Registry
from llmcheck.rules.rule import Example, Pack, Rule


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An example whose outcome is not the one that it names."""

    code: str
    file: str
    index: int
    text: str


def run_examples(packs: Sequence[Pack], registry: Registry, today: date) -> list[Failure]:
    """The examples of `packs` (loaded with them) that fail."""
    signatures = [rule for pack in packs for rule in pack.rules if rule.log is not None and rule.status != "removed"]
    failures: list[Failure] = []
    for pack in packs:
        for rule in pack.rules:
            for index, example in enumerate(rule.test):
                texts = _facts(rule, example, registry, today) if example.facts is not None else _log(rule, example, signatures)
                failures += (Failure(code=rule.code, file=rule.file, index=index, text=text) for text in texts)
    return failures


def facts_of(example: Example, rule: Rule, registry: Registry) -> Facts:
    """The facts of an example; every subject of the rule counts as examined, so that what is not given is unknown."""
    facts = Facts()
    for name, value in (example.facts or {}).items():
        facts.put(name, value)
    for name in example.absent:
        facts.absent(name)
    facts.examined(*(kind.subject for name in rule.facts() if (kind := registry.kind(name)) is not None))
    return facts


def _facts(rule: Rule, example: Example, registry: Registry, today: date) -> Iterator[str]:
    for name in (*(example.facts or {}), *example.absent):
        if registry.kind(name) is None:
            yield f"unknown fact {name!r}"
    result = judge(rule, facts_of(example, rule, registry), registry, today)
    if result.outcome != example.expect:
        yield f"expected {example.expect}, was {result.outcome}"
        return
    if example.severity is not None and result.severity != example.severity:
        yield f"expected severity {example.severity}, was {result.severity}"
    if example.message is not None and result.message != example.message:
        yield f"expected message {example.message!r}, was {result.message!r}"


def _log(rule: Rule, example: Example, signatures: Sequence[Rule]) -> Iterator[str]:
    log = example.log or ""
    fired = {signature.name: found for signature in signatures if (found := _matches(signature, log))}
    own = fired.pop(rule.name, [])
    if bool(own) != (example.expect == "fail"):
        yield f"expected {example.expect}, but " + (f"it fired on line {own[0][0]}" if own else "it did not fire")
    elif own:
        line, captures = own[0]
        if example.line is not None and line != example.line:
            yield f"expected a match on line {example.line}, was {line}"
        for name, value in (example.captures or {}).items():
            if captures.get(name) != value:
                yield f"capture {name}: expected {value!r}, was {captures.get(name)!r}"
    for name in fired:
        other = next(signature for signature in signatures if signature.name == name)
        assert other.log is not None
        if name not in example.also and other.log.role != "context":
            yield f"{other.code} {name} fires on it too, on line {fired[name][0][0]}; if it may, list it in also"
    for name in example.also:
        if name not in fired:
            yield f"also: {name} does not fire on it"


def _matches(rule: Rule, log: str) -> list[tuple[int, dict[str, str | None]]]:
    """(line, captures) of the signature's matches, line from 1."""
    assert rule.log is not None
    lines = log.splitlines()
    found = []
    for index, line in enumerate(lines):
        if any(literal in line for literal in rule.log.literal):
            match = re.search(rule.log.pattern, "\n".join(lines[index : index + rule.log.lines]))
            if match is not None and _surrounded(rule, lines, index):
                found.append((index + 1, match.groupdict()))
    return found if len(found) >= rule.log.min_count else []


def _surrounded(rule: Rule, lines: Sequence[str], index: int) -> bool:
    assert rule.log is not None
    for contexts, side in ((rule.log.above, -1), (rule.log.below, 1)):
        for context in contexts:
            near = lines[max(0, index - context.within) : index] if side < 0 else lines[index + 1 : index + 1 + context.within]
            there = any(context.literal in line and (not context.pattern or re.search(context.pattern, line)) for line in near)
            if there == context.absent:
                return False
    return True
