from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.logs.samples import OOM, only
from llmcheck.errors import UserError
from llmcheck.logs import source as module
from llmcheck.logs.match import ScanResult
from llmcheck.logs.scan import scan
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import LineSplitter, Window, open_log

OOM_LINE = b"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
SIGNATURES = Signatures([OOM], "python")


def read(path: Path, window: Window | None = None) -> ScanResult:
    with open_log(str(path), window=window) as log:
        return scan(log, SIGNATURES)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "run.log"
    path.write_bytes(data)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    result = read(write(tmp_path, b"a\n" + OOM_LINE + b"\n"))
    assert (only(result).first.line, result.num_lines, result.num_bytes, result.notes) == (2, 2, 63, ())


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path, b"")) == ScanResult(source=str(tmp_path / "run.log"), engine="python")


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    write(tmp_path, OOM_LINE)
    (tmp_path / "link").symlink_to("run.log")
    assert only(read(tmp_path / "link")).count == 1


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
    ],
)
def test_utf16_and_utf32_are_read_with_or_without_a_mark(tmp_path: Path, encode) -> None:  # type: ignore[no-untyped-def]
    result = read(write(tmp_path, encode("a\né\n" + OOM_LINE.decode() + "\n")))
    assert only(result).first.line == 3
    assert "byte offsets count its text as UTF-8" in result.notes[0]


def test_utf16_split_anywhere_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 7)
    assert only(read(write(tmp_path, ("ab█\n" * 5 + OOM_LINE.decode()).encode("utf-16")))).first.line == 6


@pytest.mark.parametrize("data", [b"caf\xe9\n", b"\xff\xfe\xfd\n"[1:], b"\xef\xbb\xbfa\n"])
def test_other_encodings_are_survived(tmp_path: Path, data: bytes) -> None:
    assert only(read(write(tmp_path, data + OOM_LINE))).first.line == 2


def test_a_truncated_logs_run_of_nul_is_survived(tmp_path: Path) -> None:
    """Logs that are truncated while the run holds its position begin with a hole."""
    assert only(read(write(tmp_path, b"\0" * 3_000_000 + b"x\n" + OOM_LINE))).first.line == 2


def test_gzip_is_unpacked_whatever_its_name(tmp_path: Path) -> None:
    assert only(read(write(tmp_path, gzip.compress(b"a\n" * 500_000 + OOM_LINE)))).first.line == 500_001


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"a\n") + gzip.compress(b"b\n") + b"\0" * 10
    assert read(write(tmp_path, packed)).num_lines == 2


def test_gzip_of_utf16_is_read(tmp_path: Path) -> None:
    assert only(read(write(tmp_path, gzip.compress(OOM_LINE.decode().encode("utf-16"))))).first.line == 1


def test_a_cut_gzip_is_read_to_the_cut_and_says_so(tmp_path: Path) -> None:
    packed = gzip.compress(OOM_LINE + b"\n" + os.urandom(100_000))
    result = read(write(tmp_path, packed[: len(packed) // 2]))
    assert only(result).first.line == 1
    assert "ends in the middle of its compressed data" in result.notes[0]


def test_a_damaged_gzip_says_so(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(OOM_LINE + b"\n" + os.urandom(3_000_000)))
    packed[1_000_000] ^= 0xFF
    packed[-6] ^= 0xFF
    result = read(write(tmp_path, bytes(packed)))
    assert "damaged" in result.notes[0]


def test_a_bomb_is_stopped_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOMB_FREE_BYTES", 4 << 20)
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(OOM_LINE + b"\n") + b"".join(packer.compress(b"\n" * (1 << 20)) for _ in range(64)) + packer.flush()
    result = read(write(tmp_path, packed))
    assert "times its size" in result.notes[0]
    assert 4 << 20 <= result.num_bytes <= 6 << 20
    assert only(result).first.line == 1


def test_the_size_of_what_is_unpacked_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1 << 20)
    result = read(write(tmp_path, gzip.compress(b"abc\n" * 1_000_000)))
    assert result.num_bytes <= 2 << 20
    assert "not read" in result.notes[0]


@pytest.mark.parametrize(("magic", "command"), [(b"\x28\xb5\x2f\xfd", "zstdcat"), (b"\xfd7zXZ\0", "xzcat"), (b"BZh9", "bzcat")])
def test_other_archives_are_refused_with_the_command_that_opens_them(tmp_path: Path, magic: bytes, command: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, magic + b"x"))
    assert caught.value.hint.startswith(command)


def test_a_line_too_long_is_cut_and_noted(tmp_path: Path) -> None:
    data = OOM_LINE + b" x" * 5_000_000 + OOM_LINE + b"\nb\n" + OOM_LINE + b"\n"
    result = read(write(tmp_path, data))
    group = only(result)
    assert (group.count, group.first.line, group.last.line, group.last.offset) == (2, 1, 3, data.rindex(b"RuntimeError"))
    assert "1 line longer than 1.00 MiB" in result.notes[0]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_log(str(tmp_path))
    assert caught.value.why == "it is a folder"


def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError) as caught:
        open_log(str(tmp_path / "pipe"))
    assert (caught.value.why, caught.value.hint) == ("it is a pipe", "llmcheck doctor --log - < PIPE")


def test_a_device_is_refused() -> None:
    with pytest.raises(UserError):
        open_log("/dev/zero")


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, b"")
    with pytest.raises(UserError) as caught:
        open_log(str(tmp_path / "run.lgo"))
    assert "run.log" in caught.value.hint


@pytest.mark.parametrize("path", ["a\0b", "", "x" * 5000])
def test_an_impossible_name_is_an_error_of_the_user(path: str) -> None:
    with pytest.raises(UserError):
        open_log(path)


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = os.pipe()
    os.write(there, OOM_LINE)
    os.close(there)
    with os.fdopen(here) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with open_log("-") as log:
            assert only(scan(log, SIGNATURES)).count == 1


def test_a_terminal_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UserError):
        open_log("-")


def test_a_file_is_read_to_the_size_it_had_when_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path, b"a\n")
    with open_log(str(path)) as log:
        with path.open("ab") as file:
            file.write(b"b\n")
        assert scan(log, SIGNATURES).num_lines == 1


def test_a_window_reads_both_ends_and_counts_the_lines_between(tmp_path: Path) -> None:
    lines = [b"line %d" % i for i in range(1000)]
    lines[2] = lines[500] = lines[998] = OOM_LINE
    data = b"\n".join(lines)
    result = read(write(tmp_path, data), Window(head_bytes=200, tail_bytes=300))
    group = only(result)
    assert (group.count, group.first.line, group.last.line, group.last.offset) == (2, 3, 999, data.rindex(OOM_LINE))
    assert result.num_lines == 1000
    assert "in the middle" in result.notes[0]
    assert "were not read" in result.notes[0]


@given(st.lists(st.text("ab\r", max_size=9), max_size=60), st.integers(0, 80), st.integers(0, 80))
def test_a_window_numbers_lines_as_the_whole_file_does(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], head: int, tail: int
) -> None:
    data = "\n".join(parts).encode()
    path = tmp_path_factory.mktemp("w") / "run.log"
    path.write_bytes(data)
    with open_log(str(path), window=Window(head, tail)) as log:
        number = 1
        for chunk in log.chunks():
            number += chunk.gap_lines
            assert number == data.count(b"\n", 0, chunk.offset) + 1
            assert data.startswith(chunk.data, chunk.offset)
            number += chunk.data.count(b"\n")


@given(st.text("ab\r\n", max_size=60), st.integers(1, 9))
def test_splitting_keeps_every_byte_in_place_and_never_cuts_a_line(text: str, block_bytes: int) -> None:
    data = text.encode()
    splitter = LineSplitter()
    out = []
    for at in range(0, len(data), block_bytes):
        out += splitter.feed(data[at : at + block_bytes])
    ends = [whole[-1:] for whole, _ in out]
    out += splitter.finish()
    assert b"".join(whole for whole, _ in out) == data
    assert all(data.startswith(whole, offset) for whole, offset in out)
    assert set(ends) <= {b"\n", b"\r"}
    assert not any(data.startswith(b"\n", offset) and data[offset - 1 : offset] == b"\r" for _, offset in out)


@pytest.mark.parametrize(
    ("data", "unread"),
    [
        (OOM_LINE, ""),
        (b"\0" * 5000 + OOM_LINE, ""),  # the hole of a log that was truncated under its writer
        (("Entraînement: 学习 " * 50).encode(), ""),
        (("обучение " * 50).encode("koi8-r"), ""),
        (b"\x1b[31mred\x1b[0m \x08\x08\x07 50%\r" * 50, ""),
        (b"\n\n \t\r\n" * 1000, "holds nothing but blanks: nothing was checked in it"),
        (b"\0" * 3_000_000, "holds nothing but blanks: nothing was checked in it"),
        (bytes(range(256)) * 100, "is not text: is this the log?"),
        (b"\x89PNG\r\n\x1a\n" + zlib.compress(bytes(range(256)) * 500, 0), "is not text: is this the log?"),
    ],
    ids=range(9),
)
def test_what_nothing_can_be_told_from_is_told(tmp_path: Path, data: bytes, unread: str) -> None:
    assert read(write(tmp_path, data)).unread == unread


def test_the_line_after_a_large_hole_is_read(tmp_path: Path) -> None:
    result = read(write(tmp_path, b"\0" * 5_000_000 + OOM_LINE + b"\n"))
    assert (only(result).first.line, result.notes, result.unread) == (1, (), "")
