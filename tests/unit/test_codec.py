"""Dataclasses to plain values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.codec import LARGEST, from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    flag: bool
    inner: Inner
    kind: Literal["a", "b"] = "a"
    maybe: Inner | None = None
    either: int | str | None = None
    many: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (0, "")
    sizes: Mapping[str, int] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)


WHOLE = st.integers(-LARGEST, LARGEST)
inners = st.builds(Inner, count=WHOLE, share=st.floats(allow_nan=False))
outers = st.builds(
    Outer,
    name=st.text(),
    flag=st.booleans(),
    inner=inners,
    kind=st.sampled_from(["a", "b"]),
    maybe=st.none() | inners,
    either=st.none() | WHOLE | st.text(),
    many=st.lists(inners, max_size=3).map(tuple),
    pair=st.tuples(WHOLE, st.text()),
    sizes=st.dictionaries(st.text(), WHOLE, max_size=3),
    free=st.dictionaries(st.text(), st.none() | st.booleans() | st.lists(WHOLE, max_size=2), max_size=3),
)


@given(outers)
def test_decoding_an_encoded_value_gives_it_back(value: Outer) -> None:
    problems: list[str] = []
    assert from_plain(Outer, to_plain(value), "x", problems) == value
    assert problems == []


GOOD = {"name": "n", "flag": True, "inner": {"count": 1}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nam": "x"}, "x.nam: unknown key; did you mean 'name'?"),
        ({"name": 1}, "x.name: expected a string, found 1"),
        ({"flag": 1}, "x.flag: expected true or false, found 1"),
        ({"inner": {"count": 1.0}}, "x.inner.count: expected a whole number, found 1.0"),
        ({"inner": {"count": True}}, "x.inner.count: expected a whole number, found True"),
        ({"inner": {"count": 10**400}}, "x.inner.count: expected a whole number, found one too large"),
        ({"inner": {"count": -(10**400)}}, "x.inner.count: expected a whole number, found one too large"),
        ({"inner": {"count": 1, "share": 10**400}}, "x.inner.share: expected a number, found one too large"),
        ({"inner": {"count": 1, "share": "half"}}, "x.inner.share: expected a number, found 'half'"),
        ({"inner": {}}, "x.inner.count: missing"),
        ({"inner": []}, "x.inner: expected an object, found a list"),
        ({"kind": "c"}, "x.kind: expected one of 'a', 'b', found 'c'"),
        ({"many": {}}, "x.many: expected a list, found an object"),
        ({"many": [{"count": 1}, 2]}, "x.many[1]: expected an object, found 2"),
        ({"pair": [1]}, "x.pair: expected a list of 2, found a list"),
        ({"sizes": {"a": None}}, "x.sizes.a: expected a whole number, found null"),
    ],
)
def test_a_wrong_field_is_named_with_its_path(change: dict[str, Any], problem: str) -> None:
    problems: list[str] = []
    assert from_plain(Outer, {**GOOD, **change}, "x", problems) is None
    assert problems == [problem]


def test_all_problems_are_reported_together() -> None:
    problems: list[str] = []
    from_plain(Outer, {"name": 1, "flag": 2, "inner": 3}, "x", problems)
    assert len(problems) == 3


def test_a_value_without_a_plain_form_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="set"):
        to_plain({1, 2})
