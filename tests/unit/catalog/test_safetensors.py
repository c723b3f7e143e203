"""safetensors headers: counted without reading weights, compared with the shape, and refused when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog.models import from_path
from llmcheck.catalog.safetensors import INDEX, SINGLE, read_files, read_folder, read_header
from llmcheck.errors import UserError
from llmcheck.shadow import families

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """A file as the format has it, its weights a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        size = {"BF16": 2, "F32": 4}[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)


def model(tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A folder with the configuration, and the tensors that go with it."""
    config = {**CONFIG, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = from_path(str(tmp_path))
    return tmp_path, dict(families.parameters("llama", spec.config))


def test_a_header_gives_names_types_and_shapes(tmp_path: Path) -> None:
    write(tmp_path / SINGLE, {"a": (2, 3), "b": ()})
    assert read_header(str(tmp_path / SINGLE)) == {"a": ("BF16", (2, 3)), "b": ("BF16", ())}


def test_elements_are_counted_by_type(tmp_path: Path) -> None:
    write(tmp_path / "1.safetensors", {"a": (2, 3)})
    write(tmp_path / "2.safetensors", {"b": (5,)}, "F32")
    files = read_files([str(tmp_path / "1.safetensors"), str(tmp_path / "2.safetensors")])
    assert (files.num_tensors, files.num_elements, files.elements_by_dtype, files.num_files) == (2, 11, {"BF16": 6, "F32": 5}, 2)


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert read_folder(str(tmp_path)) is None


def test_weights_that_agree_are_said_to(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path)
    write(folder / SINGLE, tensors)
    spec = from_path(str(folder))
    assert spec.notes == (f"safetensors headers agree: {len(tensors)} tensors, {spec.num_params:,} parameters",)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path)
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in parts.items():
        write(folder / file, {name: tensors[name] for name in part})
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    assert from_path(str(folder)).notes[0].startswith("safetensors headers agree")


def test_a_head_stored_beside_the_embedding_it_is_tied_to_agrees(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path, tie_word_embeddings=True)
    write(folder / SINGLE, {**tensors, "lm_head.weight": (100, 16)})
    assert from_path(str(folder)).notes[0].startswith("safetensors headers agree")


def test_rotary_buffers_of_old_checkpoints_agree(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path)
    write(folder / SINGLE, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)})
    assert from_path(str(folder)).notes[0].startswith("safetensors headers agree")


def test_a_checkpoint_of_the_bare_model_agrees(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path, tie_word_embeddings=True)
    write(folder / SINGLE, {name.removeprefix("model."): shape for name, shape in tensors.items()})
    assert from_path(str(folder)).notes[0].startswith("safetensors headers agree")


def test_a_vocabulary_that_differs_is_a_note(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path)
    write(folder / SINGLE, {name: (101, 16) if shape == (100, 16) else shape for name, shape in tensors.items()})
    (note,) = from_path(str(folder)).notes
    assert "safetensors headers differ from config.json" in note
    assert "2 of another shape (model.embed_tokens.weight: [101, 16], expected [100, 16])" in note


def test_missing_and_unexpected_tensors_are_a_note(tmp_path: Path) -> None:
    folder, tensors = model(tmp_path)
    tensors.pop("model.norm.weight")
    write(folder / SINGLE, {**tensors, "extra.weight": (1,)})
    (note,) = from_path(str(folder)).notes
    assert "1 missing (model.norm.weight)" in note
    assert "1 unexpected ('extra.weight')" in note


def test_an_unknown_family_takes_its_count_from_the_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "newnet"}))
    write(tmp_path / SINGLE, {"w": (1000, 7)})
    assert from_path(str(tmp_path)).num_params == 7000


# --- damaged files --------------------------------------------------------------------------------------------------------------------


def file_of(path: Path, header: object, data: bytes = b"") -> str:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ([], "its header is not a JSON object"),
        ({"a": 1}, "the entry of 'a' is not an object"),
        ({"a": {"dtype": "Q4", "shape": [], "data_offsets": [0, 0]}}, "the tensor 'a' has an unknown type"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "the tensor 'a' has no valid shape"),
        ({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}, "the tensor 'a' has no valid shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "the tensor 'a' has no valid offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "the tensor 'a' has no valid offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "the tensor 'a' has 4 bytes for shape [2] of F32"),
        ({"a": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]}}, "it is cut short"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: object, why: str) -> None:
    with pytest.raises(UserError, match="damaged weights file") as error:
        read_header(file_of(tmp_path / "w.safetensors", header))
    assert why in error.value.why


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}", (50).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged weights file"):
        read_header(str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        read_header(str(path))
    except UserError:
        pass


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "weights.bin"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="damaged weights file") as error:
        read_folder(str(tmp_path))
    assert "which is no weights file beside it" in error.value.why


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": []}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, index: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="damaged weights file"):
        read_folder(str(tmp_path))


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(UserError, match="cannot read the weights file"):
        read_folder(str(tmp_path))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write(tmp_path / f"{name}.safetensors", {"a": (1,)})
    with pytest.raises(UserError) as error:
        read_files([str(tmp_path / f"{name}.safetensors") for name in ("1", "2")])
    assert error.value.why == "the tensor 'a' is in two files"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(UserError, match="not a regular file"):
        read_folder(str(tmp_path))


def test_a_file_that_the_library_writes_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"x": numpy.zeros((3, 4), dtype="float16")}, tmp_path / SINGLE)
    assert read_header(str(tmp_path / SINGLE)) == {"x": ("F16", (3, 4))}
