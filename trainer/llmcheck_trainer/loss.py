"""The head and the loss: the sum of the cross-entropies of a micro-batch's supervised tokens, as transformers computes it or in chunks.

Every kind returns the sum, never a mean: what it is divided by, the supervised tokens of the whole global batch, is the training
step's to know. Dividing a micro-batch's mean instead weights short answers wrongly (transformers#35203).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutput

from llmcheck.errors import UserError

CHUNK_TOKENS = 1024  # tokens whose logits exist at a time; the simulation's constant (llmcheck/shadow/loss.py), too
IGNORED = -100
CrossEntropy = Callable[..., torch.Tensor]


class Post(NamedTuple):
    """What a family does to its logits between head and loss. At most one is set."""

    multiply: float | None = None  # Cohere
    divide: float | None = None  # Granite
    softcap: float | None = None  # Gemma 2 and later

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """In place, in the order and the type of the family's own code."""
        if self.multiply is not None:
            logits.mul_(self.multiply)
        if self.divide is not None:
            logits.div_(self.divide)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The same with gradients."""
        if self.multiply is not None:
            logits = logits * self.multiply
        if self.divide is not None:
            logits = logits / self.divide
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def post_of(config: Any) -> Post:
    """The head's post-processing as the configuration of the model gives it."""
    return Post(
        multiply=getattr(config, "logit_scale", None),
        divide=getattr(config, "logits_scaling", None),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """The label of each position's next token, flat."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous().view(-1)


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """``ForCausalLMLoss`` of transformers with the sum in place of the mean; installed as the model's `loss_function`."""
    logits = logits.float()
    targets = shifted(labels)
    return F.cross_entropy(logits.view(-1, vocab_size), targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, post: Post | None = None
) -> torch.Tensor:
    """The summed cross-entropy of ``hidden @ weight.T + bias`` without all logits at once. `hidden`: [..., h], `labels`: [b, s]."""
    targets = shifted(labels)
    loss: torch.Tensor = _ChunkedSum.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, targets, post or Post(), torch.is_grad_enabled()
    )
    return loss


class _ChunkedSum(torch.autograd.Function):
    """Loss and both gradients in the forward, CHUNK_TOKENS rows at a time, in one buffer of logits that all chunks share."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, post: Post, grad: bool
    ) -> torch.Tensor:
        rows, vocab = hidden.shape[0], weight.shape[0]
        chunk = min(CHUNK_TOKENS, rows)
        grad_hidden = torch.empty_like(hidden) if grad else None
        grad_weight = torch.zeros_like(weight) if grad and weight.requires_grad else None
        grad_bias = torch.zeros_like(bias) if grad and bias is not None and bias.requires_grad else None
        buffer = hidden.new_empty(chunk, vocab)
        total = hidden.new_zeros((), dtype=torch.float32)
        cross_entropy_ = _kernel() if hidden.is_cuda else None
        for start in range(0, rows, chunk):
            part, target = hidden[start : start + chunk], targets[start : start + chunk]
            logits = buffer[: len(part)]
            if bias is None:
                torch.mm(part, weight.t(), out=logits)
            else:
                torch.addmm(bias, part, weight.t(), out=logits)
            post.apply_(logits)
            # Of the gradient; zero where the row is not supervised.
            factors = (target != IGNORED).float().mul_((post.multiply or 1.0) / (post.divide or 1.0))
            total += (cross_entropy_ or _cross_entropy_)(logits, target, factors, softcap=post.softcap, grad=grad).sum()
            if grad_hidden is None:
                continue
            torch.mm(logits, weight, out=grad_hidden[start : start + chunk])
            if grad_weight is not None:
                grad_weight.addmm_(logits.t(), part)
            if grad_bias is not None:
                grad_bias.add_(logits.sum(0))
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the factor (1 / supervised tokens, the loss scale) comes now, so that fp16 never holds p/N unscaled.
        return (*(None if g is None else g.mul_(outer[0]) for g in gradients), None, None, None)


@functools.cache
def _kernel() -> CrossEntropy | None:
    """The kernel of softmax_kernel.py, where there is Triton, which PyTorch's builds for GPUs on Linux bring along."""
    try:
        from llmcheck_trainer.softmax_kernel import cross_entropy_
    except ImportError:
        return None
    return cross_entropy_


def _cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor, *, softcap: float | None, grad: bool
) -> torch.Tensor:
    """What the kernel does, with PyTorch's own and an fp32 copy of the chunk or two."""
    fp32 = logits.float()
    losses = F.cross_entropy(fp32, targets, ignore_index=IGNORED, reduction="none")
    if grad:
        gradient = torch.softmax(fp32, 1)
        gradient.scatter_add_(1, targets.clamp_min(0).unsqueeze(1), gradient.new_full((len(gradient), 1), -1.0))
        if softcap is not None:  # d(cap·tanh(x/cap))/dx = 1 - (y/cap)²
            gradient.mul_(1.0 - (fp32 / softcap).square())
        logits.copy_(gradient.mul_(factors.unsqueeze(1)))
    return losses


def head_parameters(model: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the output projection, or of the copy that peft's modules_to_save trains."""
    head = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save["default"]
    return head.weight, getattr(head, "bias", None)


def _sum_in_liger(model: Any) -> None:
    """Liger's forward takes a mean of its own, past `loss_function`, unless it is told what to divide the sum by."""
    fused = model.forward

    def forward(*args: Any, labels: torch.Tensor | None = None, **rest: Any) -> Any:
        return fused(*args, labels=labels, **rest) if labels is None else fused(*args, labels=labels, num_items_in_batch=1, **rest)

    model.forward = forward


def install(model: Any, kind: str, *, own_forward: bool = False) -> None:
    """Make `model(input_ids=, labels=)` return the summed loss of `kind` ("hf", "chunked", "liger").

    With "hf" the stock forward stays, logits and all, unless `own_forward`. Raises UserError for an adapter on the head with "chunked".
    """
    model.loss_function = summed_cross_entropy
    if kind == "liger":
        _sum_in_liger(model)
        return
    if kind == "hf" and not own_forward:
        return
    post = post_of(model.config)
    if hasattr(model.get_output_embeddings(), "base_layer") and kind == "chunked":
        raise UserError(
            "the chunked loss reads the output projection's weight, and this one has an adapter",
            code="conflict",
            where="recipe.loss, recipe.lora.targets",
            hint="plan with --loss hf, or leave the head out of --lora-targets",
        )

    def forward(input_ids: torch.Tensor, labels: torch.Tensor | None = None, **rest: Any) -> CausalLMOutput:
        rest = {name: value for name, value in rest.items() if value is not None and name not in ("logits_to_keep", "return_dict")}
        hidden = model.base_model(input_ids=input_ids, **rest)[0]
        if labels is not None and kind == "chunked":
            return CausalLMOutput(loss=chunked_cross_entropy(hidden, *head_parameters(model), labels, post))
        logits = post.apply(model.get_output_embeddings()(hidden))
        loss = None if labels is None else summed_cross_entropy(logits, labels, logits.shape[-1])
        return CausalLMOutput(loss=loss, logits=logits)

    model.forward = forward
