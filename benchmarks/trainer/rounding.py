"""What bf16 does to fine-tuning, by optimizer: ``python -m benchmarks.trainer.rounding [--steps N] [--seeds N] [--out FILE]``.

A small Llama is trained once in fp32 on text A, its weights are rounded to bf16 as published models are, and from these it is fine-tuned
on text B at several learning rates: with the trainer's AdamBf16, with fp32 masters beside bf16 weights, with PyTorch's AdamW on the bf16
weights themselves, and in fp32. Same batches, schedule, betas and clipping for all; CPU only. The table goes to
``benchmarks/results/rounding-DATE.md``, or to FILE.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks import report
from llmcheck_trainer.adam_bf16 import AdamBf16
from llmcheck_trainer.engine import BETAS
from llmcheck_trainer.schedule import learning_rate

VOCAB, CLASSES, LENGTH, ROWS = 256, 16, 64, 8  # tokens, their classes, tokens a row, rows a batch
LOGIT_SCALE = 2.5  # of the next token's logits: about 3 of the 5.5 nats that a token could have are left
CHANGED = 0.5  # of text A's contexts go on in another way in text B
HELD_OUT_ROWS = 256
PRETRAINING = 2000, 3e-3  # steps, learning rate
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SCHEDULE: dict[str, Any] = {"kind": "cosine", "warmup": 0.03, "floor": 0.1}
MAX_NORM = 1.0  # DeepSpeed's default

MASTERS, OURS, NEAREST, FP32 = "fp32 masters", "adam-bf16", "AdamW on bf16", "fp32"  # the names in the table


class Text:
    """A Markov chain: the classes of the two last tokens say how likely each next one is."""

    def __init__(self, logits: torch.Tensor, classes: torch.Tensor) -> None:
        self.logits, self.classes = logits, classes
        self.chances = logits.softmax(-1)

    @classmethod
    def drawn(cls, seed: int) -> Text:
        chance = torch.Generator().manual_seed(seed)
        logits = LOGIT_SCALE * torch.randn(CLASSES, CLASSES, VOCAB, generator=chance)
        return cls(logits, torch.randperm(VOCAB, generator=chance) % CLASSES)

    def changed(self, seed: int) -> Text:
        """Another text in the same words: CHANGED of the contexts have new chances."""
        chance = torch.Generator().manual_seed(seed)
        new = LOGIT_SCALE * torch.randn(self.logits.shape, generator=chance)
        which = torch.rand(CLASSES, CLASSES, 1, generator=chance) < CHANGED
        return Text(torch.where(which, new, self.logits), self.classes)

    def rows(self, number: int, chance: torch.Generator) -> torch.Tensor:
        """Tokens, [number, LENGTH]."""
        tokens = torch.randint(VOCAB, (number, LENGTH), generator=chance)
        for at in range(2, LENGTH):
            before, last = self.classes[tokens[:, at - 2]], self.classes[tokens[:, at - 1]]
            tokens[:, at] = torch.multinomial(self.chances[before, last], 1, generator=chance)[:, 0]
        return tokens

    def entropy(self, rows: torch.Tensor) -> float:
        """The loss on `rows` of one who knows the chain, nats a token; the first predicted token hangs on nothing."""
        before, last = self.classes[rows[:, :-2]], self.classes[rows[:, 1:-1]]
        known = -self.chances[before, last].gather(-1, rows[:, 2:, None]).log().sum(dtype=torch.float64)
        return (float(known) + len(rows) * math.log(VOCAB)) / (len(rows) * (LENGTH - 1))


class Run(NamedTuple):
    """One fine-tuning."""

    optimizer: str
    rate: float
    seed: int
    loss: float  # held out, nats a token
    distance: float  # of the weights from those of fp32, as a share of how far fp32 went
    moved: float  # share of weights that are not what they were


def new_model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


@torch.no_grad()
def loss_of(model: Any, rows: torch.Tensor) -> float:
    """The loss on `rows`, in fp32 arithmetic whatever the weights' type: of the weights, not of how they are multiplied."""
    exact = copy.deepcopy(model).float().eval()
    return statistics.fmean(float(exact(part, labels=part).loss) for part in rows.split(64))


class Plain:
    """PyTorch's AdamW on the weights that the model has; a step after clipping."""

    def __init__(self, weights: Sequence[Any]) -> None:
        self.weights = weights
        self.adam = torch.optim.AdamW(weights, lr=0.0, betas=BETAS, weight_decay=0.0)

    def step(self, rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, MAX_NORM)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()


class Masters(Plain):
    """fp32 weights that take the bf16 gradients and are rounded into the model after each step: mixed precision as DeepSpeed has it."""

    def __init__(self, weights: Sequence[Any]) -> None:
        self.rounded = weights
        super().__init__([torch.nn.Parameter(w.detach().float()) for w in weights])

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for master, weight in zip(self.weights, self.rounded, strict=True):
            master.grad = weight.grad.float()
        super().step(rate)
        for master, weight in zip(self.weights, self.rounded, strict=True):
            weight.copy_(master)


class Ours:
    """The trainer's; it clips itself. Its random bits hang on the step and the weight's place: `seed` moves the places."""

    def __init__(self, weights: Sequence[Any], seed: int) -> None:
        without_gradients = [torch.nn.Parameter(torch.zeros(1)) for _ in range(seed * len(weights))]
        self.adam = AdamBf16([*without_gradients, *weights], lr=0.0, betas=BETAS, max_norm=MAX_NORM)

    def step(self, rate: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()


def train(model: Any, optimizer: Any, text: Text, *, steps: int, rate: float, seed: int) -> None:
    """`steps` batches of `text`; the same ones for the same seed."""
    chance = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % 50 == 0:
            many = text.rows(min(50, steps - step) * ROWS, chance).split(ROWS)  # drawn together: drawing is slow
        batch = many[step % 50]
        model.zero_grad(set_to_none=True)
        model(batch, labels=batch).loss.backward()
        optimizer.step(learning_rate(rate, SCHEDULE["kind"], (step + 1) / steps, warmup=SCHEDULE["warmup"], floor=SCHEDULE["floor"]))


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])


def fine_tuned(start: Any, text: Text, held_out: torch.Tensor, *, rate: float, steps: int, seed: int) -> list[Run]:
    """A run with each optimizer."""
    makes: dict[str, tuple[torch.dtype, Callable[[Sequence[Any]], Any]]] = {
        FP32: (torch.float32, Plain),
        MASTERS: (torch.bfloat16, Masters),
        OURS: (torch.bfloat16, lambda weights: Ours(weights, seed)),
        NEAREST: (torch.bfloat16, Plain),
    }
    before = flat(start)
    reference, found = before, []
    for name, (dtype, make) in makes.items():
        model = copy.deepcopy(start).to(dtype)
        train(model, make(list(model.parameters())), text, steps=steps, rate=rate, seed=1000 + seed)
        after = flat(model)
        if name == FP32:
            reference = after
        distance = float((after - reference).norm() / (reference - before).norm())
        found.append(Run(name, rate, seed, loss_of(model, held_out), distance, float((after != before).float().mean())))
    return found


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation, which one value has not."""
    return format(statistics.fmean(values), form) + (f" ± {format(statistics.stdev(values), form)}" if len(values) > 1 else "")


def rows_of(runs: Sequence[Run], before: float) -> list[list[str]]:
    """The table: a row for each learning rate and optimizer."""
    cells = []
    for rate in sorted({run.rate for run in runs}):
        gains = {run.seed: before - run.loss for run in runs if run.rate == rate and run.optimizer == MASTERS}
        for name in (FP32, MASTERS, OURS, NEAREST):
            these = [run for run in runs if run.rate == rate and run.optimizer == name]
            words = [f"{rate:.0e}", name, spread([run.loss for run in these], ".4f")]
            words += [spread([(before - run.loss) / gains[run.seed] for run in these], ".1%")]
            words += [f"{statistics.fmean(run.distance for run in these):.0%}", f"{statistics.fmean(run.moved for run in these):.0%}"]
            cells.append(words)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of each fine-tuning")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings a cell, on other batches and random bits")
    parser.add_argument("--out", type=Path, help="write the results there instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    first = Text.drawn(1)
    second = first.changed(2)
    held_out = second.rows(HELD_OUT_ROWS, torch.Generator().manual_seed(3))
    start = new_model()
    say(began, "pretraining")
    train(start, Plain(list(start.parameters())), first, steps=PRETRAINING[0], rate=PRETRAINING[1], seed=4)
    start = start.bfloat16().float()
    before = loss_of(start, held_out)
    known = first.rows(HELD_OUT_ROWS, torch.Generator().manual_seed(5))
    say(began, f"text A {loss_of(start, known):.4f} of {first.entropy(known):.4f}, text B {before:.4f} of {second.entropy(held_out):.4f}")
    runs: list[Run] = []
    for seed in range(args.seeds):
        for rate in RATES:
            say(began, f"seed {seed + 1} of {args.seeds}, learning rate {rate:.0e}")
            runs += fine_tuned(start, second, held_out, rate=rate, steps=args.steps, seed=seed)
    print("\n".join(report.table(HEAD, rows_of(runs, before))))


HEAD = ("learning rate", "optimizer", "held-out loss", "share of the gain", "off fp32's weights", "weights moved")


def say(began: float, words: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
