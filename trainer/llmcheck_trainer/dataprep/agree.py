"""Whether prepared data is what a plan counts on: sequence length, vocabulary, tokenizer. Numbers from the manifest; needs no torch.

`llmcheck train` asks before any rank starts, the trainer asks again on each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import tokenizer as tokenizers_

READABLE = (tokenizers_.JSON, tokenizers_.MODEL)  # tokenizers that this package loads


def too_long(longest: int, seq_len: int, where: str) -> UserError | None:
    """The error of rows longer than the plan's sequences, which need memory that the plan does not have."""
    if longest <= seq_len:
        return None
    return UserError(
        f"a row has {longest} tokens, the plan's sequences have {seq_len}",
        code="data-length",
        where=where,
        why="longer rows need memory that the plan does not have",
        hint=f"prepare the data with --seq-len {seq_len}, or plan with --seq-len {longest}",
    )


def cut_shorter(manifest: Mapping[str, Any], longest: int, seq_len: int, where: str) -> UserError | None:
    """The error of rows that were cut, or left out, at a length below the plan's: the plan has room for what was lost."""
    cut_at = manifest["seq_len"]
    if cut_at >= seq_len:
        return None
    num_cut = _count(manifest.get("truncated")) + _count((manifest.get("dropped") or {}).get("too-long"))
    if not num_cut and longest < cut_at:
        return None  # nothing reached that length: the rows are those of the plan's
    lost = f"{num_cut:,} rows were cut off there or left out" if num_cut else "longer texts were cut into pieces there"
    return UserError(
        f"the data was prepared for sequences of {cut_at} tokens, the plan's have {seq_len}",
        code="seq-len",
        where=where,
        why=lost + ", and the plan has room for them",
        hint=f"prepare the data with --seq-len {seq_len}, or plan with --seq-len {cut_at}; --allow seq-len goes on",
    )


def _count(places: Any) -> int:
    return int(places.get("count", 0)) if isinstance(places, Mapping) else 0


def beyond_vocabulary(manifest: Mapping[str, Any], num_rows: int, where: str) -> UserError | None:
    """The error of a tokenizer with more tokens than the model's embedding has rows."""
    size = manifest["tokenizer"]["vocab_size"]
    if size <= num_rows:
        return None
    return UserError(
        f"the data's tokenizer has {size} tokens, the plan's model has {num_rows} rows",
        code="vocabulary",
        where=where,
        why="an id beyond the last row is an illegal memory access on the GPU",
        hint="prepare the data with the model's own tokenizer",
    )


def beyond_its_tokenizer(manifest: Mapping[str, Any], largest: int, where: str) -> UserError | None:
    """The error of ids that the manifest's own tokenizer does not have: files of another preparation, or damaged ones."""
    size = manifest["tokenizer"]["vocab_size"]
    if largest < size:
        return None
    return UserError(
        f"the data holds the id {largest}, its tokenizer has {size} tokens",
        code="vocabulary",
        where=where,
        why="its files are damaged, or of another preparation",
        hint="prepare the data again",
    )


def other_tokenizer(manifest: Mapping[str, Any], folder: str, where: str) -> UserError | None:
    """The error of a tokenizer in `folder` that makes other tokens than the one that made the data; None where there is none to read.

    Raises UserError where it cannot be read.
    """
    if not any(os.path.isfile(os.path.join(folder, name)) for name in READABLE):
        return None
    said = manifest["tokenizer"]
    here = _load(folder, said)
    if here.digest == said["digest"] or here.tokens_digest() == said.get("tokens_digest"):
        return None
    found = {"vocab_size": here.backend.vocab_size, "eos_id": here.eos_id, "bos_id": here.bos_id}
    differing = [f"{key} {said.get(key)}, not {value}" for key, value in found.items() if said.get(key) != value]
    return UserError(
        "the data was made with another tokenizer than the one beside the weights" + (f": {differing[0]}" if differing else ""),
        code="tokenizer",
        where=where,
        why=f"it was made with {said.get('path', 'one of another digest')}; the same text is other tokens with {folder}",
        hint=f"prepare the data with --tokenizer {folder}",
    )


def _load(folder: str, said: Mapping[str, Any]) -> tokenizers_.Tokenizer:
    """The tokenizer in `folder` with the padding that the data has, where it has that token: padding decides no other token."""
    try:
        return tokenizers_.load(folder, pad_token=said.get("pad_token"))
    except UserError as reason:
        if reason.where != "--pad-token":
            raise
        return tokenizers_.load(folder)
