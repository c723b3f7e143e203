"""From files to a folder: what is kept, what is told, what is used again, and that nothing half-written is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcheck.errors import UserError
from llmcheck_trainer.dataprep import encoders, store
from llmcheck_trainer.dataprep.prepare import Outcome, prepare
from llmcheck_trainer.dataprep.settings import Settings
from llmcheck_trainer.dataprep.store import Reader

Rows = Callable[..., Path]
GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
PLAIN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture
def run(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Prepares files into tmp_path/out."""

    def call(*files: Path, **changed: Any) -> Outcome:
        settings = Settings(
            files=tuple(map(str, files)), tokenizer=str(tokenizer_folder), seq_len=64, out=str(tmp_path / "out"), template="belle",
            fast="off", date="2026-01-02",
        )  # fmt: skip
        return prepare(replace(settings, **changed))

    return call


def texts(tmp_path: Path, folder: Path) -> list[list[tuple[str, bool]]]:
    from llmcheck_trainer.dataprep import tokenizer as tokenizers_
    from llmcheck_trainer.dataprep.show import parts

    reader, backend = Reader(str(tmp_path / "out")), tokenizers_.load(str(folder)).backend
    return [parts(backend, *reader.row(index)) for index in range(reader.num_rows)]


def scratch_folders(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_the_files_are_what_the_manifest_says(run: Any, jsonl: Rows, tmp_path: Path, tokenizer_folder: Path) -> None:
    manifest = run(jsonl(GOOD, {**GOOD, "output": "Red."})).manifest
    out = tmp_path / "out"
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8")) == manifest
    assert sorted(path.name for path in out.iterdir()) == sorted([*store.FILES, store.MANIFEST])
    assert store.is_whole(str(out), manifest)
    tokens, supervised = np.fromfile(out / "tokens.bin", "<u2"), np.fromfile(out / "supervised.bin", np.uint8)
    offsets, sources = np.fromfile(out / "offsets.bin", "<i8"), np.fromfile(out / "source.bin", "<i8")
    assert (manifest["num_rows"], manifest["num_tokens"], manifest["token_dtype"]) == (2, len(tokens), "uint16")
    assert manifest["num_supervised_tokens"] == supervised.sum()
    assert (offsets[0], offsets[-1], len(offsets)) == (0, len(tokens), 3)
    assert sources.tolist() == [1, 2]
    assert texts(tmp_path, tokenizer_folder) == [
        [("Human: \nName a colour.\n\nAssistant: \n", False), (f"{colour}.</s>", True)] for colour in ("Blue", "Red")
    ]


def test_the_files_are_as_large_as_the_planner_says(run: Any, jsonl: Rows) -> None:
    from llmcheck import dataprep

    manifest = run(jsonl(*[GOOD] * 1000)).manifest
    mean = manifest["num_tokens"] / 1000
    # 16-bit ids, as of the tokenizers of LLaMA's kind; the file of beginnings has one more, the end
    said = dataprep.estimate(1000, seq_len=64, ranks_per_node=1, mean_tokens=mean, tokenizer="sentencepiece", language="en")
    assert sum(file["num_bytes"] for file in manifest["files"].values()) == said.ours.disk_bytes + 8


def test_every_row_of_the_source_is_written_or_told(run: Any, jsonl: Rows) -> None:
    rows = [
        GOOD,
        "{",
        {"a": 1},
        {**GOOD, "output": ""},
        {"text": "plain"},
        {"messages": [{"role": "user", "content": "x"}]},
        GOOD,
        GOOD,
        GOOD,
    ]
    path = jsonl(*rows)
    manifest = run(path).manifest
    assert {reason: places["count"] for reason, places in manifest["dropped"].items()} == {
        "empty-answer": 1, "no-answer": 1, "not-json": 1, "unknown-shape": 1
    }  # fmt: skip
    assert manifest["num_source_rows"] == manifest["num_rows"] + sum(places["count"] for places in manifest["dropped"].values()) == 9
    assert manifest["dropped"]["not-json"]["first"][0] | {"detail": ""} == {"file": str(path), "line": 2, "detail": ""}


def test_source_lines_name_their_file(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    run(jsonl(GOOD, name="a.jsonl"), jsonl("{", GOOD, GOOD, name="b.jsonl"))
    reader = Reader(str(tmp_path / "out"))
    assert [reader.source(row) for row in range(3)] == [(0, 1), (1, 2), (1, 3)]
    assert reader.rows_of(1, 3) == [2]


def test_a_long_conversation_is_cut_off_and_told(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    manifest = run(jsonl(GOOD, {**GOOD, "output": "Blue. " * 100})).manifest
    assert (manifest["num_rows"], manifest["truncated"]["count"]) == (2, 1)
    assert manifest["truncated"]["first"] == [{"file": manifest["sources"][0]["path"], "line": 2}]
    assert manifest["truncated"]["num_tokens_lost"] == manifest["lengths"]["max"] - 64
    ids, _ = Reader(str(tmp_path / "out")).row(1)
    assert len(ids) == 64
    assert ids[-1] != manifest["tokenizer"]["eos_id"]


def test_a_row_whose_answer_is_cut_off_whole_is_left_out(run: Any, jsonl: Rows) -> None:
    manifest = run(jsonl(GOOD, {**GOOD, "instruction": "Blue. " * 100})).manifest
    assert manifest["dropped"]["no-supervised-token"]["count"] == 1
    assert manifest["num_rows"] == 1


def test_long_conversations_are_dropped_where_that_is_asked(run: Any, jsonl: Rows) -> None:
    manifest = run(jsonl(GOOD, {**GOOD, "output": "Blue. " * 100}), too_long="drop").manifest
    assert (manifest["num_rows"], manifest["dropped"]["too-long"]["count"], manifest["truncated"]["count"]) == (1, 1, 0)


def test_plain_text_is_cut_into_pieces_and_loses_nothing(run: Any, tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("Blue, green and red are colours. " * 40 + "\nshort\n", encoding="utf-8")
    manifest = run(path, template="auto").manifest
    reader = Reader(str(tmp_path / "out"))
    assert {reader.source(row) for row in range(reader.num_rows - 1)} == {(0, 1)}
    assert manifest["num_tokens"] == sum(len(reader.row(row)[0]) for row in range(reader.num_rows))
    whole = "".join(text for row in texts(tmp_path, tokenizer_folder) for text, _ in row)
    assert whole == path.read_text(encoding="utf-8").replace("\n", "</s>")


def test_conversations_need_a_template(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template") as caught:
        run(jsonl(GOOD), template="auto")
    assert caught.value.where.endswith("rows.jsonl, line 1")
    assert not (tmp_path / "out").exists()
    assert scratch_folders(tmp_path) == []


def test_the_folders_own_chat_template_is_the_default(run: Any, jsonl: Rows, with_config: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder = with_config(chat_template=PLAIN + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    own = run(jsonl(GOOD), template="auto", tokenizer=str(folder)).manifest
    assert own["template"]["name"] == "tokenizer"
    assert texts(tmp_path, folder) == [
        [("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n", False), ("Blue.<|im_end|>", True), ("\n", False)]
    ]
    built_in = run(jsonl(GOOD), template="chatml", tokenizer=str(folder)).manifest
    assert built_in["files"] == own["files"]
    assert any("generation must stop" in note for note in built_in["notes"])


def test_a_chat_template_without_an_end_token_is_told(run: Any, jsonl: Rows, with_config: Callable[..., Path]) -> None:
    pytest.importorskip("jinja2")
    text = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    manifest = run(jsonl(GOOD), template="auto", tokenizer=str(with_config(chat_template=text))).manifest
    assert any("no end token in the loss" in note for note in manifest["notes"])


def test_chatml_needs_its_marks(run: Any, jsonl: Rows) -> None:
    with pytest.raises(UserError, match="needs the token '<\\|begin_of_text\\|>'"):
        run(jsonl(GOOD), template="llama3")


def test_an_unknown_template_is_told_with_what_was_meant(run: Any, jsonl: Rows) -> None:
    with pytest.raises(UserError, match="unknown template") as caught:
        run(jsonl(GOOD), template="bele")
    assert caught.value.hint == "did you mean 'belle'?"


@pytest.mark.parametrize("pad", ["</s>", None])
def test_padding_is_never_the_end_token(run: Any, jsonl: Rows, with_config: Callable[..., Path], pad: str | None) -> None:
    manifest = run(jsonl(GOOD), tokenizer=str(with_config(pad_token=pad))).manifest
    told = manifest["tokenizer"]
    assert (told["pad_token"], told["pad_id"] != told["eos_id"]) == ("<pad>", True)
    assert any("'<pad>' is taken for padding" in note for note in manifest["notes"])


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        ({"eos_token": None}, None, "no end-of-sequence token"),
        ({"eos_token": "<nothing>"}, None, "is not in the vocabulary"),
        ({}, "</s>", "is the end token too"),
        ({}, "<nothing>", "has no token"),
    ],
)
def test_end_and_padding_tokens_must_be_usable(
    run: Any, jsonl: Rows, with_config: Callable[..., Path], config: dict[str, Any], asked: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(jsonl(GOOD), tokenizer=str(with_config(**config)), pad_token=asked)


def test_the_begin_token_comes_once_where_the_tokenizer_adds_it(
    run: Any, jsonl: Rows, with_config: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(with_config(add_bos_token=True))
    run(jsonl(GOOD), tokenizer=folder, template="plain")
    bos = Reader(str(tmp_path / "out")).manifest["tokenizer"]["bos_id"]
    ids, supervised = Reader(str(tmp_path / "out")).row(0)
    assert (ids[0], list(ids).count(bos), supervised[0]) == (bos, 1, 0)
    run(jsonl(GOOD), tokenizer=folder, template="belle")  # its script adds none
    assert bos not in Reader(str(tmp_path / "out")).row(0)[0]


def test_a_truncation_left_in_the_tokenizer_is_not_applied(run: Any, jsonl: Rows, with_config: Callable[..., Path]) -> None:
    folder = with_config()
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert run(jsonl(GOOD), tokenizer=str(folder)).manifest["lengths"]["max"] > 6


@pytest.mark.parametrize("content", [b"{}", b"", b"{", b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'])
def test_a_broken_tokenizer_is_told(run: Any, jsonl: Rows, with_config: Callable[..., Path], content: bytes) -> None:
    folder = with_config()
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be loaded"):
        run(jsonl(GOOD), tokenizer=str(folder))


# --- too many bad rows


def test_a_template_that_leaves_answers_out_is_blamed_and_not_the_length(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    (tmp_path / "wrong.jinja").write_text("no template")
    with pytest.raises(UserError, match="none of 1 rows can be used") as caught:
        run(jsonl(GOOD), template=str(tmp_path / "wrong.jinja"))
    assert "the chat template leaves answers out" in (caught.value.hint or "")


def test_what_only_chat_templates_have_a_form_for_is_told(run: Any, jsonl: Rows) -> None:
    asked = {"role": "user", "content": "Q"}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": "A"}], "tools": [{"name": "f"}]},
        {"messages": [asked, {"role": "assistant", "content": "A", "reasoning_content": "Hm."}]},
        {"messages": [asked, {"role": "assistant", "content": "A"}]},
    ]
    assert run(jsonl(*rows), template="belle").manifest["notes"] == [
        "1 conversation loses lists of tools: the template belle has no form for them",
        "1 conversation loses thoughts beside answers: the template belle has no form for them",
    ]


def test_rows_that_are_learnt_twice_are_told(run: Any, jsonl: Rows) -> None:
    one, copy, other = jsonl(GOOD, name="a.jsonl"), jsonl(GOOD, name="b.jsonl"), jsonl({**GOOD, "output": "Red."}, name="c.jsonl")
    notes = run(one, other, copy, one).manifest["notes"]
    assert notes == [
        f"{copy} is {one} under another name: its rows are learnt twice",
        f"{one} is named twice: its rows are learnt as often",
    ]
    assert run(one, other).manifest["notes"] == []


@pytest.mark.parametrize("key", ["truncated", "dropped", "lengths", "pieces", "num_source_rows", "num_supervised_tokens"])
def test_an_edited_manifest_is_not_used_again(run: Any, jsonl: Rows, tmp_path: Path, key: str) -> None:
    file = tmp_path / "out" / "manifest.json"
    first = run(jsonl(GOOD)).manifest
    file.write_text(json.dumps({**first, key: "x"}))
    assert run(jsonl(GOOD)) == Outcome(first, False)


def test_mostly_bad_rows_write_nothing(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of 3 rows are bad"):
        run(jsonl({"a": 1}, {"a": 1}, GOOD))
    assert not (tmp_path / "out").exists()
    assert scratch_folders(tmp_path) == []


def test_max_bad(run: Any, jsonl: Rows) -> None:
    path = jsonl("{", GOOD, GOOD)
    assert run(path, max_bad=1).manifest["num_rows"] == 2
    with pytest.raises(UserError, match="1 of 3 rows are bad"):
        run(path, max_bad=0)


def test_no_usable_row_at_all_is_an_error(run: Any, jsonl: Rows) -> None:
    with pytest.raises(UserError, match="none of 1 rows can be used"):
        run(jsonl({**GOOD, "output": ""}))


# --- used again, or not


def test_nothing_changed_is_nothing_done(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    first = run(jsonl(GOOD))
    before = (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns
    again = run(tmp_path / "rows.jsonl")
    assert (first.reused, again.reused, again.manifest) == (False, True, first.manifest)
    assert (tmp_path / "out" / "tokens.bin").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "changed", [{"seq_len": 32}, {"template": "plain"}, {"too_long": "drop"}, {"format": "alpaca"}, {"pad_token": "<unk>"}, {"max_bad": 3}]
)
def test_another_setting_prepares_again(run: Any, jsonl: Rows, changed: dict[str, Any]) -> None:
    path = jsonl(GOOD)
    run(path)
    assert not run(path, **changed).reused


def test_another_content_of_the_same_size_prepares_again(run: Any, jsonl: Rows) -> None:
    run(jsonl(GOOD))
    assert not run(jsonl({**GOOD, "output": "Teal."})).reused


def test_the_date_matters_only_to_templates_that_ask_for_it(run: Any, jsonl: Rows, with_config: Callable[..., Path]) -> None:
    pytest.importorskip("jinja2")
    undated, dated = with_config("a", chat_template=PLAIN), with_config("b", chat_template=PLAIN + "{# strftime_now #}")
    for folder, reused in ((undated, True), (dated, False)):
        run(jsonl(GOOD), template="auto", tokenizer=str(folder))
        assert run(jsonl(GOOD), template="auto", tokenizer=str(folder), date="2026-01-03").reused is reused


@pytest.mark.parametrize("name", store.FILES)
def test_a_damaged_file_prepares_again(run: Any, jsonl: Rows, tmp_path: Path, name: str) -> None:
    path = jsonl(GOOD)
    first = run(path)
    file = tmp_path / "out" / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = run(path)
    assert (again.reused, again.manifest) == (False, first.manifest)


def test_an_error_leaves_the_old_data_as_it_was(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    first = run(jsonl(GOOD)).manifest
    with pytest.raises(UserError):
        run(jsonl("{", "{", GOOD))
    assert store.is_whole(str(tmp_path / "out"), first)
    assert store.read_manifest(str(tmp_path / "out")) == first


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_of_other_things_is_not_replaced(run: Any, jsonl: Rows, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"schema": "theirs"}', encoding="utf-8")
    with pytest.raises(UserError, match="holds other things"):
        run(jsonl(GOOD))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_what_killed_runs_left_is_cleared_away_and_what_runs_is_not(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    import fcntl

    dead, alive, other = (tmp_path / f".out.{digit * 12}.part" for digit in "0a1")
    for folder in (dead, alive):
        folder.mkdir()
        (folder / ".lock").touch()
    other.mkdir()  # being made: no lock yet
    with (alive / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(jsonl(GOOD))
        assert sorted(scratch_folders(tmp_path)) == [other, alive] or sorted(scratch_folders(tmp_path)) == [alive, other]


def test_a_full_disk_is_told(run: Any, jsonl: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "_put", full)
    with pytest.raises(UserError, match="cannot write") as caught:
        run(jsonl(GOOD))
    assert caught.value.why == "No space left on device"
    assert scratch_folders(tmp_path) == []


# --- the fast encoder


class _Wrong:
    """Says other tokens than the tokenizer does, from some batch on."""

    name = "wrong"

    def __init__(self, inner: encoders.Encoder, good: int) -> None:
        self.inner, self.good = inner, good

    def encode(self, texts: Any) -> Any:
        ids, lengths = self.inner.encode(texts)
        self.good -= 1
        return (ids if self.good >= 0 else ids[::-1].copy()), lengths


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_fast_encoder_that_errs_is_found_and_all_is_done_again(
    run: Any, jsonl: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, good: int
) -> None:
    files = [jsonl({**GOOD, "output": f"{number}."}, name=f"{number}.jsonl") for number in range(3)]
    expected = run(*files, out=str(tmp_path / "expected")).manifest
    real = encoders.choose

    def choose(tokenizer: Any, fast: str) -> Any:
        slow, note = real(tokenizer, "off")
        return (slow, note) if fast == "off" else (encoders._Checked(_Wrong(slow, good), slow), "")

    monkeypatch.setattr("llmcheck_trainer.dataprep.prepare.choose", choose)
    outcome = run(*files, fast="auto")
    assert outcome.manifest == expected
    assert "differ on" in outcome.note


def test_the_fast_encoder_gives_equal_files(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    rows = [{**GOOD, "instruction": text, "output": text[::-1] or "x"} for text in encoders.PROBES if text.strip()]
    path = jsonl(*rows, *[{"text": f"{text} <|im_end|>{text}</s>"} for text in encoders.PROBES if text.strip()])
    slow, fast = run(path, out=str(tmp_path / "slow")), run(path, out=str(tmp_path / "fast"), fast="require")
    assert fast.manifest == slow.manifest
    assert (tmp_path / "fast" / "manifest.json").read_bytes() == (tmp_path / "slow" / "manifest.json").read_bytes()


def test_the_fast_encoder_is_made_anew_when_it_grows(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    from llmcheck_trainer.dataprep import tokenizer as tokenizers_

    loaded = tokenizers_.load(str(tokenizer_folder))
    quick = encoders._Gigatoken(loaded.serialized)
    sizes = iter([100, *[101 + encoders.CACHE_BYTES] * encoders.MIN_BATCHES])
    monkeypatch.setattr(encoders, "_resident_bytes", lambda: next(sizes))
    before, slow = quick._own, encoders.reference(loaded)
    for number in range(encoders.MIN_BATCHES):
        assert quick._own is before
        encoders.compare(quick, slow, [f"Human: {number}\n"])
    assert quick._own is not before
    encoders.compare(quick, slow, ["Human: \n"])


def test_without_the_fast_encoder_it_is_said(run: Any, jsonl: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert run(jsonl(GOOD), fast="auto").note == "encoded with tokenizers: gigatoken is not installed (the extra `fast-data`)"
    with pytest.raises(UserError, match="cannot be used"):
        run(jsonl(GOOD), fast="require", seq_len=32)


def test_a_sentencepiece_model_alone(run: Any, jsonl: Rows, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "spm"
    folder.mkdir()
    sentences = iter(["The sum of one and two is three.", "Name a colour: blue, green, red.", "Human and Assistant talk."] * 20)
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=file,
            model_type="bpe",
            vocab_size=300,
            byte_fallback=True,
            minloglevel=2,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
        )
    manifest = run(jsonl(GOOD, {"text": "blue"}), tokenizer=str(folder)).manifest
    assert {key: manifest["tokenizer"][key] for key in ("eos_id", "bos_id", "pad_id", "vocab_size")} == {
        "eos_id": 2, "bos_id": 1, "pad_id": 0, "vocab_size": 300
    }  # fmt: skip
    assert texts(tmp_path, folder) == [
        [("Human: \nName a colour.\n\nAssistant: \n", False), ("Blue.</s>", True)],
        [("<s>", False), ("blue</s>", True)],
    ]


def test_a_scratch_folder_of_a_run_that_was_killed_at_once_goes(tmp_path: Path) -> None:
    """Between the folder and its lock; one that is a minute old is of nobody who is still at it."""
    old, new = tmp_path / ".out.0123456789ab.part", tmp_path / ".out.ba9876543210.part"
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, 0))
    store.clear_away(str(tmp_path), "out")

    assert (old.exists(), new.exists()) == (False, True)
