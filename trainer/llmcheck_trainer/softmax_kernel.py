"""The cross-entropy of a chunk of logits, and its gradient in their place, as one Triton kernel: two reads and a write, no fp32 copy.

Triton comes with PyTorch for GPUs. On machines without it, loss.py does the same with PyTorch's own kernels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 8192
NUM_WARPS = 16


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    logits,
    stride,
    targets,
    factors,
    losses,
    cap,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    CAPPED: tl.constexpr,  # noqa: N803
    GRAD: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    target = tl.load(targets + row)
    picked = tl.load(base + tl.maximum(target, 0)).to(tl.float32)  # before the sums, whose barriers keep it from the stores below
    highest = -float("inf")
    total = 0.0
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(base + at, mask=at < VOCAB, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    normaliser = highest + tl.log(total)
    tl.store(losses + row, tl.where(target >= 0, normaliser - picked, 0.0))
    if GRAD:
        factor = tl.load(factors + row)
        for start in range(0, VOCAB, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(base + at, mask=at < VOCAB, other=0.0).to(tl.float32)
            g = tl.exp(x - normaliser) - tl.where(at == target, 1.0, 0.0)
            if CAPPED:  # d(cap·tanh(x/cap))/dx = 1 - (y/cap)²
                g = g * (1.0 - (x / cap) * (x / cap))
            tl.store(base + at, (g * factor).to(logits.dtype.element_ty), mask=at < VOCAB)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor, *, softcap: float | None, grad: bool
) -> torch.Tensor:
    """The loss of each row ([rows], fp32; zero where the target is negative). With `grad`, `logits` become the gradient times `factors`.

    `logits`: [rows, vocab], contiguous, already capped; `targets`: [rows], int64; `factors`: [rows], fp32, zero for rows not in the loss.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _rows[(len(logits),)](
        logits,
        logits.stride(0),
        targets,
        factors,
        losses,
        softcap or 1.0,
        VOCAB=logits.shape[1],
        BLOCK=BLOCK,
        CAPPED=softcap is not None,
        GRAD=grad,
        num_warps=NUM_WARPS,
    )
    return losses
