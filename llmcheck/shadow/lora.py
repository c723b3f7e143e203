"""Low-rank adapters as peft wraps them around linear layers (peft 0.1x, ``tuners/lora/layer.py``)."""

from __future__ import annotations

from llmcheck.errors import UserError, did_you_mean
from llmcheck.shadow import ops
from llmcheck.shadow.families.base import CausalLM, Family
from llmcheck.shadow.module import Build, Conv1D, Linear, Module
from llmcheck.shadow.tensor import Tensor
from llmcheck.types import LoraSpec


class LoraLinear(Module):
    """``y = base(x) + lora_B(lora_A(dropout(x))) * scaling``."""

    def __init__(self, build: Build, base: Linear | Conv1D, rank: int, dropout: float) -> None:
        self.base_layer = base
        self.lora_A = Linear(build, base.in_features, rank)
        self.lora_B = Linear(build, rank, base.out_features)
        self.dropout = dropout

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        x = ops.cast(x, self.lora_A.weight.item)
        result = ops.add(result, ops.scale(self.lora_B(self.lora_A(ops.dropout(x, self.dropout)))))
        return result


def target_names(spec: LoraSpec, family: Family, model: CausalLM) -> tuple[str, ...]:
    """Module name endings that `spec.targets` means for this family; an unknown name is an error that names the known ones."""
    if spec.targets == "all-linear":
        return family.linear_targets
    if spec.targets == "attention":
        return family.attention_targets
    names = tuple(n.strip() for n in spec.targets.split(",") if n.strip())
    known = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, (Linear, Conv1D))})
    for name in names:
        if name.rsplit(".", 1)[-1] not in known:
            raise UserError(
                f"no module of {family.name} is called {name!r}",
                code="lora-targets",
                where="--lora-targets",
                why="LoRA would match nothing there",
                hint=did_you_mean(name, known) or "linear layers of this family: " + ", ".join(known),
            )
    return names


def inject(model: CausalLM, spec: LoraSpec, family: Family, build: Build) -> int:
    """Freeze the model and wrap the targeted layers; the number of wrapped layers."""
    for p in model.parameters():
        p.req = False
    targets = set(target_names(spec, family, model))
    count = 0
    for _, module in list(model.named_modules()):
        for key, value in list(module.__dict__.items()):
            if key in targets and isinstance(value, (Linear, Conv1D)):
                setattr(module, key, LoraLinear(build, value, spec.rank, spec.dropout))
                count += 1
            elif type(value) is list:
                for i, item in enumerate(value):
                    if isinstance(item, (Linear, Conv1D)) and key in targets:
                        value[i] = LoraLinear(build, item, spec.rank, spec.dropout)
                        count += 1
    if spec.train_embeddings:
        from llmcheck.shadow.module import Embedding

        for _, module in model.named_modules():
            if isinstance(module, Embedding):
                module.weight.req = True
    return count
