"""From files of rows to a folder of tokens: one pass, some MiB at a time, whatever the size."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcheck import __version__
from llmcheck.errors import UserError, did_you_mean
from llmcheck.progress import bytes_bar
from llmcheck_trainer.dataprep import hub, reuse, store, templates
from llmcheck_trainer.dataprep import tokenizer as tokenizers_
from llmcheck_trainer.dataprep.chat_template import ChatTemplate
from llmcheck_trainer.dataprep.encoders import DisagreementError, Encoder, choose
from llmcheck_trainer.dataprep.settings import AUTO_TEMPLATE, Settings
from llmcheck_trainer.dataprep.sources import Source, open_source
from llmcheck_trainer.dataprep.tally import Tally
from llmcheck_trainer.dataprep.templates import NO_TAIL, Template
from llmcheck_trainer.dataprep.work import Nowhere, Renderer, Work, judge

VERSION = 2  # of what is written for given input; a change makes earlier folders stale
TRIAL_ROWS = 1000  # of all files together that a dry run encodes: their shape shows in the first ones


@dataclass(frozen=True)
class Outcome:
    """The manifest, whether it was there already, and what there is to say about the encoder (it leaves no trace in the files)."""

    manifest: dict[str, Any]
    reused: bool
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """What a preparation would do. `manifest`: of the first rows, or, `reused`, the one that is there; `changes` as in Beginning."""

    manifest: dict[str, Any]
    reused: bool
    changes: tuple[str, ...]
    num_rows_read: int
    num_bytes: int


@dataclass(frozen=True)
class Beginning:
    """What a preparation that has to be made is about to read, and with what; `changes`: why what is there cannot be used again."""

    tokenizer: tokenizers_.Tokenizer
    renderer: Renderer | None
    sources: tuple[Source, ...]
    changes: tuple[str, ...]


def prepare(settings: Settings, begin: Callable[[Beginning], None] = lambda _: None) -> Outcome:
    """Write `settings.out`, or find that it holds just this. `begin` is told before the first row is read.

    Raises UserError; then nothing has changed there.
    """
    store.check_place(settings.out)
    sources = _sources(settings.files)
    folder = hub.tokenizer_folder(settings.tokenizer) if hub.is_name(settings.tokenizer) else settings.tokenizer
    tokenizer = tokenizers_.load(folder, pad_token=settings.pad_token)
    with ExitStack() as stack:
        renderer = _template(settings, tokenizer, stack)
        asked = _asked(settings, tokenizer, renderer)
        manifest, changes = reuse.look(settings.out, asked, sources)
        if manifest is not None:
            return Outcome(manifest, True)
        begin(Beginning(tokenizer, renderer, tuple(sources), changes))
        encoder, note = choose(tokenizer, settings.fast)
        try:
            return Outcome(_write(settings, tokenizer, renderer, encoder, sources, asked), False, note)
        except DisagreementError as reason:
            if settings.fast == "require":
                hint = "--fast auto takes the slow one where it must"
                raise UserError(
                    "the fast encoder gives other tokens", code="encoder", where="--fast require", why=str(reason), hint=hint
                ) from reason
            encoder, _ = choose(tokenizer, "off")
            again = [open_source(source.path, source.label) for source in sources]
            manifest = _write(settings, tokenizer, renderer, encoder, again, asked)
            return Outcome(manifest, False, f"encoded with {encoder.name}, from the start: {reason}")


def try_first(settings: Settings) -> Trial:
    """Encode the first rows and write nothing. Raises UserError for what would stop :func:`prepare` before, or in, those rows."""
    store.check_place(settings.out, made=False)
    sources = _sources(settings.files)
    folder = hub.tokenizer_folder(settings.tokenizer) if hub.is_name(settings.tokenizer) else settings.tokenizer
    tokenizer = tokenizers_.load(folder, pad_token=settings.pad_token)
    num_bytes = sum(source.num_bytes for source in sources)
    with ExitStack() as stack:
        renderer = _template(settings, tokenizer, stack)
        asked = _asked(settings, tokenizer, renderer)
        manifest, changes = reuse.look(settings.out, asked, sources)
        if manifest is not None:
            return Trial(manifest, True, (), 0, num_bytes)
        encoder, _ = choose(tokenizer, "off")  # the fast one takes longer to start than these rows take
        tally = Tally()
        work = Work(settings, tokenizer, renderer, encoder, Nowhere(), tally)
        for place, source in enumerate(sources):
            share = -(-TRIAL_ROWS // len(sources))
            left = share
            for rows in source.read(lambda _: None, hashed=False):
                work.take_rows(place, source, rows[:left])
                left -= len(rows)
                if left <= 0:
                    break
        judge(settings, tally, renderer, finished=True)
        files = {name: {"sha256": "", "num_bytes": 0} for name in store.FILES}
        trial = {**_manifest(settings, tokenizer, renderer, sources, asked, tally), "files": files}
        return Trial(trial, False, changes, tally.num_source_rows, num_bytes)


def _sources(files: Iterable[str]) -> list[Source]:
    sources: list[Source] = []
    for file in files:
        if hub.is_name(file):
            sources += [open_source(path, label) for path, label in hub.data_files(file)]
        else:
            sources.append(open_source(file))
    if len(sources) > store.MAX_FILES:
        raise UserError(
            f"{len(sources)} files are too many", code="input", where="FILE", why=f"at most {store.MAX_FILES}", hint="join some"
        )
    return sources


def _template(settings: Settings, tokenizer: tokenizers_.Tokenizer, stack: ExitStack) -> Renderer | None:
    """The template asked for; None where there is none, which plain text does without."""
    name, text = settings.template, tokenizer.chat_template
    if name in templates.names():
        for token in templates.needs(name):
            if tokenizer.backend.token_to_id(token) is None:
                raise UserError(
                    f"the template {name} needs the token {token!r}",
                    code="template",
                    where=f"--template {name}",
                    why="the tokenizer does not have it, so it would be split into letters that no model knows as a mark",
                    hint="choose another template: " + ", ".join(each for each in templates.names() if not templates.needs(each)),
                )
        return templates.load(name, eos_id=tokenizer.eos_id)
    if name not in (AUTO_TEMPLATE, "tokenizer"):
        if not os.path.isfile(name):
            known = [*templates.names(), "tokenizer"]
            raise UserError(
                f"unknown template {name!r}",
                code="template",
                where="--template",
                hint=did_you_mean(name, known) or "one of " + ", ".join(known) + ", or a file with a chat template in Jinja",
            )
        text = tokenizers_.template_text(name)
    if text is None:
        if name == AUTO_TEMPLATE:
            return None
        raise UserError("the tokenizer has no chat template", code="template", where="--template tokenizer", hint="choose another")
    ends = [token for token in tokenizer.backend.specials if token]
    name = "tokenizer" if name == AUTO_TEMPLATE else name
    return stack.enter_context(ChatTemplate(name, text, variables=tokenizer.variables, ends=ends, date=settings.date))


def _asked(settings: Settings, tokenizer: tokenizers_.Tokenizer, renderer: Renderer | None) -> dict[str, Any]:
    """Everything but the sources that decides what is written."""
    uses_date = isinstance(renderer, ChatTemplate) and renderer.uses_date
    return {
        "version": VERSION,
        "seq_len": settings.seq_len,
        "format": settings.format,
        "too_long": settings.too_long,
        "max_bad": settings.max_bad,
        "tokenizer": tokenizer.digest,
        "template": None if renderer is None else renderer.digest,
        "date": settings.date if uses_date else None,
    }


def _write(
    settings: Settings,
    tokenizer: tokenizers_.Tokenizer,
    renderer: Renderer | None,
    encoder: Encoder,
    sources: list[Source],
    asked: dict[str, Any],
) -> dict[str, Any]:
    tally = Tally()
    if isinstance(renderer, ChatTemplate):
        renderer.num_missing = renderer.num_endless = 0
    total = sum(source.num_bytes for source in sources)
    with (
        store.Writer(settings.out, dtype=store.token_dtype(tokenizer.backend.vocab_size)) as writer,
        bytes_bar("preparing", total) as advance,
    ):
        work = Work(settings, tokenizer, renderer, encoder, writer, tally)
        for place, source in enumerate(sources):
            work.take(place, source, advance)
        judge(settings, tally, renderer, finished=True)
        return writer.finish(_manifest(settings, tokenizer, renderer, sources, asked, tally))


def tokenizer_entry(path: str, tokenizer: tokenizers_.Tokenizer) -> dict[str, Any]:
    """What a manifest says of its tokenizer."""
    return {
        "path": path,
        "digest": tokenizer.digest,
        "tokens_digest": tokenizer.tokens_digest(),
        "vocab_size": tokenizer.backend.vocab_size,
        "pad_id": tokenizer.pad_id,
        "pad_token": tokenizer.backend.id_to_token(tokenizer.pad_id),
        "eos_id": tokenizer.eos_id,
        "bos_id": tokenizer.bos_id,
    }


def _manifest(
    settings: Settings,
    tokenizer: tokenizers_.Tokenizer,
    renderer: Renderer | None,
    sources: list[Source],
    asked: dict[str, Any],
    tally: Tally,
) -> dict[str, Any]:
    notes = [*tokenizer.notes, *_template_notes(tokenizer, renderer, tally), *_repeated(sources)]
    listed = [{"path": each.label, "sha256": each.sha256, "num_bytes": each.num_bytes, "num_rows": each.num_rows} for each in sources]
    inputs = hashlib.sha256(json.dumps([asked, [each["sha256"] for each in listed]], sort_keys=True).encode()).hexdigest()
    name = None if renderer is None else renderer.name
    return {
        "schema": store.SCHEMA,
        "llmcheck_version": __version__,
        "inputs": f"sha256:{inputs}",
        "num_rows": tally.num_rows,
        "num_tokens": tally.num_tokens,
        "num_supervised_tokens": tally.num_supervised,
        "num_source_rows": tally.num_source_rows,
        "seq_len": settings.seq_len,
        "token_dtype": store.token_dtype(tokenizer.backend.vocab_size),
        "tokenizer": tokenizer_entry(settings.tokenizer, tokenizer),
        "template": {"name": name, "digest": asked["template"], "date": asked["date"]},
        "asked": asked,
        "sources": listed,
        "dropped": tally.dropped(),
        "truncated": tally.truncated(),
        "pieces": tally.pieces(),
        "lengths": tally.lengths(settings.seq_len, drop_long=settings.too_long == "drop"),
        "notes": notes,
    }


def _repeated(sources: Iterable[Source]) -> list[str]:
    """Files of the same content: each of their rows is learnt as often as they are named."""
    first: dict[str, str] = {}
    notes = []
    for each in sources:
        if not each.sha256:  # a trial that came to no end
            continue
        if each.sha256 not in first:
            first[each.sha256] = each.label
        elif first[each.sha256] == each.label:
            notes.append(f"{each.label} is named twice: its rows are learnt as often")
        else:
            notes.append(f"{each.label} is {first[each.sha256]} under another name: its rows are learnt twice")
    return notes


def _template_notes(tokenizer: tokenizers_.Tokenizer, renderer: Renderer | None, tally: Tally) -> list[str]:
    notes = []
    for number, what in ((tally.num_without_tools, "lists of tools"), (tally.num_without_thoughts, "thoughts beside answers")):
        if number and renderer is not None:
            rows = f"{number:,} conversations lose" if number > 1 else "1 conversation loses"
            notes.append(f"{rows} {what}: the template {renderer.name} has no form for them")
    if isinstance(renderer, ChatTemplate) and renderer.num_missing:
        notes.append(f"{renderer.num_missing} answers are not learnt: they cannot be found again in what the chat template makes of them")
    if isinstance(renderer, ChatTemplate) and renderer.num_endless:
        notes.append(f"{renderer.num_endless} conversations have no end token in the loss: the chat template leaves it out")
    if isinstance(renderer, Template) and renderer.tail == NO_TAIL and renderer.answer[1]:
        end = tokenizer.backend.token_to_id(renderer.answer[1])
        if end != tokenizer.eos_id:
            eos = tokenizer.backend.id_to_token(tokenizer.eos_id)
            notes.append(
                f"the template {renderer.name} ends answers with {renderer.answer[1]!r}, not with {eos!r}: generation must stop at it"
            )
    return notes


assert np.iinfo(np.int64).max >> store.FILE_SHIFT >= store.MAX_FILES - 1
