"""A model's folder -> ``model.*`` and ``gen.*`` facts: configuration, generation settings, what the weight files hold by their headers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcheck import jsonfile
from llmcheck.catalog import config, safetensors
from llmcheck.errors import UserError
from llmcheck.rules.facts import Facts, Location

MAX_TEXT_CHARS = 200
MAX_LISTED = 20
CONFIG, GENERATION = "config.json", "generation_config.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SUFFIXES = {".safetensors": "safetensors", ".bin": "bin", ".pt": "pt", ".pth": "pt", ".gguf": "gguf"}
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin")  # of the Trainer

# Names of the two matrices with a row per token, over the families of transformers.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight", "embedding.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
_POSITIONS = config.MORE_FIELDS["max_position_embeddings"]

# Facts of the configuration that config.json gives under one of several names: fact -> names.
_NUMBERS = {"vocab_size": config.BASIC_FIELDS["vocab_size"], "max_position_embeddings": _POSITIONS}
_TEXTS = {"model_type": ("model_type",), "dtype": ("dtype", "torch_dtype"), "tokenizer_class": ("tokenizer_class",)}
_OF_CONFIG = (
    *_NUMBERS, *_TEXTS, "architectures", "tie_word_embeddings", "transformers_version", "auto_map", "quantization", "bos_id", "eos_id",
    "eos_ids", "pad_id", "pad_id_is_negative",
)  # fmt: skip


@dataclass
class _Folder:
    path: str
    names: frozenset[str]
    facts: Facts = field(default_factory=Facts)

    def at(self, name: str) -> Location | None:
        return Location(uri=os.path.join(self.path, name)) if name in self.names else None

    def object(self, name: str, what: str) -> dict[str, Any] | UserError | None:
        """The JSON object in a file of the folder, the error that it gave, or None where it is not there."""
        if name not in self.names:
            return None
        path = os.path.join(self.path, name)
        try:
            config.check_regular(path, what)
            return jsonfile.load_object(path, what=what, max_bytes=config.MAX_CONFIG_BYTES)
        except UserError as problem:
            return problem


def facts(path: str) -> Facts:
    """The ``model.*`` and ``gen.*`` facts of the folder `path`. A file that cannot be read makes its facts unknown.

    Raises UserError when `path` is no folder, or holds neither a configuration nor weights.
    """
    names = jsonfile.list_folder(path, what="model's folder")
    formats = _formats(names)
    if CONFIG not in names and not formats:
        raise UserError(
            f"no model in {path}", code="no-model", where=path, why=f"neither {CONFIG} nor weights are there",
            hint="give the folder that model.save_pretrained wrote",
        )  # fmt: skip
    folder = _Folder(path=path, names=names)
    folder.facts.examined("model")
    _put_config(folder)
    _put_generation(folder)
    _put_weights(folder, formats)
    return folder.facts


def _formats(names: frozenset[str]) -> list[str]:
    """The formats of the weights in a folder, by the names of the files."""
    found = {
        kind
        for name in names
        if name not in _NOT_WEIGHTS and not name.startswith(("adapter_", "rng_state"))
        for suffix, kind in _SUFFIXES.items()
        if name.endswith(suffix)
    }
    return sorted(found)


def _put_config(folder: _Folder) -> None:
    found, place = folder.facts, folder.at(CONFIG)
    document = folder.object(CONFIG, "model configuration")
    if isinstance(document, UserError):
        for name in _OF_CONFIG:
            found.could_not(f"model.{name}", document.what)
        return
    raw = document if document is not None else {}
    text = _text_part(raw)
    for name, keys in _NUMBERS.items():
        found.put(f"model.{name}", next((value for key in keys if (value := _whole(text.get(key))) is not None), None), place)
    for name, keys in _TEXTS.items():
        value = next((raw[key] for key in keys if isinstance(raw.get(key), str)), None)
        found.put(f"model.{name}", _short(value) if value is not None else None, place)
    architectures = raw.get("architectures")
    listed = [_short(name) for name in architectures[:MAX_LISTED] if isinstance(name, str)] if isinstance(architectures, list) else None
    found.put("model.architectures", listed, place)
    tied = text.get("tie_word_embeddings", raw.get("tie_word_embeddings"))
    found.put("model.tie_word_embeddings", tied if isinstance(tied, bool) else None, place)
    version = raw.get("transformers_version")
    found.put("model.transformers_version", version[:60] if isinstance(version, str) else None, place)
    found.put("model.auto_map", isinstance(raw.get("auto_map"), Mapping) and bool(raw["auto_map"]), place)
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method", "unnamed") if isinstance(quantization, Mapping) else None
    found.put("model.quantization", _short(method) if isinstance(method, str) else None, place)
    _put_ids(folder, "model", text, raw, place)
    pad = text.get("pad_token_id", raw.get("pad_token_id"))
    found.put("model.pad_id_is_negative", isinstance(pad, int) and not isinstance(pad, bool) and pad < 0, place)


def _put_generation(folder: _Folder) -> None:
    found, place = folder.facts, folder.at(GENERATION)
    document = folder.object(GENERATION, "generation configuration")
    found.put("gen.present", GENERATION in folder.names, place)
    if isinstance(document, UserError):
        for name in ("bos_id", "eos_id", "eos_ids", "pad_id"):
            found.could_not(f"gen.{name}", document.what)
        return
    _put_ids(folder, "gen", document if document is not None else {}, {}, place)


def _put_ids(folder: _Folder, prefix: str, text: Mapping[str, Any], outer: Mapping[str, Any], place: Location | None) -> None:
    """The special ids of a configuration; EOS may be several."""
    values = {role: text.get(f"{role}_token_id", outer.get(f"{role}_token_id")) for role in ("bos", "eos", "pad")}
    ends = values["eos"] if isinstance(values["eos"], list) else [values["eos"]]
    ids = [index for end in ends[:MAX_LISTED] if (index := _whole(end)) is not None]
    folder.facts.put(f"{prefix}.eos_ids", ids or None, place)
    folder.facts.put(f"{prefix}.eos_id", ids[0] if ids else None, place)
    for role in ("bos", "pad"):
        folder.facts.put(f"{prefix}.{role}_id", _whole(values[role]), place)


def _put_weights(folder: _Folder, formats: list[str]) -> None:
    found = folder.facts
    found.put("model.weight_formats", formats)
    found.put("model.has_safetensors", "safetensors" in formats)
    found.put("model.has_pickle", any(kind in formats for kind in ("bin", "pt")))
    named, index = _named_shards(folder)
    if found.why_unknown("model.missing_shards") is None:
        found.put("model.missing_shards", [_short(name) for name in named if name not in folder.names][:MAX_LISTED], folder.at(index))
    files = sorted(name for name in folder.names if name.endswith(".safetensors") and not name.startswith("adapter_"))
    wanted = [name for name in named if name.endswith(".safetensors")] or files
    shapes: dict[str, tuple[int, ...]] = {}
    damaged: list[str] = []
    for name in wanted:
        if name not in folder.names:
            continue
        try:
            shapes |= {tensor: shape for tensor, (_, shape) in safetensors.read_header(os.path.join(folder.path, name)).items()}
        except UserError as problem:
            damaged.append(f"{_short(name)} ({problem.why or problem.what})")
    found.put("model.damaged_files", damaged[:MAX_LISTED], folder.at(wanted[0]) if wanted else None)
    place = folder.at(wanted[0]) if wanted else None
    for fact, endings in (("embedding_rows", EMBEDDINGS), ("head_rows", HEADS)):
        rows = _rows(shapes, endings)
        if rows is None and (damaged or any(name not in folder.names for name in wanted)):
            found.could_not(f"model.{fact}", "a weights file is damaged or missing")
        elif rows is not None and _is_quantised(folder):
            found.could_not(f"model.{fact}", "the weights are quantised: their shapes are packed")
        else:
            found.put(f"model.{fact}", rows, place)


def _is_quantised(folder: _Folder) -> bool:
    known = folder.facts.get("model.quantization")
    return known is not None and isinstance(known.value, str)


def _named_shards(folder: _Folder) -> tuple[list[str], str]:
    """The files that an index names, and the index; nothing outside the folder."""
    for index in (safetensors.INDEX, BIN_INDEX):
        document = folder.object(index, "index of the weights")
        if isinstance(document, UserError):
            folder.facts.could_not("model.missing_shards", document.what)
            continue
        weight_map = document.get("weight_map") if document is not None else None
        if isinstance(weight_map, dict):
            names = sorted({name for name in weight_map.values() if isinstance(name, str)})
            return [name for name in names if os.path.basename(name) == name][: safetensors.MAX_SHARDS], index
    return [], safetensors.INDEX


def _rows(shapes: Mapping[str, tuple[int, ...]], endings: tuple[str, ...]) -> int | None:
    """The rows of the matrix whose name ends in one of `endings`, the first ending that is found."""
    for ending in endings:
        for name, shape in shapes.items():
            if (name == ending or name.endswith("." + ending)) and len(shape) == 2:
                return shape[0]
    return None


def _text_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration: the whole, unless it nests one."""
    return next((raw[key] for key in config.TEXT_PARTS if isinstance(raw.get(key), Mapping)), raw)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _short(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_TEXT_CHARS else clean[: MAX_TEXT_CHARS - 1] + "…"
