from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.dsconfig import parse, read
from llmcheck.dsconfig.reading import MAX_BYTES
from llmcheck.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_what_json_wrote_is_read_back(document: dict[str, object]) -> None:
    assert parse(json.dumps(document).encode()) == document


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse(text.encode("utf-8", "surrogatepass"))
    except UserError:
        return
    assert isinstance(document, dict)


def test_comments_and_trailing_commas_are_let_through() -> None:
    text = b'{ // the batch\n "a": 1, # one\n "b": "http://x/#y", /* two\n lines */ "c": [1, 2,],\n}'
    assert parse(text) == {"a": 1, "b": "http://x/#y", "c": [1, 2]}


def test_a_bom_is_let_through() -> None:
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", "empty"),
        (b'{"a": 1', "complete"),
        (b"[1]", "object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"z": {"a": 1, "a": 2}} // twice', "'a' is given twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
        (b"[" * 200_000, "nested"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested"),
        (b"\xff\xfe{", "UTF-8"),
        (b"compute_environment: LOCAL_MACHINE\ndeepspeed_config: {}\n", "accelerate"),
        (b"# " * 100_000, ""),
        (b"/*" * 200_000, ""),
        (b',/**/ "' * 50_000, ""),
    ],
)
def test_bad_text_is_refused_with_its_reason(data: bytes, names: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(data, where="ds.json")
    error = caught.value
    assert names in f"{error.what} {error.why} {error.hint}"
    assert error.where.startswith("ds.json")


def test_the_line_of_a_mistake_holds_behind_comments() -> None:
    with pytest.raises(UserError) as caught:
        parse(b'{\n // one\n /* two\n */\n "a": 1 "b": 2\n}', where="ds.json")
    assert "line 5" in caught.value.where


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert read(str(path)) == {"zero_optimization": {"stage": 2}}


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError) as caught:
        read(str(path))
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("path", ["no/such/file.json", ".", "nul\0.json"])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.code == "unreadable"
