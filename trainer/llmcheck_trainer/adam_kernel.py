"""One AdamW step on a flat tensor as one Triton kernel: everything is read once and written once, rounded at random to bf16."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _rounded(value, noise, ROUND: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """`value` cut to the upper 16 of its bits, after up to one of the last of them was added; inf and NaN as they are."""
    if ROUND:
        bits = (value.to(tl.int32, bitcast=True) + (noise & 0xFFFF)) & -65536
        return tl.where(value - value == 0.0, bits.to(tl.float32, bitcast=True), value)
    return value


@triton.jit(do_not_specialize=["lr", "decay"])
def _step(  # type: ignore[no-untyped-def]
    weights,
    gradients,
    firsts,
    seconds,
    figures,
    seeds,
    lr,
    beta1,
    beta2,
    eps,
    decay,
    numel,
    BLOCK: tl.constexpr,  # noqa: N803
    ROUND: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, BLOCK)
    at = program * BLOCK + within
    factor = tl.load(figures)
    correction1 = tl.load(figures + 1)
    correction2 = tl.load(figures + 2)
    seed = tl.load(seeds)
    here = at < tl.where(factor - factor == 0.0, numel, 0)  # not finite: the step is left out
    gradient = tl.load(gradients + at, mask=here, other=0.0).to(tl.float32) * factor
    first = tl.load(firsts + at, mask=here, other=0.0).to(tl.float32) * beta1 + gradient * (1.0 - beta1)
    second = tl.load(seconds + at, mask=here, other=0.0).to(tl.float32) * beta2 + gradient * gradient * (1.0 - beta2)
    change = (first / correction1) / (tl.sqrt(second / correction2) + eps)
    weight = tl.load(weights + at, mask=here, other=0.0).to(tl.float32)
    weight = weight * (1.0 - lr * decay) - lr * change
    noise, more, _, _ = tl.randint4x(seed + program, within, n_rounds=7)  # the fewest that pass statistical tests (Salmon et al. 2011)
    kind = weights.dtype.element_ty
    tl.store(weights + at, _rounded(weight, noise.to(tl.int32, bitcast=True), ROUND).to(kind), mask=here)
    tl.store(firsts + at, _rounded(first, more.to(tl.int32, bitcast=True), ROUND).to(kind), mask=here)
    tl.store(seconds + at, _rounded(second, more.to(tl.int32, bitcast=True) >> 16, ROUND).to(kind), mask=here)


def step_(
    weights: torch.Tensor,
    gradients: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    figures: torch.Tensor,
    seed: torch.Tensor,
    lr: float,
    *,
    betas: tuple[float, float],
    options: tuple[float, float],
) -> None:
    """AdamW in place on `weights`, `first` and `second`, all [n], contiguous and of one type.

    `figures`: fp32, begins with what the gradients are multiplied by, and what the moments are divided by, 1 - beta**step; a factor that is
    not finite changes nothing. `seed`: int64, begins with what the random bits hang on, below 2**62. Both are on the device, where the
    step is counted. `options`: epsilon and weight decay.
    """
    numel = weights.numel()
    _step[(triton.cdiv(numel, BLOCK),)](
        weights,
        gradients,
        first,
        second,
        figures,
        seed,
        lr,
        *betas,
        *options,
        numel,
        BLOCK=BLOCK,
        ROUND=weights.dtype == torch.bfloat16,
        num_warps=NUM_WARPS,
    )
