"""Files of rows: lines, lists, text, zipped; whatever the size of a block."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import sources
from llmcheck_trainer.dataprep.rows import BadRowError
from llmcheck_trainer.dataprep.sources import hash_file, open_source


def read(path: Path) -> list[tuple[int, Any]]:
    source = open_source(str(path))
    rows = [row for rows in source.read(lambda _: None) for row in rows]
    assert source.sha256 == hash_file(str(path))
    assert source.num_rows == len(rows)
    return [(line, value.reason if isinstance(value, BadRowError) else value) for line, value in rows]


def written(tmp_path: Path, data: bytes, name: str = "x.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_lines_keep_their_numbers_over_blank_ones(tmp_path: Path) -> None:
    assert read(written(tmp_path, b'\xef\xbb\xbf{"a":1}\r\n\n  \n{"a":2}\n{"a":3}')) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not-json"), (b'{"a":1}x', "not-json"), (b"\xff", "not-utf8"), (b'{"a":"\\ud800"}', "not-utf8"),
        (b"[" * 100_000, "not-json"), (b"1" * 5000, "not-json"),
        (b'{"a":1,"a":2}', "not-json"), (b'{"m":[{"a":1,"b":2,"a":1}]}', "not-json"),
    ],
)  # fmt: skip
def test_a_bad_line_does_no_harm_to_its_neighbours(tmp_path: Path, line: bytes, reason: str) -> None:
    assert read(written(tmp_path, b'{"a":1}\n' + line + b'\n{"a":2}\n')) == [(1, {"a": 1}), (2, reason), (3, {"a": 2})]


def test_what_pandas_writes_for_nothing_is_null(tmp_path: Path) -> None:
    assert read(written(tmp_path, b'{"a":NaN}\n')) == [(1, {"a": None})]


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_a_line_too_long_is_passed_over_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 20)
    long = json.dumps({"a": "x" * 300}).encode() if block < 1 << 20 else b""
    expected = [(1, {"a": 1}), (2, "too-large"), (3, {"a": 2})] if long else [(1, {"a": 1}), (3, {"a": 2})]
    assert read(written(tmp_path, b'{"a":1}\n' + long + b'\n{"a":2}\n')) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(VALUES, max_size=6), block=st.integers(1, 40), indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_a_list_is_read_the_same_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], block: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "x.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", block)
        assert read(path) == list(enumerate(values, 1))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(VALUES, max_size=6), block=st.integers(1, 40), final=st.booleans())
def test_lines_are_read_the_same_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], block: int, final: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    text = "\n".join(json.dumps({"v": value}, ensure_ascii=False) for value in values)
    path.write_text(text + "\n" * final or " ", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", block)
        assert read(path) == [(number, {"v": value}) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("text", "row", "why"),
    [
        ('[{"a":1} {"a":2}]', 1, "there is no comma after it"),
        ('[{"a":1},{"a":', 2, "Expecting value"),
        ('[{"a":1},', 2, "Expecting value"),
        ('[{"a":1}', 1, "the file ends after it"),
        ('[{"a":1}] x', 1, "something follows the list's end"),
        ("[[[", 1, "Expecting value"),
    ],
)
def test_a_broken_list_says_at_which_row(tmp_path: Path, text: str, row: int, why: str) -> None:
    with pytest.raises(UserError, match="not a JSON list to its end") as caught:
        read(written(tmp_path, text.encode(), "x.json"))
    assert caught.value.where.endswith(f"x.json, row {row}")
    assert why in caught.value.why


def test_an_object_over_several_lines_is_told_from_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one JSON object over several lines"):
        read(written(tmp_path, b'{\n "data": [{"a": 1}]\n}\n', "x.json"))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_key_that_is_there_twice_is_a_bad_row_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    data = b'[{"a": 1}, {"a": "\\ud83d", "b": {"c": 1, "c": 2}, "d": 5}, {"a": 2}]'
    assert read(written(tmp_path, data, "x.json")) == [(1, {"a": 1}), (2, "not-json"), (3, {"a": 2})]


def test_the_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    rows = [row for part in open_source(str(written(tmp_path, b'{"q":1,"out":1,"out":2}\n'))).read(lambda _: None) for row in part]
    assert rows[0][1].detail == "the key 'out' is there twice"


def test_lists_one_a_line_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one list after another") as caught:
        read(written(tmp_path, b'[{"from": "human"}]\n[{"from": "human"}]\n'))
    assert "jq -c '{conversations: .}'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "data", "way"),
    [
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "zstd -d "),
        ("a.jsonl", b"\x28\xb5\x2f\xfd", "zstd -d "),
        ("a.jsonl.bz2", b"BZh91AY&SY", "bunzip2 -k "),
        ("a.json.xz", b"\xfd7zXZ\0", "unxz -k "),
        ("a b.zip", b"PK\x03\x04", "unzip '"),
        ("a.parquet.gz", b"\x1f\x8b", "gunzip -k "),
        ("a.csv", b"instruction,output", "pandas.read_csv"),
        ("a.xlsx", b"PK\x03\x04", "pandas.read_excel"),
    ],
)
def test_what_is_packed_or_a_table_says_how_to_get_at_its_rows(tmp_path: Path, name: str, data: bytes, way: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(str(written(tmp_path, data, name)))
    assert way in (caught.value.hint or "")


def test_zipped_utf16_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is UTF-16 text") as caught:
        read(written(tmp_path, gzip.compress('{"a":1}\n'.encode("utf-16")), "x.jsonl.gz"))
    assert "zcat" in (caught.value.hint or "")


def test_a_half_surrogate_in_a_list_is_a_bad_row(tmp_path: Path) -> None:
    assert read(written(tmp_path, b'["\\ud83d\\ude00", "\\ud83d", 1]', "x.json")) == [(1, "\U0001f600"), (2, "not-utf8"), (3, 1)]


def test_text_is_a_row_a_line(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"one\r\n\ntwo\n\xff\n", "x.txt")) == [(1, {"text": "one"}), (3, {"text": "two"}), (4, "not-utf8")]


def test_zipped_lines(tmp_path: Path) -> None:
    assert read(written(tmp_path, gzip.compress(b'{"a":1}\n'), "x.jsonl.gz")) == [(1, {"a": 1})]


def test_a_cut_off_zip_is_told(tmp_path: Path) -> None:
    data = gzip.compress(json.dumps({"a": list(range(1000))}).encode())
    with pytest.raises(UserError, match="damaged"):
        read(written(tmp_path, data[: len(data) // 2], "x.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("x.jsonl", b"", "is empty"), ("x.bin", b"\x00\x01", "no file of rows that is known")],
)
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(str(written(tmp_path, data, name)))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_parquet_and_arrow(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"messages": [{"role": "user", "content": str(i)}], "n": i} for i in range(5000)]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    if kind == "parquet":
        from pyarrow import parquet

        parquet.write_table(table, path)
    else:
        make = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read(path) == [(number, {**row, "n": None}) for number, row in enumerate(rows, 1)], "n is not used"


def test_rows_without_a_column_that_is_used_are_not_lost(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": [3, 4]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [(1, {"a": None, "b": None}), (2, {"a": None, "b": None})]


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    when, far = pyarrow.array([1, 2**62], pyarrow.timestamp("ns")), pyarrow.array([2**60] * 2, pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "when": when, "far": far}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [(line, {"text": text, "when": None, "far": None}) for line, text in ((1, "a"), (2, "b"))]


def test_text_of_a_table_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    offsets, data = (pyarrow.py_buffer(part) for part in (b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0", b"a\xff\xfeb"))
    parquet.write_table(pyarrow.table({"text": pyarrow.StringArray.from_buffers(3, offsets, data)}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [(1, {"text": "a"}), (2, "not-utf8"), (3, {"text": "b"})]


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="damaged"):
        read(written(tmp_path, b"PAR1" + b"x" * 100, "x.parquet"))
