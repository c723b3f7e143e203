from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck.errors import UserError
from llmcheck.probe import data_reading, dataset
from llmcheck.probe.data_rows import Duplicates, RowScan
from llmcheck.rules.facts import ABSENT, Facts, load_registry

REGISTRY = load_registry()


def read(tmp_path: Path, rows: Any, *, context: Facts | None = None, name: str = "data.jsonl", **options: Any) -> Facts:
    """The facts of a file of `rows`: values, one in each line, or the file's bytes."""
    data = (
        rows
        if isinstance(rows, bytes)
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    )
    (tmp_path / name).write_bytes(data)
    return dataset.facts(str(tmp_path / name), context or Facts(), **options)


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"data.{name}")
    return None if fact is None else fact.value


def line(facts: Facts, name: str) -> int | None:
    fact = facts.get(f"data.{name}")
    return None if fact is None or fact.location is None else fact.location.line


def found(facts: Facts) -> dict[str, int]:
    """Every count that is not 0."""
    return {
        name.removeprefix("data.num_"): fact.value
        for name, fact in facts.known.items()
        if name.startswith("data.num_") and name not in ("data.num_rows", "data.num_bytes") and fact.value not in (0, ABSENT)
    }


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


GOOD = chat(("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hello!"))


def test_good_rows_have_nothing(tmp_path: Path) -> None:
    facts = read(tmp_path, [GOOD, chat(("user", "Ünïcode, naïve, façade é » ça"), ("assistant", "这是一个问题。"))])
    assert found(facts) == {}
    assert (value(facts, "num_rows"), value(facts, "format"), value(facts, "has_bom")) == (2, "messages", False)
    assert facts.subjects == {"data"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"prompt": "a", "completion": "b"}, "prompt-answer"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "assistant", "value": "b"}]}, "belle"),
        ({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"text": "a"}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"foo": "a"}, "unknown"),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, Any], form: str) -> None:
    facts = read(tmp_path, [row, row | {"id": 1}])
    assert value(facts, "format") == form
    assert set(found(facts)) <= {"duplicates", "unknown_format"}


def test_mixed_layouts(tmp_path: Path) -> None:
    facts = read(tmp_path, [GOOD, GOOD | {"id": 1}, {"text": "a"}])
    assert (value(facts, "format"), value(facts, "formats")) == ("mixed", ["messages", "text"])


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        (chat(("user", "a"), ("assistant", " ")), {"empty_answers", "unsupervised"}),
        (chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")), {"empty_answers"}),
        (chat(("user", "a")), {"unsupervised", "last_not_assistant"}),
        (chat(("user", ""), ("assistant", "b")), {"empty_prompts"}),
        (chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), {"begins_with_assistant"}),
        (chat(("system", "a"), ("assistant", "c")), {"begins_with_assistant"}),
        (chat(("user", "a"), ("user", "b"), ("assistant", "c")), {"role_order"}),
        (chat(("user", "a"), ("assistant", "b"), ("assistant", "c")), {"role_order"}),
        (chat(("system", " "), ("user", "a"), ("assistant", "c")), {"empty_system"}),
        (chat(("user", "a"), ("system", "b"), ("assistant", "c")), {"system_not_first"}),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), {"last_not_assistant"}),
        (chat(("user", "a"), ("narrator", "b")), {"bad_roles"}),
        ({"messages": []}, {"no_turns", "unsupervised"}),
        ({"messages": ["a", "b"]}, {"bad_turns"}),
        ({"messages": [{"role": 1, "content": "a"}]}, {"bad_roles"}),
        ({"instruction": "a", "output": ""}, {"empty_answers", "unsupervised"}),
        ({"instruction": "a", "output": None}, {"empty_answers", "unsupervised"}),
        ({"instruction": "", "input": " ", "output": "b"}, {"empty_prompts"}),
        ({"instruction": "a", "output": "nan"}, {"placeholders"}),
        ({"instruction": "a", "output": "b \n"}, {"trailing_space"}),
        ({"instruction": "a", "output": "b\n\nHuman: c"}, {"role_markers"}),
        ({"instruction": "a <|im_end|>", "output": "b"}, {"control_tokens"}),
        ({"instruction": "a", "output": "b</s>"}, {"control_tokens"}),
        ({"text": "  "}, {"empty_answers", "unsupervised"}),
        ({"instruction": "a", "output": None, "messages": None}, {"empty_answers", "unsupervised"}),
        ({"instruction": "a", "output": None, "text": "b"}, {"empty_answers", "unsupervised"}),
        ({"text": None}, {"empty_answers", "unsupervised"}),
        ({"messages": [{"role": None, "content": "a"}]}, {"bad_roles"}),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, {"same_preference"}),
        ({"text": "caf\u00c3\u00a9"}, {"mojibake"}),
        ({"text": "it\u00e2\u20ac\u2122s"}, {"mojibake"}),
        ({"text": "\u00e4\u00bd\u00a0\u00e5\u00a5\u00bd"}, {"mojibake"}),
        ({"text": "a\ufffdb"}, {"replacement"}),
        ({"text": "a\x00b"}, {"nul"}),
        (["a"], {"not_objects"}),
        ({"text": "x" * 1_000_001}, {"huge"}),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, row: Any, kinds: set[str]) -> None:
    facts = read(tmp_path, [{"text": "good"} if "text" in row else GOOD, row])
    assert set(found(facts)) == kinds
    assert {line(facts, f"num_{kind}") for kind in kinds} == {2}


@pytest.mark.parametrize(
    "row",
    [
        chat(("user", "a"), ("tool", "b"), ("assistant", "c")),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]},
        {"instruction": "What is <s>old</s>new?".replace("</s>", ""), "output": "HTML"},
        {"instruction": "Explain: Human: resources", "output": "It means: Assistant: none"},
        {"text": "x < y |> z"},
        # Tables of several shapes: what is another shape's is null.
        {"instruction": None, "output": None, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"instruction": "a", "output": "b", "messages": None, "text": None, "prompt": None, "completion": None},
        {"instruction": "a", "output": None, "response": "b"},
        {"instruction": None, "output": None, "text": "a"},
        {"messages": None, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {
            "messages": [
                {"role": None, "content": None, "from": "human", "value": "a"},
                {"role": None, "content": None, "from": "gpt", "value": "b"},
            ]
        },
    ],
)
def test_near_misses(tmp_path: Path, row: dict[str, Any]) -> None:
    assert found(read(tmp_path, [row])) == {}


@pytest.mark.parametrize("escaped", [True, False])
def test_half_a_surrogate_pair(tmp_path: Path, escaped: bool) -> None:
    data = json.dumps({"text": "a\ud83d"}).encode() if escaped else b'{"text": "a\xed\xa0\xbd"}'
    facts = read(tmp_path, data + b"\n")
    assert set(found(facts)) == ({"surrogates"} if escaped else {"not_utf8"})


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    facts = read(tmp_path, b'{"text": "a"}\n{"text": \n\n{"text": "\xff"}\n{"text": "b"} x\n')
    assert (value(facts, "num_rows"), value(facts, "num_blank_lines")) == (2, 1)
    assert found(facts) == {"bad_json": 2, "not_utf8": 1, "blank_lines": 1}
    assert (line(facts, "num_bad_json"), line(facts, "num_not_utf8")) == (2, 4)


def test_a_pretty_printed_file_is_told(tmp_path: Path) -> None:
    text = "\n".join(json.dumps({"text": str(i)}, indent=2) for i in range(5))
    assert value(read(tmp_path, text.encode()), "one_object_over_lines") is True
    assert value(read(tmp_path, [{"text": "a"}]), "one_object_over_lines") is False


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (["a", 1], "x: text in line 1, number in line 2"),
        ([["a"], {"b": 1}], "x: list in line 1, object in line 2"),
        ([None, True, 1.5], "x: true/false in line 2, number in line 3"),
        ([1, 2.5, None, 3], None),
    ],
)
def test_columns_that_change_their_type(tmp_path: Path, values: list[Any], change: str | None) -> None:
    facts = read(tmp_path, [{"text": f"row {i}", "x": x} for i, x in enumerate(values)])
    assert value(facts, "type_changes") == (ABSENT if change is None else [change])


def test_repeats_are_found_whatever_their_ids(tmp_path: Path) -> None:
    facts = read(tmp_path, [{"id": i, "text": "same" if i % 2 else f"row {i}"} for i in range(10)])
    assert (value(facts, "num_duplicates"), value(facts, "duplicates_fraction"), line(facts, "num_duplicates")) == (4, 0.4, 4)
    assert value(facts, "duplicates_estimated") is False


def test_repeats_beyond_memory_are_estimated() -> None:
    duplicates = Duplicates(limit=500)
    for i in range(20_000):
        duplicates.add(i, str(i // 2).encode())  # every row twice
    assert duplicates.sampling > 1
    assert 8_000 < duplicates.num_rows < 12_000


def test_a_list_is_read_as_rows(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(50)]
    facts = read(tmp_path, ("[\n" + ",\n".join(json.dumps(row) for row in [*rows, {"text": ""}]) + "\n]\n").encode(), name="data.json")
    assert (value(facts, "num_rows"), value(facts, "read_problem")) == (51, ABSENT)
    assert line(facts, "num_empty_answers") == 52


def test_a_list_larger_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_reading, "_CHUNK_BYTES", 7)
    rows = [{"text": "é" * n} for n in (1, 30, 3)]
    facts = read(tmp_path, json.dumps(rows, ensure_ascii=False).encode(), name="data.json")
    assert (value(facts, "num_rows"), value(facts, "longest_row_chars"), value(facts, "read_problem")) == (3, 30, ABSENT)


@pytest.mark.parametrize("text", ['[{"text": "a"}, {"text": "b"', '[{"text": "a"},', "[", '[{"text": "a"}, oops, {"text": "b"}]'])
def test_a_list_that_is_cut_leaves_the_rest_unknown(tmp_path: Path, text: str) -> None:
    facts = read(tmp_path, text.encode(), name="data.json")
    assert isinstance(value(facts, "read_problem"), str)
    assert facts.get("data.num_empty_answers") is None


def test_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n{"text": ""}\n')
    assert found(read(tmp_path, packed, name="d.jsonl.gz")) == {"empty_answers": 1, "unsupervised": 1}
    facts = read(tmp_path, packed[:-6], name="d.jsonl.gz")
    assert "gzip" in value(facts, "read_problem")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    facts = read(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n')
    assert (value(facts, "has_bom"), value(facts, "num_rows"), found(facts)) == (True, 1, {})


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_an_empty_file(tmp_path: Path, data: bytes) -> None:
    facts = read(tmp_path, data)
    assert value(facts, "num_rows") == 0
    assert facts.get("data.unsupervised_fraction") is None


def test_utf16_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, '{"text": "a"}'.encode("utf-16"))
    assert "iconv" in error.value.hint


def test_no_such_file_and_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError):
            dataset.facts(str(path), Facts())


def test_a_file_of_other_text_is_not_read_to_its_end(tmp_path: Path) -> None:
    facts = read(tmp_path, b"this is a log\n" * 50_000)
    assert value(facts, "num_bad_json") == 1_000
    assert facts.get("data.num_mojibake") is None


def test_beyond_the_limit_nothing_is_claimed(tmp_path: Path) -> None:
    facts = read(tmp_path, [{"text": f"row {i} " + "x" * 500} for i in range(20_000)], max_bytes=1 << 20)
    assert value(facts, "unread_bytes") > 0
    assert value(facts, "num_rows") < 20_000
    assert facts.get("data.num_empty_answers") is None
    assert "not" in str(facts.why_unknown("data.num_empty_answers"))


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_reading, "MAX_ROW_BYTES", 1_000)
    facts = read(tmp_path, b'{"text": "' + b"x" * 100_000 + b'"}\n{"text": "a"}\n')
    assert (value(facts, "num_rows"), value(facts, "num_huge"), line(facts, "num_huge")) == (1, 1, 1)


def context(seq_len: int) -> Facts:
    facts = Facts()
    facts.put("train.seq_len", seq_len)
    return facts


def test_lengths_need_a_sequence(tmp_path: Path) -> None:
    rows = [
        {"instruction": "word " * 40, "output": "yes"},
        {"instruction": "a", "output": "word " * 40},
        {"instruction": "a", "output": "b"},
    ]
    assert value(read(tmp_path, rows), "num_over_seq_len_estimate") is ABSENT
    facts = read(tmp_path, rows, context=context(32))
    names = ("seq_len", "num_over_seq_len_estimate", "num_prompt_over_seq_len_estimate")
    assert [value(facts, name) for name in names] == [32, 2, 1]
    assert value(read(tmp_path, rows, context=context(4096)), "num_over_seq_len_estimate") == 0


def test_sentencepiece_makes_more_tokens_of_chinese() -> None:
    row = {"instruction": "问", "output": "题" * 90}
    counts = []
    for kind in ("byte-bpe", "sentencepiece"):
        scan = RowScan(64, kind)  # type: ignore[arg-type]
        scan.add(1, json.dumps(row).encode(), row)
        counts.append(scan.counts.get("over_seq_len", 0))
    assert counts == [0, 1]


_TEXT = st.text(max_size=6) | st.none() | st.integers()
_ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "instruction", "output", "input", "text", "prompt", "chosen", "rejected", "x"]),
        _TEXT
        | st.lists(st.dictionaries(st.sampled_from(["role", "from", "content", "value", "tool_calls"]), _TEXT, max_size=4), max_size=3),
        max_size=4,
    )
    | _TEXT,
    max_size=5,
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
@given(rows=_ROWS, as_list=st.booleans())
def test_no_rows_break_it_and_lines_and_lists_agree(tmp_path: Path, rows: list[Any], as_list: bool) -> None:
    facts = read(tmp_path, json.dumps(rows, indent=0).encode() if as_list else [*rows], context=context(8))
    assert value(facts, "num_rows") == len(rows)
    assert [name for name in (*facts.known, *facts.unreadable) if REGISTRY.kind(name) is None] == []


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
@given(
    data=st.binary(max_size=60)
    | st.text(alphabet='[]{}",:\\n a1\ud800\n', max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_no_bytes_break_it(tmp_path: Path, data: bytes) -> None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return  # UTF-16 has its own test
    assert value(read(tmp_path, data), "num_bytes") == len(data)
