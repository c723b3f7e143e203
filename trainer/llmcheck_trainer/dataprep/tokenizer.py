"""A tokenizer's folder: the tokens that mark ends and padding, and the encoders over it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llmcheck.errors import CouldNotCheckError, UserError, did_you_mean
from llmcheck.jsonfile import load_object, read_bytes
from llmcheck.paths import trouble_with

JSON, MODEL, CONFIG, SPECIAL_MAP = "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, MODEL_CONFIG, TEMPLATE = "generation_config.json", "config.json", "chat_template.jinja"
MAX_TOKENIZER_BYTES = 256 << 20  # the largest in use are below 40 MB
MAX_TEMPLATE_BYTES = 1 << 20  # the longest in use are below 30,000 characters

# Tokens that vocabularies keep for padding, by how clearly they say so; before them comes any special token with "pad" in its name.
# <unk> is what BELLE takes for LLaMA 1.
_PADS = ("<|endoftext|>", "<unk>", "[UNK]", "<|reserved_special_token_0|>")


class Backend(Protocol):
    """What the `tokenizers` and `sentencepiece` packages both know about a vocabulary."""

    name: str

    def token_to_id(self, token: str) -> int | None:
        """The id of a whole token, or None."""

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens included."""

    def content(self) -> bytes:
        """What decides the tokens of a text, in one form whatever the file was written by."""

    @property
    def vocab_size(self) -> int:
        """The largest id, added tokens included, and one."""

    @property
    def specials(self) -> tuple[str, ...]:
        """The tokens that are found in text before anything else is."""

    @property
    def adds_bos(self) -> bool:
        """True when the package puts the begin token before a text by itself."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer ready for use. `digest` changes with its files and the tokens chosen; `notes` are for the report."""

    path: str
    backend: Backend
    serialized: str  # tokenizer.json without truncation and padding; empty for SentencePiece
    digest: str
    eos_id: int
    pad_id: int
    bos_id: int | None
    adds_bos: bool
    chat_template: str | None
    variables: Mapping[str, str]  # bos_token and the like, for chat templates
    notes: tuple[str, ...]

    def tokens_digest(self) -> str:
        """Changes with whatever decides the tokens of a text, and with nothing else: files saved again are told apart by `digest` only."""
        content = self.backend.content()
        choice = f"{self.eos_id} {self.bos_id} {self.adds_bos}"
        return "sha256:" + hashlib.sha256(content + choice.encode()).hexdigest()


def load(path: str, *, pad_token: str | None = None) -> Tokenizer:
    """The tokenizer in the folder `path`. Raises UserError, CouldNotCheckError where a package is missing."""
    wanted = f"give the model's folder, with {JSON} (or {MODEL}) and {CONFIG}; or a Hub name where the Hub can be reached"
    if (trouble := trouble_with(path, folder=True, otherwise=wanted)) is not None:
        why, hint = trouble
        raise UserError(f"no tokenizer at {path}", code="tokenizer", where="--tokenizer", why=why, hint=hint)
    if pad_token is not None and not _is_text(pad_token):
        raise UserError("--pad-token is not UTF-8 text", code="tokenizer", where="--pad-token", hint="it must be one whole token")
    backend, serialized, content = _backend(path)
    config = _optional(path, CONFIG)
    special_map = _optional(path, SPECIAL_MAP)
    generation, model_config = _optional(path, GENERATION), _optional(path, MODEL_CONFIG)

    def token_of(role: str) -> str | None:
        for document in (config, special_map):
            value = document.get(f"{role}_token")
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value:
                return value
        for document in (generation, model_config):
            value = document.get(f"{role}_token_id")
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < backend.vocab_size:
                return backend.id_to_token(value)
        return getattr(backend, role, None)

    names = {role: token_of(role) for role in ("bos", "eos", "pad", "unk")}
    ids = {role: None if token is None else backend.token_to_id(token) for role, token in names.items()}
    eos_id = _eos(path, names["eos"], ids["eos"])
    pad_id, notes = _pad(backend, names, ids, eos_id, pad_token)
    said = config.get("add_bos_token")
    adds_bos = ids["bos"] is not None and (said if isinstance(said, bool) else backend.adds_bos)
    template = _chat_template(path, config)
    choice = f"{eos_id} {pad_id} {ids['bos']} {adds_bos}"
    return Tokenizer(
        path=path,
        backend=backend,
        serialized=serialized,
        digest="sha256:" + hashlib.sha256(content + choice.encode()).hexdigest(),
        eos_id=eos_id,
        pad_id=pad_id,
        bos_id=ids["bos"],
        adds_bos=adds_bos,
        chat_template=template,
        variables={f"{role}_token": token for role, token in names.items() if token is not None},
        notes=notes,
    )


def _eos(path: str, token: str | None, token_id: int | None) -> int:
    if token_id is not None:
        return token_id
    raise UserError(
        "the tokenizer has no end-of-sequence token" if token is None else f"the end token {token!r} is not in the vocabulary",
        code="tokenizer",
        where=path,
        why="without one a model never learns to stop",
        hint=f'set "eos_token" in {CONFIG} to a token of the vocabulary',
    )


def _pad(
    backend: Backend, names: Mapping[str, str | None], ids: Mapping[str, int | None], eos_id: int, asked: str | None
) -> tuple[int, tuple[str, ...]]:
    """The padding token, never the end token: trainers that mask padding would mask every end, and the model would not learn to stop."""
    if asked is not None:
        chosen = backend.token_to_id(asked)
        if chosen is None:
            raise UserError(
                f"the vocabulary has no token {asked!r}",
                code="tokenizer",
                where="--pad-token",
                hint=did_you_mean(asked, backend.specials) or "it must be one whole token",
            )
        if chosen == eos_id:
            raise UserError(
                f"{asked!r} is the end token too",
                code="tokenizer",
                where="--pad-token",
                why="its loss would be masked",
                hint="choose another",
            )
        return chosen, ()
    own = ids["pad"]
    if own is not None and own != eos_id:
        return own, ()
    why = "has no padding token" if own is None else f"pads with its end token {names['pad']!r}, whose loss trainers would mask"
    for token in (*(token for token in backend.specials if "pad" in token.lower()), *_PADS):
        found = backend.token_to_id(token)
        if found is not None and found not in (eos_id, ids["bos"]):
            return found, (f"the tokenizer {why}: {token!r} is taken for padding",)
    raise UserError(
        f"the tokenizer {why}",
        code="tokenizer",
        where="--pad-token",
        hint="name a token that texts never hold: --pad-token TOKEN",
    )


def _chat_template(path: str, config: Mapping[str, Any]) -> str | None:
    """The text of the folder's chat template: its own file, else what the configuration holds; of several the one called default."""
    file = os.path.join(path, TEMPLATE)
    if os.path.isfile(file):
        return template_text(file)
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None


def template_text(path: str) -> str:
    """The chat template in the file at `path`. Raises UserError."""
    data = read_bytes(path, what="chat template", max_bytes=MAX_TEMPLATE_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as reason:
        raise UserError("the chat template is not UTF-8 text", code="template", where=path, hint="save it as UTF-8") from reason


def _optional(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    document = load_object(path, what=name) if os.path.isfile(path) else {}
    if not _is_text(json.dumps(document, ensure_ascii=False)):
        raise UserError(
            f"{name} holds half of a character",
            code="tokenizer",
            where=path,
            why=r"an escape like \ud800 stands alone, and no vocabulary has that",
            hint="download the file again, or mend it",
        )
    return document


def _is_text(text: str) -> bool:
    """Whether every character of `text` is a whole one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _backend(folder: str) -> tuple[Backend, str, bytes]:
    path = os.path.join(folder, JSON)
    if os.path.isfile(path):
        content = read_bytes(path, what=JSON, max_bytes=MAX_TOKENIZER_BYTES)
        backend = _FromJson(content, path)
        return backend, backend.serialized, content
    path = os.path.join(folder, MODEL)
    if os.path.isfile(path):
        content = read_bytes(path, what=MODEL, max_bytes=MAX_TOKENIZER_BYTES)
        return _FromModel(content, path), "", content
    raise UserError(
        f"no tokenizer in {folder}",
        code="tokenizer",
        where="--tokenizer",
        why=f"it has neither {JSON} nor {MODEL}",
        hint="is it the model's folder? vocab.json and merges.txt alone are made one by AutoTokenizer(...).save_pretrained(DIR)",
    )


class _FromJson:
    """tokenizer.json through the package `tokenizers`."""

    name = "tokenizers"

    def __init__(self, content: bytes, path: str) -> None:
        import tokenizers

        try:
            self.own = tokenizers.Tokenizer.from_str(content.decode())
        except BaseException as reason:  # a panic in its Rust code is no Exception
            if isinstance(reason, (KeyboardInterrupt, MemoryError)):
                raise
            raise UserError(
                f"{JSON} cannot be loaded",
                code="tokenizer",
                where=path,
                why=f"tokenizers {tokenizers.__version__}: {str(reason)[:200]}",
                hint="`llmcheck doctor --tokenizer DIR` says more; a newer tokenizers may read it",
            ) from None
        # Some files hold the truncation of a trial run; every text would be cut without a word.
        self.own.no_truncation()
        self.own.no_padding()
        self.serialized: str = self.own.to_str()
        added = self.own.get_added_tokens_decoder()
        self._vocab_size = 1 + max([*added, *self.own.get_vocab(with_added_tokens=True).values()])
        self._specials = tuple(token.content for token in added.values())

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self.own.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        found: str | None = self.own.id_to_token(token_id)
        return found

    def content(self) -> bytes:
        document = json.loads(self.serialized)
        parts = {key: document.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return json.dumps(parts, sort_keys=True).encode()

    def decode(self, ids: list[int]) -> str:
        text: str = self.own.decode(ids, skip_special_tokens=False)
        return text

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def specials(self) -> tuple[str, ...]:
        return self._specials

    @property
    def adds_bos(self) -> bool:
        with_specials, without = (self.own.encode("a", add_special_tokens=flag).ids for flag in (True, False))
        return len(with_specials) > len(without) and with_specials[0] != without[0]


class _FromModel:
    """tokenizer.model through the package `sentencepiece`; it finds no special tokens in text."""

    name = "sentencepiece"

    def __init__(self, content: bytes, path: str) -> None:
        try:
            import sentencepiece
        except ImportError as reason:
            raise CouldNotCheckError(
                f"{MODEL} needs sentencepiece",
                code="missing-package",
                where=path,
                why=f"the folder has no {JSON}, and sentencepiece is not installed",
                hint=f"pip install sentencepiece; or make {JSON} with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            ) from reason
        try:
            self.own = sentencepiece.SentencePieceProcessor(model_proto=content)
            self._size = int(self.own.vocab_size())
        except (RuntimeError, ValueError, OSError) as reason:
            raise UserError(
                f"{MODEL} cannot be loaded", code="tokenizer", where=path, why=str(reason)[:200], hint="is it a SentencePiece model?"
            ) from reason
        if not self._size:
            raise UserError(f"{MODEL} holds no pieces", code="tokenizer", where=path, hint="is it a SentencePiece model?")

    def token_to_id(self, token: str) -> int | None:
        found = int(self.own.piece_to_id(token))
        return found if self.own.id_to_piece(found) == token else None

    def id_to_token(self, token_id: int) -> str | None:
        piece: str = self.own.id_to_piece(token_id)
        return piece

    def _token(self, token_id: int) -> str | None:
        return self.id_to_token(token_id) if token_id >= 0 else None

    @property
    def bos(self) -> str | None:
        """The model's own begin token, where the configuration names none."""
        return self._token(self.own.bos_id())

    @property
    def eos(self) -> str | None:
        """Likewise the end."""
        return self._token(self.own.eos_id())

    @property
    def unk(self) -> str | None:
        """Likewise what stands for the unknown."""
        return self._token(self.own.unk_id())

    @property
    def pad(self) -> str | None:
        """Likewise padding; most models have none."""
        return self._token(self.own.pad_id())

    def content(self) -> bytes:
        proto: bytes = self.own.serialized_model_proto()
        return proto

    def decode(self, ids: list[int]) -> str:
        """Runs of pieces as text, control pieces by their names."""
        parts: list[str] = []
        run: list[int] = []
        for token_id in ids:
            if self.own.is_control(token_id) or self.own.is_unknown(token_id):
                parts += (self.own.decode(run), self.own.id_to_piece(token_id))
                run = []
            else:
                run.append(token_id)
        return "".join([*parts, self.own.decode(run)])

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def specials(self) -> tuple[str, ...]:
        return tuple(token for token in (self.bos, self.eos, self.unk, self.pad) if token)

    @property
    def adds_bos(self) -> bool:
        return True  # as LlamaTokenizer does unless its configuration says otherwise
