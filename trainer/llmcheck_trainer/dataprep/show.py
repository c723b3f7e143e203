"""`llmcheck data show`: prepared rows as text again, with what is learnt."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from llmcheck.console import Terminal
from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import hub, report, store
from llmcheck_trainer.dataprep import tokenizer as tokenizers_
from llmcheck_trainer.dataprep.rows import BAD, REASONS


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to show of the folder `path`: `rows` (from 0), or the rows of a source `line` ("FILE:LINE"), else `num_rows` spread over all."""

    path: str
    num_rows: int = 3
    rows: tuple[int, ...] = ()
    line: str | None = None
    tokenizer: str | None = None


def show(request: Request, terminal: Terminal) -> str:
    """The text for a terminal. Raises UserError."""
    reader = store.Reader(request.path)
    try:
        lines = report.summary(reader.manifest, terminal)
        _check_sources(reader)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as reason:  # it was edited: all of this is read from it
        raise store.damaged(request.path, reason) from reason
    tokenizer = _tokenizer(request, reader.manifest)
    lines.append("")
    for row in chosen_rows(request, reader):
        ids, supervised = reader.row(row)
        lines += report.sample(_title(reader, row), parts(tokenizer.backend, ids, supervised), len(ids), int(supervised.sum()), terminal)
    return "\n".join(lines)


def document(request: Request) -> dict[str, Any]:
    """The same for programs: the manifest, and the chosen rows with ids and text."""
    reader = store.Reader(request.path)
    try:
        _check_sources(reader)
    except (KeyError, TypeError) as reason:
        raise store.damaged(request.path, reason) from reason
    tokenizer = _tokenizer(request, reader.manifest)
    rows = []
    for row in chosen_rows(request, reader):
        ids, supervised = reader.row(row)
        file, line = reader.source(row)
        rows.append(
            {
                "row": row,
                "file": reader.manifest["sources"][file]["path"],
                "line": line,
                "ids": ids.tolist(),
                "supervised": supervised.tolist(),
                "parts": [{"text": text, "learnt": learnt} for text, learnt in parts(tokenizer.backend, ids, supervised)],
            }
        )
    return {"schema": "llmcheck.data-show/1", "manifest": reader.manifest, "rows": rows}


def chosen_rows(request: Request, reader: store.Reader) -> list[int]:
    """The rows to show, in order. Raises UserError for rows that are not there."""
    if request.line is not None:
        return _rows_of_line(request.line, reader)
    for row in request.rows:
        if not 0 <= row < reader.num_rows:
            raise UserError(
                f"no row {row}", code="range", where="--row", why=f"there are {reader.num_rows:,}, counted from 0", hint="see --rows"
            )
    if request.rows:
        return list(request.rows)
    number = min(request.num_rows, reader.num_rows)
    return sorted({int(row) for row in np.linspace(0, reader.num_rows - 1, number)}) if number else []


def _rows_of_line(text: str, reader: store.Reader) -> list[int]:
    path, _, number = text.rpartition(":")
    sources = [source["path"] for source in reader.manifest["sources"]]
    if not number.isascii() or not number.isdigit() or len(number) > 14:
        raise UserError(f"--line needs a line number, not {text[:60]!r}", code="usage", where="--line", hint="FILE:17, or 17 with one file")
    if path and path not in sources:
        raise UserError(f"the data is not made of {path}", code="input", where="--line", hint="its files: " + ", ".join(sources[:5]))
    if not path and len(sources) != 1:
        raise UserError("which file? there are several", code="usage", where="--line", hint=f"--line {sources[0]}:{number}")
    rows = reader.rows_of(sources.index(path) if path else 0, int(number))
    if not rows:
        raise _nothing(reader.manifest, path or sources[0], int(number))
    return rows


def _nothing(manifest: dict[str, Any], path: str, line: int) -> UserError:
    """Why a line has no row: its own reason where it is one of the lines that the manifest names."""
    try:
        for reason, places in manifest["dropped"].items():
            for place in places["first"]:
                if place["file"] == path and place["line"] == line:
                    kind = "it is bad" if reason in BAD else "it was left out"
                    why = "; ".join(filter(None, (f"{kind}: {REASONS.get(reason, reason)}", place.get("detail"))))
                    return UserError(
                        f"nothing was made of line {line}", code="input", where=f"{path}:{line}", why=why, hint="mend the line"
                    )
        unnamed = any(places["count"] > len(places["first"]) for places in manifest["dropped"].values())
    except (KeyError, TypeError, AttributeError) as reason:
        raise store.damaged(path, reason) from reason
    why = "it is blank, or does not exist" + ("; or it was left out, and is not among the first of its kind" if unnamed else "")
    hint = 'the manifest\'s "dropped" counts what was left out and names the first'
    return UserError(f"nothing was made of line {line}", code="input", where=f"{path}:{line}", why=why, hint=hint)


def parts(backend: tokenizers_.Backend, ids: Any, supervised: Any) -> list[tuple[str, bool]]:
    """Runs of tokens of one kind as text: (text, whether it is learnt)."""
    if not len(ids):
        return []
    edges = [0, *(np.nonzero(np.diff(supervised))[0] + 1).tolist(), len(ids)]
    return [(backend.decode(ids[start:end].tolist()), bool(supervised[start])) for start, end in pairwise(edges)]


def _tokenizer(request: Request, manifest: dict[str, Any]) -> tokenizers_.Tokenizer:
    said = manifest["tokenizer"]
    path = request.tokenizer or said["path"]
    if request.tokenizer is None and not hub.is_name(path) and not os.path.isdir(path):
        raise UserError(
            f"the tokenizer that made the data is not at {path}",
            code="tokenizer",
            where=request.path,
            why="it has moved" if os.path.isabs(path) else "it has moved, or the path counts from another folder",
            hint="--tokenizer DIR says where it is",
        )
    folder = hub.tokenizer_folder(path) if hub.is_name(path) else path
    found = tokenizers_.load(folder, pad_token=None if request.tokenizer else said.get("pad_token"))
    # By the tokens, where the manifest has their digest: a file saved again is another file and the same tokenizer.
    key, own = ("tokens_digest", found.tokens_digest()) if said.get("tokens_digest") else ("digest", found.digest)
    if own != said[key]:
        raise UserError(
            f"the tokenizer at {path} is another than the one that made the data",
            code="tokenizer",
            where=request.path,
            why=f"its digest is {own[:19]}..., the data's {str(said[key])[:19]}...: the text would be another",
            hint="--tokenizer DIR with the data's own, or prepare the data again",
        )
    return found


def _check_sources(reader: store.Reader) -> None:
    """Raises TypeError or KeyError where a row's file, or the tokenizer, would not be found in the manifest."""
    sources = reader.manifest["sources"]
    if not isinstance(reader.manifest["tokenizer"]["path"], str):
        raise TypeError("its tokenizer has no path")
    if not isinstance(sources, list) or not all(isinstance(each, dict) and isinstance(each.get("path"), str) for each in sources):
        raise TypeError("its sources are not named")
    if reader.num_rows and reader.source(reader.num_rows - 1)[0] >= len(sources):
        raise TypeError("it names fewer sources than its rows are of")


def _title(reader: store.Reader, row: int) -> str:
    file, line = reader.source(row)
    return f"row {row:,} ({reader.manifest['sources'][file]['path']}:{line})"
