"""The loss over the vocabulary: transformers' own, a chunked one, and Liger's fused linear cross-entropy."""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.tensor import Tensor


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``ForCausalLMLoss``: fp32 copy, shifted labels, mean cross-entropy."""
    logits = ops.cast(logits, 4)
    labels = Tensor((labels.shape[0], labels.shape[1] + 1), 8)
    shift_labels = Tensor((labels.shape[0] * (labels.shape[1] - 1),), 8)
    vocab = logits.shape[-1]
    logits = ops.reshape(logits, -1, vocab)
    return ops.cross_entropy(logits, shift_labels)
