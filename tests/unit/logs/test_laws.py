"""Laws: the scanner is the naive loop, lines times rules, made fast."""

from __future__ import annotations

import re
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.logs.samples import OOM, SHAPE, SHM, WATCHDOG, in_blocks, signature
from llmcheck.logs.clean import clean
from llmcheck.logs.signatures import Signatures
from llmcheck.rules.rule import Context, Rule

SHORT = signature("SHORT", ("rror: ", "ail"), r"^(?P<what>\w+)(?:rror: |ail)", group_by=("what",))
ZERO = signature("ZERO", "'loss': ", r"'loss': '?0(?:\.0+)?'?[,}]", levels=("info",))
ONE_LINE = (OOM, WATCHDOG, SHM, SHORT)
PARTS = st.one_of(
    st.sampled_from(
        [
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=SEND",
            "NCCL WARN Error while creating shared memory segment",
            "Error: x",
            "fail",
            "{'loss': 0.0, 'x': 1}",
            "{'loss': 0.5}",
            "é{'loss': 1}",
            "'loss': ",
            "\xff",
            "[rank1]: ",
            "2026-11-24 10:00:00,123 ",
            "[WARNING] ",
            "\x1b[31m",
            "\x1b[0m",
            "\0",
            "\n",
            "\n",
            "\r",
            "\r\n",
            " ",
            "é",
        ]
    ),
    st.text(max_size=5),
)
LOGS = st.lists(PARTS, max_size=60).map(lambda parts: "".join(parts).encode("utf-8", "replace"))


def naive(data: bytes, rules: tuple[Rule, ...]) -> list[tuple[str, int, int | None]]:
    """(code, line, rank) of every match."""
    found = []
    number = 1
    for part in re.split(rb"(\r\n|\n|\r)", data):
        if part in (b"\n", b"\r", b"\r\n"):
            number += part != b"\r"
            continue
        line = clean(part)
        for rule in rules:
            assert rule.log is not None
            level_counts = line.level in (None, "error", *rule.log.levels)
            match = re.search(rule.log.pattern, line.text)
            if level_counts and match is not None and any(literal in line.text for literal in rule.log.literal):
                rank = match.groupdict().get("rank")
                found.append((rule.code, number, line.rank if line.rank is not None or rank is None else int(rank)))
    return found


@given(LOGS, st.integers(1, 200))
def test_the_scanner_finds_what_the_naive_loop_finds(data: bytes, block_bytes: int) -> None:
    expected = naive(data, ONE_LINE)
    result = in_blocks(data, block_bytes, Signatures(ONE_LINE, "python"))
    counts: dict[tuple[str, int | None], int] = {}
    for code, _, rank in expected:
        counts[code, rank] = counts.get((code, rank), 0) + 1
    found: dict[tuple[str, int | None], int] = {}
    for group in result.groups:
        for rank, count in group.ranks.items():
            found[group.rule.code, rank] = found.get((group.rule.code, rank), 0) + count
    assert found == counts
    firsts = {code: min(line for other, line, _ in expected if other == code) for code, _, _ in expected}
    assert {group.rule.code: group.first.line for group in reversed(result.groups)} == firsts


@given(LOGS, st.integers(1, 100), st.integers(100, 10_000))
def test_borders_of_blocks_neither_lose_nor_double_a_hit(data: bytes, small: int, large: int) -> None:
    signatures = Signatures((*ONE_LINE, SHAPE), "python")
    one, other = in_blocks(data, small, signatures), in_blocks(data, large, signatures)
    assert (one.groups, one.tracebacks, one.num_lines) == (other.groups, other.tracebacks, other.num_lines)


@given(LOGS, st.integers(1, 200))
def test_leaving_out_lines_by_their_chunk_changes_nothing(data: bytes, block_bytes: int) -> None:
    rules = (*ONE_LINE, ZERO)
    plain = in_blocks(data, block_bytes, Signatures(rules, "python"))
    with mock.patch("llmcheck.logs.screen.DENSE_HITS", 1):
        assert in_blocks(data, block_bytes, Signatures(rules, "python")).groups == plain.groups


@given(LOGS)
def test_the_line_number_is_that_of_the_raw_file(data: bytes) -> None:
    for group in in_blocks(data, 64, Signatures(ONE_LINE, "python")).groups:
        for match in (group.first, group.last):
            assert match.line == data.count(b"\n", 0, match.offset) + 1
            assert match.offset == 0 or data[match.offset - 1 : match.offset] in (b"\n", b"\r")


@given(st.binary(max_size=2000), st.integers(1, 500))
@settings(max_examples=200)
def test_any_bytes_are_survived(data: bytes, block_bytes: int) -> None:
    result = in_blocks(data, block_bytes, Signatures((*ONE_LINE, SHAPE), "python"))
    assert result.num_lines == data.count(b"\n") + bool(data and not data.endswith(b"\n"))


NEAR = signature("NEAR", "needle", "needle", above=(Context(literal="thread", pattern="thread [a-z]", within=3),))
FAR = signature(
    "FAR", "needle", "needle", above=(Context(literal="thread", within=3, absent=True),), below=(Context(literal="knot", within=2),)
)
HAY = st.lists(st.sampled_from(["needle", "thread a", "thread 1", "knot", "x", "", "\r"]), max_size=60)


@given(HAY, st.integers(1, 60), st.integers(0, 3), st.integers(1, 3))
def test_contexts_are_those_of_the_lines_around(lines: list[str], block_bytes: int, contexts_first: int, many_asked: int) -> None:
    text = "".join(line if line == "\r" else line + "\n" for line in lines)
    rows = [part.replace("\r", "") for part in text.split("\n")]  # a carriage return before a line leaves its number as it is

    def count(start: int, stop: int, wanted: str) -> int:
        return sum(wanted in row for row in rows[max(start, 0) : stop])

    near = [i for i, row in enumerate(rows) if row == "needle" and count(i - 3, i, "thread a")]
    far = [i for i, row in enumerate(rows) if row == "needle" and not count(i - 3, i, "thread") and count(i + 1, i + 3, "knot")]
    with (
        mock.patch("llmcheck.logs.scan.CONTEXTS_FIRST", contexts_first),
        mock.patch("llmcheck.logs.contexts._FEW_BYTES", contexts_first),
        mock.patch("llmcheck.logs.contexts._MANY_ASKED", many_asked),
    ):
        result = in_blocks(text.encode(), block_bytes, Signatures([NEAR, FAR], "python"))
    found = {group.rule.code: (group.count, group.first.line - 1, group.last.line - 1) for group in result.groups}
    expected = {code: (len(at), at[0], at[-1]) for code, at in (("NEAR", near), ("FAR", far)) if at}
    assert found == expected
