"""Whether a folder holds just what a preparation would write, and if not, what has changed since it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcheck.console import Terminal
from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import report, store
from llmcheck_trainer.dataprep.sources import Source, hash_file

_MAX_NAMED = 3  # files named of each kind


def look(out: str, asked: Mapping[str, Any], sources: Sequence[Source]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The manifest in `out` when it is of the same settings and sources and its files are whole; else None, and what differs.

    Nothing differs where nothing is there.
    """
    try:
        manifest = store.read_manifest(out)
    except UserError as reason:
        return None, () if reason.code == "data" and not reason.why else (reason.what,)
    changes = (*_settings(manifest, asked), *_files(manifest, sources))
    if changes:
        return None, changes
    try:
        report.summary(manifest, Terminal(colour=False))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # it was edited
        return None, ("its manifest is damaged",)
    return (manifest, ()) if store.is_whole(out, manifest) else (None, ("its files are damaged",))


def _settings(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    before = manifest.get("asked")
    if not isinstance(before, dict):
        return ["its manifest does not say what was asked for"]
    words = {
        "version": "another release of llmcheck wrote it",
        "seq_len": f"the sequence length was {before.get('seq_len')}, it is {asked['seq_len']}",
        "format": f"--rows-are was {before.get('format')}, it is {asked['format']}",
        "too_long": f"--too-long was {before.get('too_long')}, it is {asked['too_long']}",
        "max_bad": "--max-bad is another",
        "tokenizer": "the tokenizer, or the padding token, is another",
        "template": "the template is another",
        "date": f"the template's date was {before.get('date')}, it is {asked['date']}",
    }
    assert set(words) == set(asked)
    return [text for key, text in words.items() if before.get(key) != asked[key]]


def _files(manifest: Mapping[str, Any], sources: Sequence[Source]) -> list[str]:
    known = manifest.get("sources")
    if not isinstance(known, list) or not all(isinstance(said, dict) for said in known):
        return ["its manifest names no files"]
    before = [str(said.get("path")) for said in known]
    if len(known) != len(sources):
        return [f"it was made of {_named(before)}"]
    # A file is its content: a copy under another name gives the same tokens. Sizes first, since hashes take as long as reading.
    resized = [source.label for source, said in zip(sources, known, strict=True) if said.get("num_bytes") != source.num_bytes]
    changed = resized or [source.label for source, said in zip(sources, known, strict=True) if hash_file(source.path) != said.get("sha256")]
    if not changed:
        return []
    if set(changed) <= set(before):
        return [f"{_named(changed)} changed"]
    return [f"it was made of {_named(before)}"]


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
