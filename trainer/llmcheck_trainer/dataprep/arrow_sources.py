"""Rows of Parquet and Arrow files, some thousand at a time, through pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck_trainer.dataprep.rows import FIELDS, BadRowError

if TYPE_CHECKING:
    from llmcheck_trainer.dataprep.sources import Rows, Source

BATCH_ROWS = 2048


def read(source: Source, advance: Callable[[int], None]) -> Iterator[Rows]:
    """The rows of `source`, numbered from 1. Raises UserError."""
    try:
        import pyarrow
    except ImportError as reason:
        raise CouldNotCheckError(
            f"{source.label} needs pyarrow",
            code="missing-package",
            where=source.label,
            why=f"it is {'an' if source.kind == 'arrow' else 'a'} {source.kind.capitalize()} file, and pyarrow is not installed",
            hint="pip install pyarrow",
        ) from reason
    batches = _parquet(source.path) if source.kind == "parquet" else _arrow(source.path)
    number, told = 1, 0
    try:
        for batch, done in batches:
            rows = _rows(batch)
            yield list(enumerate(rows, number))
            number += len(rows)
            now = int(done * source.num_bytes)
            advance(max(now - told, 0))
            told = max(now, told)
    except (pyarrow.ArrowException, OSError) as reason:
        raise UserError(
            f"the data file is damaged: {source.label}",
            code="unreadable",
            where=f"{source.label}, row {number} or later",
            why=str(reason).splitlines()[0][:200],
            hint="is it complete?",
        ) from reason


def _rows(batch: Any) -> list[Any]:
    """The rows as Python's values; of the columns that are not used, which may hold anything, the names only."""
    names = batch.schema.names
    places = [place for place, name in enumerate(names) if name in FIELDS]
    others = dict.fromkeys(name for name in names if name not in FIELDS)
    if not places:  # a batch without columns has no rows
        return [dict(others) for _ in range(batch.num_rows)]
    known = batch.select(places)
    try:
        rows = known.to_pylist()
    except (ValueError, OverflowError):  # one of the rows: text that is not UTF-8, a date that Python does not have
        rows = [_row(known.slice(place, 1)) for place in range(known.num_rows)]
    return [{**row, **others} if isinstance(row, dict) else row for row in rows] if others else rows


def _row(one: Any) -> Any:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as reason:
        return BadRowError("not-utf8", f"byte {reason.start} of a field is none")
    except (ValueError, OverflowError) as reason:
        return BadRowError("not-text", str(reason)[:100])


def _parquet(path: str) -> Iterator[tuple[Any, float]]:
    """Batches, and the share of the rows that is done after each. Not mapped into memory: mapped pages count as this process's."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        total, done = max(file.metadata.num_rows, 1), 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            done += batch.num_rows
            yield batch, done / total


def _arrow(path: str) -> Iterator[tuple[Any, float]]:
    import pyarrow

    with pyarrow.OSFile(path, "rb") as file:
        size = max(file.size(), 1)
        if file.read(6) == b"ARROW1":
            file.seek(0)
            reader = pyarrow.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS), (index + 1) / reader.num_record_batches
            return
        file.seek(0)
        for batch in pyarrow.ipc.open_stream(file):  # what the package `datasets` writes
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS), file.tell() / size
