"""What is learnt is the assistant's text and the end after it, token for token, whatever the rows say; and all rows are accounted for."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck_trainer.dataprep import templates
from llmcheck_trainer.dataprep import tokenizer as tokenizers_
from llmcheck_trainer.dataprep.prepare import prepare
from llmcheck_trainer.dataprep.rows import REASONS
from llmcheck_trainer.dataprep.settings import Settings
from llmcheck_trainer.dataprep.show import parts
from llmcheck_trainer.dataprep.store import Reader

# Letters, white space at the edges, CJK, an emoji, a line separator, and what templates are made of; no special token of the vocabulary.
TEXT = st.lists(
    st.sampled_from(
        ["a", "The sum", " ", "\n", "\n\n", "你好", "😀", "\u2028", "\r\n", "Human: ", "Assistant: \n", "### Response:", "{content}", "[["]
    ),
    max_size=5,
).map("".join)
ANSWER = st.tuples(TEXT, st.booleans(), TEXT)  # what is asked, whether the answer is learnt, the answer
TALK = st.tuples(st.none() | TEXT.filter(str.strip), st.lists(ANSWER, min_size=1, max_size=4))
NO_PREFIXES = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
PROMPTS = NO_PREFIXES + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{{ '<|im_end|>' }}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
TOO_LONG = 100_000  # tokens: nothing is cut

Talk = tuple[str | None, list[tuple[str, bool, str]]]


def row_of(talk: Talk) -> dict[str, Any]:
    system, turns = talk
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for asked, learn, answer in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer, "weight": int(learn)}]
    return {"messages": messages}


def prepared(rows: list[Any], folder: Path, **changed: Any) -> Reader:
    place = Path(tempfile.mkdtemp())
    try:
        file = place / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
        asked: dict[str, Any] = {"seq_len": TOO_LONG, "template": "belle", "fast": "off", "max_bad": 10**6, "date": "2026-01-02", **changed}
        prepare(Settings(files=(str(file),), tokenizer=str(folder), out=str(place / "out"), **asked))
        reader = Reader(str(place / "out"))
        reader.row(0)
        return reader
    finally:
        shutil.rmtree(place)  # what is mapped stays readable


def end_of(name: str) -> tuple[str, str]:
    form = templates._tables()[name]["assistant"]
    before, _, after = form.partition("[[")[2].partition("]]")[0].partition("{content}")
    return before, after.replace("{eos}", "</s>")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talks=st.lists(TALK, min_size=1, max_size=4))
@pytest.mark.parametrize("name", [name for name in templates.names() if name != "llama3"])  # whose marks the little vocabulary lacks
def test_a_template_learns_answers_and_their_ends_and_nothing_else(name: str, talks: list[Talk], tokenizer_folder: Path) -> None:
    talks = [*talks, (None, [("Q", True, "A")])]  # a row at least
    backend = tokenizers_.load(str(tokenizer_folder)).backend
    reader = prepared([row_of(talk) for talk in talks], tokenizer_folder, template=name)
    begin, end = end_of(name)
    by_line = {reader.source(row)[1]: row for row in range(reader.num_rows)}
    for line, (_, turns) in enumerate(talks, 1):
        expected = [begin + answer + end for _, learn, answer in turns if learn and answer.strip()]
        if not expected:
            assert line not in by_line
            continue
        ids, supervised = reader.row(by_line[line])
        assert [text for text, learnt in parts(backend, ids, supervised) if learnt] == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talks=st.lists(TALK, min_size=1, max_size=3))
@pytest.mark.parametrize("text", [PROMPTS, MARKED], ids=["prefixes", "marks"])
def test_a_chat_template_learns_answers_and_their_ends_and_nothing_else(
    text: str, talks: list[Talk], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    talks = [*talks, (None, [("Q", True, "A")])]
    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<pad>"}), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    backend = tokenizers_.load(str(folder)).backend
    reader = prepared([row_of(talk) for talk in talks], folder, template="tokenizer")
    by_line = {reader.source(row)[1]: row for row in range(reader.num_rows)}
    for line, (_, turns) in enumerate(talks, 1):
        expected = [answer + "<|im_end|>" for _, learn, answer in turns if learn and answer.strip()]
        if not expected:
            assert line not in by_line
            continue
        ids, supervised = reader.row(by_line[line])
        assert [text for text, learnt in parts(backend, ids, supervised) if learnt] == expected


JUNK = st.sampled_from(
    ["{", "5", '{"a": 1}', '{"instruction": "q", "output": null}', '{"messages": []}', '{"text": ""}', '{"a": 1, "a": 2}', "   "]
)
ROW = (
    JUNK
    | TALK.map(row_of)
    | TEXT.map(lambda text: {"text": text * 9})
    | st.tuples(TEXT, TEXT).map(lambda two: {"prompt": two[0], "completion": two[1]})
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=12), seq_len=st.integers(4, 40), too_long=st.sampled_from(["truncate", "drop"]))
def test_every_row_is_accounted_for(rows: list[Any], seq_len: int, too_long: str, tokenizer_folder: Path) -> None:
    rows = [*rows, {"text": "at least this"}]
    reader = prepared(rows, tokenizer_folder, seq_len=seq_len, too_long=too_long)
    manifest = reader.manifest
    dropped = {reason: places["count"] for reason, places in manifest["dropped"].items()}
    pieces, lengths = manifest["pieces"], manifest["lengths"]
    used = {reader.source(row) for row in range(reader.num_rows)}
    read = [row for row in rows if row != "   "]

    assert manifest["num_source_rows"] == len(read) == len(used) + sum(dropped.values())
    assert len(used) == manifest["num_rows"] - pieces["num_rows"] + pieces["count"]
    assert set(dropped) <= set(REASONS)
    unread = sum(count for reason, count in dropped.items() if reason not in ("no-supervised-token", "too-long"))
    assert lengths["count"] == sum(number for _, number in lengths["histogram"]) == len(read) - unread
    assert manifest["num_supervised_tokens"] == sum(int(reader.row(row)[1].sum()) for row in range(reader.num_rows))
    assert manifest["num_tokens"] == sum(len(reader.row(row)[0]) for row in range(reader.num_rows))
    assert all(0 < len(reader.row(row)[0]) <= seq_len and reader.row(row)[1].any() for row in range(reader.num_rows))
    assert not any(reader.row(row)[1][0] for row in range(reader.num_rows)), "nothing comes before the first token"
    told = {place["line"] for places in manifest["dropped"].values() for place in places["first"]}
    assert told | {line for _, line in used} == {line for line, row in enumerate(rows, 1) if row != "   "}
