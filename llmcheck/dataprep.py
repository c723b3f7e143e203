"""Preparing the training data: host memory, time and disk, the way of BELLE's first script and ours.

The first is what FAQ entry 6 describes (350 GB and 25 minutes for two million samples): every rank tokenizes the whole file, one
sentence a call, and keeps three padded int64 tensors per sample. Ours is one process per node, before any rank starts: batches
through a native tokenizer into flat files that the ranks map into memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llmcheck.types import ModelSpec
from llmcheck.units import MIB

TokenizerKind = Literal["byte-bpe", "sentencepiece"]
Language = Literal["zh", "en", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """What one way takes on one node. `host_terms` sums to `host_bytes`; a range is (lowest, highest)."""

    name: str
    host_bytes: int
    host_range_bytes: tuple[int, int]
    host_terms: Mapping[str, int]
    time_s: float
    time_range_s: tuple[float, float]
    disk_bytes: int
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Preparation of `num_samples` samples of `mean_tokens` tokens each, for runs at `seq_len` tokens."""

    num_samples: int
    mean_tokens: float
    seq_len: int
    tokenizer: TokenizerKind
    language: Language
    naive: Way
    ours: Way
    assumptions: tuple[str, ...]


class _Rate(NamedTuple):
    """Tokens per second: the slowest and the fastest of the runs, and the one to expect."""

    low: float
    typical: float
    high: float


class _Times(NamedTuple):
    """Seconds."""

    fast: float
    typical: float
    slow: float


# Measured on two cores of a shared machine (CPU, 2026; notes on data preparation, section 3): DeepSeek's and Qwen's tokenizers stand
# for byte-level BPE of 128k to 151k pieces (BLOOM's kind), Mistral's first for SentencePiece of 32k (LLaMA's kind). The machine was
# noisy, so for one sentence a call the fastest run is what an undisturbed core does.
_SENTENCE_RATES: dict[tuple[TokenizerKind, Language], _Rate] = {
    ("byte-bpe", "en"): _Rate(0.08e6, 0.31e6, 0.31e6),
    ("byte-bpe", "zh"): _Rate(0.05e6, 0.15e6, 0.15e6),
    ("sentencepiece", "en"): _Rate(0.14e6, 0.27e6, 0.27e6),
    ("sentencepiece", "zh"): _Rate(0.12e6, 0.25e6, 0.25e6),
}
# The whole path (read, template, encode, mask, write, pack) with the native tokenizer: 227k English rows at 6.1 and 6.3 Mtok/s
# (byte-level) and 1.8 (SentencePiece); its encoder alone at 3.0 to 5.5 and 1.0 to 3.2. Chinese: the encoder at 0.55 to 1.0 and 0.7 to
# 0.8, the whole path on a small set faster (13,484 and 11,526 rows/s); the geometric mean of the two ends is expected.
_BATCH_RATES: dict[tuple[TokenizerKind, Language], _Rate] = {
    ("byte-bpe", "en"): _Rate(3.0e6, 6.2e6, 6.3e6),
    ("byte-bpe", "zh"): _Rate(0.55e6, 0.98e6, 1.75e6),
    ("sentencepiece", "en"): _Rate(0.98e6, 1.78e6, 3.2e6),
    ("sentencepiece", "zh"): _Rate(0.7e6, 1.35e6, 2.6e6),
}
# Tokens of one instruction sample in the same measurement: English 213 (6.29 Mtok/s at 29,502 rows/s) and 265 (1.78 at 6,711);
# Chinese 130 byte-level, and 1.74 times that with LLaMA's kind of vocabulary, which spells rare characters in bytes (the FAQ's text:
# 0.53 and 0.92 tokens a character).
_MEAN_TOKENS: dict[tuple[TokenizerKind, Language], float] = {
    ("byte-bpe", "en"): 213.0,
    ("byte-bpe", "zh"): 130.0,
    ("sentencepiece", "en"): 265.0,
    ("sentencepiece", "zh"): 226.0,
}
_TEXT_BYTES = 800  # of one sample as UTF-8: 0.8 KB in that measurement; 245 Chinese characters are 0.74 KB

# --- the first script's way (LianjiaTech/BELLE, train/dschat_train_v1/utils/data/data_utils.py) ---
_TENSORS = 3  # input_ids, attention_mask, labels
_INT64_BYTES = 8
# Beside the numbers: three tensor objects with their storages, a dict, the C library's blocks. Resident bytes per sample less the
# numbers, in a loop of 10,000 to 40,000 samples at 512, 1024 and 2048 tokens (Python 3.11, torch 2.13).
_OBJECT_BYTES = 1_714
_OBJECT_BYTES_MAX = 4_931
# Lists to tensors and padding, CPU seconds per sample in the same loop: 0.22 to 0.32 ms.
_BUILD_S = (0.22e-3, 0.25e-3, 0.32e-3)
_DROPPED_FRACTION = 0.05  # assumed: at most this share of rows has no supervised token and is dropped
_CORE_SPEED_UP = 2.0  # assumed: the fastest server core against one core of the measurement

# --- ours ---
# What `llmcheck data prepare` writes (docs/guides/preparing-data.md): ids as uint32, or as uint16 for the 32,000 of LLaMA's kind, a byte of
# the loss mask; for each row where it begins and its source line.
_TOKEN_FILE_BYTES: dict[TokenizerKind, int] = {"byte-bpe": 4 + 1, "sentencepiece": 2 + 1}
_ROW_FILE_BYTES = 8 + 8
_PROCESS_BYTES = 309 * MIB  # largest of three measured runs over 227k rows
_PROCESS_BYTES_MAX = 963 * MIB  # the native tokenizer's caches, filled with random words
_ROW_BYTES = 64  # assumed: a row's record and its place in the packer's lists, all rows at once


def estimate(
    num_samples: int,
    *,
    seq_len: int,
    ranks_per_node: int,
    mean_tokens: float | None = None,
    tokenizer: TokenizerKind = "byte-bpe",
    language: Language = "mixed",
) -> Preparation:
    """Both ways for `num_samples` samples. `mean_tokens` per sample defaults to what the kind of tokenizer and language gave."""
    languages: tuple[Language, ...] = ("zh", "en") if language == "mixed" else (language,)
    tokens = {each: min(float(seq_len), mean_tokens or _MEAN_TOKENS[tokenizer, each]) for each in languages}
    mean = _mean(list(tokens.values()))
    source = "given" if mean_tokens else f"measured on {_NAMES[language]} instruction data"
    naive_times = _together([_naive_times(num_samples, tokens[each], _SENTENCE_RATES[tokenizer, each]) for each in languages])
    our_times = _together([_our_times(num_samples, tokens[each], _BATCH_RATES[tokenizer, each]) for each in languages])
    return Preparation(
        num_samples=num_samples,
        mean_tokens=mean,
        seq_len=seq_len,
        tokenizer=tokenizer,
        language=language,
        naive=_naive(num_samples, seq_len, ranks_per_node, naive_times),
        ours=_ours(num_samples, mean, tokenizer, our_times),
        assumptions=(
            f"{mean:.0f} tokens per sample ({source}), at most {seq_len}",
            f"a {_KINDS[tokenizer]} tokenizer, {_NAMES[language]} text; rates of one core (naive) and of two (ours)",
            "naive: a core for every rank; ours: once per node, or once for all on shared storage",
        ),
    )


def tokenizer_kind(model: ModelSpec) -> TokenizerKind:
    """SentencePiece for the LLaMA 1/2, Mistral, Gemma and Baichuan kinds, byte-level BPE else; it decides speed and tokens per sample."""
    vocabulary = model.config.get("vocab_size", 0)
    if model.family in _ALWAYS_SENTENCEPIECE:
        return "sentencepiece"
    return "sentencepiece" if model.family in _SENTENCEPIECE_WHEN_SMALL and vocabulary < _SMALL_VOCABULARY else "byte-bpe"


_ALWAYS_SENTENCEPIECE = ("gemma", "gemma2", "gemma3_text", "baichuan", "internlm", "internlm2")
_SENTENCEPIECE_WHEN_SMALL = ("llama", "mistral", "mixtral", "phi3")
_SMALL_VOCABULARY = 70_000  # LLaMA 1/2 and Mistral 32,000; Yi 64,000; LLaMA 3 has 128,256 (byte-level)
_NAMES: dict[Language, str] = {"zh": "Chinese", "en": "English", "mixed": "Chinese and English"}
_KINDS: dict[TokenizerKind, str] = {"byte-bpe": "byte-level BPE", "sentencepiece": "SentencePiece"}


def _naive(num_samples: int, seq_len: int, ranks: int, times: _Times) -> Way:
    numbers = num_samples * ranks * _TENSORS * _INT64_BYTES * seq_len
    objects = num_samples * ranks * _OBJECT_BYTES
    return Way(
        name="every rank tokenizes all samples, a sentence a call, into padded int64 tensors",
        host_bytes=numbers + objects,
        host_range_bytes=(int(numbers * (1 - _DROPPED_FRACTION)), numbers + num_samples * ranks * _OBJECT_BYTES_MAX),
        host_terms={"int64 tensors padded to the sequence length": numbers, "Python and tensor objects": objects},
        time_s=times.typical,
        time_range_s=(times.fast, times.slow),
        disk_bytes=num_samples * _TEXT_BYTES,  # the Arrow copy of the file that load_dataset writes
        evidence="counted from the script's code; rates and object sizes measured",
    )


def _ours(num_samples: int, mean_tokens: float, tokenizer: TokenizerKind, times: _Times) -> Way:
    rows = num_samples * _ROW_BYTES
    files = num_samples * mean_tokens * _TOKEN_FILE_BYTES[tokenizer] + num_samples * _ROW_FILE_BYTES
    return Way(
        name="one process per node writes flat token files that the ranks map into memory",
        host_bytes=_PROCESS_BYTES + rows,
        host_range_bytes=(_PROCESS_BYTES, _PROCESS_BYTES_MAX + rows),
        host_terms={"the preparing process": _PROCESS_BYTES, "row index": rows},
        time_s=times.typical,
        time_range_s=(times.fast, times.slow),
        disk_bytes=int(files),
        evidence="rates and process size measured with a prototype on 227k English and 5k Chinese rows",
    )


def _naive_times(num_samples: int, tokens: float, rate: _Rate) -> _Times:
    fast, typical, slow = (
        num_samples * (tokens / r + build) for r, build in zip((rate.high, rate.typical, rate.low), _BUILD_S, strict=True)
    )
    return _Times(fast / _CORE_SPEED_UP, typical, slow)


def _our_times(num_samples: int, tokens: float, rate: _Rate) -> _Times:
    return _Times(*(num_samples * tokens / r for r in (rate.high, rate.typical, rate.low)))


def _together(times: list[_Times]) -> _Times:
    """Of several languages: the range of all, and the geometric mean of what to expect."""
    return _Times(min(t.fast for t in times), _mean([t.typical for t in times]), max(t.slow for t in times))


def _mean(values: list[float]) -> float:
    """Geometric, of one or two: the values are scales."""
    return values[0] if len(values) == 1 else math.sqrt(values[0] * values[1])


_CHINESE_CHARS = 245  # of that measurement's Chinese sample


def estimated_tokens(num_ascii: int, num_other: int, tokenizer: TokenizerKind) -> float:
    """Tokens of a text with so many ASCII and other characters, at the measured samples' characters per token. English and Chinese only."""
    return num_ascii * _MEAN_TOKENS[tokenizer, "en"] / _TEXT_BYTES + num_other * _MEAN_TOKENS[tokenizer, "zh"] / _CHINESE_CHARS
