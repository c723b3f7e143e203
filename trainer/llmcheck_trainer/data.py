"""The prepared data: mapped files, and the batches of any step as a function of its position alone, so that resuming needs one number."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from llmcheck.errors import UserError
from llmcheck.units import round_up
from llmcheck_trainer.dataprep import agree
from llmcheck_trainer.loss import IGNORED
from llmcheck_trainer.packing import best_fit

SCHEMA = "llmcheck.data/1"
PAD_MULTIPLE = 64  # tokens; few distinct lengths, and multiples that matrix units like
_ROWS_AT_A_TIME = 1 << 16  # bounds the memory of a pass over all rows
_FILES = ("tokens.bin", "supervised.bin", "offsets.bin", "source.bin")


class MicroBatch(NamedTuple):
    """What one forward takes (ids, labels, sometimes positions or a mask), and which rows are in it."""

    inputs: dict[str, torch.Tensor]
    rows: tuple[int, ...]
    num_tokens: int  # without padding
    num_padded: int  # with it


class Prepared:
    """A folder that `llmcheck data prepare` wrote. Raises UserError when it is not one, or files are cut off or changed in size."""

    def __init__(self, folder: str, *, flag: str = "--data") -> None:
        self.folder, self.flag = folder, flag
        try:
            self._open()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as reason:
            raise self._wrong(f"manifest.json: {type(reason).__name__}: {reason}"[:300]) from reason

    def _open(self) -> None:
        folder = self.folder
        self.manifest = self._read_manifest()
        sizes = self.manifest["files"]
        for name in _FILES:
            path = os.path.join(folder, name)
            found = os.path.getsize(path) if os.path.isfile(path) else None
            if found is None or found != sizes[name]["num_bytes"]:
                raise self._wrong(
                    f"{name} has {found} bytes, its manifest says {sizes[name]['num_bytes']}" if found is not None else f"no {name}"
                )
        dtype = {"uint16": "<u2", "uint32": "<u4"}[self.manifest["token_dtype"]]
        self.tokens = _mapped(os.path.join(folder, "tokens.bin"), dtype)
        self.supervised = _mapped(os.path.join(folder, "supervised.bin"), "u1")
        self.offsets = np.fromfile(os.path.join(folder, "offsets.bin"), dtype="<i8")
        self.source = _mapped(os.path.join(folder, "source.bin"), "<i8")
        self.lengths = np.diff(self.offsets)
        rows = self.manifest["num_rows"]
        good = (
            len(self.offsets) == rows + 1
            and len(self.source) == rows
            and int(self.offsets[0]) == 0
            and int(self.offsets[-1]) == len(self.tokens) == len(self.supervised)
            and bool((self.lengths >= 0).all())
        )
        if not good:
            raise self._wrong("its files do not belong together")

    def __len__(self) -> int:
        return len(self.lengths)

    def record(self) -> dict[str, Any]:
        """What the receipt keeps of it: the manifest's digest stands for every token, since the manifest has the files' hashes."""
        counts = {name: self.manifest[name] for name in ("num_rows", "num_tokens", "num_supervised_tokens", "seq_len")}
        return {"folder": self.folder, "digest": self.digest, **counts, "tokenizer_digest": self.tokenizer["digest"]}

    @property
    def tokenizer(self) -> Mapping[str, Any]:
        """Digest, vocabulary size and special ids of the tokenizer that made the data."""
        found: Mapping[str, Any] = self.manifest["tokenizer"]
        return found

    def check_lengths(self, seq_len: int) -> UserError | None:
        """Raises UserError when a row is longer than the plan's sequences, or there is nothing to learn from.

        Returns the error of rows that were cut shorter than the plan's sequences, which may be wanted.
        """
        if not len(self) or not self.manifest["num_supervised_tokens"]:
            raise self._wrong("no row has a token in the loss")
        longest, where = int(self.lengths.max()), f"{self.flag} {self.folder}"
        beyond = agree.too_long(longest, seq_len, where)
        if beyond is not None:
            raise beyond
        return agree.cut_shorter(self.manifest, longest, seq_len, where)

    def place(self, row: int) -> str:
        """Where row `row` came from: `file 0 line 12` (files in the order in which they were given)."""
        source = int(self.source[row])
        return f"file {source >> 48} line {source & ((1 << 48) - 1)}"

    def num_without_supervision(self) -> int:
        """Rows that teach nothing: no token after the first is in the loss."""
        count = 0
        for first in range(0, len(self), _ROWS_AT_A_TIME):
            bounds = self.offsets[first : first + _ROWS_AT_A_TIME + 1]
            total = np.concatenate(([0], np.cumsum(self.supervised[bounds[0] : bounds[-1]], dtype=np.int64)))
            bounds = bounds - bounds[0]
            count += int((total[bounds[1:]] == total[np.minimum(bounds[:-1] + 1, bounds[1:])]).sum())
        return count

    def _read_manifest(self) -> dict[str, Any]:
        path = os.path.join(self.folder, "manifest.json")
        try:
            with open(path, "rb") as file:
                content = file.read()
            manifest: dict[str, Any] = json.loads(content)
            self.digest = "sha256:" + hashlib.sha256(content).hexdigest()
        except OSError as reason:
            raise UserError(
                f"{self.folder} holds no prepared data",
                code="data",
                where=f"{self.flag} {self.folder}",
                why=f"manifest.json: {reason.strerror}",
                hint="make it with `llmcheck data prepare`",
            ) from reason
        except ValueError as reason:
            raise self._wrong(f"manifest.json is not JSON: {reason}") from reason
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema") if isinstance(manifest, dict) else None
            raise self._wrong(f"its schema is {found!r}, this trainer reads {SCHEMA!r}")
        wanted = ("num_rows", "num_tokens", "num_supervised_tokens", "seq_len", "token_dtype", "tokenizer", "files")
        missing = [key for key in wanted if key not in manifest]
        missing += [f"files.{name}" for name in _FILES if name not in manifest.get("files", {})]
        missing += [f"tokenizer.{key}" for key in ("digest", "vocab_size", "pad_id", "eos_id") if key not in manifest.get("tokenizer", {})]
        if missing or manifest["token_dtype"] not in ("uint16", "uint32"):
            raise self._wrong("manifest.json lacks " + ", ".join(missing) if missing else "manifest.json: token_dtype")
        return manifest

    def _wrong(self, why: str) -> UserError:
        return UserError(
            f"{self.folder} is not usable as prepared data",
            code="data",
            where=f"{self.flag} {self.folder}",
            why=why,
            hint="prepare it again with `llmcheck data prepare`",
        )


def _mapped(path: str, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if os.path.getsize(path) else np.empty(0, dtype)


class Shape(NamedTuple):
    """How the sequences of a step are spread over ranks."""

    micro: int
    accum: int
    world: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Sequences of one optimizer step."""
        return self.micro * self.accum * self.world


class Stream:
    """All sequences of a run in their order. An epoch is a permutation by (seed, epoch); after `limit` sequences come empty ones."""

    def __init__(self, data: Prepared, seq_len: int, shape: Shape, *, packing: bool, seed: int, pad_id: int, full_length: bool) -> None:
        self.data, self.seq_len, self.shape, self.packing, self.seed = data, seq_len, shape, packing, seed
        self.pad_id, self.full_length = pad_id, full_length or packing
        self.packs = best_fit(data.lengths, seq_len, seed) if packing else None
        self.limit: int | None = None
        self._epoch = -1
        self._order: Any = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Sequences of one epoch."""
        return len(self.data) if self.packs is None else len(self.packs.starts) - 1

    def rows_at(self, position: int) -> np.ndarray:
        """The rows of the sequence at `position` of the whole run."""
        if self.limit is not None and position >= self.limit:
            return np.empty(0, dtype=np.int64)
        epoch, within = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self))
        sequence = int(self._order[within])
        if self.packs is None:
            return np.array([sequence])
        rows: np.ndarray = self.packs.rows[self.packs.starts[sequence] : self.packs.starts[sequence + 1]]
        return rows

    def step(self, position: int, *, full_length: bool = False) -> tuple[list[MicroBatch], int, int]:
        """This rank's micro-batches of the step that begins at `position`; the supervised tokens and the tokens of all ranks' together."""
        micro, accum, world, rank = self.shape
        sequences = [self.rows_at(position + i) for i in range(self.shape.global_batch)]
        supervised = sum(self._num_supervised(int(row)) for rows in sequences for row in rows)
        tokens = sum(int(self.data.lengths[rows].sum()) for rows in sequences)
        batches = []
        for number in range(accum):
            first = (number * world + rank) * micro
            batches.append(self.collate(sequences[first : first + micro], full_length=full_length))
        return batches, supervised, tokens

    def _num_supervised(self, row: int) -> int:
        start, end = int(self.data.offsets[row]), int(self.data.offsets[row + 1])
        return int(np.count_nonzero(self.data.supervised[start + 1 : end]))  # nothing predicts the first token

    def collate(self, sequences: list[np.ndarray], *, full_length: bool = False) -> MicroBatch:
        """One micro-batch: each sequence the tokens of its rows one after another, padded on the right."""
        data = self.data
        lengths = [int(data.lengths[rows].sum()) for rows in sequences]
        width = self.seq_len if full_length or self.full_length else min(self.seq_len, round_up(max(1, *lengths), PAD_MULTIPLE))
        ids: Any = np.full((len(sequences), width), self.pad_id, dtype=np.int64)
        labels: Any = np.full((len(sequences), width), IGNORED, dtype=np.int64)
        positions = np.tile(np.arange(width, dtype=np.int64), (len(sequences), 1)) if self.packing else None
        for line, rows in enumerate(sequences):
            at = 0
            for row in rows:
                start, end = int(data.offsets[row]), int(data.offsets[row + 1])
                until = at + end - start
                tokens: Any = data.tokens[start:end].astype(np.int64)  # unsigned ones would turn IGNORED into an id
                ids[line, at:until] = tokens
                labels[line, at + 1 : until] = np.where(data.supervised[start + 1 : end] != 0, tokens[1:], IGNORED)
                if positions is not None:
                    positions[line, at:until] = np.arange(end - start)
                at = until
            if positions is not None:
                positions[line, at:] = np.arange(width - at)  # the padding is a sequence of its own
        inputs = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if positions is not None:
            inputs["position_ids"] = torch.from_numpy(positions)
        return MicroBatch(inputs, tuple(int(row) for rows in sequences for row in rows), sum(lengths), width * len(sequences))
