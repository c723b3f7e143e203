"""Opening a log: files, standard input, gzip, any encoding; as chunks of whole lines, in memory that does not grow with the file.

Regular files are read, not mapped: a run that truncates its log under a mapping would kill us with SIGBUS, and mapped pages count as ours.
What is not read is noted, never left out silently.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from llmcheck.errors import UserError
from llmcheck.logs.clean import MAX_RAW_BYTES
from llmcheck.paths import trouble
from llmcheck.units import GIB, MIB, human_bytes

BLOCK_BYTES = MIB  # of one read: fits second-level caches, and amortises a call
MAX_LINE_BYTES = MIB  # a longer line is cut to MAX_RAW_BYTES before it is whole in memory
MAX_UNPACKED_BYTES = 64 * GIB  # of a gzip file
BOMB_RATIO = 250  # logs pack 5 to 100 times; deflate cannot pass 1,032
BOMB_FREE_BYTES = 256 * MIB  # unpacked before the ratio counts: a short file of blank lines is harmless

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = 16 + zlib.MAX_WBITS  # a header and a checksum of gzip's are expected
_MAGIC = (
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"PK\x03\x04", "zip", "unzip -p"),
)


_BLANK, _BLANKS = "holds nothing but blanks: nothing was checked in it", b" \t\r\n\v\f\0"
# Bytes that text has no use for: C0 without NUL, bell, backspace (bars), tab to carriage return, and escape. Random bytes are 9 % of them.
_CONTROLS = bytes([*range(1, 7), *range(14, 27), *range(28, 32)])
MIN_BYTES_PER_CONTROL = 50


class Chunk(NamedTuple):
    """Whole lines. `offset` counts the bytes (of the unpacked, decoded log) before them; `gap_lines` line ends were skipped just before."""

    data: bytes
    offset: int
    gap_lines: int = 0


class Window(NamedTuple):
    """How much of a regular file to read: its first and its last bytes. What is between is only counted."""

    head_bytes: int
    tail_bytes: int


class Source:
    """An opened log. Iterate over :meth:`chunks` once; then :attr:`notes` says what was not read, or not as it is in the file, and
    :attr:`unread` why nothing can be told from it."""

    def __init__(
        self, name: str, descriptor: int, *, owned: bool = True, size_bytes: int | None = None, window: Window | None = None
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes  # of a regular file when it was opened, packed or not
        self.notes: list[str] = []
        self.unread = ""  # why nothing can be told from it, once it was read: it is blank, or it is no text
        self._descriptor, self._owned = descriptor, owned
        self._window = window

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file (never standard input). May be called twice."""
        if self._owned and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def chunks(self) -> Iterator[Chunk]:
        """The log as chunks of whole lines, in order; the last line may lack its end. Raises UserError when it cannot be read."""
        seen = False  # more than blanks
        for chunk in self._chunks():
            if not seen:
                data = chunk.data.strip(_BLANKS)
                seen = bool(data)
                self.unread = _BLANK if not seen else "" if is_text(data) else "is not text: is this the log?"
            yield chunk

    def _chunks(self) -> Iterator[Chunk]:
        first = self._read(min(BLOCK_BYTES, self.size_bytes or BLOCK_BYTES))
        for magic, what, command in _MAGIC:
            if first.startswith(magic):
                hint = f"{command} FILE | llmcheck doctor --log -"
                raise UserError(f"{self.name} is a {what} archive", code="log", where=f"--log {self.name}", hint=hint)
        packed = first.startswith(b"\x1f\x8b")
        codec = "" if packed else encoding_of(first)
        window = self._window
        if window and not packed and not codec and self.size_bytes is not None and self.size_bytes > window.head_bytes + window.tail_bytes:
            yield from self._ends(window, self.size_bytes)
            return
        blocks = _chain(first, self._limited(self.size_bytes - len(first) if self.size_bytes else None))
        if packed:
            blocks = self._unpack(blocks)
            first = next(blocks, b"")
            codec = encoding_of(first)
            blocks = _chain(first, blocks)
        if codec:
            self.notes.append(f"{self.name} is {codec}: byte offsets count its text as UTF-8")
            blocks = _transcode(blocks, codec)
        yield from self._lines(blocks)

    def _limited(self, num_bytes: int | None) -> Iterator[bytes]:
        """The next `num_bytes` of the file. Files are read up to the size they had when opened: a run that goes on must not keep us."""
        while num_bytes is None or num_bytes > 0:
            block = self._read(BLOCK_BYTES if num_bytes is None else min(BLOCK_BYTES, num_bytes))
            if not block:
                return
            yield block
            num_bytes = num_bytes if num_bytes is None else num_bytes - len(block)

    def _read(self, num_bytes: int) -> bytes:
        try:
            return os.read(self._descriptor, num_bytes)
        except OSError as reason:
            raise _cannot(self.name, *trouble(self.name, reason)) from reason

    def _lines(self, blocks: Iterator[bytes], offset: int = 0, gap_lines: int = 0) -> Iterator[Chunk]:
        splitter = LineSplitter(offset)
        for block in blocks:
            for data, at in splitter.feed(block):
                yield Chunk(data, at, gap_lines)
                gap_lines = 0
        for data, at in splitter.finish():
            yield Chunk(data, at, gap_lines)
            gap_lines = 0
        if splitter.num_cut:
            lines = "1 line" if splitter.num_cut == 1 else f"{splitter.num_cut:,} lines"
            self.notes.append(f"{self.name}: {lines} longer than {human_bytes(MAX_LINE_BYTES)}; only the beginning was read")

    def _ends(self, window: Window, size_bytes: int) -> Iterator[Chunk]:
        """Whole lines of the first and of the last bytes of the file; the line ends between are counted."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        head = LineSplitter()
        for block in self._limited(window.head_bytes):
            for data, at in head.feed(block):
                yield Chunk(data, at)
        gap_at, tail_at = head.offset, size_bytes - window.tail_bytes
        os.lseek(self._descriptor, gap_at, os.SEEK_SET)
        gap_lines = sum(block.count(b"\n") for block in self._limited(tail_at - gap_at))
        blocks = self._limited(window.tail_bytes)
        for block in blocks:  # up to the first beginning of a line
            end = first_end(block)
            tail_at += len(block) if end < 0 else end + 1
            if end >= 0:
                gap_lines += block[end : end + 1] == b"\n"
                yield from self._lines(_chain(block[end + 1 :], blocks), tail_at, gap_lines)
                break
        self.notes.append(
            f"{self.name}: {human_bytes(tail_at - gap_at)} in the middle ({gap_lines:,} lines) were not read: "
            f"only the first {human_bytes(gap_at)} and the last {human_bytes(size_bytes - tail_at)}"
        )

    def _unpack(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Members of a gzip file, unpacked in pieces; stops with a note at a bomb, a damaged or an unfinished file."""
        packed = unpacked = 0
        unzip, started = zlib.decompressobj(wbits=_GZIP), False
        for block in blocks:
            packed += len(block)
            rest = block
            while rest:
                started = True
                try:
                    out = unzip.decompress(rest, BLOCK_BYTES)
                except zlib.error:
                    self.notes.append(f"{self.name} is damaged: what comes after {human_bytes(unpacked)} unpacked was not read")
                    return
                unpacked += len(out)
                read = packed - len(unzip.unconsumed_tail) - len(unzip.unused_data)
                if out:
                    yield out
                if unpacked > MAX_UNPACKED_BYTES or (unpacked > BOMB_FREE_BYTES and unpacked > BOMB_RATIO * read):
                    self.notes.append(
                        f"{self.name} unpacks to {unpacked / read:.0f} times its size: after {human_bytes(unpacked)} it was not read "
                        f"(the limits are {BOMB_RATIO} times and {human_bytes(MAX_UNPACKED_BYTES)})"
                    )
                    return
                if unzip.eof:
                    rest = unzip.unused_data.lstrip(b"\0")  # members may be padded
                    unzip, started = zlib.decompressobj(wbits=_GZIP), False
                else:
                    rest = unzip.unconsumed_tail
        if started:
            yield unzip.flush()
            self.notes.append(f"{self.name} ends in the middle of its compressed data: what was there was read")


class LineSplitter:
    """Blocks of bytes in, whole lines out. :attr:`offset` is that of the first byte not handed on; a line too long is cut, and counted."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.num_cut = 0
        self._carry = b""
        self._num_dropped = 0  # bytes of the present line after `_carry`

    def feed(self, block: bytes) -> list[tuple[bytes, int]]:
        """Lines that `block` makes whole, as (data, offset)."""
        out: list[tuple[bytes, int]] = []
        if self._num_dropped:
            end = first_end(block)
            if end < 0:
                self._num_dropped += len(block)
                return out
            out.append((self._carry + block[end : end + 1], self.offset))
            self.offset += len(self._carry) + self._num_dropped + end + 1
            self._carry, self._num_dropped, block = b"", 0, block[end + 1 :]
        # A carriage return that ends the block may be half of `\r\n`: wait for the other half.
        cut = last_end(block[:-1] if block.endswith(b"\r") else block) + 1
        if cut:
            data = self._carry + block[:cut]
            out.append((data, self.offset))
            self.offset += len(data)
            self._carry = block[cut:]
        else:
            self._carry += block
        if len(self._carry) > MAX_LINE_BYTES and self._carry.startswith(b"\0"):
            # A log that was truncated under its writer begins with a hole: what follows the hole is a line of its own.
            self.offset += len(self._carry) - len(line := self._carry.lstrip(b"\0"))
            self._carry = line
        if len(self._carry) > MAX_LINE_BYTES:
            self._num_dropped = len(self._carry) - MAX_RAW_BYTES
            self._carry = self._carry[:MAX_RAW_BYTES]
            self.num_cut += 1
        return out

    def finish(self) -> list[tuple[bytes, int]]:
        """The last line, which has no end."""
        out = [(self._carry, self.offset)] if self._carry else []
        self.offset += len(self._carry) + self._num_dropped
        self._carry, self._num_dropped = b"", 0
        return out


def open_log(path: str, *, window: Window | None = None) -> Source:
    """Open `path`, or standard input for ``-``. Raises UserError for what is no log: directories, devices, named pipes, a terminal."""
    if path == "-":
        if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
            hint = "for example: kubectl logs POD | llmcheck doctor --log -"
            raise UserError("nothing is piped in", code="log", where="--log -", why="standard input is a terminal, or closed", hint=hint)
        return Source("-", sys.stdin.fileno(), owned=False)
    descriptor, size_bytes = _open_regular(path)
    return Source(path, descriptor, size_bytes=size_bytes, window=window)


def is_text(data: bytes) -> bool:
    """False for what holds more control characters than logs do: weights, archives, pictures. NUL, which sparse files have, is left out."""
    data = data[:MAX_RAW_BYTES].replace(b"\0", b"")
    return (len(data) - len(data.translate(None, _CONTROLS))) * MIN_BYTES_PER_CONTROL <= len(data)


def first_end(data: bytes) -> int:
    """Position of the first line end in `data` (``\\n`` or ``\\r``: progress bars), or -1."""
    newline = data.find(b"\n")
    bar = data.find(b"\r", 0, len(data) if newline < 0 else newline)
    return newline if bar < 0 else bar


def last_end(data: bytes) -> int:
    """Position of the last line end in `data`, or -1."""
    newline = data.rfind(b"\n")
    return max(newline, data.rfind(b"\r", newline + 1))


def check_regular(path: str) -> None:
    """Raise UserError unless `path` is a regular file or leads to one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as reason:
        raise _cannot(path, *trouble(path, reason)) from reason
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise _cannot(path, "it is a folder", "name one of its files")
    if stat.S_ISFIFO(mode):
        raise _cannot(path, "it is a pipe", "llmcheck doctor --log - < PIPE")
    raise _cannot(path, "it is a device or a socket, not a file", "write its content to a file and give that")


def _open_regular(path: str) -> tuple[int, int]:
    """A descriptor of the regular file `path` and its size in bytes."""
    check_regular(path)  # before opening: to open a device can do things
    try:
        # Not blocking: it may have become a pipe since.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as reason:
        raise _cannot(path, *trouble(path, reason)) from reason
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _cannot(path, "it is not a regular file", "write its content to a file and give that")
    return descriptor, status.st_size


def _cannot(path: str, why: str, hint: str) -> UserError:
    return UserError(f"cannot read {path}", code="log", where=f"--log {path}", why=why, hint=hint)


def encoding_of(first: bytes) -> str:
    """The codec of a log that begins with `first`, or an empty string for UTF-8 and whatever else has one byte for ASCII."""
    for mark, codec in _MARKS:
        if first.startswith(mark):
            return codec
    sample = first[:4096]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(sample) >= 4 and max(even, odd) * 5 >= len(sample):  # two of five characters are ASCII, at the least
        if even * 8 <= odd:
            return "utf-16-le"
        if odd * 8 <= even:
            return "utf-16-be"
    return ""


def _transcode(blocks: Iterator[bytes], codec: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(codec)("replace")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
