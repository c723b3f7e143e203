"""What a family provides, and what all causal language models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcheck.errors import UserError
from llmcheck.shadow.module import Build, Embedding, Module
from llmcheck.shadow.tensor import Tensor


class Config:
    """Attribute access to a complete configuration."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the family's defaults lack {name!r}")


@dataclass(frozen=True)
class Run:
    """What a model's forward needs to know of the recipe."""

    attention: str = "sdpa"
    loss: str = "hf"
    checkpointing: bool = True
    liger: bool = False


@dataclass(frozen=True)
class Family:
    """A model family: how to build it, the defaults of its configuration class, and its usual LoRA targets."""

    name: str
    build: Callable[[Build, Config, Run], CausalLM]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    linear_targets: tuple[str, ...] = ()
    attention_targets: tuple[str, ...] = ()
    supports_sdpa: bool = True  # in transformers
    trainer_sdpa: bool = False  # the bundled trainer brings it where transformers has it not
    approximate: str = ""  # why the forward is only like the real one's; empty where it was written along its code


def attention_kind(run: Run, model: str, *, sdpa: bool = True, flash: bool = True) -> str:
    """The attention that transformers runs: eager where the family has no SDPA. FlashAttention where it has none is an error."""
    if run.attention == "flash" and not flash:
        raise UserError(
            f"{model} cannot run with FlashAttention",
            code="attention",
            where="--attention",
            why="transformers has no such implementation of this model",
            hint="--attention sdpa" if sdpa else "--attention eager",
        )
    return "eager" if run.attention == "sdpa" and not sdpa else run.attention


class CausalLM(Module):
    """A causal language model. `input_embeddings()` is what ``enable_input_require_grads`` hooks."""

    positional = 0
    require_input_grads = False

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(loss, logits): both live until the caller drops them."""
        raise NotImplementedError

    def embed(self, embedding: Embedding, ids: Tensor) -> Tensor:
        """The token embedding; with frozen weights under checkpointing its result becomes a leaf that requires a gradient."""
        if self.require_input_grads:
            embedding.leaf_output = True
        out: Tensor = embedding(ids)
        return out
