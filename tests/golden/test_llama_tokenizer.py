"""The probe's faces and ids against real loads of LLaMA tokenizers with 26 releases of transformers (FAQ row 5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import LLAMA_VARIANTS, fast_folder, llama_folder, write_json

from llmcheck.probe import model_folder, tokenizer
from llmcheck.rules.engine import evaluate
from llmcheck.rules.facts import ABSENT, Facts, load_registry
from llmcheck.rules.load import load_shipped

DATA = Path(__file__).parent / "tokenizers" / "llama_loads.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
CASES = [(release, row) for row in ROWS for release in row["transformers"]]
FACE = {"auto": "tok.face", "auto_slow": "tok.slow_face", "llama": "tok.class_face"}
IDS = {"auto": "tok.fast", "auto_slow": "tok.slow"}
RIGHT = [1, 358, 396]


def measured_face(row: dict[str, Any]) -> str:
    """The face that a real load showed, from what was recorded of it."""
    error = row.get("error", "")
    if error:
        return {
            "ValueError: Tokenizer class": "class-not-found",
            "AttributeError: 'NoneType'": "class-is-none",
        }.get(" ".join(error.split()[:3]) if error.startswith("ValueError") else " ".join(error.split()[:2]), "recursion-at-load")
    if row["class"] == "bool":
        return "returns-false"
    if "RecursionError" in row["ids"]:
        return "recursion-at-access"
    if row["ids"][1:3] == [0, 0]:
        return "silent-zero-ids"
    if row["encode"] == RIGHT:
        return "ok"
    if row["class"] == "TokenizersBackend":
        return "generic-class" if row["variant"] == "oldclass_goodtokens" else "misencodes"
    assert row["encode"] == [358, 396, 298], row
    return "bos-lost"


def title(row: dict[str, Any]) -> str:
    return f"{row['variant']}-{row['kind']}-{row['transformers'][0]}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llama")
    return {name: str(llama_folder(root / name, name)) for name in LLAMA_VARIANTS}


@pytest.fixture(scope="module")
def facts(folders: dict[str, str]) -> Callable[[str, str], Facts]:
    known: dict[tuple[str, str], Facts] = {}

    def get(variant: str, release: str) -> Facts:
        key = (variant, release)
        if key not in known:
            known[key] = tokenizer.facts(folders[variant], release)
        return known[key]

    return get


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(name)
    assert fact is not None, f"{name}: {facts.why_unknown(name)}"
    return None if fact.value is ABSENT else fact.value


def test_the_data_hold_the_whole_matrix() -> None:
    assert (len({release for release, _ in CASES}), len(CASES)) == (26, 26 * len(LLAMA_VARIANTS) * 3)


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_faces_are_those_of_real_loads(row: dict[str, Any], facts: Any) -> None:
    found = {release: value(facts(row["variant"], release), FACE[row["kind"]]) for release in row["transformers"]}
    assert found == dict.fromkeys(row["transformers"], measured_face(row))


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] in IDS and "ids" in row], ids=title)
def test_ids_are_those_of_real_loads(row: dict[str, Any], facts: Any) -> None:
    expected = [None if index == "RecursionError" else index for index in row["ids"]]
    for release in row["transformers"]:
        found = facts(row["variant"], release)
        assert [value(found, f"{IDS[row['kind']]}_{role}_id") for role in ("unk", "bos", "eos", "pad")] == expected, release


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["kind"] == "auto" and row["variant"] == "fixed"], ids=lambda row: row["transformers"][0]
)
def test_the_text_of_eos_is_cut_where_it_was(row: dict[str, Any], facts: Any) -> None:
    found = {value(facts("fixed", release), "tok.eos_text_is_cut") for release in row["transformers"]}
    assert found == {not row["eos_text_is_one"]}


# The rule that tells each face, by what AutoTokenizer does.
RULE = {
    "class-not-found": "LCT002", "class-is-none": "LCT003", "recursion-at-load": "LCT004", "recursion-at-access": "LCT005",
    "returns-false": "LCT006", "generic-class": "LCT008", "misencodes": "LCT009", "bos-lost": "LCT010",
}  # fmt: skip
REGISTRY = load_registry()
RULES = [rule for pack in load_shipped(REGISTRY, ["tokenizer"]) for rule in pack.rules]


def failing(facts: Facts, *severities: str) -> set[str]:
    """The codes of the rules that fail on some facts."""
    results = evaluate(RULES, facts, REGISTRY, date(2026, 11, 24))
    return {result.rule.code for result in results if result.outcome == "fail" and (not severities or result.severity in severities)}


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] == "auto"], ids=title)
def test_one_rule_tells_each_face_and_no_other(row: dict[str, Any], facts: Any) -> None:
    expected = {RULE[face]} if (face := measured_face(row)) in RULE else set()
    found = {release: failing(facts(row["variant"], release)) & set(RULE.values()) for release in row["transformers"]}
    assert found == dict.fromkeys(row["transformers"], expected)


@pytest.mark.parametrize("row", [row for row in ROWS if row["kind"] == "llama"], ids=title)
def test_the_advice_of_the_faq_is_warned_of_where_it_gives_zeros(row: dict[str, Any], facts: Any) -> None:
    """FAQ row 5 says to load by LlamaTokenizer."""
    zeros = row.get("ids", [])[:3] == [0, 0, 0]
    assert {"LCT007" in failing(facts(row["variant"], release)) for release in row["transformers"]} == {zeros}


def test_the_broken_files_are_told_whatever_the_release(folders: dict[str, str]) -> None:
    for variant in LLAMA_VARIANTS:
        assert ("LCT001" in failing(tokenizer.facts(folders[variant], None))) == variant.startswith("decapoda"), variant


def test_a_healthy_folder_gives_no_error_and_no_warning(tmp_path: Path) -> None:
    folder = llama_folder(
        tmp_path, "fixed", model_max_length=64, pad_token="<unk>",
        config={"pad_token_id": 0, "vocab_size": 308, "max_position_embeddings": 64},
    )  # fmt: skip
    (folder / "special_tokens_map.json").unlink()
    facts = tokenizer.facts(str(folder), "5.24.0").merged(model_folder.facts(str(folder)))
    assert failing(facts, "error", "warning") == set()


def test_the_faq_on_bloom_is_corrected(tmp_path: Path) -> None:
    """FAQ row 7: pad_token_id=0 and eos_token_id=2, "LLaMA and BLOOM alike"; BLOOM's pad is a token of its own."""
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    told = {}
    for pad in ("<unk>", "<pad>"):
        folder = fast_folder(
            tmp_path / pad.strip("<>"), vocab=[*tokens, *"abc"], added_tokens=tokens,
            tokenizer_config={"tokenizer_class": "BloomTokenizerFast", "pad_token": pad, "model_max_length": 64, "padding_side": "right"},
        )  # fmt: skip
        write_json(
            folder / "config.json",
            {"model_type": "bloom", "vocab_size": 7, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokens[pad]},
        )
        facts = tokenizer.facts(str(folder), "5.24.0").merged(model_folder.facts(str(folder)))
        told[pad] = failing(facts, "error", "warning")
    assert told == {"<unk>": {"LCT050"}, "<pad>": set()}
