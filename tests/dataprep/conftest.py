"""A tiny byte-level BPE tokenizer, trained here: no third party's files are kept in the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "Human: \nWhat is the sum of 1 and 2?\n\nAssistant: \nThe sum is 3.",
    "### Instruction:\nName a colour.\n\n### Response: Blue, green and red are colours.",
    "你好，有什么可以帮助你的吗？ 今天天气怎么样？ 不好意思，我无法回答你的问题。",
    "USER: Tell me more, please. ASSISTANT: There is nothing more to tell; that's all.",
] * 5
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def train(folder: Path, config: dict[str, Any]) -> Path:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIALS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With <s>, </s> and <pad>, and ChatML's marks."""
    return train(tmp_path_factory.mktemp("tokenizers") / "plain", TOKENS)


@pytest.fixture
def with_config(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with the same vocabulary and another configuration."""

    def make(name: str = "other", *, chat_template: str | None = None, **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
        told = {**TOKENS, **config}
        (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}), encoding="utf-8")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write
