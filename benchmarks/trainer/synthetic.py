"""Prepared data of random tokens, in the trainer's format: what a step costs does not depend on what the tokens say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from llmcheck_trainer.data import SCHEMA

SHORT_MEAN_LOG, SHORT_SIGMA_LOG, SHORTEST = 5.3, 0.8, 16  # tokens; about 280 a row on average, as instruction data has


def lengths_of(kind: str, seq_len: int, num_sequences: int, seed: int = 0) -> np.ndarray:
    """Row lengths that fill about `num_sequences` sequences."""
    if kind == "full":
        return np.full(num_sequences, seq_len)
    chance = np.random.default_rng(seed)
    drawn = np.clip(chance.lognormal(SHORT_MEAN_LOG, SHORT_SIGMA_LOG, num_sequences * seq_len // SHORTEST), SHORTEST, seq_len).astype(int)
    return drawn[: int(np.searchsorted(np.cumsum(drawn), num_sequences * seq_len)) + 1]


def write(folder: Path, lengths: np.ndarray, vocab_size: int, seq_len: int, seed: int = 0) -> Path:
    """The folder, as `llmcheck data prepare` would have written it; every token is in the loss."""
    folder.mkdir(parents=True, exist_ok=True)
    total = int(lengths.sum())
    dtype = "uint16" if vocab_size < 1 << 16 else "uint32"
    offsets = np.zeros(len(lengths) + 1, dtype="<i8")
    np.cumsum(lengths, out=offsets[1:])
    files = {
        "tokens.bin": np.random.default_rng(seed).integers(0, vocab_size, total).astype("<u2" if dtype == "uint16" else "<u4"),
        "supervised.bin": np.ones(total, dtype="u1"),
        "offsets.bin": offsets,
        "source.bin": np.arange(len(lengths), dtype="<i8"),
    }
    sizes = {}
    for name, values in files.items():
        values.tofile(folder / name)
        sizes[name] = {"num_bytes": values.nbytes, "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    manifest = {
        "schema": SCHEMA,
        "num_rows": len(lengths),
        "num_tokens": total,
        "num_supervised_tokens": total,
        "seq_len": seq_len,
        "token_dtype": dtype,
        "tokenizer": {"digest": "random", "vocab_size": vocab_size, "pad_id": 0, "eos_id": 1},
        "files": sizes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
