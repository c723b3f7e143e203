"""Logs written to hurt: nothing is executed, nothing grows, nothing stands still."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.logs.samples import OOM, OVERFLOW, RULES, codes, find, in_blocks, only
from llmcheck.logs.diagnose import diagnose
from llmcheck.logs.scan import MAX_TEXT_CHARS
from llmcheck.logs.signatures import Signatures

OOM_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB"
CRASH = 'Traceback (most recent call last):\n  File "a.py", line 1, in main\n'


def test_escape_sequences_do_not_reach_what_is_shown() -> None:
    first = only(find(f"\x1b]0;pwned\x07\x1b[2J{OOM_TEXT}\x1b]8;;http://x\x1b\\")).first
    assert first.text == OOM_TEXT


def test_workflow_commands_are_text() -> None:
    result = find(f"::stop-commands::x\n::error file=a.py::{OOM_TEXT}\n##[error]{OOM_TEXT}\n", OOM)
    assert (only(result).count, only(result).first.text) == (2, OOM_TEXT)


def test_what_is_kept_of_a_line_is_short() -> None:
    assert len(only(find(OOM_TEXT + "y" * 8000)).first.text) == MAX_TEXT_CHARS


@pytest.mark.parametrize("inside", ["{cap.size}", "{0.__class__}", "%s", "`id`", "$(id)"])
def test_templates_in_captures_are_text(inside: str) -> None:
    group = diagnose([find(f"{CRASH}ValueError: {inside}\n", OOM)]).exception
    assert group is not None
    assert group.last.cause.message == inside


@pytest.mark.parametrize(
    "log",
    [
        CRASH * 3000,
        (CRASH + "ValueError: x\n\nDuring handling of the above exception, another exception occurred:\n\n") * 3000,
        "".join(f"{CRASH}Error{i}: x\n" for i in range(3000)).replace("Error", "ErrorOf_"),
        "Traceback (most recent call last):\n" * 20_000,
        "Traceback (most recent call last):\r" * 20_000,
        ("size mismatch for a: copying\n") * 20_000,
        "OVERFLOW! Rank 0 Skipping step\n" * 50_000,
        "[rank0]: size mismatch for a: copying\n" + "[rank1]: x\n" * 50_000,
        "exits with return code = -9\n" * 20_000,
        "unsupported GNU version\n" * 20_000,
    ],
)
def test_repetition_ends(log: str) -> None:
    result = in_blocks(log.encode(), 100_000, Signatures(RULES, "python"))
    assert result.num_lines == log.count("\n") or "\r" in log


def test_any_number_of_ranks_is_survived() -> None:
    log = "".join(f"[rank{i}]: OVERFLOW! Rank {i} Skipping step\n" for i in range(999_000, 999_400))
    assert codes(find(log, OVERFLOW)) == []


SCRIPT = """
import sys
from benchmarks.logs.samples import RULES, codes, peak_kib
from llmcheck.logs.scan import scan
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import open_log
signatures = Signatures(RULES, "python")
before = peak_kib()
with open_log(sys.argv[1]) as log:
    result = scan(log, signatures)
print(codes(result), (peak_kib() - before) // 1024)
"""


def grown_mib(path: Path) -> tuple[str, int]:
    """The findings of a scan in a process of its own, and by how many MiB it grew."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    found, _, grown = done.stdout.strip().rpartition(" ")
    return found, int(grown)


def test_a_line_of_100_mb_does_not_grow_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with path.open("wb") as file:
        file.write(b"a\n")
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(f"{OOM_TEXT}\n{OOM_TEXT}\n".encode())
    found, grown = grown_mib(path)
    assert found == "['OOM']"
    assert grown < 30


def test_a_packed_line_of_300_mb_does_not_grow_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run.log.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{OOM_TEXT}\n".encode())
        for _ in range(300):
            file.write(b"\0" * 1_000_000)
    found, grown = grown_mib(path)
    assert found == "['OOM']"
    assert grown < 30


def test_a_long_log_does_not_grow_the_process(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with path.open("wb") as file:
        for step in range(200):
            file.write(b"".join(b"%s step %d of many\n" % (bytes([97 + step % 26, 97 + step // 26]) * 9, i) for i in range(10_000)))
    _, grown = grown_mib(path)
    assert path.stat().st_size > 60_000_000
    assert grown < 40
