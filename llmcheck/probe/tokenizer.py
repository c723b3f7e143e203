"""A tokenizer's folder -> ``tok.*`` facts. Files are read as data, with caps; nothing in them is run, and transformers is not imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmcheck import jsonfile
from llmcheck.probe import chat_template, special_tokens
from llmcheck.probe.special_tokens import ROLES, Files, Loaded, Release, UndecidedError
from llmcheck.probe.tokenizer_folder import (
    ADDED,
    CONFIG,
    JSON,
    MERGES,
    PROCESSOR_TEMPLATE,
    SENTENCEPIECE,
    SPECIAL_MAP,
    TEKKEN,
    TEMPLATE,
    VOCAB,
    Folder,
    auto_class,
    decoder,
    read_folder,
    read_object,
    special_files,
)  # fmt: skip
from llmcheck.rules.facts import Facts

MAX_TEXT_CHARS = 200  # of a string in a fact
MAX_LISTED = 20  # items of a list in a fact
ABSURD_LENGTH = 10**20  # transformers' LARGE_INTEGER (tokenization_utils_base.py): above it model_max_length means "none known"

# Tokens that vocabularies hold for padding, or keep free, best first.
SPARE_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|reserved_special_token_0|>")
# Facts that rest on a file: unknown when it could not be read.
_OF_VOCABULARY = (
    "vocab_size", "json_vocab_size", "spm_vocab_size", "rows_needed", "appended_tokens", "vocab_conflicts", "model_type", "byte_level",
    "byte_fallback", "unk_reachable", "merges_as_pairs", "split_pattern", "spare_pad_token", "spm_unk_id", "spm_bos_id", "spm_eos_id",
    "added_conflicts", "template_missing_tokens",
)  # fmt: skip
_OF_CONFIG = (
    "class", "auto_class", "model_max_length", "length_is_absurd", "padding_side", "legacy", "add_bos_token", "add_eos_token",
    "special_conflicts", "added_conflicts", "has_chat_template",
)  # fmt: skip


def facts(path: str, transformers: str | None) -> Facts:
    """The ``tok.*`` facts of the folder `path`, faces and ids as the release `transformers` gives them (None: not known).

    A file that cannot be read makes its facts unknown. Raises UserError when `path` is no folder or holds no tokenizer.
    """
    folder = read_folder(path)
    return _Probe(folder, special_files(folder), transformers or None).run()


def _short(text: str) -> str:
    """`text` for a fact: no lone surrogates (they cannot be printed), at most 200 characters."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_TEXT_CHARS else clean[: MAX_TEXT_CHARS - 1] + "…"


@dataclass
class _Probe:
    """What turns a folder's files into facts."""

    folder: Folder
    files: Files
    transformers: str | None
    facts: Facts = field(default_factory=Facts)

    def run(self) -> Facts:
        """All facts."""
        self.facts.examined("tokenizer")
        self._put_files()
        self._put_sizes()
        self._put_tokens()
        self._put_flags()
        self._put_template()
        self._put_conflicts()
        self._put_faces()
        return self.facts

    def _put_files(self) -> None:
        self.facts.put("tok.files", [name for name in self.folder.names if name != "config.json"])
        self.facts.put("tok.unreadable_files", [f"{name} ({_short(why)})" for name, why in sorted(self.folder.problems.items())])
        self.facts.put("tok.has_json", JSON in self.folder.names)
        self.facts.put("tok.has_sentencepiece", self.folder.sentencepiece is not None)
        self.facts.put("tok.has_tiktoken", self.folder.num_tiktoken is not None)
        self.facts.put("tok.has_tekken", TEKKEN in self.folder.names)
        problems = self.folder.problems
        vocabulary = next((problems[name] for name in (JSON, SENTENCEPIECE, VOCAB, ADDED) if name in problems), None)
        for names, why in ((_OF_VOCABULARY, vocabulary), (_OF_CONFIG, problems.get(CONFIG))):
            for name in names if why is not None else ():
                self.facts.could_not(f"tok.{name}", str(why))
        if any(name in self.folder.problems for name in (CONFIG, SPECIAL_MAP)):
            why = self.folder.problems.get(CONFIG) or self.folder.problems[SPECIAL_MAP]
            for name in ("empty_special_tokens", "special_conflicts", *(f"{role}_token" for role in ROLES)):
                self.facts.could_not(f"tok.{name}", why)

    def _put(self, name: str, value: Any, file: str | None = None) -> None:
        """A fact, unless a file that it rests on could not be read; None counts as absent."""
        if self.facts.why_unknown(f"tok.{name}") is None:
            location = self.folder.at(file) if file is not None and file in self.folder.names else None
            self.facts.put(f"tok.{name}", _short(value) if isinstance(value, str) else value, location)

    def _put_sizes(self) -> None:
        json, spm = self.folder.json, self.folder.sentencepiece
        base = JSON if JSON in self.folder.names else SENTENCEPIECE if SENTENCEPIECE in self.folder.names else VOCAB
        has_vocab = bool(self.files.vocab)
        self._put("vocab_size", len(self.files.vocab) if has_vocab else self.folder.num_tiktoken, base)
        self._put("json_vocab_size", len(json.vocab) if json else None, JSON)
        self._put("spm_vocab_size", spm.num_pieces if spm else None, SENTENCEPIECE)
        for role in ("unk", "bos", "eos"):
            self._put(f"spm_{role}_id", getattr(spm, f"{role}_id") if spm else None, SENTENCEPIECE)
        has_merges = MERGES in self.folder.names
        self._put("model_type", json.model_type if json else "BPE" if self.folder.vocab is not None and has_merges else None, JSON)
        byte_level = json.byte_level if json else self.folder.num_tiktoken is not None or has_merges
        byte_fallback = (json.byte_fallback if json else False) or (spm.byte_fallback if spm and not json else False)
        self._put("byte_level", byte_level, base)
        self._put("byte_fallback", byte_fallback, base)
        self._put("unk_reachable", not (byte_level or byte_fallback), base)
        self._put("merges_as_pairs", json.merges_are_pairs if json else None, JSON)
        self._put("split_pattern", json.split_patterns[0] if json and json.split_patterns else None, JSON)
        known = {**self.files.vocab, **self.files.added}
        self._put("spare_pad_token", next((token for token in SPARE_PADS if token in known), None), base)
        unknown = special_tokens.unknown_roles(self.files)
        new = special_tokens.appended(special_tokens.strings(self.files), known, special_tokens.next_id(self.files)) if has_vocab else {}
        if has_vocab and not unknown:
            self._put("appended_tokens", [_short(token) for token in new], CONFIG)
            self._put("rows_needed", special_tokens.next_id(self.files) + len(new), base)
        else:
            why = "the vocabulary is in a form whose ids llmcheck does not read" if not has_vocab else self._stranger()
            for name in ("appended_tokens", "rows_needed"):
                if self.facts.why_unknown(f"tok.{name}") is None:
                    self.facts.could_not(f"tok.{name}", why)

    def _stranger(self) -> str:
        return f"the tokens that the class {_short(str(self.files.class_name))!r} uses by default are not known to llmcheck"

    def _put_tokens(self) -> None:
        tokens, ids = special_tokens.strings(self.files), special_tokens.file_ids(self.files)
        unknown = special_tokens.unknown_roles(self.files)
        empty = [f"{role}_token" for role in ROLES if tokens[role] == ""]
        self._put("empty_special_tokens", empty, self._origin("unk_token" if "unk_token" in empty else empty[0] if empty else ""))
        for role in ROLES:
            name = f"{role}_token"
            if role in unknown:
                self.facts.could_not(f"tok.{name}", self._stranger())
                self.facts.could_not(f"tok.{role}_id", self._stranger())
                continue
            self._put(name, tokens[role], self._origin(name))
            reason = self.facts.why_unknown(f"tok.{name}") or self.facts.why_unknown("tok.vocab_size")
            if reason is None and tokens[role] and not self.files.vocab and tokens[role] not in self.files.added:
                reason = "the vocabulary is in a form whose ids llmcheck does not read"
            if reason is not None:
                self.facts.could_not(f"tok.{role}_id", reason)
            else:
                self._put(f"{role}_id", ids[role], self._origin(name))

    def _origin(self, key: str) -> str:
        """The file that the token comes from."""
        return SPECIAL_MAP if key in self.files.special_map and "added_tokens_decoder" not in self.files.config else CONFIG

    def _put_flags(self) -> None:
        config = self.folder.config
        defaults = special_tokens.defaults_of(self.files.class_name)
        self._put("class", self.files.class_name, CONFIG)
        self._put("auto_class", auto_class(self.folder), CONFIG)
        for key in ("add_bos_token", "add_eos_token", "legacy"):
            self._put(key, value if isinstance(value := config.get(key), bool) else None, CONFIG)
        side = config.get("padding_side")
        self._put("padding_side", side if side in ("left", "right") else defaults.padding_side if defaults else None, CONFIG)
        length = config.get("model_max_length")
        number = length if isinstance(length, (int, float)) and not isinstance(length, bool) else None
        self._put("length_is_absurd", number is None or number > ABSURD_LENGTH, CONFIG)
        self._put("model_max_length", int(number) if number is not None and number <= ABSURD_LENGTH else None, CONFIG)

    def _template_text(self, release: Release | None) -> tuple[str | None, str | None, bool]:
        """(template, file that it is in, whether a template file is there that this release does not read)."""
        unread = False
        if TEMPLATE in self.folder.names:
            if release is None or release.does("reads-template-file"):
                text = self.folder.read(TEMPLATE, self._read_text)
                return text, TEMPLATE, False
            unread = True
        inline = self.folder.config.get("chat_template")
        if isinstance(inline, list):  # several, by name
            entries = [entry for entry in inline if isinstance(entry, dict)]
            inline = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
        if isinstance(inline, str):
            return inline, CONFIG, unread
        document = self.folder.read(PROCESSOR_TEMPLATE, read_object)
        text = document.get("chat_template") if document else None
        return (text, PROCESSOR_TEMPLATE, unread) if isinstance(text, str) else (None, None, unread)

    @staticmethod
    def _read_text(path: str) -> str:
        return jsonfile.read_bytes(path, what="chat template", max_bytes=chat_template.MAX_CHARS).decode("utf-8", "replace")

    def _put_template(self) -> None:
        try:
            text, source, unread = self._template_text(Release(version=self.transformers) if self.transformers else None)
        except UndecidedError as reason:
            self.facts.could_not("tok.template_*", str(reason))
            self.facts.could_not("tok.has_chat_template", str(reason))
            return
        if TEMPLATE in self.folder.problems:
            self.facts.could_not("tok.template_*", self.folder.problems[TEMPLATE])
            self.facts.put("tok.has_chat_template", True, self.folder.at(TEMPLATE))
            return
        self._put("has_chat_template", text is not None, source or CONFIG)
        self._put("template_file_unread", unread, TEMPLATE)
        if self.facts.why_unknown("tok.has_chat_template") is not None:
            self.facts.could_not("tok.template_*", self.folder.problems.get(CONFIG, "not read"))
            return
        tokens = special_tokens.strings(self.files)
        about = chat_template.analyse(text, bos=tokens["bos"], eos=tokens["eos"]) if text is not None else None
        known = {**self.files.vocab, **self.files.added}
        self._put("template_source", source, source)
        self._put("template_names_bos", about.names_bos if about else None, source)
        self._put("template_names_eos", about.names_eos if about else None, source)
        self._put("template_has_generation", about.has_generation if about else None, source)
        self._put("template_turn_end", about.turn_end if about else None, source)
        if self.files.vocab:
            missing = [_short(mark) for mark in about.marks if mark.startswith("<|") and mark not in known][:MAX_LISTED] if about else None
            self._put("template_missing_tokens", missing, source)
        else:
            self.facts.could_not("tok.template_missing_tokens", "the vocabulary could not be read")

    def _put_conflicts(self) -> None:
        config, special_map = self.folder.config, self.folder.special_map
        both = [key for role in ROLES if (key := f"{role}_token") in config and key in special_map]
        differ = [key for key in both if special_tokens.content(config[key]) != special_tokens.content(special_map[key])]
        self._put("special_conflicts", differ, SPECIAL_MAP)
        sources = {JSON: self.folder.json.added if self.folder.json else {}, CONFIG: decoder(self.folder), ADDED: self.folder.added_file}
        seen: dict[str, tuple[str, int]] = {}
        conflicts: list[str] = []
        for file, tokens in sources.items():
            for token, index in tokens.items():
                place, first = seen.setdefault(token, (file, index))
                if first != index:
                    conflicts.append(f"{_short(token)} ({first} in {place}, {index} in {file})")
        self._put("added_conflicts", conflicts[:MAX_LISTED], JSON)
        json, spm = self.folder.json, self.folder.sentencepiece
        if json is not None and spm is not None and json.model_type == "BPE":
            self._put("vocab_conflicts", sum(1 for piece, index in spm.ids.items() if json.vocab.get(piece, index) != index), JSON)
        else:
            self._put("vocab_conflicts", None)

    def _put_faces(self) -> None:
        release = Release(version=self.transformers or "")
        problems = self.folder.problems
        broken = next((problems[name] for name in (CONFIG, SPECIAL_MAP, JSON, SENTENCEPIECE, ADDED) if name in problems), None)
        ways: dict[str, Callable[[], Loaded | None]] = {
            "": lambda: special_tokens.load_fast(self.files, release),
            "slow_": lambda: special_tokens.load_slow(self.files, release, auto=True),
            "class_": lambda: special_tokens.load_slow(self.files, release, auto=False),
        }
        for prefix, load in ways.items():
            ids = {"": "fast_", "slow_": "slow_"}.get(prefix)
            try:
                if broken is not None:
                    raise UndecidedError(broken)
                if not self.transformers:
                    raise UndecidedError("the version of transformers is not known")
                loaded = load()
            except UndecidedError as reason:
                self.facts.could_not(f"tok.{prefix}face", str(reason))
                if ids is not None:
                    for role in ROLES:
                        self.facts.could_not(f"tok.{ids}{role}_id", str(reason))
                continue
            file = CONFIG if CONFIG in self.folder.names else SENTENCEPIECE
            self._put(f"{prefix}face", loaded.face if loaded is not None else None, file)
            for role in ROLES if ids is not None else ():
                self._put(f"{ids}{role}_id", loaded.ids.get(role) if loaded is not None else None, file)
        self._put_additions()

    def _put_additions(self) -> None:
        """Whether BOS and EOS are added to a text by this release, and what it ignores on the way."""
        try:
            if not self.transformers:
                raise UndecidedError("the version of transformers is not known")
            release = Release(version=self.transformers)
            self._put("eos_text_is_cut", special_tokens.eos_text_is_cut(self.files, release), CONFIG)
            added = {role: self._adds(release, role) for role in ("bos", "eos")}
            ignored = []
            if self.folder.json is not None and release.does("json-decides-bos-eos"):
                flags = {role: self.folder.config.get(f"add_{role}_token") for role in added}
                ignored = [f"add_{role}_token" for role, flag in flags.items() if isinstance(flag, bool) and flag != added[role]]
        except UndecidedError as reason:
            for name in ("eos_text_is_cut", "adds_bos", "adds_eos", "ignored_flags", "doubles_bos"):
                if f"tok.{name}" not in self.facts.known:
                    self.facts.could_not(f"tok.{name}", str(reason))
            return
        for role, value in added.items():
            if value is None:
                self.facts.could_not(
                    f"tok.adds_{role}", f"the class {_short(str(self.files.class_name))!r} decides it, which llmcheck does not know"
                )
            else:
                self._put(f"adds_{role}", value, JSON if self.folder.json is not None else CONFIG)
        self._put("ignored_flags", ignored, CONFIG)
        names = self.facts.get("tok.template_names_bos")
        if added["bos"] is None or names is None:
            self.facts.could_not("tok.doubles_bos", "the chat template or the class could not be judged")
        else:
            self._put("doubles_bos", bool(added["bos"]) and names.value is True, CONFIG)

    def _adds(self, release: Release, role: str) -> bool | None:
        """Whether the fast tokenizer adds BOS (EOS) to a text; None where llmcheck does not know."""
        if JSON in self.folder.problems or CONFIG in self.folder.problems:
            raise UndecidedError(self.folder.problems.get(JSON) or self.folder.problems[CONFIG])
        defaults = special_tokens.defaults_of(self.files.class_name)
        default = (defaults.add_bos if role == "bos" else defaults.add_eos) if defaults is not None else None
        flag = self.folder.config.get(f"add_{role}_token")
        json = self.folder.json
        by_json = json is not None and (json.first_added if role == "bos" else json.last_added) is not None
        if release.does("json-decides-bos-eos"):
            return by_json if json is not None else flag is True
        if default is None:
            return by_json if json is not None else None
        if self.files.is_llama and not release.does("llama-rebuilds-post-processor"):
            return by_json if json is not None else role == "bos"
        return flag if isinstance(flag, bool) else default
