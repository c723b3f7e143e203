"""Modules: a tree of parameters and children in the order of construction, called through one hook point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.checkpoint import checkpoint
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Param, Tensor

if TYPE_CHECKING:
    from llmcheck.shadow.quant import PackedWeight


class Module:
    """Base of all shadow modules. Attributes that are modules, parameters or lists of modules form the tree.

    `positional`: how many leading arguments the real code passes by position. ZeRO-3 hooks only those for the end of a backward pass.
    Every module that the real model *calls* is one here too (activations, dropouts, rotary embeddings): each call is a step of ZeRO-3's
    prefetcher.
    """

    positional = 9
    tells = False  # it hands tensors out past its result: a layer with it has no script
    zero_leaf = False  # ZeRO-3 treats the module and all below it as one (``zero_leaf_module``)

    def __call__(self, *args: Any) -> Any:
        hooks = cur.hooks
        if hooks is not None:
            return hooks.call(self, args)
        return self.forward(*args)

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError

    def children(self) -> Iterator[tuple[str, Module]]:
        for key, value in self.__dict__.items():
            if isinstance(value, Module):
                yield key, value
            elif type(value) is list:
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{key}.{i}", item

    def own_params(self) -> Iterator[tuple[str, Param]]:
        for key, value in self.__dict__.items():
            if isinstance(value, Param):
                yield key, value

    def modules(self) -> Iterator[Module]:
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for key, child in self.children():
            yield from child.named_modules(f"{prefix}.{key}" if prefix else key)

    def named_parameters(self, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Param]]:
        """Parameters in module order, each once (a tied one where it first appears)."""
        seen = set() if seen is None else seen
        for key, p in self.own_params():
            if id(p) not in seen:
                seen.add(id(p))
                yield f"{prefix}.{key}" if prefix else key, p
        for key, child in self.children():
            yield from child.named_parameters(f"{prefix}.{key}" if prefix else key, seen)

    def parameters(self) -> list[Param]:
        return [p for _, p in self.named_parameters()]


class Build:
    """How parameters are made while a model is constructed. ZeRO-3 replaces `make`."""

    def __init__(self, item: int) -> None:
        self.item = item

    def param(self, *shape: int, item: int = 0) -> Param:
        before, cur.category = cur.category, "weights"
        p = Param(shape, item or self.item)
        cur.category = before
        return p

    def finish(self, module: Module) -> None:
        """Called when `module`'s own constructor has made its parameters (ZeRO-3 partitions them here)."""

    def copy(self, module: Module) -> ModulesToSaveWrapper:
        """`module` with a trained copy beside it."""
        return ModulesToSaveWrapper(module)

    def tied(self, module: Module, key: str, to: Param) -> None:
        """Tie `module.key` to a parameter made before: the own storage is dropped."""
        setattr(module, key, to)


class Linear(Module):
    """``nn.Linear``; with `packed`, bitsandbytes' 4-bit form of it."""

    packed: PackedWeight | None = None

    def __init__(self, build: Build, k: int, n: int, bias: bool = False) -> None:
        self.weight = build.param(n, k)
        if bias:
            self.bias: Param | None = build.param(n)
        else:
            self.bias = None
        build.finish(self)

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed.product(x, self.bias is not None)
        return ops.linear(x, self.weight, self.bias)


class Conv1D(Module):
    """GPT-2's transposed linear layer."""

    def __init__(self, build: Build, k: int, n: int) -> None:
        self.weight = build.param(k, n)
        self.bias = build.param(n)
        build.finish(self)

    @property
    def in_features(self) -> int:
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        return self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv1d(x, self.weight, self.bias)


class Embedding(Module):
    leaf_output = False  # ``make_inputs_require_grads``, a hook that runs before ZeRO-3's

    def __init__(self, build: Build, rows: int, cols: int) -> None:
        self.weight = build.param(rows, cols)
        build.finish(self)

    def forward(self, ids: Tensor) -> Tensor:
        return self.finish_output(ops.embedding(self.weight, ids))

    def finish_output(self, out: Tensor) -> Tensor:
        """The module's result, a leaf that requires a gradient where the hook says so."""
        if self.leaf_output and not out.req:
            out.req = True
        return out


class ModulesToSaveWrapper(Module):
    """peft's trained copy of a module beside the frozen original (peft 0.21, ``utils/other.py``)."""

    def __init__(self, original: Module) -> None:
        for _, p in original.own_params():
            p.req = False
        self.original_module = original
        self.modules_to_save = copy.copy(original)  # ``deepcopy``: the parameters are this module's own, also where they were tied
        before, cur.category = cur.category, "weights"
        for key, p in original.own_params():
            setattr(self.modules_to_save, key, Param(p.shape, p.item))
        cur.category = before

    @property
    def active(self) -> Any:
        """The copy: what is called, and whose attributes the wrapper answers with."""
        return self.modules_to_save

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.modules_to_save(x)
        return out


class LayerNorm(Module):
    """``nn.LayerNorm``; without `affine` it has no parameters, without `bias` no bias."""

    def __init__(self, build: Build, h: int, affine: bool = True, bias: bool = True) -> None:
        self.weight = build.param(h) if affine else None
        self.bias = build.param(h) if affine and bias else None
        build.finish(self)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias)


class RMSNorm(Module):
    """The eager RMSNorm of transformers' Llama and its many copies: fp32 inside, the weight applied in the model's type."""

    def __init__(self, build: Build, h: int) -> None:
        self.weight = build.param(h)
        build.finish(self)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if cur.liger:
            return liger.rms_norm(hidden_states, self.weight)
        item = hidden_states.item
        hidden_states = ops.cast(hidden_states, 4)
        variance = ops.mean_last(ops.square(hidden_states))
        hidden_states = ops.mul(hidden_states, ops.rsqrt(ops.add_scalar(variance)))
        return ops.mul(self.weight, ops.cast(hidden_states, item))


class Activation(Module):
    """An activation function that transformers keeps as a module (``ACT2FN``)."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Dropout(Module):
    """``nn.Dropout`` in training (``nn.Identity`` behaves like a probability of 0)."""

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p)


class CheckpointedLayer(Module):
    """``GradientCheckpointingLayer``: the first argument is the region's input, the rest is bound to the re-run."""

    positional = 1
    checkpointed = False

    def __call__(self, x: Tensor, *bound: Any) -> Any:
        return self.execute(x, *bound) if cur.scripts is None else cur.scripts.call(self, x, bound)

    def execute(self, x: Tensor, *bound: Any) -> Any:
        """The layer itself, where `__call__` may play its script."""
        if self.checkpointed and cur.grad:
            return checkpoint(lambda h: Module.__call__(self, h, *bound), x)
        return Module.__call__(self, x, *bound)
