"""The templates without Jinja: held to what the projects they are named after do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcheck_trainer.dataprep import templates
from llmcheck_trainer.dataprep.rows import BadRowError, reader_of
from llmcheck_trainer.dataprep.templates import NO_TAIL, Segment

EOS = 7
ROW = {"instruction": "Q", "input": "I", "output": "A"}
TALK = {
    "messages": [{"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"))]
}


def segments(name: str, row: Any) -> list[Segment]:
    return templates.load(name, eos_id=EOS).segments(reader_of("auto")(row))


def as_text(parts: list[Segment]) -> str:
    return "".join(text + ("<eos>" if tail == EOS else "") for text, _, tail in parts)


def test_belle_is_what_its_first_script_encodes() -> None:
    assert segments("belle", TALK) == [
        ("Human: \nQ\n\nAssistant: \n", False, NO_TAIL), ("A", True, EOS),
        ("Human: \nR\n\nAssistant: \n", False, NO_TAIL), ("B", True, EOS),
    ]  # fmt: skip


def test_alpaca_with_and_without_an_input() -> None:
    with_input, without = segments("alpaca", ROW), segments("alpaca", {**ROW, "input": ""})
    assert with_input[0][0].startswith("Below is an instruction that describes a task, paired with an input")
    assert with_input[0][0].endswith("\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:")
    assert without[0][0].endswith("appropriately completes the request.\n\n### Instruction:\nQ\n\n### Response:")
    assert [parts[1:] for parts in (with_input, without)] == [[("A", True, EOS)]] * 2


def test_vicuna_separates_as_fastchat_does() -> None:
    text = as_text(segments("vicuna", TALK))
    assert text.endswith("answers to the user's questions. USER: Q ASSISTANT: A<eos>USER: R ASSISTANT: B<eos>")


def test_a_system_turn_of_the_row_replaces_the_default() -> None:
    row = {"messages": [{"role": "system", "content": "S"}, *TALK["messages"]]}
    assert as_text(segments("vicuna", row)).startswith("S USER: Q ASSISTANT: A")
    assert as_text(segments("chatml", row)).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ")


def test_chatml_learns_the_end_mark_and_not_the_line_break_after_it() -> None:
    learnt = [text for text, is_learnt, _ in segments("chatml", TALK) if is_learnt]
    assert learnt == ["A<|im_end|>", "B<|im_end|>"]
    assert as_text(segments("chatml", TALK)).endswith("<|im_start|>assistant\nB<|im_end|>\n")


def test_llama3() -> None:
    assert as_text(segments("llama3", TALK)).startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>")


def test_braces_in_a_row_are_text() -> None:
    row = {"instruction": "{content} {input} {eos} [[", "output": "]] {content}"}
    assert segments("belle", row)[1] == ("]] {content}", True, EOS)


@pytest.mark.parametrize("name", templates.names())
def test_an_answer_that_is_not_to_be_learnt_keeps_its_text_and_end(name: str) -> None:
    row = json.loads(json.dumps(TALK))
    row["messages"][1]["weight"] = 0
    parts = segments(name, row)
    assert as_text(parts) == as_text(segments(name, TALK))
    assert sum(learnt for _, learnt, _ in parts) == 1


@pytest.mark.parametrize("name", templates.names())
def test_every_template_names_its_source_and_learns_each_answer_with_an_end(name: str) -> None:
    table = templates._tables()[name]
    assert table["title"]
    assert table["source"]
    learnt = [(text, tail) for text, is_learnt, tail in segments(name, TALK) if is_learnt]
    ends = templates.needs(name)
    assert len(learnt) == 2
    assert all(tail == EOS or text.endswith(ends) for text, tail in learnt)


def test_a_role_without_a_form_is_a_bad_row() -> None:
    row = {"messages": [{"role": "tool", "content": "T"}, {"role": "assistant", "content": "A"}]}
    with pytest.raises(BadRowError) as caught:
        segments("belle", row)
    assert caught.value.reason == "unknown-role"


@pytest.mark.parametrize("name", templates.names())
def test_a_call_of_a_tool_is_not_lost_in_silence(name: str) -> None:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Wait.", "tool_calls": [{"name": "f"}]}]}
    with pytest.raises(BadRowError) as caught:
        segments(name, row)
    assert (caught.value.reason, caught.value.detail) == ("template", f"the template {name} has no form for an answer that calls tools")


def test_chatml_equals_the_chat_template_of_transformers(with_config: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    from llmcheck_trainer.dataprep import encoders
    from llmcheck_trainer.dataprep import tokenizer as tokenizers_

    text = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    folder = with_config(tokenizer_class="PreTrainedTokenizerFast", chat_template=text)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = theirs.apply_chat_template(TALK["messages"], tokenize=True, return_dict=False)
    ours = tokenizers_.load(str(folder))
    ids, _ = encoders.reference(ours).encode([part for part, _, _ in segments("chatml", TALK)])
    assert ids.tolist() == list(expected)
