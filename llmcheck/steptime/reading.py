"""A decoder's shape, read from its Hugging Face configuration and from what data/layers.toml knows of its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcheck.catalog.layerdata import LayerData, layer_data
from llmcheck.shadow import families
from llmcheck.steptime.shape import Activation, Experts, Layer, Linear, Norm, Shape
from llmcheck.types import ModelSpec

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
# Fields that give a bias whatever the family; transformers 5.17.
_QKV_BIAS_KEYS = ("attention_bias", "use_bias", "use_qkv_bias", "add_qkv_bias", "qkv_bias")
_MLP_BIAS_KEYS = ("mlp_bias", "use_bias")
_PLAIN_MLP = ("dense_h_to_4h", "dense_4h_to_h")  # of a family that is not known and has the parameters of one without a gate
_PYTHON_ACTS = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "xielu"})
# Probabilities of the dropouts after attention and MLP, as configurations name them; without one the family's default counts.
_RESIDUAL_DROPOUTS = ("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "residual_dropout", "resid_dropout", "dropout")


def _get(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    for name in _NAMES[key]:
        value = config.get(name)
        if value is not None:
            return value
    return default


def _attention_linears(
    config: Mapping[str, Any], family: str, data: LayerData, hidden: int
) -> tuple[list[Linear], int, int, int, int, int]:
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
    everywhere = any(config.get(key) for key in data.bias_keys)
    bias = "out" in data.biases or everywhere or any(config.get(key) for key in data.out_bias_keys)
    qkv_bias = "qkv" in data.biases or everywhere or any(config.get(key) for key in _QKV_BIAS_KEYS)
    q, kv = heads * head_dim, kv_heads * head_dim
    widths = (q + 2 * kv,) if len(data.qkv) == 1 else (q, kv, kv)
    linears = [
        Linear(name=name, group="attention", in_features=hidden, out_features=width, bias=qkv_bias)
        for name, width in zip(data.qkv, widths, strict=True)
    ]
    linears.append(Linear(name=data.out, group="attention", in_features=q, out_features=hidden, bias=bias))
    return linears, heads, kv_heads, head_dim, head_dim, _rotary_dim(config, data, head_dim)


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


def _active_dropouts(config: Mapping[str, Any], data: LayerData) -> int:
    """Dropouts of a layer's two residual branches that change something."""
    known = [config[name] for name in _RESIDUAL_DROPOUTS if isinstance(config.get(name), (int, float))]
    return 2 if (known[0] if known else data.dropout) > 0 else 0


def _rotary_dim(config: Mapping[str, Any], data: LayerData, head_dim: int) -> int:
    if data.rotary_fraction == 0 or config.get("alibi"):
        return 0
    rope = config.get("rope_parameters")
    fraction = (
        config.get("partial_rotary_factor")
        or config.get("rotary_pct")
        or (rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None)
    )
    if config.get("rotary_dim"):
        return int(config["rotary_dim"])
    return int(head_dim * float(fraction if fraction is not None else data.rotary_fraction))


def _mlp_linears(data: LayerData, hidden: int, width: int, gated: bool, bias: bool, prefix: str = "") -> list[Linear]:
    names = data.mlp if gated == data.gated else _PLAIN_MLP
    widths = [width] * (len(names) - 1)
    if gated and len(widths) == 1:
        widths = [2 * width]
    shapes = [*((hidden, out) for out in widths), (width, hidden)]
    return [
        Linear(name=prefix + name, group="mlp", in_features=i, out_features=o, bias=bias)
        for name, (i, o) in zip(names, shapes, strict=True)
    ]


def _norms(config: Mapping[str, Any], family: str, data: LayerData, hidden: int, q: int, kv: int, head_dim: int) -> list[Norm]:
    params = hidden if data.norm == "rms" else data.norm_params * hidden
    count = data.num_norms
    if family == "falcon" and not config.get("new_decoder_architecture") and config.get("parallel_attn", True):
        count = 1
    norms = [Norm(width=hidden, kind=data.norm, params=params)] * count
    if data.qk_norm == "layer":
        norms += [Norm(width=q, kind="rms", params=q), Norm(width=kv, kind="rms", params=kv)]
    elif data.qk_norm == "head" or (family == "glm4_moe" and config.get("use_qk_norm")):
        norms += [Norm(width=q, kind="rms", params=head_dim), Norm(width=kv, kind="rms", params=head_dim)]
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
    family, data = spec.family, layer_data(spec.family)
    hidden = int(_get(config, "hidden", 1))
    num_layers = int(_get(config, "layers", 1))
    vocab = int(_get(config, "vocab", 1))
    width = _get(config, "intermediate")
    if width is None:
        width = hidden * int(config.get("expansion_ratio") or 4)
    attention, heads, kv_heads, qk_dim, v_dim, rotary = _attention_linears(config, family, data, hidden)
    norms = _norms(config, family, data, hidden, heads * qk_dim, kv_heads * qk_dim, qk_dim)
    if config.get("kv_lora_rank"):
        norms += [Norm(width=int(r), kind="rms", params=int(r)) for r in (config.get("q_lora_rank"), config["kv_lora_rank"]) if r]
    if family == "qwen":
        width = int(width) // 2  # Qwen 1 counts both halves of the gated MLP
    act = str(_get(config, "act", "silu"))
    python_act: Activation = "python" if act in _PYTHON_ACTS or data.activation == "python" else "fused"
    mlp_bias = "mlp" in data.biases or any(config.get(key) for key in (*data.bias_keys, *_MLP_BIAS_KEYS))
    experts = _experts(config, hidden)
    shadow = families.get(family)
    window, num_windowed = _windows(config, family, num_layers)

    def layer(moe: bool, win: int | None) -> Layer:
        if moe and experts:
            shared = int(config.get("shared_expert_intermediate_size") or 0)
            shared = shared or int(config.get("n_shared_experts") or config.get("num_shared_experts") or 0) * experts.intermediate
            mlp = _mlp_linears(data, hidden, shared, True, False, "shared_") if shared else []
            act_width = shared + experts.top_k * experts.intermediate
        else:
            mlp, act_width = _mlp_linears(data, hidden, int(width), gated, mlp_bias), int(width)
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
            extra_modules=data.num_dropout_modules,
            dropouts=_active_dropouts(config, data),
        )

    num_dense = _num_dense_layers(config, num_layers, experts is not None)
    counts: dict[tuple[bool, int | None], int] = {}
    for index in range(num_layers):
        key = (index >= num_dense, window if index < num_windowed else None)
        counts[key] = counts.get(key, 0) + 1
    embed_dim = int(config.get("word_embed_proj_dim") or hidden)
    positions = _get(config, "positions")
    rows = int(positions or 0) + data.position_offset if data.learned_positions else 0
    other = 2 * hidden if data.embedding_norm else 2 * embed_dim * hidden if embed_dim != hidden else 0
    final = norms[0] if config.get("do_layer_norm_before") is not False else None
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
        alibi=data.alibi or bool(config.get("alibi")),
        max_positions=int(positions) if positions else None,
        softcap=bool(config.get("final_logit_softcapping")),
        other_params=other,
    )


def read_shape(spec: ModelSpec) -> Shape:
    """The decoder's shape from its configuration.

    A family whose layer is not modelled is read as whatever comes nearest to its parameter count: gated MLP or not, tied head or not.
    """
    tied = bool(spec.config.get("tie_word_embeddings"))
    gated = layer_data(spec.family).gated
    if spec.family_known:
        return _build(spec, gated, tied)
    gates = (True, False) if gated else (False,)
    shapes = [_build(spec, gate, tie) for gate in gates for tie in (tied, not tied)]
    return min(shapes, key=lambda shape: abs(shape.num_params - spec.num_params))
