"""llmcheck.toml: a repository's own settings of the gate; and the baseline of findings that are known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmcheck import jsonfile, toml
from llmcheck.codec import from_plain
from llmcheck.errors import UserError, did_you_mean, several
from llmcheck.report.finding import Finding
from llmcheck.report.gate import FailOn, Gate, Ignore
from llmcheck.rules.rule import Confidence

FILE = "llmcheck.toml"
BASELINE_SCHEMA = "llmcheck.baseline/1"
_MAX_BYTES = 1 << 20
_GUIDE = "docs/guides/gate.md shows what it may hold"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What llmcheck.toml may say. Options on the command line win."""

    fail_on: FailOn | None = None
    min_confidence: Confidence | None = None
    select: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()  # folders of packs, from the file's own folder
    baseline: str = ""
    strict: bool = False
    allow_unknown: tuple[str, ...] = ()
    ignore: tuple[Ignore, ...] = ()
    folder: str = "."

    def rules_here(self) -> list[str]:
        """The folders of packs, from where we are."""
        return [self.path(name) for name in self.rules]

    def path(self, name: str) -> str:
        """`name` from the settings file's folder."""
        return os.path.normpath(os.path.join(self.folder, name))


def load(path: str | None) -> Settings:
    """The settings at `path`, or in llmcheck.toml here when None (defaults where there is no such file). Raises UserError."""
    if path is None:
        if not os.path.lexists(FILE):
            return Settings()
        path = FILE
    data = jsonfile.read_bytes(path, what="settings file", where=path, max_bytes=_MAX_BYTES)
    try:
        document = toml.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as reason:
        raise UserError("the settings file is not valid TOML", code="settings", where=path, why=str(reason)[:200], hint=_GUIDE) from reason
    problems: list[str] = []
    if "folder" in document:  # ours, not the file's
        problems.append(f"{FILE}.folder: unknown key")
    settings = from_plain(Settings, {**document, "folder": os.path.dirname(path) or "."}, FILE, problems)
    if problems or settings is None:
        raise _faulty(path, problems)
    return replace(settings, select=tuple(code.upper() for code in settings.select))


def check(settings: Settings, codes: Sequence[str], path: str) -> None:
    """Raises UserError for ignores without reason and for codes that no rule has: a mistyped ignore would be a silent hole."""
    known = set(codes)
    problems = []
    for entry in settings.ignore:
        if entry.code not in known:
            problems.append(f"[[ignore]] {entry.code}: no such rule; " + did_you_mean(entry.code, known))
        if not entry.reason.strip():
            problems.append(f"[[ignore]] {entry.code}: give a reason")
    problems += [
        f"select {prefix}: no rule's code begins so; " + did_you_mean(prefix, known)
        for prefix in settings.select
        if not any(code.startswith(prefix) for code in known)
    ]
    problems += [
        f"allow_unknown {code}: no such rule; " + did_you_mean(code, known) for code in settings.allow_unknown if code not in known
    ]
    if problems:
        raise _faulty(path, problems)


def _faulty(path: str, problems: Sequence[str]) -> UserError:
    return UserError("the settings file has faults", code="settings", where=path, why=several(problems[:20]), hint=_GUIDE)


def gate(
    settings: Settings,
    *,
    fail_on: FailOn | None,
    min_confidence: Confidence | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    baseline: str | None,
    allow_unknown: tuple[str, ...],
    strict: bool,
) -> Gate:
    """The gate that options and settings make together."""
    file = baseline or (settings.path(settings.baseline) if settings.baseline else "")
    return Gate(
        fail_on=fail_on or settings.fail_on or "error",
        min_confidence=min_confidence or settings.min_confidence or "low",
        select=select or settings.select,
        ignore=ignore,
        ignores=settings.ignore,
        baseline=read_baseline(file) if file else frozenset(),
        allow_unknown=(*allow_unknown, *settings.allow_unknown),
        strict=strict or settings.strict,
    )


def read_baseline(path: str) -> frozenset[str]:
    """The fingerprints in the baseline at `path`. Raises UserError."""
    document = jsonfile.load(path, what="baseline", where=path)
    schema = document.get("schema") if isinstance(document, dict) else None
    if isinstance(schema, str) and schema != BASELINE_SCHEMA:
        newer = schema.startswith(BASELINE_SCHEMA.rpartition("/")[0] + "/")
        raise UserError(
            f"the file is {schema[:60]!r}, and a baseline is {BASELINE_SCHEMA!r}",
            code="baseline",
            where=path,
            why="another release of llmcheck wrote it" if newer else "",
            hint="write it again: --write-baseline FILE --force",
        )
    entries = document.get("findings") if isinstance(document, dict) and document.get("schema") == BASELINE_SCHEMA else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("fingerprint"), str) for entry in entries):
        why, hint = "it has no list of findings with fingerprints", "`llmcheck doctor ... --write-baseline FILE` writes one"
        raise UserError("not a baseline of llmcheck's", code="baseline", where=path, why=why, hint=hint)
    return frozenset(entry["fingerprint"] for entry in entries)


def baseline_document(findings: tuple[Finding, ...]) -> Mapping[str, object]:
    """What --write-baseline writes: every failure that is not ignored already."""
    entries = [
        {"code": finding.code, "fingerprint": finding.fingerprint, "message": finding.message}
        for finding in findings
        if finding.outcome == "fail" and finding.suppressed_by != "ignored"
    ]
    return {"schema": BASELINE_SCHEMA, "findings": sorted(entries, key=lambda entry: (entry["code"], entry["fingerprint"]))}


def check_prefixes(flag: str, prefixes: tuple[str, ...], codes: tuple[str, ...], *, whole: bool = False) -> None:
    """Raises UserError for a prefix with which no code begins: a mistyped selection would pass unread. `whole`: for what is no code."""
    for prefix in prefixes:
        if prefix in codes or (not whole and any(code.startswith(prefix) for code in codes)):
            continue
        hint = did_you_mean(prefix, codes) or "`llmcheck rules list` shows the codes"
        what = f"no rule has the code {prefix!r}" if whole else f"no rule's code begins with {prefix!r}"
        raise UserError(what, code="selection", where=flag, hint=hint)
