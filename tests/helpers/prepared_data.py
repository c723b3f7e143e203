"""A folder of prepared data as `llmcheck data prepare` writes it, of given ids; needs numpy alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def write(folder: Path, rows: list[list[int]], *, vocab_size: int, seq_len: int, **changes: Any) -> Path:
    """All but the first token of each row is learnt. `changes` replace keys of the manifest."""
    folder.mkdir(parents=True)
    lengths = [len(row) for row in rows]
    arrays = {
        "tokens.bin": np.array([token for row in rows for token in row], dtype="<u4"),
        "supervised.bin": np.array([int(place > 0) for row in rows for place in range(len(row))], dtype="u1"),
        "offsets.bin": np.concatenate(([0], np.cumsum(lengths))).astype("<i8"),
        "source.bin": np.arange(1, len(rows) + 1, dtype="<i8"),
    }
    files = {}
    for name, array in arrays.items():
        (folder / name).write_bytes(array.tobytes())
        files[name] = {"sha256": hashlib.sha256(array.tobytes()).hexdigest(), "num_bytes": array.nbytes}
    manifest = {
        "schema": "llmcheck.data/1",
        "num_rows": len(rows),
        "num_source_rows": len(rows),
        "num_tokens": sum(lengths),
        "num_supervised_tokens": sum(lengths) - len(rows),
        "seq_len": seq_len,
        "token_dtype": "uint32",
        "tokenizer": {"path": "gone", "digest": "sha256:0", "vocab_size": vocab_size, "pad_id": 3, "eos_id": 2, "bos_id": 1},
        "sources": [{"path": "rows.jsonl", "sha256": "0", "num_bytes": 1, "num_rows": len(rows)}],
        "dropped": {},
        "truncated": {"count": 0, "num_tokens_lost": 0, "first": []},
        "notes": [],
        "files": files,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
