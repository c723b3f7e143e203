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

    `max_norm`: the gradients' norm over all weights is brought down to it, and a step whose norm is not finite leaves no trace: the steps
    are counted on the device then. 0 where the wrapper has done so, which also keeps the counts in its checkpoints.
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
        """One step over the weights that have gradients; after the first, nothing here waits for the device."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not weights:
            return
        self._begin(weights)
        factor = self._factor(weights)
        self._count(weights, factor)
        first_place = 1
        for group in self.param_groups:
            figures, seeds = self._numbers(group, factor, first_place)
            first_place += len(group["params"])
            for i, weight in enumerate(group["params"]):
                if weight.grad is not None:
                    _update(weight, self.state[weight], group, figures[i], seeds[i])

    def _begin(self, weights: list[Any]) -> None:
        """Moments of weights that have none; and counts on the device, where they are not yet: first, and after a checkpoint's loading."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight].update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        if not self.max_norm:
            return
        elsewhere = [w for w in weights if not (torch.is_tensor(self.state[w]["step"]) and self.state[w]["step"].device == w.device)]
        if elsewhere:
            counts = torch.tensor([int(self.state[w]["step"]) for w in elsewhere], dtype=torch.int64).to(elsewhere[0].device)
            for weight, count in zip(elsewhere, counts.unbind(), strict=True):
                self.state[weight]["step"] = count

    def _factor(self, weights: list[Any]) -> torch.Tensor:
        """What gradients are multiplied by, [] in fp32 on the device; not finite where the step is to be left out."""
        if not self.max_norm:
            return torch.ones((), dtype=torch.float32, device=weights[0].device)
        norms = torch._foreach_norm([weight.grad for weight in weights], 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self._global_grad_norm = torch.where(norm.isfinite(), norm, torch.inf)  # DeepSpeed's word for a step that is left out
        clipped = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return torch.where(norm.isfinite(), clipped, torch.nan)

    def _count(self, weights: list[Any], factor: torch.Tensor) -> None:
        """Count the step, unless it is left out."""
        if self.max_norm:
            torch._foreach_add_([self.state[weight]["step"] for weight in weights], factor.isfinite().to(torch.int64))
            return
        for weight in weights:
            self.state[weight]["step"] = int(self.state[weight]["step"]) + 1

    def _numbers(self, group: dict[str, Any], factor: torch.Tensor, first_place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For each weight of the group a row of what its step needs: factor and corrections, [n, 4] in fp32; seed, [n, 2] in int64.

        Rows are of 16 bytes, for kernels are compiled for pointers that are multiples of it, and a second time for others.
        """
        known = [self.state[weight].get("step", 0) if weight in self.state else 0 for weight in group["params"]]
        counts = torch.stack([n if torch.is_tensor(n) else torch.full((), n, dtype=torch.int64, device=factor.device) for n in known])
        places = torch.arange(first_place, first_place + len(known), device=factor.device)
        corrections = [(1.0 - torch.pow(beta, counts.double())).float() for beta in group["betas"]]
        whole = factor.expand(len(known))
        return torch.stack((whole, *corrections, whole), dim=1), _seeds(counts, places)[:, None].expand(-1, 2).contiguous()


def _seeds(counts: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Keys for the random bits of tensors in a step: the pairs, scattered over 62 bits (SplitMix64's constants)."""
    mixed = counts * _signed(0x9E3779B97F4A7C15) + places * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(mixed ^ _shifted(mixed, 31), 2)


def _signed(bits: int) -> int:
    """The number that an int64 with these 64 bits is."""
    return bits - (1 << 64) if bits >> 63 else bits


def _shifted(numbers: torch.Tensor, by: int) -> torch.Tensor:
    """int64 to the right, zeros coming in."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _update(weight: Any, state: dict[str, Any], group: dict[str, Any], figures: torch.Tensor, seed: torch.Tensor) -> None:
    """`figures`: what the gradient is multiplied by, and what the moments are divided by; a factor that is not finite changes nothing."""
    beta1, beta2 = group["betas"]
    lr, options = float(group["lr"]), (group["eps"], group["weight_decay"])
    tensors = weight.data.view(-1), weight.grad.reshape(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    if weight.is_cuda and importlib.util.find_spec("triton") is not None:
        from llmcheck_trainer.adam_kernel import step_

        step_(*tensors, figures, seed, lr, betas=group["betas"], options=options)
        return
    factor, correction1, correction2, _ = figures.unbind()
    generator = torch.Generator(device=weight.device).manual_seed(int(seed[0]))  # which waits for a GPU, where Triton is missing
    good = factor.isfinite()
    for start in range(0, weight.numel(), CHUNK):
        parts = [t[start : start + CHUNK] for t in tensors]
        old, gradient, first, second = [part.float() for part in parts]
        gradient = gradient * factor
        first = first * beta1 + gradient * (1.0 - beta1)
        second = second * beta2 + gradient * gradient * (1.0 - beta2)
        change = (first / correction1) / ((second / correction2).sqrt() + options[0])
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
