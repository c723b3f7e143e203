"""Runs the examples inside the rules: each must have the outcome that it names, and no signature may fire on another's sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from llmcheck.logs.diagnose import without_echoes
from llmcheck.logs.scan import scan_text
from llmcheck.logs.signatures import Signatures
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
    signatures = Signatures(rule for pack in packs for rule in pack.rules)
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


def _log(rule: Rule, example: Example, signatures: Signatures) -> Iterator[str]:
    groups = [group for group in scan_text(example.log or "", signatures).groups if group.fired]
    told = without_echoes(groups)
    own = [group for group in groups if group.rule.name == rule.name]
    others = {group.rule.name: group for group in groups if group.rule.name != rule.name}
    if bool(own) != (example.expect == "fail"):
        yield f"expected {example.expect}, but " + (f"it fired on line {own[0].first.line}" if own else "it did not fire")
    elif own:
        first = own[0].first
        if example.line is not None and first.line != example.line:
            yield f"expected a match on line {example.line}, was {first.line}"
        for name, value in (example.captures or {}).items():
            if first.captures.get(name) != value:
                yield f"capture {name}: expected {value!r}, was {first.captures.get(name)!r}"
    for name, group in others.items():
        assert group.rule.log is not None
        if name not in example.also and group.rule.log.role != "context" and group in told:
            yield f"{group.rule.code} {name} fires on it too, on line {group.first.line}; if it may, list it in also"
    for name in example.also:
        if name not in others:
            yield f"also: {name} does not fire on it"
