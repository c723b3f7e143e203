"""The data of a run made ready before any rank starts: raw files prepared or found prepared, folders looked at, all against the plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

from llmcheck.console import Terminal, complain
from llmcheck.errors import UserError
from llmcheck.units import human_bytes
from llmcheck_trainer.dataprep import agree, report, store
from llmcheck_trainer.dataprep.prepare import Beginning, Trial, prepare, tokenizer_entry, try_first
from llmcheck_trainer.dataprep.settings import Settings

_PLAIN = Terminal(colour=False)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the plan says of the data: tokens of a sequence, rows of the embedding, and the folder of the weights' tokenizer, if any."""

    seq_len: int
    num_rows: int
    tokenizer: str | None
    allowed: frozenset[str]  # codes that only warn


@dataclass(frozen=True, kw_only=True)
class Set:
    """`flag` gave either the prepared `folder`, or files to prepare as `settings` say."""

    flag: str
    folder: str | None = None
    settings: Settings | None = None


@dataclass(frozen=True)
class _Found:
    """A set that is ready, or in a dry run would be. `files`: of settings, for a dry run that has hashed nothing."""

    manifest: Mapping[str, Any]
    files: tuple[str, ...] = ()


def make_ready(sets: Iterable[Set], wanted: Wanted, *, dry: bool) -> None:
    """Prepare what is not prepared, compare with the plan, say on stderr what became of it. `dry`: write nothing. Raises UserError."""
    found = []
    for each in sets:
        if each.settings is None:
            found.append(_prepared(each, wanted))
        elif dry:
            found.append(_tried(each.settings, each.flag, wanted))
        else:
            found.append(_made(each.settings, each.flag, wanted))
    if len(found) == 2:
        _warn_of_shared(*found)


def _prepared(given: Set, wanted: Wanted) -> _Found:
    assert given.folder is not None
    try:
        return _found(given.folder, given, wanted)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as reason:  # it was edited: all of this is read from it
        raise store.damaged(f"{given.flag} {given.folder}", reason) from reason


def _found(folder: str, given: Set, wanted: Wanted) -> _Found:
    manifest = _look_at(folder, given.flag, wanted)
    if not store.is_whole(folder, manifest):
        raise store.changed(f"{given.flag} {folder}")
    complain([f"{given.flag} {folder}: {line}" if not at else line for at, line in enumerate(report.brief(manifest, _PLAIN))])
    return _Found(manifest)


def _made(settings: Settings, flag: str, wanted: Wanted) -> _Found:
    settings = _with_date(settings)

    def begin(beginning: Beginning) -> None:
        entry = {"tokenizer": tokenizer_entry(settings.tokenizer, beginning.tokenizer)}
        _against_plan(entry, settings.out, flag, wanted)  # before the work
        complain([_begins(settings, beginning)])

    try:
        outcome = prepare(settings, begin)
    except UserError as error:
        raise _in_words_of_train(error) from error
    if outcome.reused:
        lines = [f"{flag}: nothing has changed, {settings.out} is used again: ", *report.brief(outcome.manifest, _PLAIN)]
        complain([lines[0] + lines[1], *lines[2:]])
    else:
        complain([f"{flag}: {line}" if not at else line for at, line in enumerate(report.brief(outcome.manifest, _PLAIN))])
        complain([f"see samples: llmcheck data show {quote(settings.out)}"])
    if outcome.note:
        complain([f"note: {outcome.note}"])
    return _Found(_look_at(settings.out, flag, wanted, compared=not outcome.reused), settings.files)


def _tried(settings: Settings, flag: str, wanted: Wanted) -> _Found:
    settings = _with_date(settings)
    try:
        trial = try_first(settings)
    except UserError as error:
        raise _in_words_of_train(error) from error
    if trial.reused:
        complain([f"{flag}: nothing has changed, {settings.out} would be used again"])
        return _Found(_look_at(settings.out, flag, wanted), settings.files)
    complain(_would(settings, flag, trial))
    _against_plan(trial.manifest, settings.out, flag, wanted)
    return _Found(trial.manifest, settings.files)


def _would(settings: Settings, flag: str, trial: Trial) -> list[str]:
    again = f" again, since {'; '.join(trial.changes)}" if trial.changes else ""
    template = trial.manifest["template"]["name"] or "none"
    sources = len(trial.manifest["sources"])
    head = (
        f"{flag}: would prepare {sources} file{'s' if sources != 1 else ''}, {human_bytes(trial.num_bytes)}, to {settings.out}{again}: "
        f"tokenizer {settings.tokenizer}, template {template}, {settings.seq_len:,} tokens"
    )
    used, read = report.num_rows_used(trial.manifest), trial.num_rows_read
    return [head, f"{used:,} of the first {read:,} rows would be used", *report.brief(trial.manifest, _PLAIN)[1:]]


def _begins(settings: Settings, beginning: Beginning) -> str:
    size = human_bytes(sum(source.num_bytes for source in beginning.sources))
    number = len(beginning.sources)
    what = f"{number} file{'s' if number != 1 else ''}, {size}, with the tokenizer {settings.tokenizer}, {settings.seq_len:,} tokens a row"
    if beginning.changes:
        return f"{settings.out}: prepared again, since {'; '.join(beginning.changes)}: {what}"
    return f"{settings.out}: preparing {what}"


def _with_date(settings: Settings) -> Settings:
    """`settings` with the day that the folder's template was given: a run that goes on tomorrow goes on with the same rows."""
    if settings.date:
        return settings
    from datetime import date

    try:
        asked = store.read_manifest(settings.out).get("asked")
    except UserError:
        asked = None
    kept = asked.get("date") if isinstance(asked, dict) else None
    return replace(settings, date=kept if isinstance(kept, str) else date.today().isoformat())


def _look_at(folder: str, flag: str, wanted: Wanted, *, compared: bool = False) -> Mapping[str, Any]:
    """The manifest of a prepared folder that agrees with the plan. `compared`: its tokenizer was, already."""
    try:
        reader = store.Reader(folder)
    except UserError as error:
        raise UserError(error.what, code=error.code, where=f"{flag} {folder}", why=error.why, hint=error.hint) from error
    where = f"{flag} {folder}"
    longest = reader.longest()
    beyond = agree.too_long(longest, wanted.seq_len, where)
    if beyond is not None:
        raise beyond
    cut = agree.cut_shorter(reader.manifest, longest, wanted.seq_len, where)
    if cut is not None:
        _fail(cut, wanted)
    wrong = agree.beyond_its_tokenizer(reader.manifest, reader.largest_id(), where)
    if wrong is not None:
        raise wrong
    if not compared:
        _against_plan(reader.manifest, folder, flag, wanted)
    return reader.manifest


def _against_plan(manifest: Mapping[str, Any], folder: str, flag: str, wanted: Wanted) -> None:
    where = f"{flag} {folder}"
    beyond = agree.beyond_vocabulary(manifest, wanted.num_rows, where)
    if beyond is not None:
        raise beyond
    differs = None if wanted.tokenizer is None else agree.other_tokenizer(manifest, wanted.tokenizer, where)
    if differs is not None:
        _fail(differs, wanted)


def _fail(error: UserError, wanted: Wanted) -> None:
    if error.code not in wanted.allowed:
        raise error
    complain([f"warning[{error.code}]: {error.what}"])


def _warn_of_shared(train: _Found, held_out: _Found) -> None:
    """Rows that are learnt say nothing about rows that are not."""
    sums = {source["sha256"]: source["path"] for source in _sources(train) if source.get("sha256")}
    shared = [source["path"] for source in _sources(held_out) if source.get("sha256") in sums]
    shared += [file for file in held_out.files if any(_is_same(file, other) for other in train.files) and file not in shared]
    if not shared and train.manifest["files"][store.TOKENS] == held_out.manifest["files"][store.TOKENS]:
        shared = ["all of it"] if train.manifest["files"][store.TOKENS]["num_bytes"] else []
    if shared:
        complain(
            [
                f"warning[eval-data]: --eval-data is training data too: {', '.join(shared[:3])}",
                "  why: the loss on rows that were learnt falls whatever is learnt; --patience and the best checkpoint go by it",
                "  hint: hold other rows out",
            ]
        )


def _sources(found: _Found) -> list[Mapping[str, Any]]:
    """The sources that the manifest names; one of a folder may have been edited."""
    listed = found.manifest.get("sources")
    if not isinstance(listed, list):
        return []
    named = [each for each in listed if isinstance(each, dict) and isinstance(each.get("path"), str)]
    return [each for each in named if isinstance(each.get("sha256", ""), str)]


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other


def _in_words_of_train(error: UserError) -> UserError:
    """`error` about --out, which `llmcheck train` makes of --output."""
    if not error.where.startswith("--out "):
        return error
    hint = "move it away, or name another --output" if error.code == "exists" else error.hint
    return type(error)(error.what, code=error.code, where=f"--output: {error.where[6:]}", why=error.why, hint=hint)
