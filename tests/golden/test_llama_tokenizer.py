"""The probe's faces and ids against real loads of LLaMA tokenizers with 26 releases of transformers (FAQ row 5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import LLAMA_VARIANTS, llama_folder

from llmcheck.probe import tokenizer
from llmcheck.rules.facts import ABSENT, Facts

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
