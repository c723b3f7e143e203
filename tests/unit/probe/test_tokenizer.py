"""Tokenizer folders as facts: what the files say, what a release makes of them, and that a stranger's bytes do no harm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_folders import (
    EMPTY,
    GOOD,
    added,
    fast_folder,
    llama_folder,
    llama_pieces,
    number,
    piece,
    sentencepiece_model,
    tagged,
    tokenizer_json,
    varint,
    write_json,
)

from llmcheck.errors import UserError
from llmcheck.probe import chat_template, tokenizer
from llmcheck.probe import sentencepiece_model as spm
from llmcheck.rules.facts import ABSENT, Facts, load_registry

NUM_PIECES = len(llama_pieces())


def get(facts: Facts, name: str) -> Any:
    """The value of a fact, None where it is absent, ... where it is unknown."""
    fact = facts.get(f"tok.{name}")
    return ... if fact is None else None if fact.value is ABSENT else fact.value


def probe(folder: Path, release: str | None = "5.24.0") -> Facts:
    return tokenizer.facts(str(folder), release)


# What is there at all


def test_a_missing_folder_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        probe(tmp_path / "none")
    assert (error.value.code, error.value.exit_code) == ("no-folder", 2)


def test_a_file_in_place_of_a_folder_is_the_users_error(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "a")
    with pytest.raises(UserError):
        probe(folder / "tokenizer.model")


def test_a_folder_without_a_tokenizer_is_the_users_error(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with pytest.raises(UserError) as error:
        probe(tmp_path)
    assert error.value.code == "no-tokenizer"


def test_every_fact_is_in_the_registry_with_its_type(tmp_path: Path) -> None:
    registry = load_registry()
    folder = fast_folder(
        tmp_path, tokenizer_config={"eos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}<|im_end|>", "auto_map": ["x"]}
    )
    facts = probe(folder)
    types = {"bool": bool, "int": int, "str": str, "list[str]": list}
    for name, fact in facts.known.items():
        kind = registry.kind(name)
        assert kind is not None, name
        assert fact.value is ABSENT or type(fact.value) is types[kind.type], (name, fact.value)


def test_facts_name_the_file_that_they_come_from(tmp_path: Path) -> None:
    fact = probe(llama_folder(tmp_path)).get("tok.eos_id")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.uri == os.path.join(str(tmp_path), "special_tokens_map.json")


# Special tokens


def test_ids_of_a_llama_folder(tmp_path: Path) -> None:
    facts = probe(llama_folder(tmp_path))
    assert [get(facts, f"{role}_id") for role in ("unk", "bos", "eos", "pad")] == [0, 1, 2, None]
    assert [get(facts, f"spm_{role}_id") for role in ("unk", "bos", "eos")] == [0, 1, 2]
    assert (get(facts, "vocab_size"), get(facts, "rows_needed"), get(facts, "face")) == (NUM_PIECES, NUM_PIECES, "ok")


@pytest.mark.parametrize("form", ["string", "object"])
def test_empty_special_tokens_are_found_in_either_form(tmp_path: Path, form: str) -> None:
    folder = llama_folder(tmp_path, "decapoda_classfix")
    if form == "object":
        write_json(folder / "special_tokens_map.json", {key: added("") for key in EMPTY})
    facts = probe(folder)
    assert get(facts, "empty_special_tokens") == ["unk_token", "bos_token", "eos_token"]
    assert [get(facts, f"{role}_id") for role in ("unk", "bos", "eos")] == [None, None, None]


# Expected values of the next tests: real loads of these very folders with 4.28.1, 4.30.2, 4.34.1, 4.57.6 and 5.24.0.
RELEASES = ("4.28.1", "4.30.2", "4.34.1", "4.57.6", "5.24.0")


@pytest.mark.parametrize(
    ("changes", "auto", "slow"),
    [
        ({"bos_token": ""}, [(0, 0, 2, None)] * 5, [(0, 308, 2, None)] * 2 + [(0, 0, 2, None)] * 3),
        ({"eos_token": "<|end|>", "pad_token": "[PAD]"}, [(0, 1, 308, 309)] * 5, [(0, 1, 308, 309)] * 5),
        ({"unk_token": "<|unk|>"}, [(308, 1, 2, None)] * 5, [(0, 1, 2, None)] * 2 + [(308, 1, 2, None)] * 3),
        ({"unk_token": ""}, [(None, 1, 2, None)] * 5, [(0, 1, 2, None)] * 4 + [(None, 1, 2, None)]),
    ],
)
def test_ids_by_release_are_those_of_real_loads(tmp_path: Path, changes: dict[str, Any], auto: list[Any], slow: list[Any]) -> None:
    assert NUM_PIECES == 308
    folder = llama_folder(tmp_path, "fixed", **changes)
    (folder / "special_tokens_map.json").unlink()
    for release, fast_ids, slow_ids in zip(RELEASES, auto, slow, strict=True):
        facts = probe(folder, release)
        assert tuple(get(facts, f"fast_{role}_id") for role in ("unk", "bos", "eos", "pad")) == fast_ids, release
        assert tuple(get(facts, f"slow_{role}_id") for role in ("unk", "bos", "eos", "pad")) == slow_ids, release


@pytest.mark.parametrize(
    ("variant", "special_map", "decoder", "faces"),
    [
        ("decapoda_classfix", GOOD, False, ("ok", "recursion-at-load", "ok", "ok", "bos-lost")),
        ("fixed", EMPTY, False, ("recursion-at-access", "recursion-at-access", "recursion-at-load", "returns-false", "recursion-at-load")),
        ("fixed", EMPTY, True, ("recursion-at-access", "recursion-at-access", "ok", "ok", "ok")),
    ],
)
def test_which_of_two_files_holds_depends_on_the_release(
    tmp_path: Path, variant: str, special_map: dict[str, str], decoder: bool, faces: tuple[str, ...]
) -> None:
    token = {"content": "<unk>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    folder = llama_folder(tmp_path, variant, **({"added_tokens_decoder": {"0": token}} if decoder else {}))
    write_json(folder / "special_tokens_map.json", special_map)
    assert tuple(get(probe(folder, release), "face") for release in RELEASES) == faces
    assert get(probe(folder), "special_conflicts") == ["unk_token", "bos_token", "eos_token"]


def test_an_unknown_token_that_is_empty_recurses_in_the_generic_class_too(tmp_path: Path) -> None:
    folder = fast_folder(tmp_path, tokenizer_config={"eos_token": "<|endoftext|>", "unk_token": "", "bos_token": ""})
    assert [get(probe(folder, release), "face") for release in RELEASES] == ["recursion-at-access"] * 4 + ["recursion-at-load"]


def test_a_development_build_at_a_border_is_unknown(tmp_path: Path) -> None:
    facts = probe(llama_folder(tmp_path, "decapoda_classfix"), "4.28.0.dev0")
    assert (get(facts, "face"), get(facts, "fast_eos_id")) == (..., ...)
    assert "4.28.0.dev0" in str(facts.why_unknown("tok.face"))
    assert get(facts, "empty_special_tokens") == ["unk_token", "bos_token", "eos_token"]


@pytest.mark.parametrize("release", [None, "", "not a version"])
def test_without_a_release_the_faces_are_unknown_and_the_files_are_not(tmp_path: Path, release: str | None) -> None:
    facts = probe(llama_folder(tmp_path), release)
    assert (get(facts, "face"), get(facts, "slow_face"), get(facts, "adds_bos"), get(facts, "eos_id")) == (..., ..., ..., 2)


def test_the_defaults_of_an_unknown_class_are_not_guessed(tmp_path: Path) -> None:
    facts = probe(fast_folder(tmp_path, tokenizer_config={"tokenizer_class": "SomebodysTokenizer", "eos_token": "<|endoftext|>"}))
    assert (get(facts, "eos_id"), get(facts, "pad_id"), get(facts, "face")) == (8, ..., ...)


def test_the_class_follows_from_the_model_type_where_no_file_names_it(tmp_path: Path) -> None:
    folder = fast_folder(tmp_path, added_tokens={"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, tokenizer_config={"tokenizer_class": None})
    write_json(folder / "config.json", {"model_type": "bloom"})
    facts = probe(folder)
    assert [get(facts, f"{role}_id") for role in ("unk", "bos", "eos", "pad")] == [0, 1, 2, 3]
    assert get(facts, "spare_pad_token") == "<pad>"


# What is added around a text; expected values are real encodings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(True, False, []), (True, False, [])]),
        ({"add_eos_token": True}, [(True, True, []), (True, False, ["add_eos_token"])]),
        ({"add_bos_token": False}, [(False, False, []), (True, False, ["add_bos_token"])]),
    ],
)
def test_transformers_5_follows_tokenizer_json_and_not_the_flags(tmp_path: Path, changes: dict[str, Any], expected: list[Any]) -> None:
    folder = llama_folder(tmp_path, "fixed", **changes)
    pieces = [text for text, _, _ in llama_pieces()]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    document = tokenizer_json(pieces, {"<unk>": 0, "<s>": 1, "</s>": 2}, post_processor={"type": "TemplateProcessing", "single": single})
    write_json(folder / "tokenizer.json", document)
    found = [
        tuple(get(probe(folder, release), name) for name in ("adds_bos", "adds_eos", "ignored_flags")) for release in ("4.57.6", "5.24.0")
    ]
    assert found == expected


# Chat templates


def template(folder: Path, text: str, **config: Any) -> Facts:
    return probe(fast_folder(folder, added_tokens={"<|im_end|>": 8, "<|im_start|>": 9, "<|eot|>": 10},
                             tokenizer_config={"chat_template": text, "eos_token": "<|eot|>", **config}))  # fmt: skip


def test_a_chatml_template(tmp_path: Path) -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    facts = template(tmp_path, text)
    assert (get(facts, "template_turn_end"), get(facts, "template_names_eos"), get(facts, "template_names_bos")) == (
        "<|im_end|>",
        False,
        False,
    )
    assert (get(facts, "template_has_generation"), get(facts, "template_missing_tokens")) == (False, [])


def test_what_stands_in_a_comment_does_not_count(tmp_path: Path) -> None:
    facts = template(tmp_path, "{# {% generation %} eos_token <|no|> #}{{ x }}")
    assert (get(facts, "template_has_generation"), get(facts, "template_names_eos"), get(facts, "template_missing_tokens")) == (
        False,
        False,
        [],
    )


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation -%}", "{%generation%}"])
def test_generation_blocks_are_found(tmp_path: Path, tag: str) -> None:
    assert get(template(tmp_path, tag + "{{ m }}{% endgeneration %}"), "template_has_generation") is True


def test_tokens_of_a_template_that_no_vocabulary_has(tmp_path: Path) -> None:
    assert get(template(tmp_path, "<|user|>{{ m }}<|im_end|><think>"), "template_missing_tokens") == ["<|user|>"]


def test_a_template_in_a_file_is_read_from_4_47_on(tmp_path: Path) -> None:
    folder = fast_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ eos_token }}", encoding="utf-8")
    old, new = probe(folder, "4.46.3"), probe(folder, "4.47.0")
    assert [(get(f, "has_chat_template"), get(f, "template_file_unread")) for f in (old, new)] == [(False, True), (True, False)]


def test_bos_that_the_template_and_the_tokenizer_write_is_doubled(tmp_path: Path) -> None:
    twice = llama_folder(tmp_path / "a", "fixed", chat_template="{{ bos_token }}{{ m }}")
    once = llama_folder(tmp_path / "b", "fixed", chat_template="{{ m }}")
    assert [get(probe(folder), "doubles_bos") for folder in (twice, once)] == [True, False]


def test_templates_made_to_stall_a_pattern_do_not() -> None:
    begin = time.process_time()
    for text in ("{#" * 500_000, "<|" * 500_000, "{% " + " " * 900_000, "{%" * 500_000, "<" + "a" * 900_000):
        chat_template.analyse(text, bos="<s>", eos="</s>")
    assert time.process_time() - begin < 20  # quadratic work would be minutes; this is a bound on the kind, not on the speed


# Files out of step


def test_vocabularies_with_other_ids_are_counted(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    pieces = [text for text, _, _ in llama_pieces()]
    pieces[10], pieces[11] = pieces[11], pieces[10]
    write_json(folder / "tokenizer.json", tokenizer_json(pieces[:-3], {}))
    facts = probe(folder)
    assert [get(facts, name) for name in ("vocab_conflicts", "json_vocab_size", "spm_vocab_size")] == [2, NUM_PIECES - 3, NUM_PIECES]


def test_added_tokens_with_other_ids_are_named(tmp_path: Path) -> None:
    folder = fast_folder(tmp_path, added_tokens={"[PAD]": 8}, tokenizer_config={"added_tokens_decoder": {"9": {"content": "[PAD]"}}})
    assert get(probe(folder), "added_conflicts") == ["[PAD] (8 in tokenizer.json, 9 in tokenizer_config.json)"]


def test_merges_as_lists_are_told_from_merges_as_text(tmp_path: Path) -> None:
    for name, merges, expected in (("a", [["a", "b"]], True), ("b", ["a b"], False), ("c", [], None)):
        folder = fast_folder(tmp_path / name)
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        document["model"]["merges"] = merges
        write_json(folder / "tokenizer.json", document)
        assert get(probe(folder), "merges_as_pairs") is expected


def test_a_tiktoken_vocabulary_under_the_name_of_sentencepiece(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    facts = probe(tmp_path)
    assert [get(facts, name) for name in ("has_tiktoken", "has_sentencepiece", "vocab_size", "unreadable_files")] == [True, False, 3, []]
    assert (get(facts, "eos_id"), get(facts, "face")) == (..., ...)


# Strangers' files


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"]
)
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b"\xff" * 50, b"version https://git-lfs.github.com/spec/v1\n", b"[1]", b"null"]
)
def test_a_file_that_cannot_be_read_makes_facts_unknown_and_no_error(tmp_path: Path, name: str, data: bytes) -> None:
    folder = llama_folder(tmp_path)
    (folder / name).write_bytes(data)
    facts = probe(folder)
    unreadable = get(facts, "unreadable_files")
    assert [entry.split(" ")[0] for entry in unreadable] == [name]
    assert get(facts, "face") is ...


def test_a_pipe_in_the_folder_does_not_block(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    os.mkfifo(folder / "tokenizer.json")
    assert "tokenizer.json" in get(probe(folder), "unreadable_files")[0]


def test_text_in_facts_is_capped_and_printable(tmp_path: Path) -> None:
    folder = fast_folder(tmp_path, tokenizer_config={"eos_token": "x" * 10_000, "bos_token": "\ud800"})
    facts = probe(folder)
    assert len(get(facts, "eos_token")) == 200
    for fact in facts.known.values():
        str(fact.value).encode("utf-8")


# The SentencePiece reader


def test_the_reader_gives_what_was_written() -> None:
    model = spm.parse(sentencepiece_model(), where="here")
    assert (model.num_pieces, model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (NUM_PIECES, 0, 1, 2, None)
    assert (model.ids["<0x41>"], model.kind(3), model.byte_fallback, model.add_dummy_prefix) == (3 + 0x41, spm.BYTE, True, True)


def test_a_special_piece_of_the_wrong_kind_has_no_id() -> None:
    pieces = llama_pieces()
    pieces[1] = ("<s>", 0.0, spm.USER_DEFINED)
    assert spm.parse(sentencepiece_model(pieces), where="here").bos_id is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "bytes where"),
        (b"\x0a\x05\x0a\x03ab", "bytes where"),
        (b"\x80" * 20, "more than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (number(1, 5), "a number where a message"),
        (piece("a", 0.0, 9), "kind 9"),
        (piece("a" * 5000, 0.0, 1), "5000 bytes"),
        (tagged(1, tagged(1, b"\xff\xfe")), "utf-8"),
        (varint(1 << 3 | 5) + b"\x00", "inside a number"),
    ],
)
def test_damaged_models_are_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(UserError) as error:
        spm.parse(data, where="here")
    assert why in error.value.why


def code_of(data: bytes) -> str:
    """The code of the error that reading gives, or an empty string; anything but a UserError comes through."""
    try:
        spm.parse(data, where="here")
    except UserError as error:
        return error.code
    return ""


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_model_or_a_user_error(data: bytes) -> None:
    assert code_of(data) in ("", "sentencepiece")


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 6000), st.integers(0, 255))
def test_one_changed_byte_is_a_model_or_a_user_error(position: int, byte: int) -> None:
    data = bytearray(sentencepiece_model())
    data[position % len(data)] = byte
    assert code_of(bytes(data)) in ("", "sentencepiece")


KEYS = ("unk_token", "bos_token", "eos_token", "pad_token", "added_tokens_decoder", "chat_template", "auto_map", "tokenizer_class",
        "model_max_length", "padding_side", "legacy", "add_bos_token")  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.sampled_from(["4.28.1", "4.40.0", "4.57.6", "5.1.0", "5.24.0", None]))
def test_any_configuration_gives_facts(tmp_path: Path, config: dict[str, Any], release: str | None) -> None:
    folder = llama_folder(tmp_path)
    write_json(folder / "tokenizer_config.json", config)
    facts = probe(folder, release)
    assert facts.subjects == {"tokenizer"}
