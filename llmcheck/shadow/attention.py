"""Attention: scaled_dot_product_attention by back end, the eager path of transformers, and the masks.

Shapes: query [b, H, s, d], key and value [b, Hkv, s, d]. Sources: ``aten/native/transformers/cuda/attention.cu`` and
``attention_backward.cu``, ``transformers/masking_utils.py``, ``integrations/sdpa_attention.py``.
"""

from __future__ import annotations

from typing import Any

from llmcheck.shadow import ops
from llmcheck.shadow.autograd import keep, record
from llmcheck.shadow.kernels import flash_backward_buffers
from llmcheck.shadow.tape import Note, Storage, cur, flops
from llmcheck.shadow.tensor import Tensor
from llmcheck.units import round_up


def repeat_kv(t: Tensor, n: int) -> Tensor:
    """Key or value heads repeated `n` times: a copy."""
    if n == 1:
        return t
    b, h, s, d = t.shape
    return ops.reshape(ops.expand(ops.unsqueeze(t, 2), b, h, n, s, d), b, h * n, s, d)


# Rows in a packed sequence, where it matters: the flash kernel's backward pads each to a multiple of 128. So does `llmcheck probe`.
ROWS_PER_SEQUENCE = 4
# Families that the trainer gives to the flash kernel row by row (its varlen.FAMILIES; tests/trainer compares the two).
ROW_FAMILIES = frozenset(
    (
        "apertus arcee cohere cohere2 ernie4_5 exaone4 gemma gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox granite granitemoe "
        "helium hunyuan_v1_dense llama minimax_m2 ministral ministral3 mistral mixtral olmo olmo2 olmo3 olmoe phi phi3 qwen2 qwen2_moe "
        "qwen3 qwen3_moe seed_oss smollm3 starcoder2"
    ).split()
)
# Families whose rows can share a sequence (the trainer's placement.PACKED; the same test).
PACKED_FAMILIES = frozenset(
    (
        "apertus arcee bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 "
        "glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite granitemoe helium hunyuan_v1_dense llama minimax_m2 "
        "ministral ministral3 mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss "
        "smollm3 stablelm starcoder2"
    ).split()
)
WITHOUT_DEVICE = "cudnn"  # the back end where no device is simulated (comparisons with recorded event lists)


def _choose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, enable_gqa: bool) -> str:
    """The back end that ``_fused_sdp_choice`` takes on the simulated device."""
    if cur.kernels is None:
        return WITHOUT_DEVICE
    d, dv = q.shape[-1], v.shape[-1]
    groups = q.shape[1] != k.shape[1]
    for name in cur.kernels.sdpa_backends:
        if groups and (not enable_gqa or name == "efficient"):
            continue
        if q.item == 4 and name in ("cudnn", "flash"):
            continue
        if name == "cudnn" and (max(d, dv) > cur.kernels.cudnn_head_dim or d % 8 or dv % 8):
            continue
        if name == "flash" and (mask is not None or d > 256 or d != dv):
            continue
        return str(name)
    return "math"


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, enable_gqa: bool = True) -> Tensor:
    """``F.scaled_dot_product_attention``; result [b, H, s, dv] in the query's layout."""
    if mask is not None and mask.item == 1:
        # a boolean mask becomes an additive one: torch 2.11 inverts it first (h10-ministral of benchmarks/holdout), 2.13 no longer
        inverse = Tensor(mask.shape, 1) if cur.kernels is not None else None
        mask = Tensor(mask.shape, q.item)
        del inverse
    name = _choose(q, k, v, mask, enable_gqa)
    if name == "math":
        return _math(q, k, v, mask, dropout, enable_gqa)
    b, heads, s, d = q.shape
    dv = v.shape[-1]
    item = q.item
    work = float(b * heads * s * k.shape[2] * (d + dv))  # causal: half of the two products
    flops(work, Note.ATTENTION)
    if name == "cudnn":
        seeds = (Storage(8), Storage(8))
        out = Tensor((b, heads, s, dv), item, None, ops.dense_strides((b, heads, s, dv), q.strides))
        lse = Storage(4 * b * heads * s)
        if cur.kernels is not None:
            Storage(256)  # cuDNN's workspace
    elif name == "flash":
        pad = -d % 8
        if pad:  # q, k, v padded to a multiple of eight
            q, k, v = _padded(q, pad), _padded(k, pad), _padded(v, pad)
        out = ops.transpose(Tensor((b, s, heads, dv + pad), item), 1, 2)
        if pad:
            out = ops.narrow(out, -1, dv)
        lse = Storage(4 * b * heads * s)
        seeds = (Storage(8), Storage(8))
    else:
        out = ops.transpose(Tensor((b, s, heads, dv), item), 1, 2)
        lse = Storage(4 * b * heads * round_up(s, 32))
        seeds = (Storage(8), Storage(8))
    out.view = False
    if cur.grad and (q.req or k.req or v.req):
        shapes = [(t.shape, t.strides) for t in (q, k, v)]

        def back(saved: Any, g: Tensor) -> list[Tensor | None]:
            flops(3 * work, Note.ATTENTION)  # five products for two, at a somewhat lower rate
            if name == "cudnn":
                grads: list[Tensor | None] = [Tensor(sh, item, None, ops.dense_strides(sh, st)) for sh, st in shapes]
                if cur.kernels is not None:
                    # cuDNN's workspace: the fp32 query gradient, row sums; grouped keys and values also get gradients of all heads first
                    expanded = item * b * s * heads * (d + dv) if shapes[1][0][1] != heads else 0
                    Storage(4 * b * s * heads * d + expanded + 4 * b * heads * s + 256)
                return grads
            if name == "flash":
                kv = shapes[1][0][1]
                accumulator, delta = flash_backward_buffers(b, heads, s, d)
                dq = ops.transpose(Tensor((b, s, heads, d), item), 1, 2)
                dk = ops.transpose(Tensor((b, s, kv, d), item), 1, 2)
                dv_ = ops.transpose(Tensor((b, s, kv, d), item), 1, 2)
                temps = [Storage(delta), Storage(accumulator)]
                if kv != heads:
                    temps += [Storage(b * s * heads * d * item), Storage(b * s * heads * d * item)]
                del temps
                return [dq, dk, dv_]
            grads = [ops.transpose(Tensor((sh[0], sh[2], sh[1], sh[3]), item), 1, 2) for sh, _ in shapes]
            temps = [Storage(4 * b * heads * s), Storage(4 * b * heads * s * d)]
            del temps
            return grads

        record(out, back, (q, k, v), (keep(q), keep(k), keep(v), out.st, lse, *seeds, mask and keep(mask)))
    return out


def _padded(t: Tensor, pad: int) -> Tensor:
    out = Tensor(t.shape[:-1] + (t.shape[-1] + pad,), t.item)
    if cur.grad and t.req:
        shape, item = t.shape, t.item
        record(out, lambda s, g: (Tensor(shape, item),), (t,), ())
    return out


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, gqa: bool) -> Tensor:
    """``_scaled_dot_product_attention_math`` (aten/native/transformers/attention.cpp): everything in fp32, then converted back."""
    query_acc, key_acc, value_acc = ops.cast(q, 4), ops.cast(k, 4), ops.cast(v, 4)
    query = ops.scale(query_acc)
    if mask is None:
        grid = (q.shape[2], k.shape[2])
        mask = Tensor(grid, 1)
        mask = Tensor(grid, 1)  # its lower triangle
        mask = Tensor(grid, 4)
    n = q.shape[1] // k.shape[1] if gqa else 1
    key_expanded, value_expanded = repeat_kv(key_acc, n), repeat_kv(value_acc, n)
    attn = ops.matmul(query, ops.scale(ops.transpose(key_expanded, -2, -1)))
    attn = ops.add_(attn, mask)
    attn = ops.safe_softmax(attn)
    attn = ops.dropout(attn, dropout)
    returned = ops.cast(attn, q.item)  # the probabilities, which nobody takes
    out = ops.cast(ops.matmul(attn, value_expanded), q.item)
    del returned
    return out


def sdpa_attention_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """``sdpa_attention_forward`` of transformers: [b, s, H, d], contiguous."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and not (mask is None and k.shape[-1] == v.shape[-1] <= 256):
        k = repeat_kv(k, groups)
        v = repeat_kv(v, groups)
    out = sdpa(q, k, v, mask, dropout)
    return ops.contiguous(ops.transpose(out, 1, 2))


def eager_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, softcap: bool = False
) -> tuple[Tensor, Tensor]:
    """``eager_attention_forward`` of transformers (Llama's; `softcap`: Gemma2's): output [b, s, H, d] and the probabilities."""
    groups = q.shape[1] // k.shape[1]
    key_states = repeat_kv(k, groups)
    value_states = repeat_kv(v, groups)
    attn_weights = ops.scale(ops.matmul(q, ops.transpose(key_states, 2, 3)))
    if softcap:
        attn_weights = ops.scale(attn_weights)
        attn_weights = ops.tanh(attn_weights)
        attn_weights = ops.scale(attn_weights)
    if mask is not None:
        attn_weights = ops.add(attn_weights, mask)
    attn_weights = ops.cast(ops.softmax_fp32(attn_weights), q.item)
    attn_weights = ops.dropout(attn_weights, dropout)
    attn_output = ops.matmul(attn_weights, value_states)
    attn_output = ops.contiguous(ops.transpose(attn_output, 1, 2))
    return attn_output, attn_weights


def flash_attention_forward(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """The ``flash-attn`` package through transformers: [b, s, H, d]; q, k, v are transposed back without a copy."""
    b, heads, s, d = q.shape
    kv = k.shape[1]
    item = q.item
    q, k, v = (ops.contiguous(ops.transpose(t, 1, 2)) if t.strides is None else ops.transpose(t, 1, 2) for t in (q, k, v))
    out = Tensor((b, s, heads, d), item)
    lse = Storage(4 * b * heads * s)
    work = 2.0 * b * heads * s * s * d
    flops(work, Note.ATTENTION)
    if cur.grad and (q.req or k.req or v.req):

        def back(saved: Any, g: Tensor) -> list[Tensor | None]:
            flops(3 * work, Note.ATTENTION)
            accumulator, delta = flash_backward_buffers(b, heads, s, d)
            grads: list[Tensor | None] = [Tensor((b, s, n, d), item) for n in (heads, kv, kv)]
            temps = [Storage(delta), Storage(accumulator)]
            if kv != heads:
                temps += [Storage(b * s * heads * d * item), Storage(b * s * heads * d * item)]
            del temps
            return grads

        record(out, back, (q, k, v), (keep(q), keep(k), keep(v), out.st, lse))
    return out


def rows_attention_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """The trainer's ``varlen.attention``: ``mha_varlen_fwd`` and ``mha_varlen_bwd`` of PyTorch's flash kernel, rows one after another."""
    b, heads, s, d = q.shape
    kv, item, tokens = k.shape[1], q.item, b * s
    q, k, v = (ops.reshape(ops.transpose(t, 1, 2), tokens, t.shape[1], d) for t in (q, k, v))
    out = Tensor((tokens, heads, d), item)
    lse = Storage(4 * heads * tokens)
    seeds = (Storage(16), Storage(8))
    work = 2.0 * tokens * heads * (s // ROWS_PER_SEQUENCE) * d
    flops(work, Note.ATTENTION)
    if cur.grad and (q.req or k.req or v.req):

        def back(saved: Any, g: Tensor) -> list[Tensor | None]:
            flops(3 * work, Note.ATTENTION)
            grads: list[Tensor | None] = [Tensor((tokens, n, d), item) for n in (heads, kv, kv)]
            padded = tokens + 128 * b * ROWS_PER_SEQUENCE
            temps = [Storage(4 * heads * padded), Storage(4 * heads * padded * round_up(d, 32 if d <= 128 else 64))]
            if kv != heads:
                temps += [Storage(tokens * heads * d * item), Storage(tokens * heads * d * item)]
            del temps
            return grads

        record(out, back, (q, k, v), (keep(q), keep(k), keep(v), bounds.st, out.st, lse, *seeds))
    return ops.view(out, b, s, heads, d)


def attention_interface(
    kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, softcap: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The attention interface by name: output [b, s, H, d], and the probabilities where the eager one ran, which alone knows `softcap`."""
    if kind == "eager":
        return eager_attention_forward(q, k, v, mask, dropout, softcap)
    return attention(kind, q, k, v, mask, dropout), None


def attention(kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The attention interface by name; [b, s, H, d]."""
    if kind == "eager":
        return eager_attention_forward(q, k, v, mask, dropout)[0]
    if kind == "flash":
        return flash_attention_forward(q, k, v, dropout)
    if cur.packed is not None and cur.packed.bounds is not None:
        return rows_attention_forward(q, k, v, cur.packed.bounds)
    return sdpa_attention_forward(q, k, v, mask, dropout)


def position_ids_of(seq: int) -> Tensor:
    """Positions [1, s] as a model makes them, or those [b, s] that came with packed rows."""
    return Tensor((1, seq), 8) if cur.packed is None else cur.packed.positions


def block_mask(positions: Tensor, item: int) -> Tensor:
    """The trainer's ``placement.block_mask``: [b, 1, s, s] to be added to scores, made from the positions of packed rows."""
    batch, seq = positions.shape
    at = Tensor((seq,), 8)
    block = Tensor((batch, seq), 8)
    same = Tensor((batch, seq, seq), 1)
    earlier = Tensor((seq, seq), 1)
    visible = Tensor((batch, seq, seq), 1)
    del same, earlier
    mask = Tensor((batch, 1, seq, seq), item)
    hidden = Tensor((batch, seq, seq), 1)
    del hidden, visible, block, at
    return mask


def causal_mask(kind: str, batch: int, seq: int, item: int, window: int | None = None, always: bool = False) -> Tensor | None:
    """``create_causal_mask`` / ``create_sliding_window_causal_mask`` with an attention mask of ones.

    SDPA needs none unless a window is active or the model asks for one (`always`), then a byte mask [b, 1, s, s]; eager takes an additive
    mask in the model's type. The mask of packed rows is taken as it came.
    """
    if cur.packed is not None:
        return cur.packed.mask
    if kind == "flash":
        return None
    if kind == "sdpa" and not always and not (window is not None and seq >= window):
        return None
    masked = _byte_mask(batch, seq, window)
    if kind == "sdpa":
        return masked
    return Tensor((batch, 1, seq, seq), item)  # torch.where(mask, 0, min)


def _byte_mask(batch: int, seq: int, window: int | None) -> Tensor:
    """The masks of a mask function combined one by one: [1, 1, s, s] comparisons and products, with the padding [b, 1, s, s]."""
    grid = (1, 1, seq, seq)
    if window is None:
        one = Tensor(grid, 1)  # key <= query
        pattern = Tensor(grid, 1)
    else:
        one = Tensor(grid, 1)  # key > query - window
        first = Tensor(grid, 1)
        del one
        one = Tensor(grid, 1)  # key <= query
        both = Tensor(grid, 1)
        del one, first
        one = both
        pattern = Tensor(grid, 1)
        del both
    del one
    out = Tensor((batch, 1, seq, seq), 1)
    del pattern
    return out
