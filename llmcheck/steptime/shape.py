"""The shape of a decoder as the time model needs it, read from a Hugging Face configuration.

Only what decides work is kept: linear layers, norms, activation kind, attention heads, experts, and how many modules Python
calls. It is independent of the memory simulation, which has its own, tensor-exact families.
Source of the layer structures: transformers 5.17, `models/*/modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from llmcheck.shadow import families
from llmcheck.types import ModelSpec

# Values are NamedTuples here: a dataclass costs a millisecond at import, and tuples are hashed fast as keys of caches.
NormKind = Literal["rms", "layer"]  # RMSNorm is eight small kernels in eager PyTorch, LayerNorm one fused kernel
Activation = Literal["fused", "python"]  # one kernel, or a formula written out in Python (about nine)


class Linear(NamedTuple):
    """One ``nn.Linear`` (or Conv1D) of a layer. `peft` says whether peft can adapt it."""

    name: str  # the ending by which LoRA targets name it
    group: Literal["attention", "mlp"]
    in_features: int
    out_features: int
    bias: bool = False
    peft: bool = True

    @property
    def num_params(self) -> int:
        """Weight and bias."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


class Experts(NamedTuple):
    """Routed experts kept as stacked 3-D parameters and run by grouped matrix products (transformers 5)."""

    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    gated: bool = True

    @property
    def num_params(self) -> int:
        """Router and experts of one layer."""
        return self.num_experts * (self.hidden + self.params_per_expert)

    @property
    def params_per_expert(self) -> int:
        """Parameters of one expert's MLP."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate


class Norm(NamedTuple):
    """A normalisation over `width` features per token, `heads` times."""

    width: int
    kind: NormKind
    params: int


class Layer(NamedTuple):
    """One decoder layer."""

    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    hidden: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rotary_dim: int  # features per head that are rotated; 0: none
    activation: Activation
    act_width: int  # features that pass the activation
    gated: bool
    experts: Experts | None = None
    window: int | None = None  # keys that a query sees at most
    extra_modules: int = 0  # dropouts and the like that Python still calls
    dropouts: int = 0  # of the residual branches, with a probability above zero: a kernel each

    @property
    def q_width(self) -> int:
        """Features of Q."""
        return self.num_heads * self.qk_head_dim

    @property
    def kv_width(self) -> int:
        """Features of K plus those of V."""
        return self.num_kv_heads * (self.qk_head_dim + self.v_head_dim)

    @property
    def num_modules(self) -> int:
        """Modules whose ``__call__`` runs once per forward: block, attention, MLP, linears, norms, activation, the rest."""
        experts = 2 if self.experts else 0
        return 3 + len(self.linears) + len(self.norms) + 1 + experts + self.extra_modules

    @property
    def num_params(self) -> int:
        """All parameters of the layer."""
        total = sum(li.num_params for li in self.linears) + sum(n.params for n in self.norms)
        return total + (self.experts.num_params if self.experts else 0)

    @property
    def num_tensors(self) -> int:
        """Parameter tensors of the layer."""
        own = sum(1 + li.bias for li in self.linears) + sum((n.kind == "layer" and n.params > n.width) + (n.params > 0) for n in self.norms)
        return own + (3 if self.experts else 0)

    @property
    def num_large_tensors(self) -> int:
        """Parameter tensors above ZeRO-3's persistence threshold (1e5 elements), that is: those gathered at each use."""
        return sum(li.in_features * li.out_features > 100_000 for li in self.linears) + (3 if self.experts else 0)


class Shape(NamedTuple):
    """A decoder: layers with their counts, embedding and head."""

    layers: tuple[tuple[Layer, int], ...]
    hidden: int
    vocab_size: int
    embed_dim: int  # width of the embedding rows (OPT-350m: not the hidden size)
    tied: bool
    num_position_rows: int  # learned positions, 0: none
    final_norm: Norm | None
    has_sdpa: bool  # False: transformers runs eager attention whatever is asked (BLOOM, MPT)
    trainer_sdpa: bool  # the bundled trainer has it instead (BLOOM)
    alibi: bool
    max_positions: int | None
    softcap: bool = False  # logits pass tanh (Gemma 2)
    other_params: int = 0  # embedding norm and similar

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(count for _, count in self.layers)

    @property
    def num_embedding_params(self) -> int:
        """Token and learned position embeddings."""
        return self.vocab_size * self.embed_dim + self.num_position_rows * self.hidden

    @property
    def num_head_params(self) -> int:
        """The output projection, 0 where it is the embedding."""
        return 0 if self.tied else self.vocab_size * self.embed_dim

    @property
    def num_params(self) -> int:
        """Parameters of the shape as read here: a cross-check, the exact count is in :class:`ModelSpec`."""
        layers = sum(layer.num_params * count for layer, count in self.layers)
        norm = self.final_norm.params if self.final_norm else 0
        return layers + norm + self.num_embedding_params + self.num_head_params + self.other_params

    @property
    def num_tensors(self) -> int:
        """Parameter tensors."""
        return sum(layer.num_tensors * count for layer, count in self.layers) + 3


_NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "act": ("activation_function", "hidden_activation", "activation", "hidden_act"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k"),
}

# Families whose block is not "RMSNorm, q/k/v/o, gated MLP": what differs. Read in transformers 5.17.
_LAYER_NORM = frozenset(
    {
        "gpt2",
        "gpt_bigcode",
        "gptj",
        "gpt_neo",
        "gpt_neox",
        "opt",
        "bloom",
        "falcon",
        "mpt",
        "phi",
        "phimoe",
        "starcoder2",
        "stablelm",
        "cohere",
        "cohere2",
        "olmo",
        "nemotron",
        "codegen",
        "persimmon",
    }
)
_PLAIN_MLP = frozenset(
    {
        "gpt2",
        "gpt_bigcode",
        "gptj",
        "gpt_neo",
        "gpt_neox",
        "opt",
        "bloom",
        "falcon",
        "mpt",
        "phi",
        "starcoder2",
        "nemotron",
        "codegen",
        "persimmon",
        "arcee",
        "apertus",
    }
)
_FUSED_QKV = {
    "gpt2": "c_attn",
    "gpt_bigcode": "c_attn",
    "gpt_neox": "query_key_value",
    "bloom": "query_key_value",
    "falcon": "query_key_value",
    "mpt": "Wqkv",
    "phi3": "qkv_proj",
    "persimmon": "query_key_value",
    "chatglm": "query_key_value",
    "codegen": "qkv_proj",
}
_FUSED_GATE_UP = frozenset({"phi3", "glm", "glm4", "chatglm"})
_MLP_NAMES = {
    "gpt2": ("c_fc", "c_proj"),
    "gpt_bigcode": ("c_fc", "c_proj"),
    "gptj": ("fc_in", "fc_out"),
    "gpt_neo": ("c_fc", "c_proj"),
    "opt": ("fc1", "fc2"),
    "phi": ("fc1", "fc2"),
    "starcoder2": ("c_fc", "c_proj"),
    "mpt": ("up_proj", "down_proj"),
    "nemotron": ("up_proj", "down_proj"),
    "arcee": ("up_proj", "down_proj"),
    "apertus": ("up_proj", "down_proj"),
    "codegen": ("fc_in", "fc_out"),
}
_OUT_NAMES = {
    "gpt2": "c_proj",
    "gpt_bigcode": "c_proj",
    "gpt_neox": "dense",
    "bloom": "dense",
    "falcon": "dense",
    "opt": "out_proj",
    "phi": "dense",
    "mpt": "out_proj",
    "gptj": "out_proj",
    "gpt_neo": "out_proj",
    "persimmon": "dense",
    "chatglm": "dense",
}
_ONE_NORM = frozenset({"phi", "cohere", "cohere2", "gptj", "codegen"})  # attention and MLP share the norm and run side by side
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
_BIASES = frozenset({"gpt2", "gpt_bigcode", "gpt_neox", "bloom", "opt", "phi", "gptj", "codegen", "persimmon"})
_QKV_BIAS = frozenset({"qwen2", "qwen2_moe", "chatglm"})
_WIDE_QK_NORM = frozenset({"olmo2", "olmo3", "olmoe", "flex_olmo", "minimax_m2"})  # over all heads at once
_QK_NORM = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "exaone4", "hunyuan_v1_dense", "apertus"})
_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode", "opt", "gpt_neo"})
_PYTHON_ACTS = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "xielu"})
_DROPOUTS = {
    "gpt2": 3,
    "gpt_bigcode": 3,
    "bloom": 1,
    "gpt_neox": 2,
    "falcon": 1,
    "phi": 1,
    "gptj": 3,
    "mpt": 1,
    "gpt_neo": 3,
    "starcoder2": 0,
}


def _get(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    for name in _NAMES[key]:
        value = config.get(name)
        if value is not None:
            return value
    return default


def _attention_linears(config: Mapping[str, Any], family: str, hidden: int) -> tuple[list[Linear], int, int, int, int, int]:
    """Projections of the attention; heads, KV heads, width of a Q/K head, width of a V head, rotated features per head."""
    heads = int(_get(config, "heads", 1))
    kv_heads = int(config.get("num_key_value_heads") or config.get("multi_query_group_num") or heads)
    if family == "falcon":
        new = bool(config.get("new_decoder_architecture"))
        kv_heads = int(config.get("num_kv_heads") or heads) if new else (1 if config.get("multi_query", True) else heads)
    if family == "gpt_bigcode" and config.get("multi_query", True):
        kv_heads = 1
    if config.get("kv_lora_rank"):
        return _latent_attention(config, hidden, heads)
    head_dim = int(config.get("head_dim") or config.get("kv_channels") or hidden // heads)
    bias = (
        family in _BIASES
        or bool(config.get("attention_bias"))
        or bool(config.get("use_bias"))
        or bool(family == "falcon" and config.get("bias"))
    )
    qkv_bias = (
        bias or family in _QKV_BIAS or bool(config.get("use_qkv_bias")) or bool(config.get("add_qkv_bias")) or bool(config.get("qkv_bias"))
    )
    if family in {"glm", "glm4", "glm4_moe", "helium"}:
        bias = False  # attention_bias is that of q, k and v only
    if family == "gpt_neo":
        bias = True  # of the output projection alone
    if family == "seed_oss":
        bias = bool(config.get("attention_out_bias"))
    q, kv = heads * head_dim, kv_heads * head_dim
    linears: list[Linear]
    if family in _FUSED_QKV:
        linears = [Linear(name=_FUSED_QKV[family], group="attention", in_features=hidden, out_features=q + 2 * kv, bias=qkv_bias)]
    else:
        widths = (("q_proj", q), ("k_proj", kv), ("v_proj", kv))
        linears = [Linear(name=n, group="attention", in_features=hidden, out_features=w, bias=qkv_bias) for n, w in widths]
    linears.append(Linear(name=_OUT_NAMES.get(family, "o_proj"), group="attention", in_features=q, out_features=hidden, bias=bias))
    return linears, heads, kv_heads, head_dim, head_dim, _rotary_dim(config, family, head_dim)


def _latent_attention(config: Mapping[str, Any], hidden: int, heads: int) -> tuple[list[Linear], int, int, int, int, int]:
    """Multi-head latent attention (DeepSeek V2, V3): low-rank q and kv, decoupled rotary part."""
    rope, nope = int(config.get("qk_rope_head_dim", 64)), int(config.get("qk_nope_head_dim", 128))
    v_dim, kv_rank, q_rank = int(config.get("v_head_dim", 128)), int(config["kv_lora_rank"]), config.get("q_lora_rank")
    linears: list[Linear] = []

    def add(name: str, i: int, o: int) -> None:
        linears.append(Linear(name=name, group="attention", in_features=i, out_features=o))

    if q_rank:
        add("q_a_proj", hidden, int(q_rank))
        add("q_b_proj", int(q_rank), heads * (rope + nope))
    else:
        add("q_proj", hidden, heads * (rope + nope))
    add("kv_a_proj_with_mqa", hidden, kv_rank + rope)
    add("kv_b_proj", kv_rank, heads * (nope + v_dim))
    add("o_proj", heads * v_dim, hidden)
    return linears, heads, heads, rope + nope, v_dim, rope


# Probabilities of the dropouts after attention and MLP, as configurations name them; what a configuration leaves out is the family's
# default, 0.1 for GPT-2's and OPT's own classes.
_RESIDUAL_DROPOUTS = ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "residual_dropout", "resid_dropout", "dropout")
_DEFAULT_DROPOUTS = {"gpt2": 0.1, "gpt_bigcode": 0.1, "opt": 0.1}


def _active_dropouts(config: Mapping[str, Any]) -> int:
    """Dropouts of a layer's two residual branches that change something."""
    default = _DEFAULT_DROPOUTS.get(str(config.get("model_type")), 0.0)
    known = [config[name] for name in _RESIDUAL_DROPOUTS if isinstance(config.get(name), (int, float))]
    return 2 if (known[0] if known else default) > 0 else 0


def _rotary_dim(config: Mapping[str, Any], family: str, head_dim: int) -> int:
    if family in _LEARNED_POSITIONS or family in {"bloom", "mpt"} or config.get("alibi"):
        return 0
    rope = config.get("rope_parameters")
    fraction = (
        config.get("partial_rotary_factor")
        or config.get("rotary_pct")
        or (rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None)
    )
    if config.get("rotary_dim"):
        return int(config["rotary_dim"])
    default = {
        "phi": 0.5,
        "gpt_neox": 0.25,
        "glm": 0.5,
        "glm4": 0.5,
        "stablelm": 0.25,
        "chatglm": 0.5,
        "persimmon": 0.5,
        "nemotron": 0.5,
    }.get(family, 1.0)
    return int(head_dim * float(fraction if fraction is not None else default))


def _mlp_linears(family: str, hidden: int, width: int, gated: bool, bias: bool, prefix: str = "") -> list[Linear]:
    def one(name: str, i: int, o: int) -> Linear:
        return Linear(name=prefix + name, group="mlp", in_features=i, out_features=o, bias=bias)

    if gated and family in _FUSED_GATE_UP:
        return [one("gate_up_proj", hidden, 2 * width), one("down_proj", width, hidden)]
    if gated:
        return [one("gate_proj", hidden, width), one("up_proj", hidden, width), one("down_proj", width, hidden)]
    up, down = _MLP_NAMES.get(family, ("dense_h_to_4h", "dense_4h_to_h"))
    return [one(up, hidden, width), one(down, width, hidden)]


def _norms(config: Mapping[str, Any], family: str, hidden: int, q: int, kv: int, head_dim: int, num_heads: int, num_kv: int) -> list[Norm]:
    kind: NormKind = "layer" if family in _LAYER_NORM else "rms"
    params = hidden
    if kind == "layer":
        params = 0 if family == "olmo" else hidden if family in {"cohere", "cohere2", "mpt"} else 2 * hidden
    count = 1 if family in _ONE_NORM else 4 if family in _FOUR_NORMS else 2
    if family == "falcon" and not config.get("new_decoder_architecture") and config.get("parallel_attn", True):
        count = 1
    norms = [Norm(width=hidden, kind=kind, params=params)] * count
    if family in _WIDE_QK_NORM:
        norms += [Norm(width=q, kind="rms", params=q), Norm(width=kv, kind="rms", params=kv)]
    elif family in _QK_NORM or (family == "glm4_moe" and config.get("use_qk_norm")):
        norms += [Norm(width=num_heads * head_dim, kind="rms", params=head_dim), Norm(width=num_kv * head_dim, kind="rms", params=head_dim)]
    return norms


def _experts(config: Mapping[str, Any], hidden: int) -> Experts | None:
    num = _get(config, "experts")
    if not num or int(num) < 2:
        return None
    width = config.get("moe_intermediate_size") or config.get("expert_intermediate_size") or _get(config, "intermediate", 4 * hidden)
    return Experts(num_experts=int(num), top_k=int(_get(config, "top_k", 2) or 2), hidden=hidden, intermediate=int(width))


def _num_dense_layers(config: Mapping[str, Any], num_layers: int, has_experts: bool) -> int:
    """How many layers of a mixture have a plain MLP."""
    if not has_experts:
        return num_layers
    dense = int(config.get("first_k_dense_replace") or 0)
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, (list, tuple)):
        return sum(kind == "dense" for kind in kinds[:num_layers])
    listed = config.get("mlp_only_layers")
    if isinstance(listed, (list, tuple)):
        dense += len(listed)
    step = int(config.get("decoder_sparse_step") or config.get("moe_layer_freq") or config.get("interleave_moe_layer_step") or 1)
    return min(num_layers, dense + (num_layers - dense) * (step - 1) // step)


def _windows(config: Mapping[str, Any], family: str, num_layers: int) -> tuple[int | None, int]:
    """The sliding window and the number of layers that use it."""
    window = config.get("sliding_window")
    if not window:
        return None, 0
    kinds = config.get("layer_types")
    if isinstance(kinds, (list, tuple)) and kinds:
        return int(window), sum("sliding" in str(kind) for kind in kinds[:num_layers])
    if family == "gemma2":
        return int(window), (num_layers + 1) // 2
    if family in {"gemma3", "gemma3_text"}:
        return int(window), num_layers - num_layers // int(config.get("sliding_window_pattern") or 6)
    if family.startswith("qwen") and not config.get("use_sliding_window"):
        return None, 0
    return int(window), num_layers


def _build(spec: ModelSpec, gated: bool, tied: bool) -> Shape:
    config: Mapping[str, Any] = spec.config
    family = spec.family
    hidden = int(_get(config, "hidden", 1))
    num_layers = int(_get(config, "layers", 1))
    vocab = int(_get(config, "vocab", 1))
    width = _get(config, "intermediate")
    if width is None:
        width = hidden * int(config.get("expansion_ratio") or 4)
    attention, heads, kv_heads, qk_dim, v_dim, rotary = _attention_linears(config, family, hidden)
    norms = _norms(config, family, hidden, heads * qk_dim, kv_heads * qk_dim, qk_dim, heads, kv_heads)
    if config.get("kv_lora_rank"):
        norms += [Norm(width=int(r), kind="rms", params=int(r)) for r in (config.get("q_lora_rank"), config["kv_lora_rank"]) if r]
    if family == "qwen":
        width = int(width) // 2  # Qwen 1 counts both halves of the gated MLP
    act = str(_get(config, "act", "silu"))
    python_act: Activation = "python" if act in _PYTHON_ACTS or family == "bloom" else "fused"
    mlp_bias = (
        family in _BIASES
        or family == "gpt_neo"
        or bool(config.get("mlp_bias"))
        or bool(config.get("use_bias"))
        or bool(family == "falcon" and config.get("bias"))
    )
    experts = _experts(config, hidden)
    shadow = families.get(family)
    window, num_windowed = _windows(config, family, num_layers)

    def layer(moe: bool, win: int | None) -> Layer:
        if moe and experts:
            shared = int(config.get("shared_expert_intermediate_size") or 0)
            shared = shared or int(config.get("n_shared_experts") or config.get("num_shared_experts") or 0) * experts.intermediate
            mlp = _mlp_linears(family, hidden, shared, True, False, "shared_") if shared else []
            act_width = shared + experts.top_k * experts.intermediate
        else:
            mlp, act_width = _mlp_linears(family, hidden, int(width), gated, mlp_bias), int(width)
        if experts and shadow is not None:
            mlp = [linear._replace(peft=linear.name.removeprefix("shared_") in shadow.linear_targets) for linear in mlp]
        return Layer(
            linears=(*attention, *mlp),
            norms=tuple(norms),
            hidden=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            qk_head_dim=qk_dim,
            v_head_dim=v_dim,
            rotary_dim=rotary,
            activation=python_act,
            act_width=act_width,
            gated=gated or moe,
            experts=experts if moe else None,
            window=win,
            extra_modules=_DROPOUTS.get(family, 0),
            dropouts=_active_dropouts(config),
        )

    num_dense = _num_dense_layers(config, num_layers, experts is not None)
    counts: dict[tuple[bool, int | None], int] = {}
    for index in range(num_layers):
        key = (index >= num_dense, window if index < num_windowed else None)
        counts[key] = counts.get(key, 0) + 1
    embed_dim = int(config.get("word_embed_proj_dim") or hidden)
    offset = 2 if family == "opt" else 0
    positions = _get(config, "positions")
    rows = int(positions or 0) + offset if family in _LEARNED_POSITIONS else 0
    other = 2 * hidden if family == "bloom" else 2 * embed_dim * hidden if embed_dim != hidden else 0
    final = norms[0] if not (family == "opt" and config.get("do_layer_norm_before") is False) else None
    return Shape(
        layers=tuple((layer(moe, win), count) for (moe, win), count in counts.items()),
        hidden=hidden,
        vocab_size=vocab,
        embed_dim=embed_dim,
        tied=tied,
        num_position_rows=rows,
        final_norm=final,
        has_sdpa=shadow is None or shadow.supports_sdpa,
        trainer_sdpa=shadow is not None and shadow.trainer_sdpa,
        alibi=family in {"bloom", "mpt"} or bool(config.get("alibi")),
        max_positions=int(positions) if positions else None,
        softcap=bool(config.get("final_logit_softcapping")),
        other_params=other,
    )


def read_shape(spec: ModelSpec) -> Shape:
    """The decoder's shape from its configuration.

    A family whose layer is not modelled is read as whatever comes nearest to its parameter count: gated MLP or not, tied head or not.
    """
    tied = bool(spec.config.get("tie_word_embeddings"))
    if spec.family_known:
        return _build(spec, spec.family not in _PLAIN_MLP, tied)
    gates = (False,) if spec.family in _PLAIN_MLP else (True, False)
    shapes = [_build(spec, gated, tie) for gated in gates for tie in (tied, not tied)]
    return min(shapes, key=lambda shape: abs(shape.num_params - spec.num_params))
