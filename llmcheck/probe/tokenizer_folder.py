"""The files of a tokenizer's folder, read as data, with caps; nothing in them is run. What cannot be read is noted, not raised."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcheck import jsonfile
from llmcheck.catalog.config import check_regular
from llmcheck.errors import UserError
from llmcheck.probe import sentencepiece_model, special_tokens, tokenizer_json
from llmcheck.probe.sentencepiece_model import SentencePieceModel
from llmcheck.probe.special_tokens import Files
from llmcheck.probe.tokenizer_json import TokenizerJson
from llmcheck.rules.facts import Location

MAX_CONFIG_BYTES = 16 << 20  # tokenizer_config.json: the largest in use list 100,000 added tokens in 9 MB
MAX_VOCAB_BYTES = 64 << 20

SENTENCEPIECE, JSON, CONFIG, SPECIAL_MAP, ADDED = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
VOCAB, MERGES, TEMPLATE, PROCESSOR_TEMPLATE, TEKKEN = "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "tekken.json"
VOCABULARIES = (JSON, SENTENCEPIECE, VOCAB, "vocab.txt", "spiece.model", TEKKEN)
NAMES = (*VOCABULARIES, MERGES, CONFIG, SPECIAL_MAP, ADDED, TEMPLATE, PROCESSOR_TEMPLATE)

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]{1,1024}={0,2} [0-9]{1,9}\r?\n?")


@dataclass
class Folder:
    """The folder's files as far as they could be read."""

    path: str
    names: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    special_map: dict[str, Any] = field(default_factory=dict)
    added_file: dict[str, int] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    json: TokenizerJson | None = None
    sentencepiece: SentencePieceModel | None = None
    vocab: dict[str, int] | None = None
    num_tiktoken: int | None = None
    problems: dict[str, str] = field(default_factory=dict)  # file -> why it could not be read

    def at(self, name: str) -> Location:
        return Location(uri=os.path.join(self.path, name))

    def read(self, name: str, reader: Callable[[str], Any]) -> Any:
        """What `reader` makes of a file of the folder; None where it is not there or cannot be read, which is noted."""
        if name not in self.names:
            return None
        path = os.path.join(self.path, name)
        try:
            check_regular(path, name)
            return reader(path)
        except UserError as problem:
            self.problems[name] = problem.what + (f": {problem.why}" if problem.why else "")
            return None


def read_folder(path: str) -> Folder:
    """The files of the folder `path`. Raises UserError when it is no folder or holds no tokenizer."""
    present = jsonfile.list_folder(path, what="tokenizer's folder")
    names = tuple(sorted(name for name in present if name in NAMES or name.endswith(".tiktoken") or name == "config.json"))
    if not any(name in VOCABULARIES or name in (CONFIG, SPECIAL_MAP) or name.endswith(".tiktoken") for name in names):
        raise UserError(
            f"no tokenizer in {path}", code="no-tokenizer", where=path, why=f"neither {JSON} nor {SENTENCEPIECE} nor {CONFIG} is there",
            hint="give the folder that tokenizer.save_pretrained wrote",
        )  # fmt: skip
    folder = Folder(path=path, names=names)
    folder.config = folder.read(CONFIG, read_object) or {}
    folder.special_map = folder.read(SPECIAL_MAP, read_object) or {}
    folder.added_file = folder.read(ADDED, _read_vocab) or {}
    folder.model_config = folder.read("config.json", read_object) or {}
    folder.problems.pop("config.json", None)  # the model's own probe says so
    folder.json = folder.read(JSON, tokenizer_json.read)
    folder.num_tiktoken = next(
        (count for name in names if name.endswith(".tiktoken") if (count := folder.read(name, _count_tiktoken))), None
    )
    _read_model(folder)
    if JSON not in names and SENTENCEPIECE not in names:
        folder.vocab = folder.read(VOCAB, _read_vocab)
    return folder


def read_object(path: str) -> dict[str, Any]:
    """The JSON object at `path`. Raises UserError."""
    return jsonfile.load_object(path, what=os.path.basename(path), max_bytes=MAX_CONFIG_BYTES)


def _read_model(folder: Folder) -> None:
    """tokenizer.model: SentencePiece, or lines of tiktoken under the same name, as Llama 3's original files."""
    folder.sentencepiece = folder.read(SENTENCEPIECE, sentencepiece_model.read)
    if SENTENCEPIECE in folder.problems:
        count = folder.read(SENTENCEPIECE, _count_tiktoken)
        if count:
            folder.num_tiktoken = count
            del folder.problems[SENTENCEPIECE]


def _count_tiktoken(path: str) -> int | None:
    """The number of ranks in a tiktoken file, or None when it is not one."""
    data = jsonfile.read_bytes(path, what="tiktoken vocabulary", max_bytes=MAX_VOCAB_BYTES)
    lines = data.splitlines(keepends=True)
    return len(lines) if lines and all(_TIKTOKEN_LINE.fullmatch(line) for line in lines) else None


def _read_vocab(path: str) -> dict[str, int]:
    vocab = jsonfile.load_object(path, what=os.path.basename(path), max_bytes=MAX_VOCAB_BYTES)
    if not all(type(index) is int and 0 <= index < tokenizer_json.MAX_ID for index in vocab.values()):
        raise UserError(
            f"not a vocabulary: {path}", code="vocabulary", where=path, why="a value is no id", hint="it maps tokens to their ids"
        )
    return vocab


def special_files(folder: Folder) -> Files:
    """What the folder says that concerns special tokens."""
    name = folder.config.get("tokenizer_class") or folder.model_config.get("tokenizer_class")
    if not isinstance(name, str):
        name = special_tokens.class_of_model(folder.model_config.get("model_type"))
    vocab: Mapping[str, int] = {}
    if folder.json is not None:
        vocab = folder.json.vocab
    elif folder.sentencepiece is not None:
        vocab = folder.sentencepiece.ids
    elif folder.vocab is not None:
        vocab = folder.vocab
    added = {**folder.added_file, **decoder(folder), **(folder.json.added if folder.json is not None else {})}
    return Files(
        class_name=name, config=folder.config, special_map=folder.special_map, vocab=vocab, added=added, has_json=JSON in folder.names,
        has_sentencepiece=folder.sentencepiece is not None, remote_code=auto_class(folder) is not None,
    )  # fmt: skip


def decoder(folder: Folder) -> dict[str, int]:
    """added_tokens_decoder of tokenizer_config.json, turned round."""
    decoder = folder.config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return {}
    return {
        text: int(index)
        for index, token in decoder.items()
        if index.isascii() and index.isdigit() and len(index) < 10 and (text := special_tokens.content(token)) is not None
    }


def auto_class(folder: Folder) -> str | None:
    """The class in the folder's own code that AutoTokenizer would run, or None."""
    auto_map = folder.config.get("auto_map")
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if isinstance(named, list):
        named = next((name for name in named if isinstance(name, str)), None)
    return named if isinstance(named, str) else None
