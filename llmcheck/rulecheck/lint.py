"""What a pack must have to be worth shipping, beyond what load.py needs to use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from llmcheck.rules.engine import slots
from llmcheck.rules.facts import Registry
from llmcheck.rules.load import faults
from llmcheck.rules.patterns import complaints, contains_literal, groups
from llmcheck.rules.rule import SEVERITIES, LogPattern, Pack, Rule

MIN_WHY_CHARS = 20
MAX_TITLE_CHARS = 100
_SLUG = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """Something that is wrong with a rule. `grave`: the pack must not ship like this; else a reminder."""

    code: str
    file: str
    text: str
    grave: bool = True


def lint(packs: Sequence[Pack], registry: Registry, today: date) -> list[Complaint]:
    """All complaints about the rules of `packs`, loaded with their examples."""
    return [complaint for pack in packs for rule in pack.rules for complaint in _lint(rule, registry, today)]


def _lint(rule: Rule, registry: Registry, today: date) -> Iterator[Complaint]:
    for text in [*faults(rule, registry, trusted=False), *_texts(rule, registry)]:
        yield Complaint(code=rule.code, file=rule.file, text=text)
    if rule.status == "removed":
        return
    for text in [*_examples(rule), *_signature(rule)]:
        yield Complaint(code=rule.code, file=rule.file, text=text)
    if rule.review_by is not None and rule.review_by < today:
        text = f"its review was due on {rule.review_by}; until then its confidence counts one level lower"
        yield Complaint(code=rule.code, file=rule.file, text=text, grave=False)


def _texts(rule: Rule, registry: Registry) -> Iterator[str]:
    if not rule.title or len(rule.title) > MAX_TITLE_CHARS:
        yield f"title: one line of at most {MAX_TITLE_CHARS} characters"
    if rule.status == "removed":
        return
    for name in ("why", "message", "since", "fix", "references", "published", "review_by"):
        if not getattr(rule, name):
            yield f"{name}: missing"
    if rule.why and len(rule.why) < MIN_WHY_CHARS:
        yield "why: too short to say why"
    if rule.published and rule.review_by and rule.review_by <= rule.published:
        yield "review_by: not after published"
    for address in rule.references:
        if not re.fullmatch(r"https://[A-Za-z0-9.-]+\.[a-z]+(/\S*)?", address):
            yield f"references: {address!r} is no https address"
    for fix in rule.fix:
        if fix.kind == "command" and not fix.run:
            yield "fix: a command needs run"
        if fix.kind != "command" and not fix.text:
            yield f"fix: {fix.kind} needs text"
    if rule.level and min(SEVERITIES.index(level.severity) for level in rule.level) != SEVERITIES.index(rule.severity):
        yield "severity: not the worst of the levels"
    captures = {f"cap.{name}" for name in groups(rule.log.pattern)} if rule.log is not None and not complaints(rule.log.pattern) else set()
    for name in slots(" ".join([rule.message, *[fix.text for fix in rule.fix]])):
        if name not in captures and (rule.log is not None or registry.kind(name) is None):
            yield f"message or fix: {{{name}}} is neither a fact nor a capture"


def _examples(rule: Rule) -> Iterator[str]:
    outcomes = {example.expect for example in rule.test}
    if "fail" not in outcomes:
        yield "test: no example that fires"
    if not outcomes & {"pass", "skip"}:
        yield "test: no near miss that must not fire"
    for index, example in enumerate(rule.test):
        if (example.log is not None) != (rule.log is not None) or (example.log is None) == (example.facts is None):
            yield f"test[{index}]: needs " + ("log" if rule.log is not None else "facts")


def _signature(rule: Rule) -> Iterator[str]:
    log = rule.log
    if log is None:
        return
    for what, slug in (("cause", log.cause), ("family", log.family), *[("candidates", text) for text in log.candidates]):
        if not _SLUG.fullmatch(slug):
            yield f"log.{what}: {slug!r} is no slug"
    if log.cause in log.candidates:
        yield "log.candidates: repeats the cause"
    if complaints(log.pattern):
        return  # faults() has told
    yield from _literals(log)
    unknown = set(log.group_by) - groups(log.pattern)
    if unknown:
        yield f"log.group_by: no such group: {', '.join(sorted(unknown))}"


def _literals(log: LogPattern) -> Iterator[str]:
    if not log.raised_in and not contains_literal(log.pattern, log.literal):
        yield "log.pattern: a match need not contain any of the literals, so that the search would miss it"
    for context in (*log.above, *log.below):
        if context.pattern and not complaints(context.pattern) and not contains_literal(context.pattern, [context.literal]):
            yield f"log: the pattern beside {context.literal!r} need not contain it"
