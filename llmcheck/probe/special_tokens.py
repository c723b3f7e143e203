"""Which special tokens transformers gives a folder's tokenizer, by release: strings, ids, and what happens on the way (the "face").

Nothing is loaded: the rules by which transformers resolves the files are followed, as measured (llmcheck/data/tokenizers.toml).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from llmcheck import toml
from llmcheck.rules.rule import Affects, Event
from llmcheck.rules.versions import is_affected

ROLES = ("unk", "bos", "eos", "pad")
# The order in which transformers walks its special tokens, and so appends those that no vocabulary holds (SPECIAL_TOKENS_ATTRIBUTES).
_ORDER = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "LLaMATokenizer")
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
FORMER_CLASS = "LLaMATokenizer"  # before LLaMA was merged into transformers; tokenizers converted in March 2023 say so

Face = Literal[
    "ok", "class-not-found", "class-is-none", "generic-class", "recursion-at-load", "recursion-at-access", "returns-false",
    "silent-zero-ids", "misencodes", "bos-lost",
]  # fmt: skip


class _Recursion:
    """The id of a token for which transformers asks itself for ever."""


RECURSION: Final = _Recursion()
Id = int | None | _Recursion


class UndecidedError(Exception):
    """The version does not tell: a development build at the border of a change, or no version at all."""


@dataclass(frozen=True, kw_only=True)
class ClassDefaults:
    """What a tokenizer class uses where the files say nothing."""

    name: str
    tokens: Mapping[str, str]
    add_bos: bool | None
    add_eos: bool | None
    padding_side: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release of transformers, asked how it behaves."""

    version: str

    def does(self, behaviour: str) -> bool:
        """Whether `behaviour` (a name in tokenizers.toml) holds. Raises UndecidedError where it cannot be told."""
        answer = is_affected(self.version, Affects(package="transformers", events=_data()[2][behaviour]))
        if answer is None:
            raise UndecidedError(f"transformers {self.version} does not say whether {behaviour!r} holds: name a release")
        return answer


@dataclass(frozen=True, kw_only=True)
class Files:
    """What the files say that concerns special tokens."""

    class_name: str | None
    config: Mapping[str, Any]  # tokenizer_config.json
    special_map: Mapping[str, Any]  # special_tokens_map.json
    vocab: Mapping[str, int]  # the base vocabulary
    added: Mapping[str, int]  # tokens added on top, of all files
    has_json: bool
    has_sentencepiece: bool
    remote_code: bool = False

    @property
    def is_llama(self) -> bool:
        return self.class_name in LLAMA_CLASSES

    @property
    def is_generic(self) -> bool:
        return self.class_name in GENERIC_CLASSES


@dataclass(kw_only=True)
class Loaded:
    """What one way of loading gives."""

    face: Face
    ids: dict[str, int | None] = field(default_factory=dict)


@cache
def _data() -> tuple[dict[str, ClassDefaults], dict[str, str], dict[str, tuple[Event, ...]]]:
    """Class name -> defaults, model_type -> class name, behaviour -> releases."""
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
    document = toml.load(os.path.join(folder, "tokenizers.toml"))
    classes = {
        name: ClassDefaults(
            name=name, tokens={role: entry[role] for role in ROLES if role in entry},
            add_bos=entry.get("add_bos"), add_eos=entry.get("add_eos"), padding_side=entry["padding_side"],
        )
        for entry in document["class"]
        for name in entry["names"]
    }  # fmt: skip
    by_type = {kind: entry["names"][0] for entry in document["class"] for kind in entry.get("model_types", ())}
    return classes, by_type, {entry["name"]: tuple(Event(**event) for event in entry["events"]) for entry in document["behaviour"]}


def defaults_of(class_name: str | None) -> ClassDefaults | None:
    """The defaults of a class, or None where llmcheck does not know it."""
    return _data()[0].get(class_name or "")


def class_of_model(model_type: Any) -> str | None:
    """The tokenizer class that transformers takes for a model_type where the tokenizer's files name none; None: not known."""
    return _data()[1].get(model_type) if isinstance(model_type, str) else None


def content(value: Any) -> str | None:
    """The text of a token in either of its forms, a string or an AddedToken; None for null and anything else."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def strings(files: Files) -> dict[str, str | None]:
    """The special tokens as the files define them for transformers since 4.34, class defaults filled in; all roles that there are."""
    return _strings(files, _merged(files))


def unknown_roles(files: Files) -> tuple[str, ...]:
    """The roles that neither the files nor a known class's defaults fill."""
    if defaults_of(files.class_name) is not None:
        return ()
    merged = _merged(files)
    return tuple(role for role in ROLES if f"{role}_token" not in merged)


def _merged(files: Files) -> dict[str, Any]:
    """tokenizer_config.json with special_tokens_map.json over it, which transformers leaves out where the former lists added tokens."""
    if "added_tokens_decoder" in files.config:
        return dict(files.config)
    return {**files.config, **files.special_map}


def _strings(files: Files, source: Mapping[str, Any]) -> dict[str, str | None]:
    defaults = defaults_of(files.class_name)
    tokens: dict[str, str | None] = {role: content(source.get(f"{role}_token")) for role in _ORDER}
    if defaults is not None:
        tokens |= {role: token for role, token in defaults.tokens.items() if f"{role}_token" not in source}
    return tokens


def appended(tokens: Mapping[str, str | None], known: Mapping[str, int], next_id: int) -> dict[str, int]:
    """The ids of the tokens that are not in `known`, which transformers appends; the empty one it leaves out."""
    new: dict[str, int] = {}
    for role in _ORDER:
        token = tokens.get(role)
        if token and token not in known and token not in new:
            new[token] = next_id + len(new)
    return new


def next_id(files: Files) -> int:
    """The id that the next added token gets."""
    return max([len(files.vocab) - 1, *files.vocab.values(), *files.added.values()], default=-1) + 1


def file_ids(files: Files) -> dict[str, int | None]:
    """The ids by the files alone: None for a role without a token, or whose token is empty."""
    tokens = strings(files)
    known = {**files.vocab, **files.added}
    known |= appended(tokens, known, next_id(files))
    return {role: known.get(token) if token else None for role in ROLES for token in (tokens[role],)}


def load_fast(files: Files, release: Release) -> Loaded:
    """What ``AutoTokenizer.from_pretrained(folder)`` gives."""
    _refuse_strangers(files, release)
    if _class_raises(files, release):
        return Loaded(face="class-not-found")
    built, final = _two_states(files, release)
    known = _known(files, final)
    at_load = _ids(built, _known(files, built))
    one_class = release.does("every-class-reads-ids-at-load")
    reads = one_class or (files.is_llama and release.does("llama-reads-ids-at-load"))
    if reads and any(at_load[role] is RECURSION for role in ("bos", "eos")):
        if files.class_name == FORMER_CLASS and release.does("unknown-class-is-none"):
            return Loaded(face="class-is-none")
        return Loaded(face="returns-false" if release.does("recursion-returns-false") else "recursion-at-load")
    ids = _ids(final, known)
    plain = {role: index if not isinstance(index, _Recursion) else None for role, index in ids.items()}
    if any(index is RECURSION for index in ids.values()):
        return Loaded(face="recursion-at-access", ids=plain)
    face = _quiet_face(files, release, final, known)
    if face == "misencodes" and "unk_token" not in _merged(files):
        plain["unk"] = None  # the class that AutoTokenizer falls back to has no defaults; BOS and EOS come from tokenizer.model
    return Loaded(face=face, ids=plain)


def load_slow(files: Files, release: Release, *, auto: bool) -> Loaded | None:
    """What ``use_fast=False`` gives (`auto`), or LlamaTokenizer by name. None where there is no slow class that llmcheck knows."""
    if release.does("one-class"):
        if auto or files.class_name != FORMER_CLASS:
            loaded = load_fast(files, release)
            if auto or loaded.face != "misencodes":
                return loaded
        named = replace(files, class_name="LlamaTokenizer")
        loaded = load_fast(named, release)
        # By its own name the class reads tokenizer.model rightly in every 5.x; only AutoTokenizer missed it.
        if loaded.face == "misencodes":
            loaded.face = _bos_face(named, release)
        return loaded
    _refuse_strangers(files, release)
    if not files.is_llama or not files.has_sentencepiece:
        return None
    if auto and _class_raises(files, release):
        return Loaded(face="class-not-found")
    if not release.does("has-llama"):
        return Loaded(face="class-not-found")
    _, tokens = _two_states(files, release)
    known = {**files.vocab, **files.added}
    unknown = files.vocab.get("<unk>", 0)
    if release.does("slow-appends-any-unknown"):
        strays = [token for role in _ORDER for token in (tokens.get(role),) if token is not None and token not in known]
        first = next_id(files)
        known |= {token: first + rank for rank, token in enumerate(dict.fromkeys(strays)) if token != tokens["unk"]}
    else:
        known |= appended(tokens, known, next_id(files))
    ids = {role: known.get(token, unknown) if token is not None else None for role in ROLES for token in (tokens[role],)}
    wrong = any((token := tokens[role]) is not None and token not in known and role != "unk" for role in ("bos", "eos"))
    return Loaded(face="silent-zero-ids" if wrong else "ok", ids=ids)


def eos_text_is_cut(files: Files, release: Release) -> bool:
    """Whether the fast class cuts the text of EOS into ordinary pieces."""
    return files.is_llama and files.has_sentencepiece and not files.has_json and release.does("eos-text-is-cut")


def _refuse_strangers(files: Files, release: Release) -> None:
    if files.remote_code and not files.is_llama and not files.is_generic:
        raise UndecidedError("the tokenizer's class is code of the model's author, which llmcheck does not run")
    if unknown_roles(files):
        raise UndecidedError(f"the defaults of the class {str(files.class_name)[:80]!r} are not known to llmcheck")
    if not release.version:
        raise UndecidedError("the version of transformers is not known")
    if not files.vocab:
        raise UndecidedError("the vocabulary is in a form whose ids llmcheck does not read")
    tokens = strings(files)
    known = {**files.vocab, **files.added}
    broken = any(token == "" for token in tokens.values()) or any(token and token not in known for token in tokens.values())
    if broken and not files.is_llama and not files.is_generic:
        raise UndecidedError(f"how {str(files.class_name)[:80]!r} takes a special token outside its vocabulary was not measured")


def _class_raises(files: Files, release: Release) -> bool:
    if files.class_name == FORMER_CLASS and release.does("unknown-class-raises"):
        return True
    return files.is_llama and not release.does("has-llama")


def _two_states(files: Files, release: Release) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The tokens while the tokenizer is built, and in the end."""
    if not release.does("map-wins-after-load"):
        tokens = strings(files)
        return tokens, tokens
    return _strings(files, files.config), _strings(files, {**files.config, **files.special_map})


def _known(files: Files, tokens: Mapping[str, str | None]) -> dict[str, int]:
    known = {**files.vocab, **files.added}
    return known | appended(tokens, known, next_id(files))


def _ids(tokens: Mapping[str, str | None], known: Mapping[str, int]) -> dict[str, Id]:
    """Ids as the fast classes find them: a token that is not known has the id of the unknown token, and that one its own, and so on."""

    def one(token: str | None) -> Id:
        if token is None:
            return None
        if token in known:
            return known[token]
        unknown = tokens["unk"]
        if unknown is None:
            return None
        return known.get(unknown, RECURSION)

    return {role: one(tokens[role]) for role in ROLES}


def _quiet_face(files: Files, release: Release, tokens: Mapping[str, str | None], known: Mapping[str, int]) -> Face:
    """The face of a load that raises nothing."""
    from_sentencepiece = files.has_sentencepiece and not files.has_json
    if any((token := tokens[role]) is not None and token not in known for role in ("bos", "eos")):
        return "silent-zero-ids"
    if files.class_name == FORMER_CLASS and from_sentencepiece and release.does("one-class"):
        return "generic-class"
    if files.is_llama and from_sentencepiece and release.does("auto-misencodes-sentencepiece"):
        return "misencodes"
    return _bos_face(files, release)


def _bos_face(files: Files, release: Release) -> Face:
    lost = (
        files.is_llama
        and files.has_sentencepiece
        and not files.has_json
        and "add_bos_token" not in files.config
        and release.does("bos-only-by-key")
    )
    return "bos-lost" if lost else "ok"
