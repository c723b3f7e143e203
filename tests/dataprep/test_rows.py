"""Rows of the usual shapes to conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck_trainer.dataprep.rows import REASONS, BadRowError, Turn, _called, reader_of

Pairs = list[tuple[str, str]]


def pairs(row: Any, form: str = "auto") -> Pairs:
    return [(turn.role, turn.whole) for turn in reader_of(form)(row).turns]


def refusal(row: Any, form: str = "auto") -> tuple[str, str]:
    with pytest.raises(BadRowError) as caught:
        reader_of(form)(row)
    return caught.value.reason, caught.value.detail


TWO = [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Q", "input": "", "output": "A"}, TWO),
        ({"instruction": "Q", "output": "A"}, TWO),
        ({"instruction": "Q", "input": None, "output": "A"}, TWO),
        ({"instruction": "Q", "input": "I", "output": "A"}, [("user", "Q\nI"), ("assistant", "A")]),
        ({"instruction": "Q", "context": "C", "response": "A"}, [("user", "Q\nC"), ("assistant", "A")]),
        ({"prompt": "Q", "completion": "A"}, TWO),
        ({"question": "Q", "answer": "A"}, TWO),
        ({"system": "S", "instruction": "Q", "output": "A"}, [("system", "S"), *TWO]),
        ({"instruction": "Q2", "output": "A2", "history": [["Q", "A"]]}, [*TWO, ("user", "Q2"), ("assistant", "A2")]),
        ({"id": "1", "conversations": [{"from": "human", "value": "Q"}, {"from": "assistant", "value": "A"}]}, TWO),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}, [("system", "S"), *TWO]),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, TWO),
        ({"messages": [{"role": "User", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": "A"}]}, TWO),
        (
            {"messages": [{"role": "developer", "content": "S"}, {"role": "assistant", "content": "A"}]},
            [("system", "S"), ("assistant", "A")],
        ),
        # Tables of several shapes: each row has the columns of all.
        ({"instruction": None, "output": None, "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, TWO),
        ({"messages": None, "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, TWO),
        ({"instruction": "Q", "output": None, "response": "A"}, TWO),
        ({"instruction": None, "output": None, "prompt": "Q", "completion": "A", "text": None}, TWO),
        (
            {
                "messages": [
                    {"role": None, "content": None, "from": "human", "value": "Q"},
                    {"role": "assistant", "content": "A", "from": None, "value": None},
                ]
            },
            TWO,
        ),
        (
            {"instruction": "Q", "input": "", "context": "C", "output": "A", "history": [], "system": ""},
            [("user", "Q\nC"), ("assistant", "A")],
        ),
    ],
)
def test_known_shapes(row: Any, expected: Pairs) -> None:
    assert pairs(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1], ("not-an-object", "it is a list")),
        (None, ("not-an-object", "it is null")),
        ({}, ("unknown-shape", "its fields: none")),
        ({"a": 1, "b": 2}, ("unknown-shape", "its fields: 'a', 'b'")),
        ({"instruction": 1, "output": "A"}, ("not-text", '"instruction" is a number')),
        ({"instruction": "Q", "output": None}, ("not-text", '"output" is null')),
        ({"instruction": "Q", "input": {"a": 1}, "output": "A"}, ("not-text", '"input" is an object')),
        ({"instruction": "Q", "output": " \n"}, ("empty-answer", "")),
        ({"instruction": "Q", "input": 0, "output": "A"}, ("not-text", '"input" is a number')),
        ({"instruction": "Q", "context": False, "output": "A"}, ("not-text", '"context" is true or false')),
        ({"instruction": "Q", "output": "A", "system": 0}, ("not-text", '"system" is a number')),
        ({"instruction": "Q", "output": "A", "history": 5}, ("not-text", '"history" is not a list of pairs')),
        ({"instruction": "Q", "output": "A", "history": True}, ("not-text", '"history" is not a list of pairs')),
        ({"instruction": "Q", "output": "A", "history": {"Q": "A"}}, ("not-text", '"history" is not a list of pairs')),
        ({"instruction": "Q", "output": "A", "history": [["Q", None]]}, ("not-text", '"history" is null')),
        ({"instruction": "Q", "output": None, "text": "Q A"}, ("not-text", '"output" is null')),
        ({"instruction": None, "output": None}, ("not-text", '"instruction" is null')),
        ({"messages": "[]"}, ("unknown-shape", '"messages" is a string, not a list')),
        ({"conversations": {"from": "human"}}, ("unknown-shape", '"conversations" is an object, not a list')),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "", "id": 3}]}, ("empty-answer", "")),
        ({"messages": [{"role": "user", "content": "Q"}]}, ("no-answer", "")),
        ({"messages": []}, ("no-answer", "")),
        ({"messages": ["x"]}, ("not-an-object", "turn 1 is a string")),
        ({"messages": [{"role": "alien\x1b", "content": "Q"}]}, ("unknown-role", "turn 1 is by 'alien\\x1b'")),
        ({"messages": [{"content": "Q"}]}, ("unknown-role", "turn 1 is by 'None'")),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            ("not-text", "turn 1 has a part that is not text: 'image_url'"),
        ),
        ({"text": "  "}, ("empty", "")),
        ({"text": 5}, ("not-text", '"text" is a number')),
        ({"instruction": "Q", "output": "A", "history": "no"}, ("not-text", '"history" is not a list of pairs')),
        ({"messages": [{"role": "assistant", "content": "A"}], "tools": "{"}, ("not-json", '"tools" is text that is not JSON')),
    ],
)
def test_a_bad_row_says_why(row: Any, expected: tuple[str, str]) -> None:
    assert refusal(row) == expected


def test_calls_of_llama_factory_are_calls_of_tools() -> None:
    said = [("human", "Q"), ("function_call", '{"name": "f", "arguments": {"a": 1}}'), ("observation", "R"), ("gpt", "A")]
    sample = reader_of("auto")({"conversations": [{"from": role, "value": text} for role, text in said], "tools": "[]"})
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "tool", "assistant"]
    assert sample.turns[1].extra == {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
    assert (sample.turns[1].content, sample.turns[1].learn) == ("", True)
    several = [{"name": "f"}, {"name": "g"}]
    assert [each["function"] for each in _called(json.dumps(several), 1)] == several


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{", ("not-json", "turn 1 calls a tool in text that is not JSON")),
        ("5", ("not-text", "turn 1 calls a tool without a name")),
        ("[]", ("not-text", "turn 1 calls a tool without a name")),
        ('{"arguments": {}}', ("not-text", "turn 1 calls a tool without a name")),
        (None, ("not-text", '"value" is null')),
    ],
)
def test_a_call_that_cannot_be_read_is_a_bad_row(value: str | None, why: tuple[str, str]) -> None:
    assert refusal({"conversations": [{"from": "function_call", "value": value}]}) == why


def test_text_beside_null_columns_is_text() -> None:
    assert reader_of("auto")({"instruction": None, "output": None, "text": "x"}).text == "x"


def test_an_answer_that_calls_a_tool_or_thinks_is_not_empty() -> None:
    for key in ("tool_calls", "function_call", "reasoning_content"):
        assert reader_of("auto")({"messages": [{"role": "assistant", "content": "", key: [{"name": "f"}]}]}).turns[0].says_something


@given(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "history", "system", "messages", "conversations", "text", "tools", "prompt"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "from", "content", "value", "weight", "train", "tool_calls", "type", "text"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ),
        max_size=5,
    ),
    st.sampled_from(["auto", "alpaca", "sharegpt", "belle", "messages", "text"]),
)
def test_any_row_is_read_or_refused_with_a_reason(row: dict[str, Any], form: str) -> None:
    try:
        sample = reader_of(form)(row)
    except BadRowError as reason:
        assert reason.reason in REASONS  # noqa: PT017 - one of the two outcomes
    else:
        assert sample.text or any(turn.role == "assistant" and turn.says_something for turn in sample.turns)


def test_a_long_key_is_cut_in_the_message() -> None:
    assert len(refusal({"x" * 10_000: 1})[1]) < 100


def test_answers_of_weight_zero_are_not_learnt() -> None:
    turns = [{"role": "assistant", "content": "A", "weight": 0}, {"role": "assistant", "content": "B", "train": False}]
    sample = reader_of("messages")({"messages": [*turns, {"role": "assistant", "content": "C", "weight": 1}]})
    assert [turn.learn for turn in sample.turns] == [False, False, True]


def test_of_prompt_and_completion_as_messages_only_the_completion_is_learnt() -> None:
    prompt = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q"}]
    sample = reader_of("auto")({"prompt": prompt, "completion": [{"role": "assistant", "content": "B"}]})
    assert [turn.learn for turn in sample.turns if turn.role == "assistant"] == [False, True]


def test_tool_calls_are_kept_for_chat_templates() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    sample = reader_of("messages")({"messages": [call], "tools": '[{"name": "f"}]'})
    assert sample.turns == [Turn("assistant", "", extra={"tool_calls": [{"name": "f"}]}, learn=True)]
    assert sample.tools == [{"name": "f"}]


def test_a_named_shape_takes_no_other() -> None:
    assert refusal({"text": "x"}, "alpaca")[0] == "unknown-shape"
    assert refusal({"instruction": "Q", "output": "A"}, "belle")[0] == "unknown-shape"
    assert refusal({"instruction": "Q", "output": "A"}, "text")[0] == "unknown-shape"
