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
from llmcheck_trainer.dataprep import hub, store, templates
from llmcheck_trainer.dataprep import tokenizer as tokenizers_
from llmcheck_trainer.dataprep.batch import Batch, assemble
from llmcheck_trainer.dataprep.chat_template import ChatTemplate
from llmcheck_trainer.dataprep.encoders import DisagreementError, Encoder, choose
from llmcheck_trainer.dataprep.rows import REASONS, BadRowError, Reader, Sample, reader_of
from llmcheck_trainer.dataprep.settings import AUTO_TEMPLATE, Settings
from llmcheck_trainer.dataprep.sources import Rows, Source, hash_file, open_source
from llmcheck_trainer.dataprep.tally import Tally
from llmcheck_trainer.dataprep.templates import NO_TAIL, Segment, Template

VERSION = 1  # of what is written for given input; a change makes earlier folders stale
EARLY_ROWS = 1000  # when all of so many are bad, the rest is not tried
MAX_BATCH_CHARS = 16 << 20  # of text that is encoded at once


@dataclass(frozen=True)
class Outcome:
    """The manifest, whether it was there already, and what there is to say about the encoder (it leaves no trace in the files)."""

    manifest: dict[str, Any]
    reused: bool
    note: str = ""


def prepare(settings: Settings) -> Outcome:
    """Write `settings.out`, or find that it holds just this. Raises UserError; then nothing has changed there."""
    store.check_place(settings.out)
    sources = _sources(settings.files)
    folder = hub.tokenizer_folder(settings.tokenizer) if hub.is_name(settings.tokenizer) else settings.tokenizer
    tokenizer = tokenizers_.load(folder, pad_token=settings.pad_token)
    with ExitStack() as stack:
        renderer = _template(settings, tokenizer, stack)
        asked = _asked(settings, tokenizer, renderer)
        manifest = _same(settings.out, asked, sources)
        if manifest is not None:
            return Outcome(manifest, True)
        encoder, note = choose(tokenizer, settings.fast)
        try:
            return Outcome(_write(settings, tokenizer, renderer, encoder, sources, asked), False, note)
        except DisagreementError as reason:
            if settings.fast == "require":
                raise UserError("the fast encoder gives other tokens", code="encoder", where="--fast require", why=str(reason)) from reason
            encoder, _ = choose(tokenizer, "off")
            again = [open_source(source.path, source.label) for source in sources]
            manifest = _write(settings, tokenizer, renderer, encoder, again, asked)
            return Outcome(manifest, False, f"encoded with {encoder.name}, from the start: {reason}")


Renderer = Template | ChatTemplate


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


def _same(out: str, asked: dict[str, Any], sources: list[Source]) -> dict[str, Any] | None:
    """The manifest in `out` when it is of the same settings and sources, and its files are whole."""
    try:
        manifest = store.read_manifest(out)
    except UserError:
        return None
    known = manifest.get("sources")
    if manifest.get("asked") != asked or not isinstance(known, list) or len(known) != len(sources):
        return None
    for source, said in zip(sources, known, strict=True):
        if not isinstance(said, dict) or said.get("num_bytes") != source.num_bytes:
            return None
    for source, said in zip(sources, known, strict=True):
        if hash_file(source.path) != said.get("sha256"):
            return None
    return manifest if store.is_whole(out, manifest) else None


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
        work = _Work(settings, tokenizer, renderer, encoder, writer, tally)
        for place, source in enumerate(sources):
            work.take(place, source, advance)
        _judge(settings, tally, finished=True)
        return writer.finish(_manifest(settings, tokenizer, renderer, sources, asked, tally))


class _Work:
    """One pass over the sources."""

    def __init__(
        self,
        settings: Settings,
        tokenizer: tokenizers_.Tokenizer,
        renderer: Renderer | None,
        encoder: Encoder,
        writer: store.Writer,
        tally: Tally,
    ) -> None:
        self._settings, self._tokenizer, self._renderer = settings, tokenizer, renderer
        self._encoder, self._writer, self._tally = encoder, writer, tally
        self._reader = reader_of(settings.format)
        self._adds_bos = tokenizer.adds_bos and renderer is not None and renderer.adds_bos
        self._plain_tail = tokenizer.eos_id

    def take(self, place: int, source: Source, advance: Callable[[int], None]) -> None:
        """Read, encode and write the rows of one source."""
        for rows in source.read(advance):
            self._tally.num_source_rows += len(rows)
            samples = self._samples(source, rows)
            for batch in self._batches(source, samples):
                self._encode(place, source, batch)
            _judge(self._settings, self._tally, finished=False)

    def _samples(self, source: Source, rows: Rows) -> list[tuple[int, Sample]]:
        samples = []
        read = reader_of("text") if source.kind == "text" else self._reader
        leave_out = self._tally.leave_out
        for line, value in rows:
            sample = _read(value, read)
            if isinstance(sample, BadRowError):
                leave_out(sample.reason, source.label, line, sample.detail)
            else:
                samples.append((line, sample))
        return samples

    def _batches(self, source: Source, samples: list[tuple[int, Sample]]) -> Iterable[Batch]:
        batch, num_chars = Batch(), 0
        for line, segments, plain in self._segments(source, samples):
            batch.add(line, segments, bos=self._tokenizer.adds_bos if plain else self._adds_bos, plain=plain)
            num_chars += sum(len(text) for text, _, _ in segments)
            if num_chars > MAX_BATCH_CHARS:
                yield batch
                batch, num_chars = Batch(), 0
        if batch.lines:
            yield batch

    def _segments(self, source: Source, samples: list[tuple[int, Sample]]) -> Iterable[tuple[int, list[Segment], bool]]:
        """(line, segments, whether it is plain text) of each row that has any."""
        renderer = self._renderer
        rendered: dict[int, list[Segment] | BadRowError] = {}
        if isinstance(renderer, ChatTemplate):
            chats = [(line, sample) for line, sample in samples if sample.text is None]
            rendered = dict(zip((line for line, _ in chats), renderer.render([sample for _, sample in chats]), strict=True))
        for line, sample in samples:
            if sample.text is not None:
                yield line, [(sample.text, True, self._plain_tail)], True
                continue
            if renderer is None:
                raise UserError(
                    "these rows are conversations, and the tokenizer has no chat template",
                    code="template",
                    where=f"{source.label}, {source.unit} {line}",
                    hint="choose one: --template " + "|".join(templates.names()),
                )
            try:
                segments = rendered[line] if isinstance(renderer, ChatTemplate) else renderer.segments(sample)
                if isinstance(segments, BadRowError):
                    raise segments
                yield line, segments, False
            except BadRowError as reason:
                self._tally.leave_out(reason.reason, source.label, line, reason.detail)

    def _encode(self, place: int, source: Source, batch: Batch) -> None:
        tally, settings = self._tally, self._settings
        ids, counts = self._encoder.encode(batch.texts)
        arrays = assemble(
            batch, ids, counts, seq_len=settings.seq_len, bos_id=self._tokenizer.bos_id, drop_long=settings.too_long == "drop"
        )
        self._writer.add(arrays.tokens, arrays.supervised, arrays.lengths, arrays.lines | (place << store.FILE_SHIFT))
        tally.num_rows += len(arrays.lengths)
        tally.num_tokens += len(arrays.tokens)
        tally.num_supervised += arrays.num_supervised
        tally.num_tokens_lost += arrays.num_tokens_lost
        tally.truncate(source.label, arrays.truncated_lines.tolist())
        tally.leave_all_out("no-supervised-token", source.label, arrays.unsupervised_lines.tolist())
        tally.leave_all_out("too-long", source.label, arrays.too_long_lines.tolist())
        tally.measure(arrays.full_lengths)


def _read(value: Any, read: Reader) -> Sample | BadRowError:
    """The sample of a decoded row, or why there is none."""
    if isinstance(value, BadRowError):
        return value
    try:
        return read(value)
    except BadRowError as reason:
        return reason


def _judge(settings: Settings, tally: Tally, *, finished: bool) -> None:
    """Raise UserError when too many rows are bad to go on, or nothing is left in the end."""
    bad, total, limit = tally.num_bad, tally.num_source_rows, settings.max_bad
    none_good = total >= EARLY_ROWS and bad == total
    too_many = bad > limit if limit is not None else (finished and 2 * bad > total)
    if not (none_good or too_many or (finished and not tally.num_rows)):
        return
    dropped = tally.dropped()
    reason, places = next(iter(dropped.items()), ("", {"first": []}))
    first = places["first"][0] if places["first"] else None
    many = f"{bad} of {total} rows are bad" if bad else f"none of {total} rows can be used" if total else "there are no rows"
    raise UserError(
        many + ("" if finished or bad == total else " so far"),
        code="data",
        where=f"{first['file']}, row or line {first['line']}" if first else ", ".join(settings.files[:3]),
        why=f"{REASONS[reason]}; {first.get('detail', '')}".rstrip("; ") if first else "the files are empty",
        hint="nothing was written; mend the rows" + (", or allow more with --max-bad" if limit is not None else "; is --rows-are right?"),
    )


def _manifest(
    settings: Settings,
    tokenizer: tokenizers_.Tokenizer,
    renderer: Renderer | None,
    sources: list[Source],
    asked: dict[str, Any],
    tally: Tally,
) -> dict[str, Any]:
    notes = [*tokenizer.notes, *_template_notes(tokenizer, renderer)]
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
        "tokenizer": {
            "path": settings.tokenizer,
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.backend.vocab_size,
            "pad_id": tokenizer.pad_id,
            "pad_token": tokenizer.backend.id_to_token(tokenizer.pad_id),
            "eos_id": tokenizer.eos_id,
            "bos_id": tokenizer.bos_id,
        },
        "template": {"name": name, "digest": asked["template"], "date": asked["date"]},
        "asked": asked,
        "sources": listed,
        "dropped": tally.dropped(),
        "truncated": tally.truncated(),
        "lengths": tally.lengths(settings.seq_len),
        "notes": notes,
    }


def _template_notes(tokenizer: tokenizers_.Tokenizer, renderer: Renderer | None) -> list[str]:
    notes = []
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
