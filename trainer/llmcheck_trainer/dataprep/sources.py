"""Files of rows, a few MiB at a time: JSON lines, JSON lists, text (each also gzipped); Parquet and Arrow are in arrow_sources.py."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from llmcheck.errors import UserError
from llmcheck.paths import unreadable
from llmcheck_trainer.dataprep.rows import MAX_SHOWN, BadRowError

BLOCK_BYTES = 4 << 20  # read and handed on at once: 5,000 rows of 0.8 KB
MAX_ROW_BYTES = 32 << 20  # a longer row is reported and passed over; it would be millions of tokens

Row = tuple[int, Any]  # its line or number from 1, and the decoded value or a BadRowError
Rows = list[Row]
# What files hold, from which byte on, that other programs unpack, and how.
_PACKED = (
    (0, b"\x28\xb5\x2f\xfd", "zstandard", "zstd -d {}"),
    (4, b"1AY&", "bzip2", "bunzip2 -k {}"),
    (0, b"\xfd7zXZ\x00", "xz", "unxz -k {}"),
    (0, b"PK\x03\x04", "zip", "unzip {}"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z", "7z x {}"),
)
_TABLES = {".csv": 'read_csv("FILE")', ".tsv": 'read_csv("FILE", sep="\\t")', ".xlsx": 'read_excel("FILE")'}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ADVICE = "JSON lines, a JSON list, text (.txt), Parquet or Arrow; JSON and text also as .gz"


@dataclass
class Source:
    """One file. `sha256` and `num_rows` are known once :meth:`read` came to the end."""

    path: str
    label: str  # how it is named in reports
    kind: str  # json, text, parquet, arrow
    num_bytes: int
    zipped: bool = False
    unit: str = "line"
    sha256: str = ""
    num_rows: int = 0
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def read(self, advance: Callable[[int], None], *, hashed: bool = True) -> Iterator[Rows]:
        """The rows in order, some MiB at a time. `advance` is told how many bytes more were read. Raises UserError.

        Without `hashed`, formats that are hashed before they are read are not: for callers that stop after the first rows.
        """
        if self.kind in ("parquet", "arrow"):
            from llmcheck_trainer.dataprep.arrow_sources import read

            self.sha256 = hash_file(self.path) if hashed else ""
            for rows in read(self, advance):
                self.num_rows += len(rows)
                yield rows
            return
        try:
            with open(self.path, "rb") as file:
                raw = _Counted(file, self._hash, advance)
                stream: io.RawIOBase | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if self.zipped else raw
                for rows in self._rows(stream):
                    self.num_rows += len(rows)
                    yield rows
                while raw.read(BLOCK_BYTES):  # what gzip leaves behind its end
                    pass
        except (gzip.BadGzipFile, EOFError, zlib.error) as reason:
            raise UserError(
                f"the data file is damaged: {self.label}", code="unreadable", where=self.label, why=str(reason), hint="is it complete?"
            ) from reason
        except OSError as reason:
            raise unreadable(self.path, what="data file", where=self.label, reason=reason) from reason
        self.sha256 = self._hash.hexdigest()

    def _rows(self, stream: io.RawIOBase | gzip.GzipFile) -> Iterator[Rows]:
        first = stream.read(BLOCK_BYTES) or b""
        if first.startswith(_UTF16):  # zipped: else it was seen when the file was opened
            raise _utf16(self.label)
        first = first.removeprefix(codecs.BOM_UTF8)
        if self.kind == "text":
            yield from _text_lines(stream, first)
        elif first.lstrip()[:1] == b"[":
            self.unit = "row"
            yield from _elements(stream, first, self.label)
        else:
            yield from _json_lines(stream, first, self.label)


class _Counted(io.RawIOBase):
    """A file that hashes and counts what is read of it."""

    def __init__(self, file: io.BufferedReader, digest: Any, advance: Callable[[int], None]) -> None:
        self._file, self._digest, self._advance = file, digest, advance

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self._advance(len(data))
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_source(path: str, label: str = "") -> Source:
    """What is at `path`, told by its name and first bytes. Raises UserError when it is not a file of rows."""
    label = label or path
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            hint = "name the files in it: " + os.path.join(label, "*.jsonl")
            raise UserError(f"{label} is a folder", code="input", where=label, why="rows are read from files", hint=hint)
        if not stat.S_ISREG(status.st_mode):
            why, hint = "it is read twice, so it cannot be a pipe", "write its content to a file and give that"
            raise UserError(f"{label} is not a regular file", code="input", where=label, why=why, hint=hint)
        with open(path, "rb") as file:
            magic = file.read(8)
    except (OSError, ValueError) as reason:
        raise unreadable(path, what="data file", where=label, reason=reason) from reason
    name = os.path.basename(label.partition("@")[0]).lower()
    zipped = magic[:2] == b"\x1f\x8b"
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    if magic[:4] == b"PAR1":
        return Source(path, label, "parquet", status.st_size, unit="row")
    if magic[:6] == b"ARROW1" or (ending in (".arrow", ".feather") and magic[:4] == b"\xff\xff\xff\xff"):
        return Source(path, label, "arrow", status.st_size, unit="row")
    if magic.startswith(_UTF16):
        raise _utf16(label)
    for at, mark, name_of, command in _PACKED:
        if magic.startswith(mark, at) and ending not in _TABLES:
            raise UserError(
                f"{label} is packed with {name_of}", code="input", where=label, why=f"read are {ADVICE}", hint=_unpack(command, label)
            )
    if not status.st_size:
        raise UserError(f"{label} is empty", code="input", where=label, hint="is it the right file?")
    if ending in (".txt", ".text", ".md"):
        return Source(path, label, "text", status.st_size, zipped)
    if ending in (".json", ".jsonl", ".ndjson", ".jsonlines") or magic.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return Source(path, label, "json", status.st_size, zipped)
    hint = "write its rows as JSON lines"
    if ending in _TABLES:
        hint += f': python -c \'import pandas; pandas.{_TABLES[ending]}.to_json("rows.jsonl", orient="records", lines=True)\''
    if zipped and ending in (".parquet", ".arrow", ".feather"):
        hint = f"unpack it: gunzip -k {quote(label)}"
    raise UserError(f"{label} is no file of rows that is known", code="input", where=label, why=f"known are {ADVICE}", hint=hint)


def _unpack(command: str, label: str) -> str:
    return f"unpack it: {command.format(quote(label))}, and give what comes out; or pack it with gzip"


def _utf16(label: str) -> UserError:
    name = os.path.basename(label).removesuffix(".gz")
    source = f"zcat {quote(label)} | iconv -f UTF-16 -t UTF-8" if label.endswith(".gz") else f"iconv -f UTF-16 -t UTF-8 {quote(label)}"
    return UserError(
        f"{label} is UTF-16 text",
        code="input",
        where=label,
        why="each of its rows would be bad: rows are UTF-8",
        hint=f"save it as UTF-8: {source} > {quote('utf8-' + name)}",
    )


def hash_file(path: str) -> str:
    """The SHA-256 of the file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _blocks_of_lines(stream: io.RawIOBase | gzip.GzipFile, first: bytes) -> Iterator[tuple[int, list[bytes], bool]]:
    """(number of the first line, the lines, whether the last is one too long that was cut off) of each block."""
    number, rest, block = 1, b"", first
    while block:
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        too_long = len(rest) > MAX_ROW_BYTES
        if too_long:
            lines.append(rest[:100])
            rest = b""
        yield number, lines, too_long
        number += len(lines)
        block = stream.read(BLOCK_BYTES) or b""
        while too_long and block:  # pass over the rest of that line
            end = block.find(b"\n")
            if end >= 0:
                block = block[end + 1 :] or stream.read(BLOCK_BYTES) or b""
                break
            block = stream.read(BLOCK_BYTES) or b""
    if rest:
        yield number, [rest], False


def _json_lines(stream: io.RawIOBase | gzip.GzipFile, first: bytes, label: str) -> Iterator[Rows]:
    head, _, rest = first.lstrip().partition(b"\n")
    if head.strip() == b"{" and rest.lstrip()[:1] == b'"':
        raise UserError(
            f"{label} is one JSON object over several lines",
            code="input",
            where=label,
            why="rows are lines, or the items of one list",
            hint="objects one after the other: jq -c . FILE > rows.jsonl; a list in one object: jq -c '.NAME[]' FILE > rows.jsonl",
        )
    for number, lines, too_long in _blocks_of_lines(stream, first):
        rows: Rows = []
        for at, line in enumerate(lines, number):
            if too_long and at == number + len(lines) - 1:
                rows.append((at, _too_large()))
            elif line and not line.isspace():
                rows.append((at, _decoded(line)))
        yield rows


def _decoded(line: bytes) -> Any:
    try:
        text = line.decode()
        value = _decode(text.strip())
    except UnicodeDecodeError as reason:
        return BadRowError("not-utf8", f"byte {reason.start} is none")
    except _TwiceError as reason:
        return BadRowError("not-json", reason.why)
    except (ValueError, RecursionError) as reason:
        why = "nested too deeply" if isinstance(reason, RecursionError) else getattr(reason, "msg", "a number is too long")
        return BadRowError("not-json", why)
    return _half() if has_half_characters(text, value) else value


def _half() -> BadRowError:
    return BadRowError("not-utf8", "half of a surrogate pair")


def has_half_characters(text: str, value: Any) -> bool:
    r"""True when an escape such as \ud800 in `text` left half of a character in `value`: no tokenizer takes it."""
    if ("\\ud" not in text and "\\uD" not in text) or isinstance(value, BadRowError):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises _TwiceError where a key is there twice: one of the two values would be lost without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return value


class _TwiceError(ValueError):
    """The key that an object has twice."""

    @property
    def why(self) -> str:
        """For the report."""
        return f"the key {str(self)[:MAX_SHOWN]!r} is there twice"


# NaN and the infinities, which Python and pandas write for "nothing", are read as null.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_object)
_decode = _DECODER.decode


def _text_lines(stream: io.RawIOBase | gzip.GzipFile, first: bytes) -> Iterator[Rows]:
    for number, lines, too_long in _blocks_of_lines(stream, first):
        rows: Rows = []
        for at, line in enumerate(lines, number):
            if too_long and at == number + len(lines) - 1:
                rows.append((at, _too_large()))
            elif line and not line.isspace():
                rows.append((at, _text_row(line)))
        yield rows


def _text_row(line: bytes) -> Any:
    try:
        return {"text": line.decode().removesuffix("\r")}
    except UnicodeDecodeError as reason:
        return BadRowError("not-utf8", f"byte {reason.start} is none")


def _too_large() -> BadRowError:
    return BadRowError("too-large", f"a line of more than {MAX_ROW_BYTES >> 20} MiB")


class _Window:
    """Decoded text of a stream, of which the beginning is given up as it is used."""

    def __init__(self, stream: io.RawIOBase | gzip.GzipFile, first: bytes, label: str) -> None:
        self._stream, self._label = stream, label
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.ended = "", 0, False
        self._take(first)

    def _take(self, block: bytes) -> None:
        self.ended = not block
        try:
            self.text = self.text[self.at :] + self._utf8.decode(block, final=self.ended)
        except UnicodeDecodeError as reason:
            raise UserError(f"{self._label} is not UTF-8 text", code="input", where=self._label, hint="save it as UTF-8") from reason
        self.at = 0

    def more(self) -> None:
        """Read another block."""
        self._take(self._stream.read(BLOCK_BYTES) or b"")

    def skip_space(self) -> str:
        """The next character that is not white space, or an empty string at the end."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            self.at = at
            if at < len(text) or self.ended:
                return text[at : at + 1]
            self.more()


def _elements(stream: io.RawIOBase | gzip.GzipFile, first: bytes, label: str) -> Iterator[Rows]:
    """The items of one JSON list, numbered from 1. What breaks the list itself is an error: no later item could be told from rubbish."""
    window = _Window(stream, first, label)
    assert window.skip_space() == "["
    window.at += 1
    number, weight = 0, 0
    rows: Rows = []
    following = "," if window.skip_space() != "]" else "]"
    while following == ",":
        number += 1
        window.skip_space()
        value, num_chars = _element(window, number, label)
        rows.append((number, value))
        weight += num_chars
        following = window.skip_space()
        if following not in (",", "]"):
            raise _broken(label, number, "there is no comma after it" if following else "the file ends after it")
        window.at += following == ","
        if weight > BLOCK_BYTES:
            yield rows
            rows, weight = [], 0
    yield rows
    window.at += 1
    following = window.skip_space()
    if following == "[":
        raise UserError(
            f"{label} holds one list after another",
            code="not-json",
            where=label,
            why="rows are objects, one a line, or the items of one list",
            hint="make an object of each: jq -c '{conversations: .}' FILE > rows.jsonl",
        )
    if following:
        raise _broken(label, number, "something follows the list's end")


def _element(window: _Window, number: int, label: str) -> tuple[Any, int]:
    """The value that begins where the window is, and how many characters it took."""
    while True:
        why = "no comma follows it"
        try:
            value, end = _item(window.text, window.at)
            if window.ended or window.text[end : end + 1] in (",", "]", " ", "\n", "\r", "\t"):  # else a number may go on: 0 of 0.5
                text = window.text[window.at : end]
                window.at = end
                return (_half() if has_half_characters(text, value) else value), len(text)
        except json.JSONDecodeError as reason:
            why = f"{reason.msg}, {reason.pos - window.at} characters into it"
        except (ValueError, RecursionError) as reason:
            raise _broken(label, number, "nested too deeply, or a number too long") from reason
        if window.ended or len(window.text) - window.at > MAX_ROW_BYTES:
            raise _broken(label, number, why)
        window.more()


def _item(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and its end; a BadRowError for one that harms itself only. Raises ValueError."""
    try:
        return _DECODER.raw_decode(text, at)
    except _TwiceError as reason:
        return BadRowError("not-json", reason.why), json.JSONDecoder().raw_decode(text, at)[1]


def _broken(label: str, number: int, why: str) -> UserError:
    return UserError(
        f"{label} is not a JSON list to its end",
        code="not-json",
        where=f"{label}, row {number}",
        why=why,
        hint="is the file complete? mend it, or write JSON lines, where one bad row does no harm to the others",
    )
