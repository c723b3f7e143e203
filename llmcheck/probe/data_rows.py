"""What is wrong with the rows of training data, counted with the line of each kind's first row. Knows nothing of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from llmcheck.dataprep import TokenizerKind, estimated_tokens

HUGE_CHARS = 1_000_000  # of one row: some 250,000 tokens, beyond any fine-tuning sequence that we know
MAX_COLUMNS = 200  # different ones that are watched for their type
MAX_LISTED = 20
_SAMPLED_HASHES = 1 << 18  # fingerprints kept at a time: some 30 MB

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_call": "assistant",
}  # fmt: skip
# (prompt, answer) of single turns, in the order in which they are tried.
_PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"), ("query", "response"),
    ("question", "answer"), ("input", "output"), ("problem", "solution"),
)  # fmt: skip
# Tokens of chat templates and tokenizers, as text: with them a user's text ends turns. <s> alone is HTML, too.
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|user|assistant|system|end|fim_\w{1,12}|eom_id)\|>"
    r"|</s>|<unk>|<pad>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<eos>|<bos>"
)
_CONTROL_HINTS = (b"<|", b"</s>", b"<unk>", b"<pad>", b"INST]", b"SYS>>", b"_of_turn>", b"os>")
_MARKERS = re.compile(r"\n\s*(?:###\s*)?(?:Human|Assistant|User|Instruction|Response):")
_MARKER_HINTS = (b"Human:", b"Assistant:", b"User:", b"Instruction:", b"Response:")
# UTF-8 read as Latin-1 or Windows-1252 and written again, as bytes of the row; NBSP is left out, which French writes after é.
_MOJIBAKE = re.compile(
    rb"\xc3[\x82\x83]\xc2[\x80-\xbf]|\xc3\xa2\xe2\x82\xac|\xc3[\xa4-\xa9]\xc2[\x80-\x9f\xa1-\xbf]\xc2[\x80-\x9f\xa1-\xbf]"
    rb"|\\u00c3\\u00[89ab][0-9a-f]|\\u00e2\\u20ac"
)
_PLACEHOLDERS = frozenset({"nan", "none", "null", "n/a", "<noinput>", "<nooutput>", "undefined", "no output", "todo", "."})
_TYPES: dict[type, str] = {
    str: "text", int: "number", float: "number", bool: "true/false", list: "list", dict: "object", type(None): "null",
}  # fmt: skip


class RowScan:
    """Counts over all rows that were given to :meth:`add`. `seq_len` in tokens, or None where it is not known."""

    def __init__(self, seq_len: int | None = None, tokenizer: TokenizerKind = "byte-bpe") -> None:
        self.seq_len, self.tokenizer = seq_len, tokenizer
        self.num_rows = 0
        self.counts: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.formats: dict[str, int] = {}
        self.control_tokens: dict[str, int] = {}
        self.bad_roles: dict[str, int] = {}
        self.type_changes: list[str] = []
        self.longest_chars = 0
        self.longest_line = 0
        self.duplicates = Duplicates()
        self._types: dict[str, type] = {}
        self._type_lines: dict[str, int] = {}
        self._changed: set[str] = set()
        self._kinds: dict[tuple[str, ...], Callable[[dict[str, Any], int], tuple[list[str], list[str]] | None]] = {}
        self._format = ""

    def add(self, line: int, raw: bytes, row: Any) -> None:
        """Look at one row: its bytes, and its value."""
        self.num_rows += 1
        self._bytes(line, raw)
        if type(row) is not dict:
            self.note("not_objects", line)
            return
        for key, value in row.items():
            kind = type(value)
            if self._types.get(key) is not kind:
                self._column(key, kind, line)
        if None in row.values():
            row = self._own_columns(row)
        keys = tuple(row)
        look = self._kinds.get(keys)
        if look is None:
            look = self._look_of(row)
            if len(self._kinds) < 1_000:
                self._kinds[keys] = look
        found = look(row, line)
        self.formats[self._format] = self.formats.get(self._format, 0) + 1
        if found is not None:
            self._texts(line, *found)

    def note(self, name: str, line: int) -> None:
        """One more row of the kind `name`."""
        if name in self.counts:
            self.counts[name] += 1
        else:
            self.counts[name] = 1
            self.first[name] = line

    def _bytes(self, line: int, raw: bytes) -> None:
        """What the bytes tell without their structure; each search is one pass of the C library."""
        if b"\xef\xbf\xbd" in raw or b"\\ufffd" in raw:
            self.note("replacement", line)
        if b"\\u0000" in raw or b"\x00" in raw:
            self.note("nul", line)
        if (b"\xc3" in raw or b"\\u00" in raw) and _MOJIBAKE.search(raw):
            self.note("mojibake", line)
        if len(raw) > HUGE_CHARS:
            self.note("huge", line)

    def _column(self, key: str, kind: type, line: int) -> None:
        """A column's type is not that of the rows before. null goes with everything, and whole numbers with others."""
        if kind is type(None):
            return
        kind = float if kind is int else kind
        known = self._types.get(key)
        if known is None:
            if len(self._types) < MAX_COLUMNS:
                self._types[key], self._type_lines[key] = kind, line
            return
        if known is float and kind is float:
            return
        if known is not kind and key not in self._changed:
            self._changed.add(key)
            first = f"{_TYPES.get(known, '?')} in line {self._type_lines[key]}"
            if len(self.type_changes) < MAX_LISTED:
                self.type_changes.append(f"{key[:40]}: {first}, {_TYPES.get(kind, '?')} in line {line}")
            self.note("type_changes", line)

    def _look_of(self, row: dict[str, Any]) -> Callable[[dict[str, Any], int], tuple[list[str], list[str]] | None]:
        """How rows with these keys are read."""
        if "chosen" in row and "rejected" in row:
            return self._preference
        for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value"), ("conversation", "from", "value")):
            if isinstance(row.get(key), list):
                return lambda each, line: self._chat(each.get(key), line, role, content)
        for prompt, answer in _PAIRS:
            if prompt in row and answer in row:
                name = "alpaca" if prompt == "instruction" else "prompt-answer"
                more = "input" if prompt != "input" and "input" in row else ""
                return lambda each, line: self._pair(each, line, name, prompt, more, answer)
        if "text" in row:
            return self._plain
        return self._unknown

    def _own_columns(self, row: dict[str, Any]) -> dict[str, Any]:
        """`row` without what is null because it is another shape's: a table of several shapes has all columns in every row."""
        pairs = [pair for pair in _PAIRS if pair[0] in row and pair[1] in row]
        filled = [pair for pair in pairs if row[pair[0]] is not None and row[pair[1]] is not None]
        half = {name for pair in pairs for name in pair if row[name] is not None}
        kept = set().union(*filled) if filled else {name for pair in pairs for name in pair if half.intersection(pair)}
        drop = {name for pair in pairs for name in pair if row[name] is None and name not in kept}
        drop |= {name for name in ("messages", "conversations", "conversation", "text") if row.get(name, "") is None}
        own = {name: value for name, value in row.items() if name not in drop}
        return row if self._look_of(own) == self._unknown else own

    def _unknown(self, _: dict[str, Any], line: int) -> None:
        self._format = "unknown"
        self.note("unknown_format", line)

    def _plain(self, row: dict[str, Any], line: int) -> tuple[list[str], list[str]] | None:
        self._format = "text"
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            self.note("empty_answers", line)
            self.note("unsupervised", line)
            return None
        return [], [text]

    def _pair(self, row: dict[str, Any], line: int, name: str, prompt: str, more: str, answer: str) -> tuple[list[str], list[str]] | None:
        self._format = name
        asked, extra, said = row.get(prompt), row.get(more) if more else None, row.get(answer)
        if said is None or (isinstance(said, str) and not said.strip()):
            self.note("empty_answers", line)
            self.note("unsupervised", line)
        if isinstance(said, list) or isinstance(asked, list):  # lists of messages under these names
            return None
        prompts = [text for text in (asked, extra) if isinstance(text, str) and text]
        if not any(text.strip() for text in prompts):
            self.note("empty_prompts", line)
        return prompts, [said] if isinstance(said, str) else []

    def _preference(self, row: dict[str, Any], line: int) -> tuple[list[str], list[str]] | None:
        self._format = "preference"
        if row["chosen"] == row["rejected"]:
            self.note("same_preference", line)
        if not row["chosen"] or not row["rejected"]:
            self.note("empty_answers", line)
        prompt = row.get("prompt")
        chosen = row["chosen"]
        return ([prompt] if isinstance(prompt, str) else []), ([chosen] if isinstance(chosen, str) else [])

    def _chat(self, turns: Any, line: int, role_key: str, text_key: str) -> tuple[list[str], list[str]] | None:
        self._format = "messages" if role_key == "role" else "sharegpt"
        if not isinstance(turns, list) or not turns:
            self.note("no_turns", line)
            self.note("unsupervised", line)
            return None
        other = ("from", "value") if role_key == "role" else ("role", "content")
        # The other spelling under this name; in a table of both, this one is there and null.
        if (
            isinstance(turns[0], dict)
            and turns[0].get(role_key) is None
            and (role_key not in turns[0] or turns[0].get(other[0]) is not None)
        ):
            role_key, text_key = other
            self._format = "messages" if role_key == "role" else "sharegpt"
        prompts: list[str] = []
        answers: list[str] = []
        before = last = ""
        supervised = False
        for place, turn in enumerate(turns):
            if type(turn) is not dict:
                self.note("bad_turns", line)
                return None
            name, text = turn.get(role_key), turn.get(text_key)
            role = _ROLES.get(name) if isinstance(name, str) else None
            if role is None:
                self._strange_role(name, line)
                return None
            if role == "assistant" and name == "assistant" and role_key == "from":
                self._format = "belle"
            if isinstance(text, str):
                blank = not text.strip()
                (answers if role == "assistant" else prompts).append(text)
            else:
                blank = not text and not turn.get("tool_calls") and not turn.get("function_call")
            self._turn(role, before, place, blank, line)
            supervised = supervised or (role == "assistant" and not blank)
            before = before if role == "system" else role
            last = role
        if last != "assistant":
            self.note("last_not_assistant", line)
        if not supervised:
            self.note("unsupervised", line)
        return prompts, answers

    def _turn(self, role: str, before: str, place: int, blank: bool, line: int) -> None:
        if role == "assistant":
            if blank:
                self.note("empty_answers", line)
            if not before:
                self.note("begins_with_assistant", line)
            elif before == "assistant":
                self.note("role_order", line)
        elif role == "system":
            if blank:
                self.note("empty_system", line)
            if place:
                self.note("system_not_first", line)
        elif role == "user":
            if blank:
                self.note("empty_prompts", line)
            if before == "user":
                self.note("role_order", line)

    def _strange_role(self, name: Any, line: int) -> None:
        self.note("bad_roles", line)
        text = str(name)[:40]
        if text in self.bad_roles or len(self.bad_roles) < MAX_LISTED:
            self.bad_roles[text] = self.bad_roles.get(text, 0) + 1

    def _texts(self, line: int, prompts: list[str], answers: list[str]) -> None:
        """What the texts of a row tell: length, control tokens, placeholders, duplicates."""
        whole = "\x1f".join(prompts) + "\x1e" + "\x1f".join(answers)
        num_chars = len(whole) - 1
        if num_chars > self.longest_chars:
            self.longest_chars, self.longest_line = num_chars, line
        try:
            data = whole.encode()
        except UnicodeEncodeError:
            self.note("surrogates", line)
            data = whole.encode("utf-8", "surrogatepass")
        self.duplicates.add(line, data)
        if self.seq_len is not None:
            self._length(line, whole, prompts)
        if any(hint in data for hint in _CONTROL_HINTS) and (tokens := _CONTROL.findall(whole)):
            self.note("control_tokens", line)
            for token in tokens:
                if token in self.control_tokens or len(self.control_tokens) < MAX_LISTED:
                    self.control_tokens[token] = self.control_tokens.get(token, 0) + 1
        if self._format != "text" and any(hint in data for hint in _MARKER_HINTS) and any(_MARKERS.search(text) for text in answers):
            self.note("role_markers", line)
        for text in answers:
            if len(text) < 12 and text.strip().lower() in _PLACEHOLDERS:
                self.note("placeholders", line)
            if text[-1:].isspace() and not text.isspace():
                self.note("trailing_space", line)

    def _length(self, line: int, whole: str, prompts: list[str]) -> None:
        """Rows that are longer than the sequence by our estimate; fewer characters than tokens fit cannot be."""
        assert self.seq_len is not None
        if len(whole) <= self.seq_len:  # hardly a token is shorter than a character, in English and Chinese
            return
        if _tokens(whole, self.tokenizer) > self.seq_len:
            self.note("over_seq_len", line)
            if prompts and _tokens("".join(prompts), self.tokenizer) >= self.seq_len:
                self.note("prompt_over_seq_len", line)


def _tokens(text: str, tokenizer: TokenizerKind) -> float:
    if text.isascii():
        return estimated_tokens(len(text), 0, tokenizer)
    num_ascii = len(text.encode("ascii", "ignore"))
    return estimated_tokens(num_ascii, len(text) - num_ascii, tokenizer)


class Duplicates:
    """Rows whose texts are the same, by 64-bit fingerprints: all of them while they fit, then every second, fourth ... fingerprint."""

    def __init__(self, limit: int = _SAMPLED_HASHES) -> None:
        self._limit = limit
        self._seen: dict[int, int] = {}  # fingerprint -> line
        self._repeats: dict[int, int] = {}  # fingerprint -> further rows with it
        self.sampling = 1  # one of so many fingerprints is looked at
        self.first_pair: tuple[int, int] | None = None

    def add(self, line: int, data: bytes) -> None:
        """Take in the texts of one row."""
        mark = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        if mark % self.sampling:
            return
        known = self._seen.setdefault(mark, line)
        if known != line:
            self._repeats[mark] = self._repeats.get(mark, 0) + 1
            if self.first_pair is None:
                self.first_pair = (known, line)
        elif len(self._seen) > self._limit:
            self.sampling *= 2
            self._seen = {key: value for key, value in self._seen.items() if key % self.sampling == 0}
            self._repeats = {key: value for key, value in self._repeats.items() if key % self.sampling == 0}

    @property
    def num_rows(self) -> int:
        """Rows that repeat an earlier one; an estimate where `sampling` is above 1."""
        return sum(self._repeats.values()) * self.sampling
