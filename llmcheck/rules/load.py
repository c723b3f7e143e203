"""Packs from folders of TOML files, strictly: an unknown key, a missing field or an impossible condition refuses the pack.

Packs may be a stranger's: sizes are capped, links that leave the folder are refused, and patterns are held to the subset that cannot
run away (patterns.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from llmcheck import cachefile, jsonfile, toml
from llmcheck.codec import from_plain
from llmcheck.errors import UserError, did_you_mean, several
from llmcheck.paths import unreadable
from llmcheck.rules.facts import Registry
from llmcheck.rules.patterns import complaints
from llmcheck.rules.rule import MAX_LINES, MAX_WITHIN_LINES, Condition, Context, LogPattern, Pack, Rule, reference
from llmcheck.rules.versions import parse

SCHEMA = "llmcheck.rules/1"
MAX_PACK_BYTES = 1 << 20
MAX_RULES = 2_000
MAX_DEPTH = 3  # of any/all
MIN_LITERAL_CHARS = 4

_CODE = re.compile(r"[A-Z]{2,8}\d{3,4}")
_PREFIX = re.compile(r"[A-Z]{2,8}")
_CODE_LINE = re.compile(rb'^code = "([A-Z]+[0-9]+)"', re.MULTILINE)
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_DATE = "llmcheck:date"  # key of a date in a kept pack
_MAX_PROBLEMS = 20  # shown at once


@dataclass(frozen=True, kw_only=True)
class _Head:
    """pack.toml."""

    id: str
    title: str
    version: str
    prefix: str
    license: str = ""
    requires: str = ""


def shipped_folder() -> str:
    """The folder of the packs that come with llmcheck: beside it in a wheel, under ``rules/`` in a checkout."""
    house = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for folder in (os.path.join(house, "llmcheck_rules"), os.path.join(house, "rules", "llmcheck_rules")):
        if os.path.isdir(folder):
            return folder
    raise UserError("the rule packs are missing", code="installation", where=house, hint="install llmcheck again")


def shipped_ids() -> list[str]:
    """Names of our own packs."""
    folder = shipped_folder()
    return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, "pack.toml")))


def shipped_codes() -> list[str]:
    """Codes of all our rules, found without parsing the packs: most commands need only some of them, and parsing all takes 0.2 s."""
    folder = shipped_folder()
    codes: list[str] = []
    for name in shipped_ids():
        for text in _read(os.path.join(folder, name)).values():
            codes += (code.decode() for code in _CODE_LINE.findall(text))
    return codes


def load_shipped(registry: Registry, ids: Sequence[str] | None = None, *, examples: bool = False) -> list[Pack]:
    """Our own packs, or those in `ids`. `examples`: with the rules' tests, which only lint, test and explain need."""
    folder = shipped_folder()
    chosen = [name for name in shipped_ids() if ids is None or name in ids]
    return [load_pack(os.path.join(folder, name), registry, examples=examples, trusted=True) for name in chosen]


def load_all(registry: Registry, folders: Sequence[str] = (), ids: Sequence[str] | None = None, *, examples: bool = False) -> list[Pack]:
    """Our own packs and those in `folders`. Raises UserError when two rules share a code or a name, or a stranger's begins with LC."""
    packs = load_shipped(registry, ids, examples=examples)
    for folder in folders:
        packs.append(load_pack(folder, registry, examples=examples))
    numbers = Counter([*(pack.id for pack in packs), *(name for name in shipped_ids() if all(pack.id != name for pack in packs))])
    for pack, folder in zip(packs[len(packs) - len(folders) :], folders, strict=True):
        if numbers[pack.id] > 1:
            raise UserError(f"two packs have the id {pack.id!r}", code="pack", where=folder, hint="give this one another id in pack.toml")
    _refuse_repeats(packs)
    return packs


def load_pack(folder: str, registry: Registry, *, examples: bool = True, trusted: bool = False) -> Pack:
    """The pack in `folder`. `trusted`: one of ours, whose patterns the tests have linted. Raises UserError."""
    texts = _read(folder)
    problems: list[str] = []
    digest = hashlib.sha256(b"\0".join(name.encode() + b"\0" + text for name, text in sorted(texts.items()))).hexdigest()
    known = cachefile.key_of(digest.encode()) if trusted and not examples else ""
    documents = _unpacked(cachefile.load(f"rules-{os.path.basename(folder)}", known)) if known else None
    checked = documents is not None  # only what had no fault is kept
    if documents is None:
        documents = {name: _parse(text, folder, name) for name, text in texts.items()}
        if known:
            for document in documents.values():
                for entry in document.get("rule", ()):
                    entry.pop("test", None)
        packed = _packed(documents) if known else b""
    head_document = documents.pop("pack.toml", None)
    if head_document is None:
        why, hint = "a pack is a folder with pack.toml and files of rules", "give the folder that pack.toml is in"
        raise UserError("no pack.toml", code="pack", where=folder, why=why, hint=hint)
    if head_document.pop("schema", None) != SCHEMA:
        raise UserError(f"pack.toml does not say schema = {SCHEMA!r}", code="pack", where=folder, hint="is it for another llmcheck?")
    head = from_plain(_Head, head_document.pop("pack", None), "pack.toml: pack", problems)
    problems += [f"pack.toml: unknown key {key!r}" for key in head_document]
    rules: list[Rule] = []
    for name, document in documents.items():
        rules += _rules(document, name, registry, problems, examples=examples, trusted=trusted, checked=checked)
    if head is not None:
        if not _NAME.fullmatch(head.id):  # it becomes the name of a file
            problems.append(f"pack.toml: id: {head.id[:60]!r} is not kebab-case")
        if not _PREFIX.fullmatch(head.prefix):
            problems.append(f"pack.toml: prefix: {head.prefix[:60]!r} is not two to eight capitals")
        if not trusted and head.prefix.startswith("LC"):
            problems.append(f"pack.toml: prefix: those that begin with LC ({head.prefix[:60]}) are llmcheck's own")
        problems += [f"{rule.code}: the code does not begin with {head.prefix}" for rule in rules if not rule.code.startswith(head.prefix)]
    if len(rules) > MAX_RULES:
        problems.append(f"{len(rules)} rules; a pack may have {MAX_RULES}")
    if problems or head is None:
        raise _refused(folder, problems)
    pack = Pack(**vars(head), rules=tuple(sorted(rules, key=lambda rule: rule.code)), path=folder, digest=digest)
    if not checked:
        _refuse_repeats([pack])
        if known:
            cachefile.store(f"rules-{os.path.basename(folder)}", known, packed)
    return pack


def _packed(documents: dict[str, dict[str, Any]]) -> bytes:
    """`documents` as JSON, which is read five times as fast as TOML; dates, which it has not, as objects."""
    return json.dumps(documents, default=lambda day: {_DATE: day.isoformat()}).encode()


def _unpacked(data: bytes | None) -> dict[str, dict[str, Any]] | None:
    if data is None:
        return None
    try:
        found: dict[str, dict[str, Any]] = json.loads(
            data, object_hook=lambda value: date.fromisoformat(value[_DATE]) if _DATE in value else value
        )
    except (ValueError, TypeError):
        return None
    return found


def _read(folder: str) -> dict[str, bytes]:
    """The TOML files of the folder by name, capped."""
    root = os.path.realpath(folder)
    try:
        entries = sorted(os.listdir(root))
    except OSError as reason:
        raise unreadable(folder, what="rule pack", where=folder, reason=reason, code="pack", folder=True) from reason
    texts: dict[str, bytes] = {}
    total = 0
    for name in entries:
        if not name.endswith(".toml"):
            continue
        path = os.path.realpath(os.path.join(root, name))
        if os.path.dirname(path) != root or not os.path.isfile(path):
            raise UserError(f"{name} leads out of the pack, or is no file", code="pack", where=folder, hint="put the file itself there")
        with jsonfile.open_regular(path, what="rule pack's file", where=folder) as file:
            texts[name] = file.read(MAX_PACK_BYTES + 1 - total)
        total += len(texts[name])
        if total > MAX_PACK_BYTES:
            raise UserError(f"the pack is larger than {MAX_PACK_BYTES >> 20} MiB", code="pack", where=folder, hint="split it")
    return texts


def _parse(text: bytes, folder: str, name: str) -> dict[str, Any]:
    try:
        return toml.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as reason:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(
            f"{name} is not valid TOML",
            code="pack",
            where=f"{folder}, {name}",
            why=str(reason)[:200],
            hint="`llmcheck rules new` prints a rule to begin with",
        ) from reason


def _rules(
    document: dict[str, Any], file: str, registry: Registry, problems: list[str], *, examples: bool, trusted: bool, checked: bool
) -> Iterable[Rule]:
    for key in document:
        if key != "rule":
            problems.append(f"{file}: unknown key {key!r}; " + (did_you_mean(key, ["rule"]) or "a file holds [[rule]] tables only"))
    entries = document.get("rule", [])
    if not isinstance(entries, list):
        problems.append(f"{file}: rule: write [[rule]]")
        return
    for index, entry in enumerate(entries):
        code = entry.get("code") if isinstance(entry, dict) else None
        path = code if isinstance(code, str) else f"{file}: rule[{index}]"
        if isinstance(entry, dict):
            if not examples:
                entry.pop("test", None)
            entry["file"] = file
            log = entry.get("log")
            if isinstance(log, dict) and isinstance(log.get("literal"), str):
                log["literal"] = [log["literal"]]
        rule = from_plain(Rule, entry, path, problems)
        if rule is not None:
            if not checked:
                problems += [f"{path}: {problem}" for problem in faults(rule, registry, trusted=trusted)]
            yield rule


def faults(rule: Rule, registry: Registry, *, trusted: bool) -> list[str]:
    """What makes `rule` impossible to judge."""
    found = []
    if not _CODE.fullmatch(rule.code):
        found.append("code: a prefix of capitals and three or four digits")
    if not _NAME.fullmatch(rule.name):
        found.append(f"name: {rule.name!r} is not kebab-case")
    if rule.status == "removed":
        return found
    judged = bool(rule.affects or rule.when or rule.level)
    if judged == (rule.log is not None):
        found.append("a rule has either conditions (affects, when, level) or [rule.log]")
    if rule.when and rule.level:
        found.append("level replaces when: give one of the two")
    for affects in rule.affects:
        found += _affects_faults(affects, registry)
    for name, conditions in [("needs", rule.needs), ("when", rule.when), *[("level.when", level.when) for level in rule.level]]:
        for condition in conditions:
            found += [f"{name}: {fault}" for fault in _condition_faults(condition, registry, trusted, 0)]
    if rule.log is not None:
        found += [f"log: {fault}" for fault in _log_faults(rule.log, trusted)]
    return found


def _affects_faults(affects: Any, registry: Registry) -> list[str]:
    if bool(affects.package) == bool(affects.fact):
        return ["affects: name either a package or a fact"]
    kind = registry.kind(affects.name)
    if kind is None or kind.type != "version":
        return [f"affects: {affects.name!r} is no fact of type version; " + did_you_mean(affects.name, registry.names())]
    if affects.package and affects.package != re.sub(r"[-_.]+", "-", affects.package).lower():
        return [f"affects: package {affects.package!r} is not normalised (lower case, dashes)"]
    if not (affects.events or affects.versions or affects.absent):
        return [f"affects {affects.name}: give events, versions or absent"]
    found = []
    for event in affects.events:
        given = [text for text in (event.introduced, event.fixed, event.last_affected) if text is not None]
        if len(given) != 1:
            found.append(f"affects {affects.name}: an event has one of introduced, fixed, last_affected")
    texts = [text for event in affects.events for text in vars(event).values() if text is not None]
    found += [f"affects {affects.name}: {text!r} is no version" for text in (*texts, *affects.versions) if parse(text) is None]
    if affects.events and all(event.introduced is None for event in affects.events):
        found.append(f'affects {affects.name}: a range needs introduced ("0" for all releases)')
    return found


def _condition_faults(condition: Condition, registry: Registry, trusted: bool, depth: int) -> list[str]:
    inner = condition.any or condition.all
    if inner:
        if condition.left or condition.op or (condition.any and condition.all):
            return ["a condition is a comparison, any, or all"]
        if depth >= MAX_DEPTH:
            return [f"any and all nest at most {MAX_DEPTH} deep"]
        return [fault for part in inner for fault in _condition_faults(part, registry, trusted, depth + 1)]
    kind = registry.kind(condition.left)
    if kind is None:
        return [
            f"unknown fact {condition.left!r}; " + (did_you_mean(condition.left, registry.names()) or "`llmcheck rules facts` lists them")
        ]
    if condition.op is None:
        return [f"{condition.left}: no op"]
    right, other = condition.right, reference(condition.right)
    if other is not None and registry.kind(other) is None:
        return [f"unknown fact {other!r}; " + did_you_mean(other, registry.names())]
    where = f"{condition.left} {condition.op}"
    if condition.op == "present":
        return [] if isinstance(right, bool) else [f"{where}: right is true or false"]
    if right is None:
        return [f"{where}: no right"]
    if other is not None:
        return []
    if condition.op in ("in", "not in"):
        return [] if isinstance(right, list) and right else [f"{where}: right is a list"]
    if condition.op in ("matches", "not matches"):
        if not isinstance(right, str):
            return [f"{where}: right is a regular expression"]
        return [] if trusted else [f"{where}: {complaint}" for complaint in complaints(right)]
    if condition.op in ("contains", "not contains"):
        return [] if kind.type in ("str", "any", "list[str]", "list[int]") else [f"{where}: {kind.type} contains nothing"]
    return [] if _comparable(kind.type, right, condition.op) else [f"{where}: cannot compare {kind.type} with {right!r}"]


def _comparable(kind: str, right: Any, op: str) -> bool:
    if kind == "any":
        return not isinstance(right, (dict, list)) or op in ("==", "!=")
    if kind in ("int", "float"):
        return isinstance(right, (int, float)) and not isinstance(right, bool)
    if kind == "bool":
        return isinstance(right, bool) and op in ("==", "!=")
    if kind == "version":
        return isinstance(right, str) and parse(right) is not None
    if kind == "str":
        return isinstance(right, str) and op in ("==", "!=")
    return isinstance(right, list) and op in ("==", "!=")


def _log_faults(log: LogPattern, trusted: bool) -> list[str]:
    found = []
    if log.raised_in:
        if log.literal or log.above or log.below or log.lines != 1 or log.min_count != 1 or log.group_by:
            found.append("raised_in is for the line of an exception: no literal, above, below, lines, min_count or group_by beside it")
        if log.role != "root":
            found.append("raised_in needs role root")
    elif not log.literal:
        found.append("no literal")
    for what, texts in (("literal", log.literal), ("raised_in", log.raised_in)):
        found += [f"{what} {text!r} is shorter than {MIN_LITERAL_CHARS} characters" for text in texts if len(text) < MIN_LITERAL_CHARS]
    if not 1 <= log.lines <= MAX_LINES:
        found.append(f"lines is from 1 to {MAX_LINES}")
    if log.min_count < 1:
        found.append("min_count is at least 1")
    contexts: list[Context] = [*log.above, *log.below]
    for context in contexts:
        if not 1 <= context.within <= MAX_WITHIN_LINES:
            found.append(f"within is from 1 to {MAX_WITHIN_LINES} lines")
        if len(context.literal) < MIN_LITERAL_CHARS:
            found.append(f"literal {context.literal!r} is shorter than {MIN_LITERAL_CHARS} characters")
    if trusted:
        return found
    patterns = [log.pattern, *[context.pattern for context in contexts if context.pattern]]
    return found + [f"pattern: {complaint}" for pattern in patterns for complaint in complaints(pattern)]


def _refuse_repeats(packs: Sequence[Pack]) -> None:
    problems = []
    for what in ("code", "name"):
        seen: dict[str, str] = {}
        for pack in packs:
            for rule in pack.rules:
                value = getattr(rule, what)
                if value in seen:
                    problems.append(f"{what} {value!r} is used twice: in {seen[value]} and in {pack.id}/{rule.file}")
                seen[value] = f"{pack.id}/{rule.file}"
    if problems:
        raise _refused(packs[-1].path, problems)


def _refused(folder: str, problems: Sequence[str]) -> UserError:
    shown = [*problems[:_MAX_PROBLEMS], *([f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else [])]
    what = "the rule pack has a fault" if len(problems) == 1 else f"the rule pack has {len(problems)} faults"
    return UserError(what, code="pack", where=folder, why=several(shown), hint="rules/README.md describes the format")
