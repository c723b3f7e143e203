"""Model folders as facts: configuration, generation settings, headers of the weights; damaged and missing files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import write_json

from llmcheck.catalog.safetensors import INDEX, SINGLE
from llmcheck.errors import UserError
from llmcheck.probe import model_folder
from llmcheck.rules.facts import ABSENT, Facts, load_registry

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": -1, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.28.1",
}  # fmt: skip


def get(facts: Facts, name: str) -> Any:
    """The value of a fact, None where it is absent, ... where it is unknown."""
    fact = facts.get(name)
    return ... if fact is None else None if fact.value is ABSENT else fact.value


def weights(path: Path, tensors: dict[str, tuple[int, ...]], *, cut: int = 0) -> None:
    """A safetensors file of zeros in F16, its last `cut` bytes missing."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end - cut)


def folder(tmp_path: Path, **changes: Any) -> Path:
    write_json(tmp_path / "config.json", {**CONFIG, **changes})
    return tmp_path


def probe(path: Path) -> Facts:
    return model_folder.facts(str(path))


def test_a_configuration(tmp_path: Path) -> None:
    facts = probe(folder(tmp_path))
    names = (
        "model_type",
        "vocab_size",
        "max_position_embeddings",
        "bos_id",
        "eos_ids",
        "pad_id",
        "pad_id_is_negative",
        "dtype",
        "auto_map",
    )
    assert [get(facts, f"model.{name}") for name in names] == ["llama", 100, 64, 1, [2], None, True, "float16", False]


def test_several_ends_are_kept(tmp_path: Path) -> None:
    facts = probe(folder(tmp_path, eos_token_id=[5, 6]))
    assert (get(facts, "model.eos_id"), get(facts, "model.eos_ids")) == (5, [5, 6])


def test_the_text_part_of_a_nested_configuration(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json",
        {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": {"vocab_size": 262208, "bos_token_id": 2}},
    )
    facts = probe(tmp_path)
    assert [get(facts, f"model.{name}") for name in ("model_type", "vocab_size", "bos_id", "eos_ids")] == ["gemma3", 262208, 2, [1, 106]]


def test_generation_settings(tmp_path: Path) -> None:
    write_json(folder(tmp_path) / "generation_config.json", {"eos_token_id": [2, 3], "pad_token_id": 0})
    facts = probe(tmp_path)
    assert [get(facts, f"gen.{name}") for name in ("present", "eos_ids", "pad_id", "bos_id")] == [True, [2, 3], 0, None]


def test_rows_come_from_the_headers(tmp_path: Path) -> None:
    weights(folder(tmp_path) / SINGLE, {"model.embed_tokens.weight": (101, 4), "lm_head.weight": (102, 4), "model.norm.weight": (4,)})
    facts = probe(tmp_path)
    assert [get(facts, f"model.{name}") for name in ("embedding_rows", "head_rows", "weight_formats")] == [101, 102, ["safetensors"]]


def test_a_shard_that_is_cut_short_is_named_and_its_facts_are_unknown(tmp_path: Path) -> None:
    weights(folder(tmp_path) / SINGLE, {"model.embed_tokens.weight": (101, 4)}, cut=1)
    facts = probe(tmp_path)
    assert get(facts, "model.damaged_files")[0].startswith("model.safetensors (it is cut short")
    assert (get(facts, "model.embedding_rows"), get(facts, "model.vocab_size")) == (..., 100)


def test_shards_that_the_index_names_and_nobody_has(tmp_path: Path) -> None:
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    weights(folder(tmp_path) / names[0], {"model.embed_tokens.weight": (100, 4)})
    write_json(tmp_path / INDEX, {"weight_map": {"a": names[0], "b": names[1], "c": names[2], "d": "../../etc/passwd"}})
    facts = probe(tmp_path)
    assert [get(facts, f"model.{name}") for name in ("missing_shards", "embedding_rows", "head_rows")] == [names[1:], 100, ...]


def test_packed_shapes_are_not_taken_for_rows(tmp_path: Path) -> None:
    weights(folder(tmp_path, quantization_config={"quant_method": "gptq"}) / SINGLE, {"model.embed_tokens.weight": (50, 4)})
    assert (get(probe(tmp_path), "model.quantization"), get(probe(tmp_path), "model.embedding_rows")) == ("gptq", ...)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"[1]", b"\xff\xfe"])
def test_a_configuration_that_cannot_be_read_is_unknown(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    facts = probe(tmp_path)
    assert (get(facts, "model.vocab_size"), get(facts, "model.eos_ids"), facts.subjects) == (..., ..., {"model"})


def test_an_index_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (folder(tmp_path) / INDEX).write_text("{", encoding="utf-8")
    assert get(probe(tmp_path), "model.missing_shards") is ...


def test_a_pipe_in_the_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(folder(tmp_path) / SINGLE)
    assert get(probe(tmp_path), "model.damaged_files")[0].startswith("model.safetensors (")


def test_values_of_the_wrong_kind_are_absent(tmp_path: Path) -> None:
    facts = probe(
        folder(tmp_path, vocab_size="100", bos_token_id=True, eos_token_id={"a": 1}, architectures="x", auto_map=[], torch_dtype=1)
    )
    names = ("vocab_size", "bos_id", "eos_ids", "architectures", "dtype")
    assert [get(facts, f"model.{name}") for name in names] == [None] * 5


@pytest.mark.parametrize("path", ["none", "empty"])
def test_what_holds_no_model_is_the_users_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        probe(tmp_path / path)
    assert error.value.exit_code == 2


def test_every_fact_is_in_the_registry_with_its_type(tmp_path: Path) -> None:
    registry = load_registry()
    weights(folder(tmp_path) / SINGLE, {"model.embed_tokens.weight": (101, 4)})
    types = {"bool": bool, "int": int, "str": str, "version": str, "list[str]": list, "list[int]": list}
    for name, fact in probe(tmp_path).known.items():
        kind = registry.kind(name)
        assert kind is not None, name
        assert fact.value is ABSENT or type(fact.value) is types[kind.type], (name, fact.value)
