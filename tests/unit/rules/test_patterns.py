"""Patterns: RE2's subset, and none that runs away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.rules.patterns import complaints, contains_literal, is_searchable

SAFE = [
    r"\[Rank (?P<rank>\d+)\] Watchdog caught: WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+),",
    r"'[^']*' is not '[^']*' but '[^']*'",
    r"(?:torch\.)?OutOfMemoryError: CUDA out of memory\. Tried to allocate (?P<want>[\d.]+ [KMG]iB)",
    r"Error (.*)",
    r"GPU .{0,100} has (?P<total>[\d.]+) GiB",
]
UNSAFE = {
    r"^(\w+\s?)*$": "runs away",
    r"(a+)+b": "runs away",
    r"(?:x*)+": "runs away",
    r"a.*b.*c": "compete",
    r".*error.*code.*": "compete",
    r"\w+\d+\w+!": "compete",
    r"x(?=y)": "look-around",
    r"(?<!x)y": "look-around",
    r"(a)\1": "back-reference",
    r"(?i)error": "(?i)",
    r"(": "not a regular expression",
    "a" * 3_000: "longer",
}


@pytest.mark.parametrize("pattern", SAFE)
def test_safe(pattern: str) -> None:
    assert complaints(pattern) == []


@pytest.mark.parametrize("pattern", UNSAFE)
def test_unsafe(pattern: str) -> None:
    assert UNSAFE[pattern] in " ".join(complaints(pattern))


@pytest.mark.parametrize(
    ("pattern", "literals", "certain"),
    [
        (r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError: CUDA", ["OutOfMemoryError: CUDA"], True),
        (r"(?:a|bcde)f", ["bcde"], False),
        (r"(?:abcd|bcde)f", ["bcd"], True),
        (r"(?:abcd|wxyz)f", ["abcd", "wxyz"], True),
        (r"[Ee]rror building", ["rror building"], True),
        (r"ab{3}c", ["abbbc"], True),
        (r"ab+c", ["abc"], False),
        (r"(?:Killed)?", ["Killed"], False),
        (r"^Killed$", ["Killed"], True),
        (r"x.y", ["xay"], False),
    ],
)
def test_literal_is_in_every_match(pattern: str, literals: list[str], certain: bool) -> None:
    assert contains_literal(pattern, literals) is certain


@given(st.from_regex(r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError: (?:CUDA|HIP) out of memory"))
def test_what_matches_holds_the_proven_literal(text: str) -> None:
    assert contains_literal(r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError: (?:CUDA|HIP) out of memory", ["OutOfMemoryError: "])
    assert "OutOfMemoryError: " in text


@pytest.mark.parametrize(
    ("pattern", "searchable"),
    [
        ("'loss': 0,", True),
        (r"loss: (?P<x>[\d.]+), .*nan", True),
        (r"loss: [^\n]*nan", True),
        (r"(?P<x>\d+) loss", False),
        (r"loss: [^,]*nan", False),
        (r"loss:\s*nan", False),
        (r"loss\b", False),
        ("loss$", False),
        ("(?s)loss.x", False),
        ("loss(?s:.)x", False),
        (r"loss\n", False),
        ("", False),
    ],
)
def test_patterns_that_can_be_searched_in_many_lines_at_once(pattern: str, searchable: bool) -> None:
    assert is_searchable(pattern) == searchable
