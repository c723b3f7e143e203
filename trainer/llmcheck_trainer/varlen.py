"""Attention of packed rows without a mask: PyTorch's flash kernel told where each row begins and ends.

A mask of blocks, which scaled_dot_product_attention would need, rules out the flash kernels: every score above the diagonal and between
rows is then computed and thrown away, and grouped keys are copied for every head. Here each row is a sequence of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "llmcheck_rows"  # transformers makes no mask for an attention that it has none for
BOUNDS = "row_bounds"
# Families whose layers hand what the model is called with on to their attention, and whose attention is plain (causal; no bias, no sinks,
# no soft cap, keys as wide as values): proven by tests/trainer/test_varlen.py, family by family. A window shorter than a sequence is not
# packed in the first place (placement.choose_packing).
FAMILIES = frozenset(
    (
        "apertus arcee cohere cohere2 ernie4_5 exaone4 gemma gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox granite granitemoe "
        "helium hunyuan_v1_dense llama minimax_m2 ministral ministral3 mistral mixtral olmo olmo2 olmo3 olmoe phi phi3 qwen2 qwen2_moe "
        "qwen3 qwen3_moe seed_oss smollm3 starcoder2"
    ).split()
)
_MAX_HEAD_DIM = 256  # of PyTorch's flash kernel


def supported(family: str, config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs this model on this device."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        family in FAMILIES
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= _MAX_HEAD_DIM
        and head_dim % 8 == 0
    )


def install(model: Any) -> None:
    """Make the layers of `model` call :func:`attention`; it must then be called with bounds."""
    AttentionInterface.register(NAME, attention)
    model.config._attn_implementation = NAME


def bounds(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where the rows of a packed micro-batch begin, and the end, as int32 on the host; the longest row. Rows begin at position 0."""
    flat = position_ids.reshape(-1)
    starts = torch.nonzero(flat == 0).flatten()
    ends = torch.cat((starts, torch.tensor([flat.numel()])))
    return ends.to(torch.int32), int(ends.diff().max())


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_bounds: tuple[torch.Tensor, int] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. `query`: [b, heads, s, d]; returns [b, s, heads, d]."""
    assert attention_mask is None
    assert row_bounds is not None, f"{type(module).__name__} did not get {BOUNDS}"
    ends, longest = row_bounds
    batch, _, length, _ = query.shape
    if query.device.type != "cuda":
        return _on_host(module, query, key, value, ends, dropout, scaling), None
    q, k, v = (t.transpose(1, 2).reshape(batch * length, t.shape[1], t.shape[3]) for t in (query, key, value))
    out = torch.ops.aten._flash_attention_forward(q, k, v, ends, ends, longest, longest, dropout, True, False, scale=scaling)[0]
    return out.view(batch, length, *out.shape[1:]), None


def _on_host(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, dropout: float, scale: Any
) -> torch.Tensor:
    """The same with a mask, for machines without the kernel; tests compare with it."""
    del module
    batch, heads, length, _ = query.shape
    row = torch.searchsorted(ends.long(), torch.arange(batch * length), right=True).view(batch, length)
    at = torch.arange(length)
    visible = (row[:, :, None] == row[:, None, :]) & (at[None, :] <= at[:, None])
    groups = heads // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None], dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).contiguous()
