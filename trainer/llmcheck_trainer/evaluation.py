"""Evaluation on held-out data: loss, perplexity, continuations of its prompts."""

from __future__ import annotations

import json
import math
import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from llmcheck.types import TrainingRecipe, TrainSettings
from llmcheck_trainer.data import Prepared, Shape, Stream
from llmcheck_trainer.placement import Placement

MAX_NEW_TOKENS = 64
MAX_EXPONENT = 50.0  # perplexities beyond e^50 say no more than that


class Result(NamedTuple):
    """Mean loss of the supervised tokens, and its exponential."""

    loss: float
    perplexity: float
    num_tokens: int


def load(settings: TrainSettings, recipe: TrainingRecipe, shape: Shape, pad_id: int) -> Stream | None:
    """The held-out data, padded, never packed; None where none was given."""
    if not settings.eval_data:
        return None
    data = Prepared(settings.eval_data, flag="--eval-data")
    data.check_lengths(recipe.seq_len)
    stream = Stream(data, recipe.seq_len, shape._replace(accum=1), packing=False, seed=settings.seed, pad_id=pad_id, full_length=False)
    stream.limit = len(stream)
    return stream


def evaluate(engine: Any, held_out: Stream, placement: Placement, device: torch.device) -> Result:
    """The loss over all of `held_out`; all ranks call it."""
    engine.eval()
    total = torch.zeros((), dtype=torch.float32, device=device)
    supervised = 0
    with torch.no_grad():
        for position in range(0, len(held_out), held_out.shape.global_batch):
            batches, count, _ = held_out.step(position)
            supervised += count
            for batch in batches:
                total += engine(**placement._replace(packing=False).put(batch).inputs, use_cache=False).loss
    dist.all_reduce(total)
    engine.train()
    loss = float(total) / max(supervised, 1)
    return Result(loss, math.exp(min(loss, MAX_EXPONENT)), supervised)


def generate(engine: Any, held_out: Stream, settings: TrainSettings, folder: str, step: int) -> None:
    """Append greedy continuations of the first held-out prompts to generations.jsonl; all ranks call it (ZeRO-3 gathers together)."""
    from llmcheck_trainer.export import load_tokenizer

    module, device = engine.module, engine.device
    tokenizer = None
    if dist.get_rank() == 0:
        try:
            tokenizer = load_tokenizer(folder)
        except (OSError, ValueError):
            tokenizer = None  # ids are written instead
    # Positions that the model knows: some have a table of them, and end with an error beyond it.
    num_positions = getattr(module.config, "max_position_embeddings", None)
    module.eval()
    lines = []
    with torch.no_grad():
        for row in range(min(settings.num_generations, len(held_out.data))):
            start, end = int(held_out.data.offsets[row]), int(held_out.data.offsets[row + 1])
            supervised = held_out.data.supervised[start:end]
            prompt = int(supervised.argmax()) if supervised.any() else end - start
            num_new = MAX_NEW_TOKENS if num_positions is None else min(MAX_NEW_TOKENS, num_positions - prompt)
            if not prompt or num_new < 1:
                continue
            ids = torch.tensor(held_out.data.tokens[start : start + prompt].astype("int64"), device=device)[None]
            made = module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new,
                do_sample=False,
                use_cache=False,
                pad_token_id=held_out.pad_id,
                eos_token_id=held_out.data.tokenizer["eos_id"],
                synced_gpus=dist.get_world_size() > 1,
            )[0].tolist()
            answer = made[prompt:]
            texts = {} if tokenizer is None else {"prompt_text": tokenizer.decode(made[:prompt]), "text": tokenizer.decode(answer)}
            lines.append({"step": step, "row": row, "prompt": made[:prompt], "answer": answer, **texts})
    module.train()
    if dist.get_rank() == 0:
        with open(os.path.join(settings.output, "generations.jsonl"), "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
