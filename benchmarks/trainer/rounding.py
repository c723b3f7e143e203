"""What bf16 does to fine-tuning, by optimizer: ``python -m benchmarks.trainer.rounding [--steps N] [--seeds N] [--out FILE]``.

A small Llama is trained once in fp32 on text A, its weights are rounded to bf16 as published models are, and from these it is fine-tuned
on text B at several learning rates: with the trainer's AdamBf16, with fp32 masters beside bf16 weights, with PyTorch's AdamW on the bf16
weights themselves, and in fp32. Same batches, schedule, betas and clipping for all; CPU only. The hard case for rounding at random comes
after it: more of text A at a high rate, where nearly nothing is left to learn and the noise of the rounding stays. The tables go to
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
PRETRAINING = 1500, 3e-3  # steps, learning rate
RATES = (1e-5, 3e-5, 1e-4, 3e-4)  # the first is the default of `llmcheck train`
SETTLED_RATE = 1e-3  # of more of text A
SCHEDULE: dict[str, Any] = {"kind": "cosine", "warmup": 0.03, "floor": 0.1}  # the trainer's defaults
MAX_NORM = 1.0

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


MAKES: dict[str, tuple[torch.dtype, Callable[[Sequence[Any], int], Any]]] = {  # the weights' type; the optimizer of weights and seed
    FP32: (torch.float32, lambda weights, _: Plain(weights)),
    MASTERS: (torch.bfloat16, lambda weights, _: Masters(weights)),
    OURS: (torch.bfloat16, Ours),
    NEAREST: (torch.bfloat16, lambda weights, _: Plain(weights)),
}


def fine_tuned(start: Any, text: Text, held_out: torch.Tensor, names: Sequence[str], *, rate: float, steps: int, seed: int) -> list[Run]:
    """A run with each of the optimizers; the first one's weights are those that the others' are compared with."""
    before = flat(start)
    reference: torch.Tensor | None = None
    found = []
    for name in names:
        dtype, make = MAKES[name]
        model = copy.deepcopy(start).to(dtype)
        train(model, make(list(model.parameters()), seed), text, steps=steps, rate=rate, seed=1000 + seed)
        after = flat(model)
        reference = after if reference is None else reference
        distance = float((after - reference).norm() / (reference - before).norm())
        found.append(Run(name, rate, seed, loss_of(model, held_out), distance, float((after != before).float().mean())))
    return found


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation, which one value has not."""
    return format(statistics.fmean(values), form) + (f" ± {format(statistics.stdev(values), form.lstrip('+'))}" if len(values) > 1 else "")


def shares(runs: Sequence[Run], before: float, name: str, rate: float) -> list[float]:
    """What a run gained, as a share of what fp32 masters gained on the same batches; one for each seed."""
    gains = {run.seed: before - run.loss for run in runs if run.rate == rate and run.optimizer == MASTERS}
    return [(before - run.loss) / gains[run.seed] for run in runs if run.rate == rate and run.optimizer == name]


def table(runs: Sequence[Run], before: float) -> list[str]:
    """A row for each learning rate and optimizer."""
    cells = []
    for rate in RATES:
        for name in MAKES:
            these = [run for run in runs if run.rate == rate and run.optimizer == name]
            words = [f"{rate:.0e}", name, spread([run.loss for run in these], ".4f"), spread(shares(runs, before, name, rate), ".1%")]
            words += ["" if name == FP32 else f"{statistics.fmean(run.distance for run in these):.0%}"]
            cells.append([*words, f"{statistics.fmean(run.moved for run in these):.0%}"])
    return report.table(("learning rate", "optimizer", "held-out loss", "share of the gain", "off fp32's weights", "moved"), cells)


def reading(runs: Sequence[Run], before: float, settled: Sequence[Run]) -> list[str]:
    """The tables in words: how much each way of rounding kept, and what the noise costs."""
    ours, nearest = ([statistics.fmean(shares(runs, before, name, rate)) for rate in RATES] for name in (OURS, NEAREST))
    losses = {name: {run.seed: run.loss for run in settled if run.optimizer == name} for name in (MASTERS, OURS)}
    behind = spread([losses[OURS][seed] - loss for seed, loss in losses[MASTERS].items()], "+.5f")
    at, first = f"{RATES[0]:.0e}", [run for run in runs if run.rate == RATES[0]]
    off = {name: f"{statistics.fmean(run.distance for run in first if run.optimizer == name):.0%}" for name in (MASTERS, OURS)}
    return [
        f"`{OURS}` reached {min(ours):.1%} to {max(ours):.1%} of what fp32 masters gained. Rounding to the nearest reached",
        f"{nearest[0]:.1%} at {at}, the default of `llmcheck train`, and {nearest[-1]:.1%} at {RATES[-1]:.0e}: the smaller the",
        "steps beside the weights, the more of them are lost. Others can pass 100%: masters are rounded to the nearest in the model that",
        "is exported, which takes back part of the small changes.",
        "",
        f"Rounding at random is not free: its noise stays in the weights. At {at} they end {off[OURS]} of fp32's way from where fp32",
        f"ended (fp32 masters, rounded once: {off[MASTERS]}), in directions that the loss hardly sees. Where little was left to learn, on",
        f"more of text A, `{OURS}` ended {behind} nats from fp32 masters (above 0: worse). Until gradients correct it, the noise",
        "grows with the root of learning rate times steps, and a decay of the learning rate does not take it back. These runs are short",
        "and the model is small: they show that small steps are not lost, not how weeks of training end.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of each fine-tuning; twice as many on more of text A")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings a cell, on other batches and random bits")
    parser.add_argument("--out", type=Path, help="write the results there instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    first = Text.drawn(1)
    second = first.changed(2)
    held_first, held_second = (text.rows(HELD_OUT_ROWS, torch.Generator().manual_seed(3)) for text in (first, second))
    start = new_model()
    say(began, "training on text A")
    train(start, Plain(list(start.parameters())), first, steps=PRETRAINING[0], rate=PRETRAINING[1], seed=4)
    start = start.bfloat16().float()
    known, before = loss_of(start, held_first), loss_of(start, held_second)
    runs: list[Run] = []
    settled: list[Run] = []
    for seed in range(args.seeds):
        for rate in RATES:
            say(began, f"seed {seed + 1} of {args.seeds}, text B at {rate:.0e}")
            runs += fine_tuned(start, second, held_second, list(MAKES), rate=rate, steps=args.steps, seed=seed)
        say(began, f"seed {seed + 1} of {args.seeds}, more of text A at {SETTLED_RATE:.0e}")
        settled += fine_tuned(start, first, held_first, (MASTERS, OURS), rate=SETTLED_RATE, steps=2 * args.steps, seed=seed)
    sizes = flat(start).abs()
    num_weights, median, seconds = f"{sizes.numel():,}", f"{float(sizes.median()):.3f}", f"{time.monotonic() - began:.0f}"
    floors = [f"{text.entropy(rows):.4f}" for text, rows in ((first, held_first), (second, held_second))]
    options = f" --steps {args.steps} --seeds {args.seeds}"
    versions = (f"torch {torch.__version__}", f"transformers {transformers.__version__}")
    lines = report.header("Fine-tuning in bf16, by optimizer", f"python -m benchmarks.trainer.rounding{options}", versions)
    lines += [
        f"A Llama of {num_weights} random weights learns text A in fp32, {PRETRAINING[0]} steps, and is rounded to bf16; half of its",
        f"weights are then smaller than {median}. From there it is fine-tuned on text B, in which {CHANGED:.0%} of A's contexts go on in",
        f"another way: {args.steps} steps of {ROWS} x {LENGTH} tokens, cosine schedule, betas {BETAS[0]} and {BETAS[1]}, no weight decay,",
        f"the norm clipped to {MAX_NORM:g}, the same batches for all, {args.seeds} seeds (mean ± standard deviation). One thread,",
        f"{seconds} s. Losses are of {HELD_OUT_ROWS} held-out rows, in nats a token and in fp32 arithmetic of the weights as exported.",
        f"Before: {before:.4f} on text B, where one who knew the chances would have {floors[1]}.",
        "",
        f"`{FP32}`: AdamW in fp32 throughout. `{MASTERS}`: beside bf16 weights and gradients, as DeepSpeed has it. `{OURS}`: the",
        f"trainer's AdamBf16, rounded at random. `{NEAREST}`: `torch.optim.AdamW` on the bf16 weights, what a model loaded in bf16 gets",
        "from an ordinary loop. `share of the gain`: of that of fp32 masters on the same batches. `off fp32's weights`: distance from",
        "where fp32 ended, as a share of how far fp32 went. `moved`: weights that are not what they were.",
        "",
        *table(runs, before),
        f"More of text A, {2 * args.steps} steps at {SETTLED_RATE:.0e}. Before: {known:.4f}; one who knew the chances: {floors[0]}.",
        "",
    ]
    by_name = {name: [run.loss for run in settled if run.optimizer == name] for name in (MASTERS, OURS)}
    lines += report.table(("optimizer", "held-out loss"), [(name, spread(losses, ".5f")) for name, losses in by_name.items()])
    lines += ["## What it says", "", *reading(runs, before, settled)]
    if args.out:
        args.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    else:
        args.out = report.write("rounding", lines)
    say(began, f"wrote {args.out.name}")


def say(began: float, words: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
