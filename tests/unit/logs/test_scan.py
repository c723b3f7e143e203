from __future__ import annotations

import json

import pytest

from benchmarks.logs.samples import (
    BUILD,
    BUILD_ELSE,
    KILLED,
    OOM,
    OVERFLOW,
    QUIET,
    SHAPE,
    SHM,
    WATCHDOG,
    codes,
    find,
    in_blocks,
    only,
    signature,
)
from llmcheck.logs.match import Match
from llmcheck.logs.scan import OTHERS, Limits, Scanner
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import Chunk
from llmcheck.rules.rule import Context

OOM_LINE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"
TIMEOUT = (
    "[rank{0}]:[E321 02:07:08.4 ProcessGroupNCCL.cpp:607] [Rank {0}] "
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType={1}, T"
)
OVERFLOW_LINE = "[deepspeed] OVERFLOW! Rank {} Skipping step. Attempted loss scale: 65536, reducing to 32768\n"


def test_a_match_has_its_line_offset_rank_and_captures() -> None:
    group = only(find(f"step 1\r\nstep 2\r\n[rank3]: {OOM_LINE}\n"))
    assert group.first == Match(source="-", line=3, offset=16, text=OOM_LINE, captures={"size": "2.00 GiB"}, rank=3)


def test_progress_bars_do_not_count_as_lines() -> None:
    assert only(find("start\n\r  1%|\r  2%|\r" + OOM_LINE + "\n")).first.line == 2


def test_offsets_are_those_of_the_file_when_colours_are_taken_out() -> None:
    text = "\x1b[32mfine\x1b[0m\n\r\x1b[1mbar\x1b[0m\r\x1b[31mCUDA out of\x1b[0m memory. Tried to allocate 1.00 GiB\n"
    first = only(find(text)).first
    assert (first.line, first.offset) == (2, text.encode().index(b"\x1b[31m"))


def test_a_colour_code_or_nul_inside_a_literal_hides_nothing() -> None:
    assert codes(find("CUDA \x1b[31mout of mem\0ory. Tried\x1b[0m to allocate 1.00 GiB")) == ["OOM"]


def test_the_last_line_needs_no_end() -> None:
    result = find(f"a\n{OOM_LINE}")
    assert (result.num_lines, codes(result)) == (2, ["OOM"])


def test_ranks_are_folded_and_counted() -> None:
    group = only(find("".join(TIMEOUT.format(rank, "ALLREDUCE") + "\n" for rank in (0, 1, 1, 2))))
    assert (group.count, group.ranks, group.first.rank, group.last.rank) == (4, {0: 1, 1: 2, 2: 1}, 0, 2)


def test_group_by_tells_findings_apart() -> None:
    result = find(TIMEOUT.format(0, "ALLREDUCE") + "\n" + TIMEOUT.format(1, "BROADCAST"))
    assert [group.key for group in result.groups] == [(("op", "ALLREDUCE"),), (("op", "BROADCAST"),)]


def test_groups_beyond_the_limit_are_folded_into_one() -> None:
    rule = signature("OP", "OpType=", r"OpType=(?P<op>\w+)", group_by=("op",))
    data = b"".join(b"OpType=X%d\n" % i for i in range(20))
    result = in_blocks(data, 1000, Signatures([rule], "python"), Limits(num_groups=5))
    assert [(group.key, group.count) for group in result.groups][-1] == (OTHERS, 15)


def test_the_rank_in_a_capture_counts_where_the_line_has_no_prefix() -> None:
    rule = signature("LATE", "worker died", r"worker died on (?P<rank>\d+)")
    assert only(find("worker died on 5", rule)).first.rank == 5


@pytest.mark.parametrize("level", ["INFO", "WARNING", "DEBUG"])
def test_what_is_logged_below_error_does_not_count(level: str) -> None:
    assert codes(find(f"[2026-11-24 10:00:00,123] [{level}] [a.py:1] {OOM_LINE}")) == []


def test_what_is_logged_as_error_counts() -> None:
    assert codes(find(f"[2026-11-24 10:00:00,123] [ERROR] [a.py:1] {OOM_LINE}")) == ["OOM"]


def test_a_rule_may_ask_for_warnings() -> None:
    line = "node1:1:2 [0] NCCL {} Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)"
    assert codes(find(line.format("WARN"), SHM)) == ["SHM"]


def test_min_count_is_of_one_rank() -> None:
    eight_ranks = "".join(OVERFLOW_LINE.format(rank) for rank in range(8))
    assert (codes(find(eight_ranks, OVERFLOW)), codes(find(OVERFLOW_LINE.format(0) * 3, OVERFLOW))) == ([], ["OVERFLOW"])


FAILED = "RuntimeError: Error building extension 'cpu_adam'\n"
GNU = "error: #error -- unsupported GNU version! gcc versions later than 12 are not supported!\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GNU + FAILED, ["BUILD"]),
        (GNU + "x\n" * 4 + FAILED, ["BUILD"]),
        (GNU + "x\n" * 5 + FAILED, ["BUILDELSE"]),
        (FAILED + GNU, ["BUILDELSE"]),
        (FAILED, ["BUILDELSE"]),
    ],
)
def test_what_stands_above_tells_causes_apart(text: str, expected: list[str]) -> None:
    assert codes(find(text, BUILD, BUILD_ELSE)) == expected


EXITED = "[launch.py:322] ['python'] exits with return code = -9\n"
KERNEL = "memory: oom-kill event in cgroup\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EXITED + KERNEL, ["KILLED"]),
        (EXITED + "x\n\n" + KERNEL, ["KILLED"]),
        (EXITED + "x\n\n\n" + KERNEL, ["QUIET"]),
        (EXITED + "oom-killer was here", []),
        (KERNEL + EXITED, ["QUIET"]),
        (EXITED, ["QUIET"]),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 10, 1000])
def test_what_stands_below_tells_causes_apart(text: str, expected: list[str], block_bytes: int) -> None:
    assert codes(in_blocks(text.encode(), block_bytes, Signatures([KILLED, QUIET], "python"))) == expected


MISMATCH = (
    "{0}size mismatch for lm_head.weight: copying a param with shape x from checkpoint,\n"
    "{0}    the shape in current model is torch.Size([32000, 4096]).\n"
)


@pytest.mark.parametrize("block_bytes", [1, 30, 1000])
def test_a_window_of_several_lines_reaches_over_blocks(block_bytes: int) -> None:
    assert codes(in_blocks(MISMATCH.format("").encode(), block_bytes, Signatures([SHAPE], "python"))) == ["SHAPE"]


def test_a_window_skips_the_lines_of_other_ranks() -> None:
    lines = [MISMATCH.format(f"[rank{rank}]: ").splitlines(keepends=True) for rank in (0, 1)]
    group = only(find("".join(line for pair in zip(*lines, strict=True) for line in pair), SHAPE))
    assert group.ranks == {0: 1, 1: 1}


def test_a_window_matches_from_its_own_line_only() -> None:
    rule = signature("TWO", "needle", "needle (?P<n>[0-9])", lines=3)
    assert only(find("needle x\nneedle 2\n", rule)).count == 1


def test_a_literal_beyond_the_window_does_not_match() -> None:
    assert codes(find("x" * 9000 + OOM_LINE)) == []


def test_beyond_the_limit_matches_are_counted_and_the_last_one_is_kept() -> None:
    data = f"{OOM_LINE}\n".encode() * 300
    group = only(in_blocks(data, 1000, Signatures([OOM], "python"), Limits(num_matches=10, sample_every=7)))
    assert (group.count, group.exact, group.first.line, group.last.line) == (300, False, 1, 300)


@pytest.mark.parametrize("block_bytes", [500, 4096])
def test_counts_beyond_the_limit_do_not_depend_on_the_blocks(block_bytes: int) -> None:
    data = f"{OOM_LINE}\n".encode() * 300
    limits = Limits(num_matches=10, sample_every=7)
    one = in_blocks(data, 100_000, Signatures([OOM], "python"), limits)
    assert in_blocks(data, block_bytes, Signatures([OOM], "python"), limits).groups == one.groups


def test_a_rule_that_takes_too_long_is_undecided() -> None:
    ticks = iter(range(1000))
    scanner = Scanner(Signatures([OOM], "python"), limits=Limits(rule_seconds=2.5), clock=lambda: float(next(ticks)))
    scanner.feed(Chunk(f"{OOM_LINE}\n".encode() * 10, 0))
    result = scanner.finish()
    assert [(entry.rule.code, entry.reason) for entry in result.undecided] == [
        ("OOM", "its pattern took more than 2.5 s: not looked for after line 3")
    ]


def test_a_pattern_that_cannot_be_compiled_is_undecided() -> None:
    (entry,) = find("needle", signature("BAD", "needle", "needle(")).undecided
    assert entry.reason.startswith("its pattern cannot be used")


def test_a_literal_of_healthy_lines_finds_the_few_that_match() -> None:
    rule = signature("ZERO", "'loss': ", r"'loss': 0(?:\.0+)?,")
    log = "".join(f"{{'loss': {0 if i == 700 else i / 7}, 'é': 1}}\n" for i in range(1, 1000))
    assert only(find(log, rule)).first.line == 700


def test_a_match_does_not_hide_one_behind_a_carriage_return() -> None:
    rule = signature("END", "needle", "needle.*x")
    assert only(find("needle\r" * 999 + "needle x\n" + "needle\n" * 999, rule)).count == 1


def test_a_literal_inside_json_is_not_left_out() -> None:
    rule = signature("ZERO", "loss", r'loss": 0,')
    log = "".join(json.dumps({"log": f'{{"loss": {i % 500},}}\n'}, separators=(",", ":")) + "\n" for i in range(1, 1000))
    assert only(find(log, rule)).first.line == 500


def test_a_removed_rule_is_not_looked_for() -> None:
    import dataclasses

    assert codes(find(OOM_LINE, dataclasses.replace(OOM, status="removed"), WATCHDOG)) == []


def test_lines_after_a_gap_keep_their_numbers() -> None:
    scanner = Scanner(Signatures([OOM], "python"))
    scanner.feed(Chunk(b"a\nb\n", 0))
    scanner.feed(Chunk(OOM_LINE.encode(), 1000, gap_lines=10))
    assert scanner.finish().groups[0].first.line == 13


def test_a_context_does_not_keep_a_flood_of_candidates() -> None:
    rule = signature("FLOOD", "needle", "needle", below=(Context(literal="never there", within=1000, absent=False),))
    result = in_blocks(b"needle\n" * 5000, 4096, Signatures([rule], "python"), Limits(num_pending=10))
    assert codes(result) == []


def test_a_context_that_comes_after_many_lines_without_it_counts() -> None:
    crowd = FAILED * 300
    group = only(find(crowd + GNU + FAILED + crowd, BUILD))
    assert (group.first.line, group.count) == (302, 5)  # it may stand five lines above
