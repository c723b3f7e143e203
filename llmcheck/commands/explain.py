"""`llmcheck explain CODE`: what a finding means, why it matters, an example, the fix, where to read on. Offline."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from llmcheck import toml
from llmcheck.commands.values import choice
from llmcheck.console import Terminal, emit, escape, terminal
from llmcheck.errors import UserError, did_you_mean
from llmcheck.render.draw import Pen, width_of, wrap
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_all
from llmcheck.rules.rule import Example, Pack, Rule

SCHEMA = "llmcheck.explanation/1"
_PLAN_FINDINGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "plan_findings.toml")
_MAX_EXAMPLE_LINES = 12
_MAX_WANTED_CHARS = 80  # of what was asked for, that an error repeats


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `explain`."""
    parser.add_argument("code", metavar="CODE", help="of a finding (LCV012), or the name of a rule")
    parser.add_argument("--rules", metavar="DIR", action="append", default=[], help="a team's own pack beside ours; repeatable")
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Print the explanation; returns 0. Raises UserError when there is no such code."""
    explanation = _find(args.code, args.rules)
    emit(json.dumps({"schema": SCHEMA, **explanation}, indent=1) + "\n" if args.format == "json" else _text(explanation))
    return 0


def plan_findings() -> list[dict[str, Any]]:
    """What there is to say of the planner's own findings, by code."""
    entries: list[dict[str, Any]] = toml.load(_PLAN_FINDINGS)["finding"]
    return entries


def _find(wanted: str, folders: list[str]) -> dict[str, Any]:
    key = wanted.strip()
    own = plan_findings()
    for entry in own:
        if entry["code"] == key.upper():
            return _of_plan(entry)
    packs = load_all(load_registry(), folders, examples=True)
    for pack in packs:
        for rule in pack.rules:
            if key.upper() == rule.code or key.lower() in (rule.name, *rule.aliases):
                return _of_rule(rule, pack)
    rules = [rule for pack in packs for rule in pack.rules]
    pool = [entry["code"] for entry in own] + [name for rule in rules for name in (rule.code, rule.name)]
    raise UserError(
        f"no finding {wanted[:_MAX_WANTED_CHARS]!r}",
        code="unknown-code",
        where="llmcheck explain",
        why="a code is a prefix and three digits (LCV012), a name is in kebab-case",
        hint=_near(key[:_MAX_WANTED_CHARS], pool, [rule.code for rule in rules]),
    )


def _near(key: str, pool: list[str], codes: list[str]) -> str:
    """What `key` was probably meant to be: a code whose zeros were left out, rules' `codes` that begin so, a name that resembles it."""
    parts = re.fullmatch(r"([A-Z]{2,8})[ _-]?0*(\d{1,4})", key.upper())
    if parts is not None and (code := f"{parts[1]}{int(parts[2]):03d}") in pool:
        return f"did you mean {code!r}?"
    if key and any(code.startswith(key.upper()) for code in codes):
        return f"`llmcheck rules list --select {key.upper()}` lists those that begin so"
    return did_you_mean(key.upper(), pool) or did_you_mean(key.lower(), pool) or "`llmcheck rules list` shows all"


def _of_plan(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: entry[name] for name in ("code", "title", "why")},
        "found_by": "llmcheck plan",
        "example": entry["example"],
        "fix": [entry["fix"]],
        "references": entry["references"],
    }


def _of_rule(rule: Rule, pack: Pack) -> dict[str, Any]:
    explanation: dict[str, Any] = {
        "code": rule.code,
        "name": rule.name,
        "title": rule.title,
        "why": rule.why,
        "found_by": f"llmcheck doctor, pack {pack.id} {pack.version}",
        "severity": rule.severity,
        "confidence": rule.confidence,
        "status": rule.status,
        "since": rule.since,
        "example": rule.example or next((_example(example) for example in rule.test if example.expect == "fail"), ""),
        "fix": [f"{fix.command()}  {fix.text}".strip() for fix in rule.fix],
        "references": list(rule.references),
    }
    if rule.evidence:
        explanation["evidence"] = rule.evidence
    if rule.log is not None:
        explanation["cause"] = rule.log.cause
        explanation["other_causes"] = list(rule.log.candidates)
        explanation["role"] = rule.log.role
    if rule.review_by is not None:
        explanation["review_by"] = str(rule.review_by)
    return explanation


def _example(example: Example) -> str:
    if example.log is not None:
        return example.log
    given = [f"{name} = {value!r}" for name, value in (example.facts or {}).items()]
    return "\n".join([*given, *[f"{name} is not there" for name in example.absent]])


def _text(explanation: dict[str, Any]) -> str:
    where: Terminal = terminal(sys.stdout)
    pen = Pen(where)
    return "\n".join(_lines(explanation, pen, where.columns)) + "\n"


def _lines(explanation: dict[str, Any], pen: Pen, columns: int) -> Iterator[str]:
    first, *rest = wrap(escape(explanation["title"]).split(), columns - len(explanation["code"]) - 2)
    yield pen.bold(f"{explanation['code']}  {first}")
    yield from (pen.bold(" " * (len(explanation["code"]) + 2) + line) for line in rest)
    marks = [f"{name} {explanation[name]}" for name in ("severity", "confidence", "role") if name in explanation]
    if explanation.get("status", "stable") != "stable":
        marks.append(explanation["status"])
    told = escape(", ".join([*marks, f"found by {explanation['found_by']}"]))
    yield from map(pen.dim, wrap(told.split(), columns))
    yield ""
    yield from wrap(escape(explanation["why"]).split(), columns)
    if explanation.get("other_causes"):
        yield ""
        yield from wrap(escape(f"Cause: {explanation['cause']}; else: {', '.join(explanation['other_causes'])}.").split(), columns)
    if explanation["example"]:
        yield from ("", pen.bold("Example"))
        lines = explanation["example"].splitlines()
        yield from (part for line in lines[:_MAX_EXAMPLE_LINES] for part in _example_line(escape(line), columns))
        if len(lines) > _MAX_EXAMPLE_LINES:
            yield pen.dim(f"  … {len(lines) - _MAX_EXAMPLE_LINES} more lines")
    yield from ("", pen.bold("Fix"))
    for fix in explanation["fix"]:
        first, *rest = wrap(escape(fix).split(), columns - 4)
        yield f"  - {first}"
        yield from (f"    {line}" for line in rest)
    yield from ("", pen.bold("Read on"))
    yield from (f"  {escape(address)}" for address in explanation["references"])
    if "evidence" in explanation:
        yield ""
        yield from map(pen.dim, wrap(escape(f"Evidence: {explanation['evidence']}").split(), columns))


def _example_line(line: str, columns: int) -> Iterator[str]:
    """A line of an example as it is where there is room for it, else wrapped and indented further."""
    if width_of(line) + 2 <= columns:
        yield f"  {line}"
        return
    indent = " " * min(len(line) - len(line.lstrip(" ")), columns // 4)
    first, *rest = wrap(line.split(), columns - len(indent) - 4)
    yield f"  {indent}{first}"
    yield from (f"    {indent}{part}" for part in rest)
