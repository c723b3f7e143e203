"""Low-rank adapters as peft wraps them around linear layers (peft 0.21, ``tuners/lora/layer.py``)."""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.errors import UserError, did_you_mean
from llmcheck.shadow import ops
from llmcheck.shadow.autograd import NoGrad, attach, begin, keep
from llmcheck.shadow.families.base import CausalLM, Family
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Build, Conv1D, Dropout, Linear, Module
from llmcheck.shadow.tape import cur, flops
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.types import LoraSpec, TrainEmbeddings


class LoraLinear(Module):
    """``y = base(x) + lora_B(lora_A(dropout(x))) * scaling``; over a 4-bit base, which peft clones, the update is a local of its own."""

    def __init__(self, build: Build, base: Linear | Conv1D, rank: int, dropout: float, fused: bool = False) -> None:
        self.base_layer = base
        self.fused = fused and isinstance(base, Linear) and base.packed is None
        self.lora_dropout = Dropout(dropout)
        self.lora_A = Linear(build, base.in_features, rank)
        self.lora_B = Linear(build, rank, base.out_features)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return _fused_forward(x, self.lora_dropout(x), self.base_layer, self.lora_A.weight, self.lora_B.weight)
        result = self.base_layer(x)
        if cur.hooks is not None:
            cur.hooks.gather_external(self.lora_A)  # its weight's dtype is read before it is called
        if isinstance(self.base_layer, Linear) and self.base_layer.packed is not None:
            result = ops.clone(result)
            output = ops.scale(self.lora_B(self.lora_A(self.lora_dropout(x))))
            result = ops.add(result, output)
        else:
            result = ops.add(result, ops.scale(self.lora_B(self.lora_A(self.lora_dropout(x)))))
        return result


def _fused_forward(x: Tensor, z: Tensor, base: Any, down: Param, up: Param) -> Tensor:
    """The trainer's ``lora._AdaptedLinear``: all in one function, `z` being `x` or `x` after dropout."""
    shape, item, rank = x.shape, x.item, down.shape[0]
    rows = prod(shape[:-1])
    n, k = base.weight.shape
    shared = z is x
    with NoGrad():
        source = ops.reshape(z, rows, k)
        out = ops.matmul_kernel((*shape[:-1], n), item, base.bias is not None)
        low = ops.matmul_kernel((rows, rank), item)
    need_x = x.req
    flops(2.0 * rows * n * k)

    def back(saved: Any, g: Tensor) -> list[Tensor | None]:
        flops(2.0 * rows * n * k)
        grad_low = ops.matmul_kernel((rows, rank), item)
        grad_up = ops.matmul_kernel((n, rank), item)
        grad_down = ops.matmul_kernel((rank, k), item)
        grad_x = ops.matmul_kernel(shape, item) if need_x else None
        grad_z = None if shared else ops.matmul_kernel(shape, item)
        del grad_low
        return [grad_x, grad_z, grad_down, grad_up] if not shared else [grad_x, grad_down, grad_up]

    if not cur.grad:
        return out
    inputs = (x, down, up) if shared else (x, z, down, up)
    return attach(out, begin(back, inputs, (keep(source), low.st, keep(base.weight), keep(down), keep(up))))


class _LoraModel(Module):
    """``LoraModel``: calls the wrapped model's forward, not the model."""

    positional = 0

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model.forward(ids, mask, labels)


class PeftModel(CausalLM):
    """``PeftModelForCausalLM`` around a model with adapters."""

    def __init__(self, model: CausalLM) -> None:
        self.base_model = _LoraModel(model)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        out: tuple[Tensor, Tensor | None] = self.base_model(ids, mask, labels)
        return out


_LAYERS = (Linear, Conv1D)

# Names that peft 0.21 takes for the fused experts' weights of a mixture, however they are spelt, even where shared experts and dense
# layers have linear layers of these names (utils/transformers_weight_conversion.py); with adapter dropout it then refuses them.
EXPERT_NAMES = frozenset({"gate_proj", "up_proj", "down_proj"})


def target_names(spec: LoraSpec, family: Family, model: CausalLM) -> tuple[str, ...]:
    """Module name endings that `spec.targets` means for this family; a name that is unknown, or means experts, is an error."""
    if spec.targets == "all-linear":
        return family.linear_targets
    if spec.targets == "attention":
        return family.attention_targets
    names = tuple(n.strip() for n in spec.targets.split(",") if n.strip())
    known = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, _LAYERS)})
    for name in names:
        if name.rsplit(".", 1)[-1] not in known:
            raise UserError(
                f"no module of {family.name} is called {name!r}",
                code="lora-targets",
                where="--lora-targets",
                why="LoRA would match nothing there",
                hint=did_you_mean(name, known) or "linear layers of this family: " + ", ".join(known),
            )
        if name.rsplit(".", 1)[-1] in EXPERT_NAMES.difference(family.linear_targets):
            raise UserError(
                f"{name!r} cannot have adapters in a {family.name} model",
                code="lora-targets",
                where="--lora-targets",
                why="peft takes the name for the fused experts' weights, not for the linear layers of that name",
                hint="--lora-targets all-linear, or names of these: " + ", ".join(sorted(family.linear_targets)),
            )
    return names


def inject(model: CausalLM, spec: LoraSpec, family: Family, build: Build, *, fused: bool = False) -> int:
    """Freeze the model and wrap the targeted layers; the number of wrapped layers. `fused`: in the trainer's way, not peft's."""
    for p in model.parameters():
        p.req = False
    count = _wrap(model, set(target_names(spec, family, model)), spec, build, fused)
    if spec.train_embeddings is not None:
        _train_embeddings(model, spec.train_embeddings, build)
    return count


def _train_embeddings(model: CausalLM, how: TrainEmbeddings, build: Build) -> None:
    """Train the token embedding and the head: the model's own, or copies of both, which are no longer tied."""
    assert isinstance(model, DecoderLM)
    if how == "in-place":
        for part in (model.token_embedding, model.lm_head.base_layer if isinstance(model.lm_head, LoraLinear) else model.lm_head):
            for _, p in part.own_params():
                p.req = True
        return
    if isinstance(model.lm_head, LoraLinear):
        raise UserError(
            "the output projection cannot have an adapter and be copied",
            code="conflict",
            where="--lora-targets, --train-embeddings modules-to-save",
            why="peft refuses modules_to_save on a module that has an adapter",
            hint="leave lm_head out of --lora-targets, or say --train-embeddings in-place",
        )
    copies = []
    for part in (model.token_embedding, model.lm_head):
        parent, key = next((m, k) for m in model.modules() for k, child in m.children() if child is part)
        copies.append(build.copy(part))
        setattr(parent, key, copies[-1])
    for wrapper in copies:  # under ZeRO-3 the copies stay whole until DeepSpeed gets the model
        build.finish(wrapper.active)


def _wrap(module: Module, targets: set[str], spec: LoraSpec, build: Build, fused: bool) -> int:
    """Wrap the targeted layers under `module`, each subtree to its end before the next one, as peft walks ``named_modules()``."""
    count = 0
    for key, value in list(module.__dict__.items()):
        if isinstance(value, _LAYERS):
            if key in targets:
                setattr(module, key, LoraLinear(build, value, spec.rank, spec.dropout, fused))
                count += 1
        elif isinstance(value, Module):
            count += _wrap(value, targets, spec, build, fused)
        elif type(value) is list:
            for i, item in enumerate(value):
                if not isinstance(item, _LAYERS):
                    count += _wrap(item, targets, spec, build, fused) if isinstance(item, Module) else 0
                elif key in targets:
                    value[i] = LoraLinear(build, item, spec.rank, spec.dropout, fused)
                    count += 1
    return count
