"""Patterns: RE2's subset, and none that runs away."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_all
from llmcheck.rules.patterns import WINDOW_CHARS, complaints, contains_literal, is_searchable
from tests.helpers import adversary

SAFE = [
    r"\[Rank (?P<rank>\d+)\] Watchdog caught: WorkNCCL\(SeqNum=(?P<seq>\d+), OpType=(?P<op>\w+),",
    r"'[^']*' is not '[^']*' but '[^']*'",
    r"(?:torch\.)?OutOfMemoryError: CUDA out of memory\. Tried to allocate (?P<want>[\d.]+ [KMG]iB)",
    r"Error (.*)",
    r"GPU .{0,100} has (?P<total>[\d.]+) GiB",
    r"[\w.]+Error: (?:CUDA|cuDNN) .{0,200} in (?P<what>\w+)",
    r"(?:DEBUG|INFO|ERROR|WARNING){1,3}: .*",
    r"size mismatch for (?P<name>[\w.]+): copying a param with shape (?P<shape>torch\.Size\(\[[\d, ]*\]\)) from checkpoint",
    r"[^:]*: (?P<a>[^,]*), (?P<b>[^;]*); [^.]*\.",
]
UNSAFE = {
    r"^(\w+\s?)*$": "runs away",
    r"(a+)+b": "runs away",
    r"(?:x*)+": "runs away",
    r"a.*b.*c": "compete",
    r".*error.*code.*": "compete",
    r"\w+\d+\w+!": "compete",
    r"(?:a+){0,50}!": "compete",
    r"(?:a{1,9}){1,50}!": "compete",
    r"(?:\w+,? ?){1,20};": "compete",
    r"(?:a|a)*!": "compete",
    r"(?:aa|a)*!": "compete",
    r"(?:|a)+?x*!": "compete",
    r"(?:ab|a|b){0,50}!": "compete",
    r"(?:a?){50}a{50}!": "compete",
    r"a*a*!": "compete",
    r"a{0,2000}a{0,2000}!": "compete",
    r"ä{0,200}ö?[ä]{0,200}ä{0,200}!": "compete",
    r"\W*[^a-z]*\s*!": "compete",
    r"x.{0,500}y.{0,500}z": "compete",
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


def shipped() -> list[str]:
    """Every regular expression of our packs."""
    found: dict[str, None] = {}
    for pack in load_all(load_registry()):
        for rule in pack.rules:
            contexts = (*rule.log.above, *rule.log.below) if rule.log is not None else ()
            for text in (rule.log.pattern if rule.log is not None else "", *(context.pattern for context in contexts)):
                found.setdefault(text)
            for condition in rule.conditions():
                if condition.op in ("matches", "not matches"):
                    found.setdefault(str(condition.right))
    return [text for text in found if text]


DEADLINE_S = 120.0  # for all texts of one pattern, on a machine that has much else to do; the slowest takes a second


def test_no_shipped_pattern_runs_away_on_texts_made_of_its_own_parts() -> None:
    rng = random.Random(3)
    jobs = [(text, list(adversary.texts(text, rng, 3))) for text in shipped()]
    assert len(jobs) > 400
    assert [text for text, (worst, _) in adversary.search_all(jobs, DEADLINE_S).items() if worst == float("inf")] == []


def test_no_pattern_that_lint_accepts_runs_away() -> None:
    rng = random.Random(5)
    accepted = []
    while len(accepted) < 60:
        text = adversary.pattern(rng)
        if not complaints(text):
            accepted.append(text)
    jobs = [(text, ["a" * WINDOW_CHARS, "ab" * (WINDOW_CHARS // 2), *adversary.texts(text, rng, 3)]) for text in accepted]
    assert [text for text, (worst, _) in adversary.search_all(jobs, DEADLINE_S).items() if worst == float("inf")] == []


@pytest.mark.parametrize("text", ["(a|b|ab)*c", "(a+){1,30}$", "(?:.{0,9}){30}x"])
def test_the_adversary_finds_a_runaway(text: str) -> None:
    found = adversary.search_all([(text, list(adversary.texts(text, random.Random(1), 20)))], 3.0)
    assert found[text][0] == float("inf")
