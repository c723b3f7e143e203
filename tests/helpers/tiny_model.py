"""A model's folder without weights: a configuration, and a byte-level BPE trained here. Nothing is copied from anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB = 640  # rows of the embedding; the tokenizer has fewer tokens
TEXTS = [
    "Human: \nWhat is the sum of 1 and 2?\n\nAssistant: \nThe sum is 3.",
    "### Instruction:\nName a colour.\n\n### Response: Blue, green and red are colours.",
    "你好，有什么可以帮助你的吗？ 今天天气怎么样？ 不好意思，我无法回答你的问题。",
] * 5
TOLD = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}


def write(folder: Path, *, vocab_size: int = 600, chat_template: str | None = None) -> Path:
    """A Llama of two layers with its tokenizer of at most `vocab_size` tokens."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "max_position_embeddings": 2048,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, vocab_size=vocab_size)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, *, vocab_size: int = 600, **changes: Any) -> None:
    """tokenizer.json and tokenizer_config.json, in place of those that are there."""
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
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**TOLD, **changes}), encoding="utf-8")
