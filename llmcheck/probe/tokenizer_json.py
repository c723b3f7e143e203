"""Reading a tokenizer.json (the format of the `tokenizers` library): vocabulary, added tokens, what the post-processor adds. Data only.

Format: https://github.com/huggingface/tokenizers (tokenizers/src/tokenizer/serialization.rs). Files of 17 MB take about a quarter of a
second: the merges are parsed with the rest, because a parser in C is faster than skipping them in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmcheck import jsonfile
from llmcheck.errors import UserError

MAX_BYTES = 64 << 20  # the largest in use (Gemma 3) are 33 MB
MAX_ID = 1 << 31
_MAX_NODES = 2_000  # of normalizer, pre_tokenizer and decoder together: real ones have a dozen


@dataclass(frozen=True, kw_only=True)
class TokenizerJson:
    """What a tokenizer.json says."""

    model_type: str | None  # BPE, Unigram, WordPiece, WordLevel
    vocab: Mapping[str, int]
    added: Mapping[str, int]  # added_tokens: content -> id
    unk_token: str | None
    byte_fallback: bool
    byte_level: bool
    merges_are_pairs: bool | None  # None: no merges
    first_added: str | None  # the special token that the post-processor puts before a text
    last_added: str | None
    split_patterns: tuple[str, ...]  # regular expressions of the pre-tokenizer, in order


def read(path: str) -> TokenizerJson:
    """The tokenizer at `path`. Raises UserError when it cannot be read, is larger than 64 MiB, or is not the format."""
    document = jsonfile.load_object(path, what="tokenizer.json", max_bytes=MAX_BYTES)
    try:
        return _read(document)
    except _FormatError as reason:
        raise UserError(f"not a tokenizer.json: {path}", code="tokenizer-json", where=path, why=str(reason), hint=_HINT) from reason


_HINT = "is it the file that tokenizer.save_pretrained wrote? copy or download it again"


class _FormatError(ValueError):
    """The document is JSON but not this format."""


def _read(document: Mapping[str, Any]) -> TokenizerJson:
    model = document.get("model")
    if not isinstance(model, dict):
        raise _FormatError("it has no model")
    steps = [*_nodes(document.get("normalizer")), *_nodes(document.get("pre_tokenizer")), *_nodes(document.get("decoder"))]
    merges = model.get("merges")
    first, last = _around(document.get("post_processor"))
    kind = model.get("type")
    return TokenizerJson(
        model_type=kind if isinstance(kind, str) else None,
        vocab=_vocabulary(model.get("vocab")),
        added=_added(document.get("added_tokens")),
        unk_token=_unknown(model),
        byte_fallback=model.get("byte_fallback") is True,
        byte_level=any(step.get("type") == "ByteLevel" for step in steps),
        merges_are_pairs=isinstance(merges[0], list) if isinstance(merges, list) and merges else None,
        first_added=first,
        last_added=last,
        split_patterns=tuple(_patterns(document.get("pre_tokenizer"))),
    )


def _vocabulary(vocab: Any) -> dict[str, int]:
    if vocab is None:
        return {}
    if isinstance(vocab, dict):
        if not all(type(index) is int and 0 <= index < MAX_ID for index in vocab.values()):
            raise _FormatError("an id in its vocabulary is not a whole number below 2^31")
        return vocab
    if isinstance(vocab, list):  # Unigram: [[piece, score], ...], the id is the position
        ids: dict[str, int] = {}
        for index, entry in enumerate(vocab):
            if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
                raise _FormatError("an entry of its vocabulary is not a piece with a score")
            ids.setdefault(entry[0], index)
        return ids
    raise _FormatError(f"its vocabulary is {jsonfile.kind_of(vocab)}")


def _added(tokens: Any) -> dict[str, int]:
    if tokens is None:
        return {}
    if not isinstance(tokens, list):
        raise _FormatError("its added_tokens are not a list")
    added: dict[str, int] = {}
    for token in tokens:
        content, index = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or type(index) is not int or not 0 <= index < MAX_ID:
            raise _FormatError("an added token has no content or no id")
        added[content] = index
    return added


def _unknown(model: Mapping[str, Any]) -> str | None:
    token = model.get("unk_token")
    if isinstance(token, str):
        return token
    index, vocab = model.get("unk_id"), model.get("vocab")  # Unigram
    if type(index) is int and isinstance(vocab, list) and 0 <= index < len(vocab):
        piece = vocab[index]
        return piece[0] if isinstance(piece, list) and piece and isinstance(piece[0], str) else None
    return None


def _nodes(part: Any) -> Iterator[Mapping[str, Any]]:
    """A step and, where it is a sequence, those in it."""
    waiting, seen = [part], 0
    while waiting and seen < _MAX_NODES:
        node = waiting.pop(0)
        if not isinstance(node, dict):
            continue
        seen += 1
        yield node
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            inner = node.get(key)
            if isinstance(inner, list):
                waiting += inner[:_MAX_NODES]


def _patterns(pre_tokenizer: Any) -> Iterator[str]:
    for node in _nodes(pre_tokenizer):
        pattern = node.get("pattern")
        if node.get("type") == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            yield pattern["Regex"]


def _around(post_processor: Any) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts at the start and at the end of a single text."""
    for node in _nodes(post_processor):
        single = node.get("single")
        if node.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            return _special(single[0]), _special(single[-1])
    return None, None


def _special(part: Any) -> str | None:
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None
