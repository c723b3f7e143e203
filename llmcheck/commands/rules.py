"""`llmcheck rules`: list, lint and test the rule packs, write their pages, start a new rule, list the facts."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from datetime import date
from typing import TYPE_CHECKING, Any

from llmcheck.commands.values import choice
from llmcheck.console import emit, escape
from llmcheck.errors import UserError
from llmcheck.rules.facts import Registry, load_registry
from llmcheck.rules.load import load_all
from llmcheck.rules.rule import Pack, Rule

if TYPE_CHECKING:
    from llmcheck.rulecheck.lint import Complaint

ACTIONS = {
    "list": "the rules, one a line",
    "lint": "what a rule lacks: source, why, fix, examples, a safe pattern; exit 1 with complaints",
    "test": "run the examples inside the rules, every signature over every sample; exit 1 when one fails",
    "docs": "write a page for each pack into --out DIR",
    "new": "print the beginnings of a rule: --kind version, facts or log",
    "facts": "the facts that rules may use",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `llmcheck rules`."""
    told = "; ".join(f"{name}: {text}" for name, text in ACTIONS.items())
    parser.add_argument("action", metavar="|".join(ACTIONS), type=choice("llmcheck rules", tuple(ACTIONS)), help=told)
    parser.add_argument("--rules", metavar="DIR", action="append", default=[], help="a team's own pack beside ours; repeatable")
    parser.add_argument("--select", metavar="CODES", default="", help="only codes that begin so: LCV,LCS04")
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )
    parser.add_argument("--out", metavar="DIR", help="docs: the folder to write to")
    kinds = ("version", "facts", "log")
    parser.add_argument("--kind", metavar="|".join(kinds), type=choice("--kind", kinds), default="log", help="new: what the rule looks at")
    parser.add_argument("--force", action="store_true", help="docs: replace pages that are not llmcheck's")


def run(args: argparse.Namespace) -> int:
    """Run `llmcheck rules`; returns the exit code."""
    registry = load_registry()
    if args.action == "facts":
        emit(_facts(registry, args.format))
        return 0
    if args.action == "new":
        from llmcheck.rulecheck.skeleton import skeleton

        emit(skeleton(args.kind, date.today()))
        return 0
    packs = [_selected(pack, args.select) for pack in load_all(registry, args.rules, examples=True)]
    if args.select and not any(pack.rules for pack in packs):
        raise UserError(f"no rule's code begins with {args.select!r}", code="selection", where="--select", hint="`llmcheck rules list`")
    if args.action == "list":
        emit(_list(packs, args.format))
        return 0
    if args.action == "docs":
        return _docs(packs, args)
    return _lint(packs, registry, args.format) if args.action == "lint" else _test(packs, registry, args.format)


def _selected(pack: Pack, select: str) -> Pack:
    from dataclasses import replace

    prefixes = tuple(part.strip().upper() for part in select.split(",") if part.strip())
    return replace(pack, rules=tuple(rule for rule in pack.rules if rule.code.startswith(prefixes))) if prefixes else pack


def _list(packs: list[Pack], form: str) -> str:
    if form == "json":
        entries = [
            {"pack": pack.id, **{name: getattr(rule, name) for name in ("code", "name", "title", "status", "severity", "confidence")}}
            for pack in packs
            for rule in pack.rules
        ]
        return _json("llmcheck.rules-list/1", rules=entries)
    lines = []
    for pack in packs:
        lines.append(f"{pack.id} {pack.version}: {pack.title} ({len(pack.rules)} rules)")
        lines += [_line(rule) for rule in pack.rules]
        lines.append("")
    return "\n".join(map(escape, lines))


def _line(rule: Rule) -> str:
    mark = "" if rule.status == "stable" else f" [{rule.status}]"
    return f"  {rule.code}  {rule.severity:7} {rule.confidence:6}  {rule.title}{mark}"


def _facts(registry: Registry, form: str) -> str:
    kinds = [*registry.kinds.values(), *registry.wildcards]
    if form == "json":
        return _json("llmcheck.facts/1", facts=[vars(kind) for kind in kinds])
    lines = []
    for subject in registry.subjects.values():
        lines.append(f"{subject.id}: {subject.title} ({subject.flag})")
        lines += [f"  {kind.name}  {kind.type}  {kind.doc}" for kind in kinds if kind.subject == subject.id]
        lines.append("")
    return "\n".join(lines)


def _lint(packs: list[Pack], registry: Registry, form: str) -> int:
    from llmcheck.rulecheck.lint import lint

    found = lint(packs, registry, date.today())
    grave = sum(complaint.grave for complaint in found)
    if form == "json":
        emit(_json("llmcheck.rules-lint/1", complaints=[vars(complaint) for complaint in found]))
    else:
        lines = [_complaint(complaint) for complaint in found]
        lines.append(f"{sum(len(pack.rules) for pack in packs)} rules: {grave} complaints, {len(found) - grave} reminders")
        emit("\n".join(map(escape, lines)) + "\n")
    return 1 if grave else 0


def _complaint(complaint: Complaint) -> str:
    return f"{'' if complaint.grave else 'reminder: '}{complaint.code} ({complaint.file}) {complaint.text}"


def _test(packs: list[Pack], registry: Registry, form: str) -> int:
    from llmcheck.rulecheck.examples import run_examples

    failures = run_examples(packs, registry, date.today())
    if form == "json":
        emit(_json("llmcheck.rules-test/1", failures=[vars(failure) for failure in failures]))
        return 1 if failures else 0
    counts = Counter(example.expect for pack in packs for rule in pack.rules for example in rule.test)
    lines = [f"{failure.code} ({failure.file}) test[{failure.index}]: {failure.text}" for failure in failures]
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    lines.append(f"{counts.total()} examples of {sum(len(pack.rules) for pack in packs)} rules ({told}): {len(failures)} failures")
    emit("\n".join(map(escape, lines)) + "\n")
    return 1 if failures else 0


def _docs(packs: list[Pack], args: argparse.Namespace) -> int:
    from llmcheck.files import write_atomically
    from llmcheck.rulecheck.pages import MARK, page

    if not args.out:
        raise UserError("rules docs needs a folder to write to", code="usage", where="--out", hint="--out docs/rules")
    if not os.path.isdir(args.out):
        raise UserError(f"no such folder: {args.out}", code="output", where="--out", hint="make it first")
    for pack in packs:
        path = os.path.join(args.out, f"{pack.id}.md")
        data = page(pack).encode()
        write_atomically(path, data, flag="--out", replaceable=lambda old: old.startswith(MARK.encode()), force=args.force)
        emit(f"{path}\n")
    return 0


def _json(schema: str, **content: Any) -> str:
    return json.dumps({"schema": schema, **content}, indent=1, default=str) + "\n"
