"""Made-up instruction rows: words of made-up syllables by Zipf's law, a tenth of the rows in Chinese characters. The same every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NUM_WORDS = 200_000
NUM_CHARACTERS = 3_000  # from U+4E00 on
CHINESE_SHARE = 0.1
CHUNK = 10_000
_ONSETS = "b c d f g h j k l m n p r s t v w st tr pl ch sh th".split()
_NUCLEI = "a e i o u ai ou ea".split()
_CODAS = ("", "n", "r", "s", "t", "l")


def rows(num_rows: int, seed: int) -> Iterator[str]:
    """Lines of JSON, `instruction`, `input` and `output`, 0.8 KB on average."""
    vocabulary = _words(np.random.default_rng(7))
    characters = np.array([chr(0x4E00 + index) for index in range(NUM_CHARACTERS)], dtype=object)
    shares, glyph_shares = _zipf(NUM_WORDS), _zipf(NUM_CHARACTERS)
    rng = np.random.default_rng(seed)
    for start in range(0, num_rows, CHUNK):
        number = min(CHUNK, num_rows - start)
        asked, answered = rng.integers(8, 26, number), rng.integers(40, 115, number)
        texts = iter(vocabulary[np.searchsorted(shares, rng.random(int((asked + answered).sum())))].tolist())
        glyphs = iter(characters[np.searchsorted(glyph_shares, rng.random(int((asked + answered).sum()) * 2))].tolist())
        chinese = rng.random(number) < CHINESE_SHARE
        for short, long, is_chinese in zip(asked.tolist(), answered.tolist(), chinese.tolist(), strict=True):
            if is_chinese:
                row = {"instruction": _take(glyphs, 2 * short, "，", ""), "input": "", "output": _take(glyphs, 2 * long, "。", "")}
            else:
                row = {"instruction": _take(texts, short, ",", " "), "input": "", "output": _take(texts, long, ".", " ")}
            yield json.dumps(row, ensure_ascii=False)


def write(path: Path, num_rows: int, seed: int = 1) -> None:
    """Write JSON lines to `path`."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in rows(num_rows, seed))


def train_tokenizer(folder: Path, *, vocab_size: int = 32_000, num_rows: int = 20_000) -> None:
    """A byte-level BPE tokenizer of `vocab_size` tokens, trained on rows of another seed, in `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows(num_rows, seed=2), trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens), encoding="utf-8")


def _words(rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    syllables = [onset + nucleus + coda for onset in _ONSETS for nucleus in _NUCLEI for coda in _CODAS]
    sizes = rng.integers(1, 4, NUM_WORDS).tolist()
    return np.array(["".join(syllables[i] for i in rng.integers(0, len(syllables), size)) for size in sizes], dtype=object)


def _zipf(number: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    weights = 1 / (np.arange(number) + 3.0)
    return np.minimum(np.cumsum(weights / weights.sum()), 1 - 1e-12)[:-1]


def _take(words: Iterator[str], number: int, mark: str, space: str) -> str:
    """A text of `number` words: a mark after every ninth, a number in place of every 31st."""
    parts = [next(words) for _ in range(number)]
    parts[8::9] = [word + mark for word in parts[8::9]]
    parts[30::31] = [str(len(word) * 7919 % 10007) for word in parts[30::31]]
    return space.join(parts)
