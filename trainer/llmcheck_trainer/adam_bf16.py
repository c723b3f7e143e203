"""AdamW on bf16 weights with bf16 moments and no fp32 copy of either: 8 bytes a parameter with its gradient, instead of 16 to 18.

bf16 has eight bits of mantissa, so a step of 1e-5 on a weight of 0.02 is less than half the distance to the next number, and rounding
to the nearest would lose it, step after step. Results are rounded at random instead, up or down with the probability that makes their
mean exact (Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv:2010.06192; Ozkara et al. 2025, "Stochastic Rounding for LLM
Training: Theory and Practice", PMLR 258:4402). The random bits depend on the step and the place alone: ranks that hold the same
weights stay equal, and a resumed run goes on as it would have.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

CHUNK = 1 << 22  # elements that the version without a kernel handles at a time: it holds about ten fp32 copies of them


class AdamBf16(torch.optim.Optimizer):
    """AdamW of one rank's weights; weights, gradients and moments in the weights' type, arithmetic in fp32.

    `max_norm`: the gradients' norm over all weights is brought down to it, and a step whose norm is not finite changes nothing; 0 where
    the wrapper has done so.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_norm = max_norm
        self._global_grad_norm: torch.Tensor | None = None  # where DeepSpeed's engine looks for it

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        """One step over the weights that have gradients; nothing here waits for the device."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not weights:
            return
        factor = self._factor(weights)
        place = 0
        for group in self.param_groups:
            for weight in group["params"]:
                place += 1
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
                state["step"] = int(state["step"]) + 1
                _update(weight, state, factor, group, seed=_seed(state["step"], place))

    def _factor(self, weights: list[Any]) -> torch.Tensor:
        """What gradients are multiplied by, [1] in fp32 on the device; not finite where the step is to be left out."""
        if not self.max_norm:
            return torch.ones(1, dtype=torch.float32, device=weights[0].device)
        norms = torch._foreach_norm([weight.grad for weight in weights], 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self._global_grad_norm = torch.where(norm.isfinite(), norm, torch.inf)  # DeepSpeed's word for a step that is left out
        clipped = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return torch.where(norm.isfinite(), clipped, torch.nan).reshape(1)


def _seed(step: int, place: int) -> int:
    """A key for the random bits of one tensor in one step: the pair, scattered over 62 bits (SplitMix64's constants)."""
    mixed = (step * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) >> 2


def _update(weight: Any, state: dict[str, Any], factor: torch.Tensor, group: dict[str, Any], *, seed: int) -> None:
    beta1, beta2 = group["betas"]
    step, lr = state["step"], float(group["lr"])
    corrections = 1.0 - beta1**step, 1.0 - beta2**step
    tensors = weight.data.view(-1), weight.grad.reshape(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    options = group["eps"], group["weight_decay"]
    if weight.is_cuda and importlib.util.find_spec("triton") is not None:
        from llmcheck_trainer.adam_kernel import step_

        step_(*tensors, factor, lr, betas=group["betas"], options=options, corrections=corrections, seed=seed)
        return
    generator = torch.Generator(device=weight.device).manual_seed(seed)
    good = factor.isfinite()
    for start in range(0, weight.numel(), CHUNK):
        parts = [t[start : start + CHUNK] for t in tensors]
        old, gradient, first, second = [part.float() for part in parts]
        gradient = gradient * factor
        first = first * beta1 + gradient * (1.0 - beta1)
        second = second * beta2 + gradient * gradient * (1.0 - beta2)
        change = (first / corrections[0]) / ((second / corrections[1]).sqrt() + options[0])
        new = old * (1.0 - lr * options[1]) - lr * change
        for part, value in ((parts[0], new), (parts[2], first), (parts[3], second)):
            part.copy_(torch.where(good, rounded(value, part.dtype, generator), part))


def rounded(values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """fp32 `values` in `dtype`; to bf16 up or down at random, so that the mean is the value."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)


def share_weights(optimizer: Any) -> None:
    """Let DeepSpeed's optimizer of stages 1 to 3 work on the weights themselves: its bf16 masters would be a copy of the same numbers.

    DeepSpeed 0.19.8 copies them back and forth all the same, onto themselves then. Checkpoints are as before.
    """
    import torch.distributed as dist

    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        for master, weights in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True):
            master.data = weights.data
        return
    groups = optimizer.real_dp_process_group
    for master, partitions, group in zip(
        optimizer.single_partition_of_fp32_groups, optimizer.parallel_partitioned_bit16_groups, groups, strict=True
    ):
        master.data = partitions[dist.get_rank(group=group)].data
    optimizer._link_all_hp_params()  # each parameter has a view of its part of the copy
