"""Texts to token ids, in batches: through `tokenizers` or `sentencepiece`, and many times faster through `gigatoken` where it agrees.

The fast encoder is never believed: it is compared with the slow one on awkward texts at the start and on some texts of every batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmcheck.errors import CouldNotCheckError
from llmcheck.units import MIB
from llmcheck_trainer.dataprep.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUB_BATCH = 1024  # texts handed to the slow packages at once: their results take 150 bytes a token until they are copied
# The fast encoder remembers every word it met. After so much growth of this process it is made anew, which takes it 0.04 s for 32,000
# tokens and 0.3 s for 128,000; hence not more often than every so many batches.
CACHE_BYTES = 128 * MIB
MIN_BATCHES = 8
CHECKED_PER_BATCH = 12
MAX_CHECKED_CHARS = 20_000  # of a text that is compared; the slow package takes 10 ms for it

# What tokenizers differ in: runs of spaces, line ends, digits, marks, joined letters, emoji of several characters, other scripts, controls.
PROBES = (
    "", " ", "  ", "\n", "\n\n \n", "a", " a", "a ", "  a  b   c    ", "\t\ttabs\tand  spaces\r\n\r\n", "Human: \n", "x\u00a0y\u3000z",
    "don't I'll we've THEY'RE it's 'quoted' ''s", "1234567890 12,345.678e-9 \u0663\u0664 ½ ①", "e\u0301 é ﬁ Å ß ẞ ı İ",
    "你好，世界！我们今天讨论机器学习。", "こんにちは 안녕하세요 สวัสดี नमस्ते \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\x85\u200b\u200d\ufeff\ufffd\U0010ffff", "def f(x):\n    return x**2  # ok\n\n\n", '{"a": [1, 2, {"b": null}]}',
    "https://example.org/a?b=c&d=%20#e", "a" * 300, "ab" * 200, " " * 100, "\n" * 50, "!?!?...---===", "<|x|> </s> <s> [INST] <unk>",
    "snake_case CamelCase SHOUT", "x" + " \n" * 5 + "y", "naïve café Zürich", "∑∫√≤≥≠±×÷", "«»„“”‘’…—–", "\u1100\u1161\u11a8", "𝔘𝔫𝔦 𐍈",
)  # fmt: skip

Ids = tuple["NDArray[np.uint32]", "NDArray[np.int64]"]  # all ids in order, and how many each text has


class DisagreementError(Exception):
    """The fast encoder gave other tokens than the slow one for a text."""


class Encoder(Protocol):
    """Texts to ids."""

    name: str

    def encode(self, texts: Sequence[str]) -> Ids:
        """The ids of `texts` one after the other, and the number of ids of each. Special tokens in a text are found; none is added."""


def reference(tokenizer: Tokenizer) -> Encoder:
    """The encoder of the tokenizer's own package."""
    own: Any = getattr(tokenizer.backend, "own", None)
    return _Tokenizers(own) if tokenizer.serialized else _SentencePiece(own)


def choose(tokenizer: Tokenizer, fast: str) -> tuple[Encoder, str]:
    """The encoder to use for `fast` (auto, off, require), and a note where the fast one was not used although it could be expected."""
    slow = reference(tokenizer)
    if fast == "off":
        return slow, ""
    why = ""
    if not tokenizer.serialized:
        why = "it is not used for tokenizer.model"
    else:
        try:
            quick = _Gigatoken(tokenizer.serialized)
            compare(quick, slow, [*PROBES, *_around(tokenizer.backend.specials)])
            return _Checked(quick, slow), ""
        except ImportError:
            why = "gigatoken is not installed (the extra `fast-data`)"
        except DisagreementError as reason:
            why = str(reason)
        except Exception as reason:  # what a young package may raise for a tokenizer that it does not support
            why = f"gigatoken does not take this tokenizer ({str(reason)[:120]})"
    if fast == "require":
        raise CouldNotCheckError(
            "the fast encoder cannot be used", code="missing-package", where="--fast require", why=why, hint="--fast auto"
        )
    return slow, f"encoded with {slow.name}: {why}"


def _around(specials: Sequence[str]) -> list[str]:
    """Texts with special tokens in the middle of words, beside spaces and beside each other."""
    some = specials[:64]
    return [f"a{token}b {token} c\n{token}\n{token}{token}" for token in some]


def compare(quick: Encoder, slow: Encoder, texts: Sequence[str]) -> None:
    """Raises DisagreementError when the two differ on one of `texts`."""
    ids, lengths = quick.encode(texts)
    expected, expected_lengths = slow.encode(texts)
    if not np.array_equal(lengths, expected_lengths) or not np.array_equal(ids, expected):
        for text in texts:
            if not np.array_equal(quick.encode([text])[0], slow.encode([text])[0]):
                raise DisagreementError(f"{quick.name} and {slow.name} differ on {text[:40]!r}")
        raise DisagreementError(f"{quick.name} and {slow.name} differ on a batch")


class _Checked:
    """The fast encoder, some of whose results are compared with the slow one's."""

    def __init__(self, quick: Encoder, slow: Encoder) -> None:
        self.name = quick.name
        self._quick, self._slow = quick, slow

    def encode(self, texts: Sequence[str]) -> Ids:
        ids, lengths = self._quick.encode(texts)
        step = max(1, len(texts) // CHECKED_PER_BATCH)
        chosen = [index for index in range(step // 2, len(texts), step) if len(texts[index]) <= MAX_CHECKED_CHARS]
        if chosen:
            ends = np.cumsum(lengths)
            expected, expected_lengths = self._slow.encode([texts[index] for index in chosen])
            at = 0
            for index, length in zip(chosen, expected_lengths.tolist(), strict=True):
                got = ids[ends[index] - lengths[index] : ends[index]]
                if not np.array_equal(got, expected[at : at + length]):
                    raise DisagreementError(f"{self._quick.name} and {self._slow.name} differ on {texts[index][:40]!r}")
                at += length
        return ids, lengths


class _Tokenizers:
    name = "tokenizers"

    def __init__(self, own: Any) -> None:
        self._own = own

    def encode(self, texts: Sequence[str]) -> Ids:
        return _joined(
            [
                np.array(encoding.ids, dtype=np.uint32)
                for start in range(0, len(texts), SUB_BATCH)
                for encoding in self._own.encode_batch_fast(list(texts[start : start + SUB_BATCH]), add_special_tokens=False)
            ]
        )


class _SentencePiece:
    name = "sentencepiece"

    def __init__(self, own: Any) -> None:
        self._own = own
        self._num_threads = len(os.sched_getaffinity(0))

    def encode(self, texts: Sequence[str]) -> Ids:
        return _joined(
            [
                np.array(ids, dtype=np.uint32)
                for start in range(0, len(texts), SUB_BATCH)
                for ids in self._own.encode(list(texts[start : start + SUB_BATCH]), out_type=int, num_threads=self._num_threads)
            ]
        )


def _joined(parts: list[NDArray[np.uint32]]) -> Ids:
    lengths = np.fromiter((len(part) for part in parts), dtype=np.int64, count=len(parts))
    return (np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)), lengths


class _Gigatoken:
    name = "gigatoken"

    def __init__(self, serialized: str) -> None:
        import gigatoken

        make: Callable[[str], Any] = gigatoken.Tokenizer.from_json
        self._make = partial(make, serialized)
        self._own: Any = self._make()
        self._first_bytes: int | None = None  # resident memory after the first batch
        self._num_batches = 0

    def encode(self, texts: Sequence[str]) -> Ids:
        if not texts:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        array: Any = self._own.encode_batch(list(texts)).layout
        offsets = np.asarray(array.offsets.data, dtype=np.int64)
        ids = np.asarray(array.content.data, dtype=np.uint32)[offsets[0] : offsets[-1]]
        self._renew_when_grown()
        return ids, np.diff(offsets)

    def _renew_when_grown(self) -> None:
        self._num_batches += 1
        now = _resident_bytes()
        if self._first_bytes is None:
            self._first_bytes = now
        elif now - self._first_bytes > CACHE_BYTES and self._num_batches >= MIN_BATCHES:
            self._own = None  # first the old one goes
            _give_back()
            self._own = self._make()
            self._num_batches = 0


def _give_back() -> None:
    """Let the C library return freed memory to the system: it keeps that of other threads else. Where it cannot, nothing is lost."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    except (OSError, AttributeError):
        pass


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
