"""Small tokenizer folders made for the tests: a SentencePiece model by our own writer, and the JSON files around it. Nothing is copied."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Field numbers of sentencepiece_model.proto (https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE = 2
WORDS = ("hello", "world", "the", "answer", "model", "tuning", "and")
ABSURD_LENGTH = 1000000000000000019884624838656  # int(1e30): what transformers writes where it knows no limit


def varint(value: int) -> bytes:
    """`value` as protobuf writes it; negative ones as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def tagged(field: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def piece(text: str, score: float, kind: int) -> bytes:
    """One SentencePiece message."""
    return tagged(1, tagged(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


def llama_pieces() -> list[tuple[str, float, int]]:
    """Pieces laid out as LLaMA's: <unk>, <s>, </s>, 256 bytes, merges, single characters."""
    pieces: list[tuple[str, float, int]] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    texts = list(dict.fromkeys("▁" + word[:end] for end in range(1, 8) for word in WORDS if end <= len(word)))
    texts += sorted({char for word in WORDS for char in word} | set("▁</>s"))
    return pieces + [(text, -float(rank), NORMAL) for rank, text in enumerate(texts)]


def sentencepiece_model(
    pieces: Sequence[tuple[str, float, int]] | None = None, *, byte_fallback: bool = True, ids: tuple[int, int, int, int] = (0, 1, 2, -1)
) -> bytes:
    """A tokenizer.model: `ids` are those of unk, bos, eos and pad in its trainer_spec."""
    pieces = llama_pieces() if pieces is None else pieces
    trainer = number(3, BPE) + number(4, len(pieces)) + number(35, int(byte_fallback))
    trainer += b"".join(number(field, value) for field, value in zip((40, 41, 42, 43), ids, strict=True))
    normalizer = tagged(1, b"identity") + number(3, 1) + number(4, 0) + number(5, 1)
    return b"".join(piece(*entry) for entry in pieces) + tagged(2, trainer) + tagged(3, normalizer)


def added(content: str) -> dict[str, Any]:
    """An AddedToken as tokenizer_config.json writes it."""
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


EMPTY = {"bos_token": "", "eos_token": "", "unk_token": ""}
GOOD = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# The forms that circulated in 2023; tokenizer_config.json and special_tokens_map.json of each.
LLAMA_VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decapoda": ({**EMPTY, "model_max_length": ABSURD_LENGTH, "tokenizer_class": "LLaMATokenizer"}, {}),
    "decapoda_classfix": ({**EMPTY, "model_max_length": ABSURD_LENGTH, "tokenizer_class": "LlamaTokenizer"}, {}),
    "decapoda_classfix_stm": ({**EMPTY, "model_max_length": ABSURD_LENGTH, "tokenizer_class": "LlamaTokenizer"}, EMPTY),
    "oldclass_goodtokens": ({**GOOD, "model_max_length": ABSURD_LENGTH, "tokenizer_class": "LLaMATokenizer"}, {}),
    "fixed": (
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "pad_token": None,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            **{key: added(value) for key, value in GOOD.items()},
        },
        GOOD,
    ),
    "notokens": ({"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048}, {}),
    "pad_is_unk": (
        {
            "add_bos_token": True,
            "add_eos_token": False,
            **GOOD,
            "pad_token": "<unk>",
            "model_max_length": 2048,
            "tokenizer_class": "LlamaTokenizer",
        },
        {**GOOD, "pad_token": "<unk>"},
    ),
}
LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": -1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 400,
}


def write_json(path: Path, document: Any) -> None:
    """`document` at `path`."""
    path.write_text(json.dumps(document), encoding="utf-8")


def llama_folder(folder: Path, variant: str = "fixed", *, config: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A LLaMA folder of one of the variants, with tokenizer.model and no tokenizer.json; `changes` go into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_config, special_map = LLAMA_VARIANTS[variant]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(folder / "tokenizer_config.json", {**tokenizer_config, **changes})
    write_json(folder / "special_tokens_map.json", special_map)
    write_json(folder / "config.json", {**LLAMA_CONFIG, **(config or {})})
    return folder


def tokenizer_json(vocab: Sequence[str], added_tokens: Mapping[str, int], **changes: Any) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json without merges."""
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for text, index in added_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": {text: index for index, text in enumerate(vocab)}, "merges": []},
        **changes,
    }  # fmt: skip


def fast_folder(
    folder: Path, *, vocab: Sequence[str] = tuple("abcdefgh"), added_tokens: Mapping[str, int] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A folder with tokenizer.json and tokenizer_config.json; `changes` go into tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"<|endoftext|>": len(vocab)} if added_tokens is None else added_tokens
    write_json(folder / "tokenizer.json", tokenizer_json(vocab, tokens, **changes))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **(tokenizer_config or {})})
    return folder
