"""The forward of a linear layer with a LoRA adapter, in fewer passes over its output than peft's.

peft computes ``base(x) + B(A(x)) · scaling`` as five operations, three of which only move the output through memory, and as many again
in the backward pass. Here the low-rank products are accumulated by the matrix products themselves. What is kept for the backward pass is
the same: the input and ``A(x)``. Parameters, their names and the saved adapter stay peft's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer


class _AdaptedLinear(torch.autograd.Function):
    """``x · W' + bias + scaling · (z · A') · B'`` for a frozen W; `z` is `x`, or `x` after dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        z: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        source = flat if z is None else z.reshape(-1, z.shape[-1])
        out = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
        low = torch.mm(source, down.t())
        out.addmm_(low, up.t(), alpha=scaling)
        ctx.save_for_backward(source, low, weight, down, up)
        ctx.scaling, ctx.shared, ctx.shape = scaling, z is None, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        source, low, weight, down, up = ctx.saved_tensors
        grad = outer[0].reshape(-1, outer[0].shape[-1])
        need_x, need_z, _, _, need_down, need_up, _ = ctx.needs_input_grad
        grad_low = torch.mm(grad, up).mul_(ctx.scaling)
        grad_up = torch.mm(grad.t(), low).mul_(ctx.scaling) if need_up else None
        grad_down = torch.mm(grad_low.t(), source) if need_down else None
        grad_x = grad_z = None
        if need_x:
            grad_x = torch.mm(grad, weight)
            if ctx.shared:
                grad_x.addmm_(grad_low, down)
            grad_x = grad_x.view(ctx.shape)
        if need_z:
            grad_z = torch.mm(grad_low, down).view(ctx.shape)
        return grad_x, grad_z, None, None, grad_down, grad_up, None


def install(model: Any) -> int:
    """Give every plain LoRA layer of `model` the forward above; the number of layers. Others (quantised, DoRA, biased, tied) keep peft's.

    Not for ZeRO-3, whose hooks bring a weight in when its own module runs.
    """
    count = 0
    for module in model.modules():
        if type(module) is LoraLinear and _is_plain(module):
            module.forward = MethodType(_forward, module)
            count += 1
    return count


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    name = next(iter(layer.lora_A), None)
    return (
        type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and len(layer.lora_A) == 1
        and list(layer.active_adapters) == [name]
        and type(layer.lora_A[name]) is type(layer.lora_B[name]) is torch.nn.Linear
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and layer.lora_A[name].weight.dtype == base.weight.dtype
        and not getattr(layer, "lora_variant", {})
        and not getattr(layer, "fan_in_fan_out", False)
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    assert isinstance(self, BaseTunerLayer)
    base = self.get_base_layer()
    if self.disable_adapters or self.merged or args or kwargs or x.dtype != base.weight.dtype:
        out: torch.Tensor = LoraLinear.forward(self, x, *args, **kwargs)
        return out
    name = self.active_adapters[0]
    dropout = self.lora_dropout[name]
    z = dropout(x) if isinstance(dropout, torch.nn.Dropout) and dropout.p and self.training else None
    adapted: torch.Tensor = _AdaptedLinear.apply(
        x, z, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    )
    return adapted
