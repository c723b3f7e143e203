"""Ranges of versions, in the order of PEP 440."""

from __future__ import annotations

import pytest

from llmcheck.rules.rule import Affects, Event
from llmcheck.rules.versions import is_affected

FIXED = Affects(package="x", events=(Event(introduced="0"), Event(fixed="2.6.0")))
WINDOW = Affects(package="x", events=(Event(introduced="4.28.0"), Event(last_affected="4.44.2")))
TWICE = Affects(package="x", events=(Event(introduced="1.0"), Event(fixed="1.2"), Event(introduced="2.0"), Event(fixed="2.1")))
YANKED = Affects(package="x", versions=("4.46.0",))


@pytest.mark.parametrize(
    ("version", "affects", "expected"),
    [
        ("2.5.1", FIXED, True),
        ("2.6.0", FIXED, False),
        ("2.6.0rc1", FIXED, True),  # a candidate comes before the release, unlike in SpecifierSet
        ("2.5.0.dev20240901", FIXED, True),
        ("2.6.0.dev20250101", FIXED, None),
        ("2.5.1+cu124", FIXED, True),
        ("2.6.0+cu124", FIXED, False),
        ("2.10", FIXED, False),
        ("4.27.4", WINDOW, False),
        ("4.28.0", WINDOW, True),
        ("4.28.0.dev0", WINDOW, None),
        ("4.44.2", WINDOW, True),
        ("4.44.2+local", WINDOW, True),
        ("4.45.0", WINDOW, False),
        ("0.9", TWICE, False),
        ("1.1", TWICE, True),
        ("1.5", TWICE, False),
        ("2.0", TWICE, True),
        ("2.1", TWICE, False),
        ("4.46.0", YANKED, True),
        ("4.46", YANKED, True),
        ("4.46.1", YANKED, False),
        ("main", FIXED, None),
    ],
)
def test_affected(version: str, affects: Affects, expected: bool | None) -> None:
    assert is_affected(version, affects) is expected


def test_a_range_that_begins_where_another_ends_has_no_gap() -> None:
    joined = Affects(package="x", events=(Event(introduced="1"), Event(fixed="2"), Event(introduced="2"), Event(fixed="3")))
    assert is_affected("2", joined) is True
