"""Liger kernels with their defaults (liger-kernel 0.8.5): RMSNorm, rotary embedding, SwiGLU, fused linear cross-entropy.

Each is a ``torch.autograd.Function``: it saves after its forward. Rotary, SwiGLU's backward and RMSNorm's gradient work in place.
"""

from __future__ import annotations

from math import prod
from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import keep, record
from llmcheck.shadow.tape import Storage, cur, flops
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.units import ceil_div

# Families whose Liger patch (``liger_kernel/transformers/monkey_patch.py``: norms, rotary, gated MLP, fused loss) is modelled here.
FAMILIES = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"))


def rms_norm(x: Tensor, w: Param, in_place: bool = True) -> Tensor:
    """``LigerRMSNormFunction``: result and the reciprocal norms; backward in place, plus [SMs, h] fp32 partial sums for the weight."""
    x = ops.contiguous(x)
    rows, h = prod(x.shape[:-1]), x.shape[-1]
    out = Tensor(x.shape, x.item)
    rstd = Storage(4 * rows)
    if cur.grad and (x.req or w.req):
        need_w, item = w.req, x.item
        sms = cur.kernels.num_sms if cur.kernels is not None else 1

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            g = ops.contiguous(g)
            partial = Storage(4 * sms * h) if need_w else None
            gx = Tensor(g.shape, g.item, g.st, None, True) if in_place else Tensor(g.shape, g.item)
            gw = None
            if need_w:
                total = Storage(4 * h)
                gw = Tensor((h,), item)
                del total
            del partial
            return [gx, gw]

        record(out, back, (x, w), (keep(x), keep(w), rstd))
    return out


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``LigerRopeFunction`` on [b, H, s, d] views of [b, s, H, d]: in place, forward and backward."""
    outs = []
    for t in (q, k):
        physical = ops.transpose(t.detach(), 1, 2)
        if physical.strides is not None:
            physical = Tensor(physical.shape, t.item)
        turned = ops.transpose(physical, 1, 2)
        outs.append(Tensor(turned.shape, t.item, turned.st, turned.strides))
    if cur.grad and (q.req or k.req):

        def back(s: Any, grads: list[Tensor | None]) -> list[Tensor | None]:
            res: list[Tensor | None] = []
            for g in grads:
                if g is None:
                    res.append(None)
                    continue
                physical = ops.transpose(g, 1, 2)
                if physical.strides is not None:
                    physical = Tensor(physical.shape, g.item)
                turned = ops.transpose(physical, 1, 2)
                turned.view = True
                res.append(turned)
            return res

        record(outs[0], back, (q, k), (cos.st, sin.st))
        node = outs[0].node
        assert node is not None
        node.slots = 2
        outs[1].node, outs[1].slot, outs[1].req = node, 1, True
    return outs[0], outs[1]


def gated(a: Tensor, b: Tensor) -> Tensor:
    """``LigerSiLUMulFunction`` / ``LigerGELUMulFunction``: the backward overwrites the two saved inputs."""
    out = Tensor(a.shape, a.item)
    if cur.grad and (a.req or b.req):
        sa, sb, item = a.shape, b.shape, a.item

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            g = ops.contiguous(g)
            return [Tensor(sa, item, s[0], None, True), Tensor(sb, item, s[1], None, True)]

        record(out, back, (a, b), (keep(a), keep(b)))
    return out


def fused_linear_cross_entropy(hidden: Tensor, w: Param, labels: Tensor) -> Tensor:
    """``LigerFusedLinearCrossEntropyFunction``: both gradients are made in the forward, the logits chunk by chunk in one buffer.

    `hidden`: [r, h], `w`: [V, h].
    """
    rows, h = hidden.shape
    vocab = w.shape[0]
    factor = ceil_div(vocab, h)
    wanted = ceil_div(rows, factor)
    chunk = min(1 << max(0, (wanted - 1).bit_length()), rows)
    need = cur.grad and (hidden.req or w.req)
    need_w = cur.grad and w.req
    grad_input = Tensor((rows, h), hidden.item)
    grad_weight = Tensor((vocab, h), w.item) if need_w and hidden.req else None
    loss_1d = Storage(4 * rows)
    logits = Storage(chunk * vocab * hidden.item)
    if cur.kernels is not None:
        cur.kernels.matmul_workspace(False)
    flops(2.0 * rows * vocab * h * (1 + need + need_w))
    del logits
    out = Tensor((), 4)
    del loss_1d
    if need:
        gi = (grad_input.shape, grad_input.item)
        gw = None if grad_weight is None else (grad_weight.shape, grad_weight.item)

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            return [
                Tensor(gi[0], gi[1], s[0], None, True),
                None if gw is None else Tensor(gw[0], gw[1], s[1]),
            ]

        record(out, back, (hidden, w), (grad_input.st, None if grad_weight is None else grad_weight.st))
    return out
