"""What one micro-step executes: matrix products, attention, bytes of the element-wise kernels, launches.

Counts follow eager PyTorch as transformers 5.17, peft and bitsandbytes run it (no fusion except where a fused loss or attention
is asked for). The numbers of bytes are reads plus writes per element of each kernel; the sequences are those of the memory
simulation's notes. FLOPs are multiply and add counted as two.
"""

from __future__ import annotations

from typing import NamedTuple

from llmcheck.steptime.shape import Layer, Linear, Norm, Shape
from llmcheck.types import Attention, LoraSpec, Loss, Method, TrainingRecipe


class Matmul(NamedTuple):
    """`times` launches, each of `batch` products [m, k] x [k, n]."""

    m: int
    n: int
    k: int
    batch: int = 1
    times: float = 1.0

    @property
    def flops(self) -> float:
        """FLOPs of all launches."""
        return 2.0 * self.m * self.n * self.k * self.batch * self.times


class FusedAttention(NamedTuple):
    """`times` calls of a flash-like kernel: FLOPs executed and bytes of q, k, v, out."""

    flops: float
    num_bytes: float
    head_dim: int
    backward: bool = False
    times: float = 1.0


class Work:
    """Work of a phase. `kernels` are launches on the GPU, `views` cheap dispatcher calls, `visits` calls of modules."""

    def __init__(self) -> None:
        self.matmuls: list[Matmul] = []
        self.attention: list[FusedAttention] = []
        self.num_bytes = 0.0
        self.kernels = 0.0
        self.views = 0.0
        self.visits = 0.0

    def add(self, num_bytes: float, kernels: float = 1.0, views: float = 0.0) -> None:
        """Element-wise work: `num_bytes` moved by `kernels` launches."""
        self.num_bytes += num_bytes
        self.kernels += kernels
        self.views += views

    def mm(self, m: int, n: int, k: int, count: float = 1.0, batch: int = 1) -> None:
        """`count` launches of `batch` matrix products [m, k] x [k, n]."""
        if m > 0 and n > 0 and k > 0 and count > 0:
            self.matmuls.append(Matmul(m, n, k, batch, count))
            self.kernels += count

    def plus(self, other: Work, times: float = 1.0) -> None:
        """Add `times` repetitions of `other`."""
        self.matmuls += [x._replace(times=x.times * times) for x in other.matmuls]
        self.attention += [x._replace(times=x.times * times) for x in other.attention]
        self.num_bytes += other.num_bytes * times
        self.kernels += other.kernels * times
        self.views += other.views * times
        self.visits += other.visits * times

    @property
    def matmul_flops(self) -> float:
        """FLOPs of the matrix products."""
        return sum(x.flops for x in self.matmuls)

    @property
    def attention_flops(self) -> float:
        """FLOPs of the fused attention kernels."""
        return sum(x.flops * x.times for x in self.attention)

    @property
    def flops(self) -> float:
        """FLOPs of all matrix units' work."""
        return self.matmul_flops + self.attention_flops


class Batch(NamedTuple):
    """One micro-batch: `size` sequences of `seq_len` tokens; `element_bytes` of the activations."""

    size: int
    seq_len: int
    element_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.size * self.seq_len


class Variant(NamedTuple):
    """What of a recipe decides the work of a micro-step, apart from its size."""

    method: Method
    lora: LoraSpec | None
    attention: Attention
    loss: Loss
    fused_adapters: bool = False

    @staticmethod
    def of(recipe: TrainingRecipe) -> Variant:
        """The variant that `recipe` runs."""
        fused = recipe.fused_adapters and recipe.method == "lora" and recipe.zero_stage < 3
        return Variant(recipe.method, recipe.lora, recipe.attention, recipe.loss, fused)


_QLORA_CALLS = 4  # Python functions of bitsandbytes in a Linear4bit's forward: matmul_4bit, its autograd function, two dequantisations
RESIDUAL_ADDS = 2  # per layer: after attention and after the MLP; parallel layers add both to the input too


# peft's spelling of "attention": every projection of the attention block.
def is_adapted(linear: Linear, targets: str) -> bool:
    """Whether LoRA `targets` ("all-linear", "attention", or comma-separated endings) names `linear`."""
    if not linear.peft:
        return False
    if targets == "all-linear":
        return True
    if targets == "attention":
        return linear.group == "attention"
    return linear.name in {t.strip().rsplit(".", 1)[-1] for t in targets.split(",")}


def adapter_params(shape: Shape, lora: LoraSpec | None) -> tuple[int, int]:
    """Parameters and parameter tensors of the LoRA adapters."""
    if lora is None:
        return 0, 0
    params = tensors = 0
    for layer, count in shape.layers:
        for linear in layer.linears:
            if is_adapted(linear, lora.targets):
                params += count * lora.rank * (linear.in_features + linear.out_features)
                tensors += 2 * count
    return params, tensors


class TrainedEmbeddings(NamedTuple):
    """Token embedding and output projection as far as adapters train them too."""

    params: int = 0  # parameters with a gradient
    tensors: int = 0
    unfrozen: int = 0  # of those, the model's own: the rest are copies beside the frozen originals


def trained_embeddings(shape: Shape, lora: LoraSpec | None) -> TrainedEmbeddings:
    """What ``--train-embeddings`` adds to the adapters; peft's copies of a tied pair are two matrices."""
    if lora is None or lora.train_embeddings is None:
        return TrainedEmbeddings()
    one = shape.vocab_size * shape.embed_dim
    if lora.train_embeddings == "modules-to-save":
        return TrainedEmbeddings(params=2 * one, tensors=2)
    num = 1 if shape.tied else 2
    return TrainedEmbeddings(params=num * one, tensors=num, unfrozen=num * one)


def model_flops_per_token(shape: Shape, seq_len: int, variant: Variant) -> float:
    """FLOPs that training one token needs, without recomputation: the numerator of MFU.

    6 per active matrix parameter (4 where the weight is frozen: no weight gradient) plus 12·heads·head_dim·keys per layer for attention,
    not halved for causality. Convention: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """
    total = 0.0
    trained = variant.method == "full"
    for layer, count in shape.layers:
        params = sum(li.in_features * li.out_features for li in layer.linears)
        if layer.experts:
            params += layer.experts.num_experts * layer.hidden + layer.experts.top_k * layer.experts.params_per_expert
        keys = min(seq_len, layer.window) if layer.window else seq_len
        attention = 6.0 * layer.num_heads * (layer.qk_head_dim + layer.v_head_dim) * keys
        total += count * ((6.0 if trained else 4.0) * params + attention)
    head = shape.vocab_size * shape.embed_dim
    total += (6.0 if _trains_head(variant) else 4.0) * head
    return total + 6.0 * adapter_params(shape, variant.lora)[0]


def _trains_head(variant: Variant) -> bool:
    """The output projection has a gradient: in full fine-tuning, or where the embeddings are trained beside the adapters."""
    return variant.method == "full" or (variant.lora is not None and variant.lora.train_embeddings is not None)


# --- one layer ---------------------------------------------------------------------------------------------------------------


def _norm(work: Work, norm: Norm, batch: Batch, backward: bool, trained: bool, fused: bool) -> None:
    elements, e = float(batch.tokens * norm.width), batch.element_bytes
    if norm.kind == "layer" or fused:
        # one fused kernel; backward: one for the input's gradient, two for those of weight and bias
        if backward:
            work.add(elements * (3 * e + (2 * e if trained else 0)), 3 if trained else 1)
        else:
            work.add(elements * 2 * e, 1)
    elif backward:
        # g·w, (g·x and its sum over rows), to fp32, product rule of the scaling twice with a row sum, mean, power, sum, to 16 bit
        work.add(elements * (3 * e + (4 * e if trained else 0) + (e + 4) + 20 + 4 + 4 + 20 + 12 + (4 + e)), 15 if trained else 12, 4)
    else:
        # to fp32, square, mean, (add, rsqrt on rows), scale, to 16 bit, times weight
        work.add(elements * ((e + 4) + 8 + 4 + 8 + (4 + e) + 2 * e), 8, 1)


def _rotary(work: Work, width: int, rotary_dim: int, head_dim: int, batch: Batch, backward: bool, fused: bool) -> None:
    """Rotation of q or k of `width` features per token."""
    if not rotary_dim:
        return
    e = batch.element_bytes
    elements = batch.tokens * width * rotary_dim / head_dim
    if fused:
        work.add(elements * 2 * e, 0.5, 2)
        return
    # forward: x·cos, -half, cat, ·sin, sum. Backward: g·sin, two slice gradients (zeros and copy), -half, two sums, g·cos, copy of the view
    work.add(elements * e * (17 if backward else 10), 10 if backward else 5, 4 if backward else 3)
    if rotary_dim < head_dim:  # the part that is not rotated is cut off and joined again
        work.add(batch.tokens * width * e * (4 if backward else 2), 3 if backward else 1, 2)


def _linear(work: Work, linear: Linear, batch: Batch, variant: Variant, backward: bool, input_grad: bool = True) -> None:
    r, e = batch.tokens, batch.element_bytes
    i, o = linear.in_features, linear.out_features
    if variant.method == "qlora":
        # NF4 to 16 bit before each use: 4-bit codes and block scales in, 16-bit weights out; with double quantisation the scales
        # are expanded first (bitsandbytes functional.dequantize_4bit)
        work.add(i * o * (0.5 + 4 / 64 + 2), 3, 2)
        work.visits += 0 if backward else _QLORA_CALLS
    trained = variant.method == "full"
    if not backward:
        work.mm(r, o, i)
        work.views += 1
    else:
        if input_grad:
            work.mm(r, i, o)
        if trained:
            work.mm(o, i, r)
            if linear.bias:
                work.add(r * o * e, 2)
        work.views += 4
    if variant.lora is not None and is_adapted(linear, variant.lora.targets):
        if variant.fused_adapters:
            _fused_adapter(work, linear, batch, variant.lora.rank, variant.lora.dropout, backward)
        else:
            _adapter(work, linear, batch, variant.lora.rank, variant.lora.dropout, backward)


def _fused_adapter(work: Work, linear: Linear, batch: Batch, rank: int, dropout: float, backward: bool) -> None:
    """The trainer's (llmcheck_trainer/lora.py): the products accumulate, an output passes through memory once more and no oftener."""
    r, e = batch.tokens, batch.element_bytes
    i, o = linear.in_features, linear.out_features
    drop = r * i * (2 * e + 1) if dropout > 0 else 0.0
    if not backward:
        work.add(drop + r * o * e, 1 if dropout > 0 else 0, 4)  # the accumulating product reads what the base's wrote
        work.mm(r, rank, i)
        work.mm(r, o, rank)
        work.visits += 1 if dropout > 0 else 0
    else:
        work.mm(r, rank, o)
        work.mm(o, rank, r)
        work.mm(rank, i, r)
        work.mm(r, i, rank)
        # without dropout accumulated; with it, the mask's product and the sum with the base's gradient
        work.add(r * rank * 2 * e + (drop + r * i * 3 * e if dropout > 0 else r * i * e), 4 if dropout > 0 else 2, 6)


def _adapter(work: Work, linear: Linear, batch: Batch, rank: int, dropout: float, backward: bool) -> None:
    """peft: y + scaling · B(A(dropout(x)))."""
    r, e = batch.tokens, batch.element_bytes
    i, o = linear.in_features, linear.out_features
    drop = r * i * (2 * e + 1) if dropout > 0 else 0.0
    if not backward:
        work.add(drop, 1 if dropout > 0 else 0, 2)  # x.to(dtype) and the dispatch of the wrapper
        work.mm(r, rank, i)
        work.mm(r, o, rank)
        work.add(r * o * 5 * e, 2, 2)  # times scaling, sum with the base's output
        work.visits += 4 if dropout > 0 else 3  # the wrapped base layer, dropout, A, B beside the wrapper itself
    else:
        work.add(r * o * 2 * e, 1, 8)
        work.mm(o, rank, r)
        work.mm(r, rank, o)
        work.mm(rank, i, r)
        work.mm(r, i, rank)
        work.add(drop + r * i * 3 * e, 2 if dropout > 0 else 1)  # dropout's gradient, sum with the base's


def _attention(work: Work, layer: Layer, batch: Batch, kind: str, alibi: bool, backward: bool) -> None:
    b, s, e = batch.size, batch.seq_len, batch.element_bytes
    keys = min(s, layer.window) if layer.window else s
    d = layer.qk_head_dim + layer.v_head_dim
    if kind != "eager":
        # the kernel skips masked tiles: half of the square, or the band of the window
        pairs = s * s / 2 if keys == s else keys * (s - keys / 2)
        if alibi:  # the trainer's ALiBi is a dense bias that hides the future too, so no tile is skipped
            pairs *= 2
        flops = 2.0 * b * layer.num_heads * pairs * d * (2.5 if backward else 1.0)
        io = batch.tokens * e * (2 * layer.num_heads * layer.v_head_dim + layer.q_width + layer.kv_width) * (2.0 if backward else 1.0)
        if alibi:
            io += float(b * layer.num_heads) * s * s * e  # the bias, read for each sequence
        work.attention.append(FusedAttention(flops, io, max(layer.qk_head_dim, layer.v_head_dim), backward))
        work.kernels += 3 if backward else 1
        work.views += 8 if backward else 6
        if backward:
            work.add(batch.tokens * (layer.q_width + layer.kv_width / 2) * 2 * e, 2)  # q's and k's gradients made contiguous
        return
    scores = float(b * layer.num_heads) * s * s
    heads = b * layer.num_heads
    copies = layer.num_heads * d * batch.tokens * e * 2.0 if layer.num_kv_heads < layer.num_heads or alibi else 0.0
    if not backward:
        work.mm(s, s, layer.qk_head_dim, batch=heads)
        work.mm(s, layer.v_head_dim, s, batch=heads)
        # scale (BLOOM: the bias broadcast into the product's output, then read), mask, softmax in fp32 with a copy before and after
        work.add(scores * (2 * e + 2 * e + (e + 4) + 8 + (4 + e)), 5, 10)
        work.add(copies + 2 * e * batch.tokens * layer.num_heads * layer.v_head_dim, 4)
    else:
        work.mm(s, s, layer.v_head_dim, batch=heads)
        work.mm(s, layer.v_head_dim, s, batch=heads)
        work.mm(s, layer.qk_head_dim, s, 2, batch=heads)
        # copy to fp32, softmax gradient as product and difference (12 B each), copy back, scale
        work.add(scores * ((e + 4) + 24 + (4 + e) + (0 if alibi else 2 * e)), 6, 14)
        work.add(2 * copies + 4 * e * batch.tokens * layer.q_width, 8)


def _mlp_elementwise(work: Work, layer: Layer, batch: Batch, backward: bool, fused: bool, fused_gelu: bool) -> None:
    elements, e = float(batch.tokens * layer.act_width), batch.element_bytes
    if layer.gated:
        if fused:  # one kernel for activation and product
            work.add(elements * e * (5 if backward else 3), 1)
        else:
            work.add(elements * e * (9 if backward else 5), 3 if backward else 2)
    elif layer.activation == "python" and not fused_gelu:
        work.add(elements * e * (46 if backward else 21), 20 if backward else 9)
    else:
        work.add(elements * e * (3 if backward else 2), 1)


def _trainers_own(variant: Variant, shape: Shape) -> bool:
    """Whether the bundled trainer replaces the family's attention, and its activation by one kernel (llmcheck_trainer/bloom.py)."""
    return shape.trainer_sdpa and variant.attention != "eager"


def _experts(work: Work, layer: Layer, batch: Batch, backward: bool, trained: bool) -> None:
    """Router, sort, grouped products, weighted sum (transformers' ``grouped_mm``); every expert is taken to get its share."""
    moe = layer.experts
    if moe is None:
        return
    r, e, h = batch.tokens, batch.element_bytes, moe.hidden
    routed = r * moe.top_k
    active = max(1, min(moe.num_experts, routed))
    rows = max(1, routed // active)
    inner = moe.intermediate * (2 if moe.gated else 1)
    for out, inp in ((inner, h), (h, moe.intermediate)):
        if not backward:
            work.mm(rows, out, inp, batch=active)
        else:
            work.mm(rows, inp, out, batch=active)
            if trained:
                work.mm(out, inp, rows, batch=active)
    work.mm(r, moe.num_experts, h, 2 if backward and trained else 1)
    # gather, mask twice, weights, inverse permutation and the sum over the chosen experts; router softmax, top-k, sort, histogram
    work.add(routed * e * (h * 2 + h * 2 + inner * 2 + h * 6 + h * 3) * (1.3 if backward else 1.0), 30 if backward else 34, 24)
    work.visits += 0 if backward else 2


def _dropout_bytes(layer: Layer, batch: Batch) -> float:
    """Input, output and a mask of a byte each, either way."""
    return float(layer.dropouts * batch.tokens * layer.hidden * (2 * batch.element_bytes + 1))


def layer_forward(layer: Layer, batch: Batch, variant: Variant, shape: Shape, *, until_last_saved: bool = False) -> Work:
    """Forward of one layer. `until_last_saved`: the recomputation of checkpointing, which stops before the last projection."""
    work = Work()
    fused = variant.loss == "liger" and layer.activation == "fused" and layer.rotary_dim > 0
    for norm in layer.norms:
        _norm(work, norm, batch, False, variant.method == "full", fused)
    _rotary(work, layer.q_width, layer.rotary_dim, layer.qk_head_dim, batch, False, fused)
    _rotary(work, layer.num_kv_heads * layer.qk_head_dim, layer.rotary_dim, layer.qk_head_dim, batch, False, fused)
    last = layer.linears[-1] if layer.linears[-1].group == "mlp" else None
    for linear in layer.linears:
        if not (until_last_saved and linear is last):
            _linear(work, linear, batch, variant, False)
    _attention(work, layer, batch, variant.attention if shape.has_sdpa or shape.trainer_sdpa else "eager", shape.alibi, False)
    _mlp_elementwise(work, layer, batch, False, fused, _trainers_own(variant, shape))
    _experts(work, layer, batch, False, variant.method == "full")
    work.add(batch.tokens * layer.hidden * 3 * batch.element_bytes * RESIDUAL_ADDS, RESIDUAL_ADDS, 8)
    work.add(_dropout_bytes(layer, batch), layer.dropouts)
    work.visits += layer.num_modules
    return work


def layer_backward(layer: Layer, batch: Batch, variant: Variant, shape: Shape, *, input_grad: bool = True) -> Work:
    """Backward of one layer, recomputation not included. `visits` are the modules whose backward hooks run under ZeRO-3."""
    work = Work()
    trained = variant.method == "full"
    fused = variant.loss == "liger" and layer.activation == "fused" and layer.rotary_dim > 0
    for norm in layer.norms:
        _norm(work, norm, batch, True, trained, fused)
    _rotary(work, layer.q_width, layer.rotary_dim, layer.qk_head_dim, batch, True, fused)
    _rotary(work, layer.num_kv_heads * layer.qk_head_dim, layer.rotary_dim, layer.qk_head_dim, batch, True, fused)
    for linear in layer.linears:
        _linear(work, linear, batch, variant, True, input_grad)
    _attention(work, layer, batch, variant.attention if shape.has_sdpa or shape.trainer_sdpa else "eager", shape.alibi, True)
    _mlp_elementwise(work, layer, batch, True, fused, _trainers_own(variant, shape))
    _experts(work, layer, batch, True, trained)
    # gradients that meet: residual branches, and the inputs shared by q, k, v and by gate, up
    joins = RESIDUAL_ADDS + 3
    work.add(_dropout_bytes(layer, batch), layer.dropouts)
    work.add(batch.tokens * layer.hidden * 3 * batch.element_bytes * joins, joins, 6)
    work.visits += layer.num_modules
    if variant.lora is not None:
        per_adapter = 4 if variant.lora.dropout > 0 else 3
        work.visits += per_adapter * sum(is_adapted(li, variant.lora.targets) for li in layer.linears)
    return work


# --- ends of the model -------------------------------------------------------------------------------------------------------

_CHUNK_TOKENS = 1024  # rows of logits that a chunked loss holds at a time


def ends_forward(shape: Shape, batch: Batch, variant: Variant) -> Work:
    """Embedding, final norm, output projection and loss."""
    work = Work()
    r, e, v, h = batch.tokens, batch.element_bytes, shape.vocab_size, shape.embed_dim
    work.add(r * shape.hidden * 2 * e * (2 if shape.num_position_rows else 1), 12, 20)  # with masks, positions, rotary tables
    if shape.final_norm:
        _norm(work, shape.final_norm, batch, False, variant.method == "full", variant.loss == "liger")
    logits = float(r) * v
    caps = 3 if shape.softcap else 0
    if variant.loss == "hf":
        work.mm(r, v, h)
        # fp32 copy; log-softmax reads a row three times (maximum, sum, result), the row is too long to stay on the chip
        work.add(logits * ((e + 4) + 16 + 2 * e * caps), 6 + caps, 8)
    elif variant.loss == "chunked":
        # llmcheck_trainer/loss.py: loss and both gradients chunk by chunk in the forward; one kernel reads a chunk of logits twice and
        # writes its gradient in place. The rows of both gradients are written (the weight's read as well) by the products.
        rows = min(r, _CHUNK_TOKENS)
        chunks = -(-r // rows)
        work.mm(rows, v, h, chunks)
        work.mm(rows, h, v, chunks)
        work.add(logits * e * (3 + 2 * caps), (6 + caps) * chunks, 6 * chunks)
        if _trains_head(variant):
            work.mm(v, h, rows, chunks)
            work.add(v * h * e * (1 + chunks), 1)  # zeros; each chunk adds to what is there
    else:
        # Liger's fused linear cross-entropy: loss and both gradients per chunk in the forward; a chunk holds about r·h elements
        rows = max(1, min(r, 1 << max(0, (-(-r // max(1, -(-v // h))) - 1).bit_length())))
        chunks = -(-r // rows)
        work.mm(rows, v, h, chunks)
        work.mm(rows, h, v, chunks)
        if _trains_head(variant):
            work.mm(v, h, rows, chunks)
            work.add(v * h * 3 * e * chunks, chunks)  # the weight gradient is summed chunk by chunk
        work.add(logits * 4 * e, 6 * chunks, 8 * chunks)
    work.visits += 5
    return work


def ends_backward(shape: Shape, batch: Batch, variant: Variant) -> Work:
    """Gradients of loss, output projection, final norm and embedding."""
    work = Work()
    r, e, v, h = batch.tokens, batch.element_bytes, shape.vocab_size, shape.embed_dim
    trained = _trains_head(variant)
    tied = shape.tied and not (variant.lora is not None and variant.lora.train_embeddings == "modules-to-save")
    logits = float(r) * v
    caps = 4 if shape.softcap else 0
    if variant.loss == "hf":
        work.mm(r, h, v)
        if trained:
            work.mm(v, h, r)
        # scatter into zeros, log-softmax gradient (gradient and output read twice), copy to 16 bit
        work.add(logits * (4 + 20 + (4 + e) + 2 * e * caps), 4 + caps, 10)
    else:  # both gradients are there; they are scaled
        work.add(r * h * 2 * e + (v * h * 2 * e if trained else 0), 2 if trained else 1, 4)
    if trained:
        # dense gradient of the embedding: zeros, sort of the ids, rows added; a tied head adds its own
        work.add(v * h * e * (4 if tied else 1) + r * h * 3 * e, 12, 6)
    if shape.final_norm:
        _norm(work, shape.final_norm, batch, True, variant.method == "full", variant.loss == "liger")
    work.visits += 4
    return work
