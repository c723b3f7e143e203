"""Activation functions by the names of transformers' ``ACT2FN`` (5.17): one kernel where PyTorch has one, else the same operators."""

from __future__ import annotations

from collections.abc import Callable

from llmcheck.errors import UserError, did_you_mean
from llmcheck.shadow import ops
from llmcheck.shadow.tensor import Tensor

Function = Callable[[Tensor], Tensor]


def gelu_new(t: Tensor) -> Tensor:
    """``0.5 * t * (1 + tanh(c * (t + d * pow(t, 3))))``."""
    return ops.mul(ops.scale(t), ops.add_scalar(ops.tanh(ops.scale(ops.add(t, ops.scale(ops.square(t)))))))


def gelu_fast(t: Tensor) -> Tensor:
    """``0.5 * t * (1 + tanh(t * c * (1 + d * t * t)))``."""
    return ops.mul(ops.scale(t), ops.add_scalar(ops.tanh(ops.mul(ops.scale(t), ops.add_scalar(ops.mul(ops.scale(t), t))))))


def gelu_python(t: Tensor) -> Tensor:
    """``t * 0.5 * (1 + erf(t / c))``."""
    return ops.mul(ops.scale(t), ops.add_scalar(ops.erf(ops.scale(t))))


def quick_gelu(t: Tensor) -> Tensor:
    """``t * sigmoid(c * t)``."""
    return ops.mul(t, ops.sigmoid(ops.scale(t)))


def relu2(t: Tensor) -> Tensor:
    """``square(relu(t))``; the intermediate is a local."""
    relu_applied = ops.relu(t)
    squared = ops.square(relu_applied)
    return squared


def _linear(t: Tensor) -> Tensor:
    return t


_FUNCTIONS: dict[str, Function] = {
    "gelu": ops.gelu,
    "gelu_accurate": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_new,
    "gelu_python": gelu_python,
    "gelu_python_tanh": gelu_new,
    "gelu_pytorch_tanh": ops.gelu,
    "hardswish": ops.unary,
    "leaky_relu": ops.unary,
    "linear": _linear,
    "mish": ops.unary,
    "quick_gelu": quick_gelu,
    "relu": ops.relu,
    "relu2": relu2,
    "relu6": ops.unary,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


def get(name: str) -> Function:
    """The activation function called `name`; an unknown one is an error that names the known ones."""
    found = _FUNCTIONS.get(name)
    if found is None:
        raise UserError(
            f"the activation function {name!r} is not modelled",
            code="activation",
            where="the model's configuration",
            why="its allocations are unknown",
            hint=did_you_mean(name, _FUNCTIONS) or "modelled: " + ", ".join(sorted(_FUNCTIONS)),
        )
    return found


def is_modelled(name: str) -> bool:
    """Whether `get` knows the activation function."""
    return name in _FUNCTIONS
