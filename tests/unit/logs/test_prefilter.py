from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.logs.samples import RULES, find
from llmcheck.logs.prefilter import ENGINES, Engine, PythonPrefilter, make_prefilter

LITERALS = ("CUDA out of memory", "unsupported", "rror", "Error: 1", "1.2.3", "-9", "aXa", "née", "0000", "out of", "Error: 11")
TEXTS = st.lists(
    st.one_of(st.sampled_from([*LITERALS, "\n", "\r", "\r\n", " ", "x", "12", "a", "X"]), st.text(alphabet="aXe1 :.\n\r", max_size=6)),
    max_size=40,
).map("".join)


def first_of_each_line(data: bytes, hits: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """(number of line ends before it, literal)."""
    lines = data.replace(b"\r", b"\n")
    return {(lines.count(b"\n", 0, at), index) for at, index in hits}


def naive(data: bytes, literals: list[bytes]) -> set[tuple[int, int]]:
    lines = data.replace(b"\r", b"\n").split(b"\n")
    return {(number, index) for number, line in enumerate(lines) for index, literal in enumerate(literals) if literal in line}


def engine_or_skip(name: Engine, literals: list[bytes]):
    try:
        return make_prefilter(literals, name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", ENGINES)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_every_engine_finds_what_the_naive_search_finds(name: Engine, texts: list[str]) -> None:
    literals = [literal.encode() for literal in LITERALS]
    prefilter = engine_or_skip(name, literals)
    for text in texts:  # the core's engine remembers: later chunks must not suffer from earlier ones
        data = text.encode()
        hits = prefilter.hits(data)
        assert hits == sorted(hits)
        assert all(data.startswith(literals[index], at) for at, index in hits)
        assert first_of_each_line(data, hits) == naive(data, literals)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_makes_the_same_findings(name: Engine) -> None:
    engine_or_skip(name, [b"literal"])
    log = "".join(f"{example}\n" for example in LITERALS) + "\x1b[31mCUDA out of memory. Tried to allocate 1.00 GiB\n" * 3
    assert find(log, *RULES, engine=name).groups == find(log, *RULES, engine="python").groups


@pytest.mark.parametrize("name", ENGINES)
def test_no_literals_find_nothing(name: Engine) -> None:
    assert engine_or_skip(name, []).hits(b"some\ntext\n") == []


def test_the_engine_in_use_finds_every_literal() -> None:
    literals = [literal.encode() for literal in LITERALS]
    found = {index for _, index in make_prefilter(literals).hits(b"\n".join(literals))}
    assert found == set(range(len(literals)))


def test_an_engine_that_misses_a_literal_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(PythonPrefilter):
        def hits(self, data: bytes) -> list[tuple[int, int]]:
            return []

    monkeypatch.setattr("llmcheck.logs.prefilter._MAKERS", dict.fromkeys(ENGINES, Blind))
    assert type(make_prefilter([b"literal"])) is PythonPrefilter


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcheck.logs.prefilter._MAX_MEMORY_BYTES", 1000)
    prefilter = PythonPrefilter([b"needle"])
    names = [chr(97 + i // 26) * 3 + chr(97 + i % 26) for i in range(400)]
    for name in names:
        assert prefilter.hits(f"{name} needle\nx{name}y\n".encode()) == [(5, 0)]
    assert len(prefilter._cold) + len(prefilter._hot) < 50
