"""The head and the loss over the vocabulary: transformers' own, ours in chunks, and Liger's fused linear cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.autograd import record
from llmcheck.shadow.module import Linear, ModulesToSaveWrapper
from llmcheck.shadow.tape import Storage, cur, flops
from llmcheck.shadow.tensor import Param, Tensor

CHUNK_TOKENS = 1024  # tokens whose logits exist at a time in our chunked loss (the trainer's constant, too)


def head_and_loss(
    lm_head: Linear | ModulesToSaveWrapper,
    hidden_states: Tensor,
    labels: Tensor,
    kind: str,
    post: Sequence[Callable[[Tensor], Tensor]] = (),
) -> tuple[Tensor, Tensor | None]:
    """(loss, logits). `post`: what the family does to its logits (scaling, soft cap) between head and loss, one by one."""
    before, cur.category = cur.category, "logits"
    try:
        if kind == "liger":
            return _without_logits(liger.fused_linear_cross_entropy, lm_head, hidden_states, labels), None
        if kind == "chunked":
            return _without_logits(chunked_cross_entropy, lm_head, hidden_states, labels), None
        logits = lm_head(hidden_states)
        for step in post:
            logits = step(logits)
        loss = causal_lm_loss(logits, labels)
        return loss, logits
    finally:
        cur.category = before


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``ForCausalLMLoss``: fp32 copy, shifted labels, mean cross-entropy."""
    logits = ops.cast(logits, 4)
    labels = Tensor((labels.shape[0], labels.shape[1] + 1), 8)
    shift_labels = Tensor((labels.shape[0] * (labels.shape[1] - 1),), 8)
    vocab = logits.shape[-1]
    logits = ops.reshape(logits, -1, vocab)
    return ops.cross_entropy(logits, shift_labels)


def _without_logits(fn: Callable[..., Tensor], lm_head: Linear | ModulesToSaveWrapper, hidden_states: Tensor, labels: Tensor) -> Tensor:
    labels = Tensor((labels.shape[0], labels.shape[1] + 1), 8)
    shift_labels = Tensor((labels.shape[0] * (labels.shape[1] - 1),), 8)
    hidden_states = ops.reshape(hidden_states, -1, hidden_states.shape[-1])
    hooks = cur.hooks
    lm_head = lm_head.active if isinstance(lm_head, ModulesToSaveWrapper) else lm_head
    bias = lm_head.bias
    if hooks is not None:  # the weight is read outside its module's call: ZeRO-3 gathers it on access
        hooks.gather_external(lm_head)
    return fn(hidden_states, lm_head.weight, shift_labels) if bias is None else fn(hidden_states, lm_head.weight, shift_labels, bias)


def chunked_cross_entropy(hidden: Tensor, w: Param, labels: Tensor, bias: Param | None = None) -> Tensor:
    """Our chunked loss: both gradients are made in the forward, `CHUNK_TOKENS` rows at a time; fp32 only inside a chunk.

    `hidden`: [r, h], `w`: [V, h], `bias`: [V]. Per chunk: logits in the model's type, which become the gradient in place; losses and
    factors of its rows in fp32.
    """
    rows, h = hidden.shape
    vocab = w.shape[0]
    chunk = min(CHUNK_TOKENS, rows)
    need_w = cur.grad and w.req
    grad_input = Tensor((rows, h), hidden.item)
    grad_weight = Tensor((vocab, h), w.item) if need_w else None
    grad_bias = Tensor((vocab,), bias.item) if bias is not None and cur.grad and bias.req else None
    logits = Storage(chunk * vocab * hidden.item)
    if cur.kernels is not None:
        cur.kernels.matmul_workspace(False)
    rest = Storage(chunk * 4), Storage(chunk * 4)  # losses, and factors of their gradients (llmcheck_trainer/softmax_kernel.py)
    flops(2.0 * rows * vocab * h * (2 + need_w))
    if grad_bias is not None:
        ops.column_sum(chunk, vocab, hidden.item)  # of a chunk's gradient, added to the bias's
    del rest, logits
    out = Tensor((), 4)
    if cur.grad and (hidden.req or w.req):
        gi = (grad_input.shape, grad_input.item)
        gw = None if grad_weight is None else (grad_weight.shape, grad_weight.item)

        def back(s: Any, g: Tensor) -> list[Tensor | None]:
            grads: list[Tensor | None] = [Tensor(gi[0], gi[1], s[0], None, True), None if gw is None else Tensor(gw[0], gw[1], s[1])]
            if bias is not None:
                grads.append(None if s[2] is None else Tensor(bias.shape, bias.item, s[2]))
            return grads

        kept = [None if t is None else t.st for t in (grad_weight, grad_bias)]
        record(out, back, (hidden, w) if bias is None else (hidden, w, bias), (grad_input.st, *kept))
    return out
