"""Rows to tokens: decoded rows are read, rendered, encoded in batches, counted, and handed to a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import store, templates
from llmcheck_trainer.dataprep import tokenizer as tokenizers_
from llmcheck_trainer.dataprep.batch import Batch, assemble
from llmcheck_trainer.dataprep.chat_template import ChatTemplate
from llmcheck_trainer.dataprep.encoders import Encoder
from llmcheck_trainer.dataprep.rows import REASONS, BadRowError, Reader, Sample, reader_of
from llmcheck_trainer.dataprep.settings import Settings
from llmcheck_trainer.dataprep.sources import Rows, Source
from llmcheck_trainer.dataprep.tally import Tally
from llmcheck_trainer.dataprep.templates import Segment, Template

EARLY_ROWS = 1000  # when all of so many are bad, the rest is not tried
MAX_BATCH_CHARS = 16 << 20  # of text that is encoded at once

Renderer = Template | ChatTemplate


class Sink(Protocol):
    """What takes the encoded rows."""

    def add(self, tokens: Any, supervised: Any, lengths: Any, sources: Any) -> None:
        """Take rows as flat arrays, as store.Writer does."""


class Nowhere:
    """A sink for rows that are only counted."""

    def add(self, tokens: Any, supervised: Any, lengths: Any, sources: Any) -> None:
        """Forget them."""


class Work:
    """One pass over the sources. `sink` takes what is written: a store.Writer, or nothing for a trial."""

    def __init__(
        self,
        settings: Settings,
        tokenizer: tokenizers_.Tokenizer,
        renderer: Renderer | None,
        encoder: Encoder,
        sink: Sink,
        tally: Tally,
    ) -> None:
        self._settings, self._tokenizer, self._renderer = settings, tokenizer, renderer
        self._encoder, self._sink, self._tally = encoder, sink, tally
        self._reader = reader_of(settings.format)
        self._adds_bos = tokenizer.adds_bos and renderer is not None and renderer.adds_bos
        self._plain_tail = tokenizer.eos_id

    def take(self, place: int, source: Source, advance: Callable[[int], None]) -> None:
        """Read, encode and write the rows of one source."""
        for rows in source.read(advance):
            self.take_rows(place, source, rows)
            judge(self._settings, self._tally, self._renderer, finished=False)

    def take_rows(self, place: int, source: Source, rows: Rows) -> None:
        """Likewise some rows of it."""
        self._tally.num_source_rows += len(rows)
        samples = self._samples(source, rows)
        for batch in self._batches(source, samples):
            self._encode(place, source, batch)

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
                if not isinstance(renderer, ChatTemplate):
                    self._tally.num_without_tools += bool(sample.tools)
                    self._tally.num_without_thoughts += any(turn.thinks for turn in sample.turns)
                yield line, segments, False
            except BadRowError as reason:
                self._tally.leave_out(reason.reason, source.label, line, reason.detail)

    def _encode(self, place: int, source: Source, batch: Batch) -> None:
        tally, settings = self._tally, self._settings
        ids, counts = self._encoder.encode(batch.texts)
        arrays = assemble(
            batch, ids, counts, seq_len=settings.seq_len, bos_id=self._tokenizer.bos_id, drop_long=settings.too_long == "drop"
        )
        self._sink.add(arrays.tokens, arrays.supervised, arrays.lengths, arrays.lines | (place << store.FILE_SHIFT))
        tally.num_rows += len(arrays.lengths)
        tally.num_tokens += len(arrays.tokens)
        tally.num_supervised += arrays.num_supervised
        tally.num_tokens_lost += arrays.num_tokens_lost
        tally.truncate(source.label, arrays.truncated_lines.tolist())
        tally.leave_all_out("no-supervised-token", source.label, arrays.unsupervised_lines.tolist())
        tally.leave_all_out("too-long", source.label, arrays.too_long_lines.tolist())
        plain = np.array(batch.plain, dtype=bool)
        tally.measure(arrays.full_lengths, plain)
        cut = np.array(batch.lines, dtype=np.int64)[plain & (arrays.full_lengths > settings.seq_len)]
        tally.num_texts_cut += len(cut)
        tally.num_pieces += int(np.isin(arrays.lines, cut).sum())


def _read(value: Any, read: Reader) -> Sample | BadRowError:
    """The sample of a decoded row, or why there is none."""
    if isinstance(value, BadRowError):
        return value
    try:
        return read(value)
    except BadRowError as reason:
        return reason


def judge(settings: Settings, tally: Tally, renderer: Renderer | None, *, finished: bool) -> None:
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
        hint=_way_out(reason, settings, left_out=isinstance(renderer, ChatTemplate) and renderer.num_missing > 0),
    )


def _way_out(reason: str, settings: Settings, *, left_out: bool) -> str:
    """What to do next; `left_out`: answers were not found in what the chat template makes of them."""
    if reason == "no-supervised-token" and left_out:
        return "nothing was written; the chat template leaves answers out, or changes them: is it one? choose another --template"
    if reason in ("no-supervised-token", "too-long"):
        return f"nothing was written; {settings.seq_len} tokens leave no room for answers: longer sequences, or a shorter template"
    if not reason:
        return "nothing was written; are these the right files?"
    if reason == "not-utf8":
        return "nothing was written; text must be UTF-8; a file of GB18030: iconv -f GB18030 -t UTF-8 FILE > NEW"
    if reason == "template":
        return "nothing was written; choose another --template, or mend the rows"
    more = ", or allow more with --max-bad" if settings.max_bad is not None else "; is --rows-are right?"
    return "nothing was written; mend the rows" + more
