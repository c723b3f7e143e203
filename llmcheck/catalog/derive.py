"""Fields that transformers' configuration classes derive from others in their ``__post_init__`` (5.17), family by family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llmcheck.catalog.familydata import FamilyData

Values = dict[str, Any]
Given = Mapping[str, Any]

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")


def first(values: Given, names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that `values` has."""
    return next(values[name] for name in names if name in values)


def derived(data: FamilyData, values: Values, given: Given) -> Values:
    """`values` with each None that the class fills filled, windows spelt out per layer, and rotary parameters as in transformers 5."""
    out = dict(values)
    hidden, heads = first(out, _HIDDEN), first(out, _HEADS)
    for name in _KV_HEADS:
        if name in out and out[name] is None:
            out[name] = heads
    for name, value in (
        ("n_inner", 4 * hidden),
        ("intermediate_size", 4 * hidden),
        ("ffn_hidden_size", 4 * hidden),
        ("word_embed_proj_dim", hidden),
    ):
        if name in out and out[name] is None:
            out[name] = value
    if out.get("mlp_only_layers", ()) is None:
        out["mlp_only_layers"] = []
    if "kv_lora_rank" in out:  # latent attention: the head that the rotary embedding sees is the rotary part
        out["head_dim"] = out["qk_rope_head_dim"]
        out["qk_head_dim"] = out["qk_nope_head_dim"] + out["qk_rope_head_dim"]
    elif out.get("head_dim") is None:
        out["head_dim"] = max(1, hidden // heads)
    special = _SPECIAL.get(data.name)
    if special is not None:
        special(out, given)
    pattern = _PATTERNS.get(data.name)
    if pattern is not None and out["layer_types"] is None:
        out["layer_types"] = [pattern(out, given, index) for index in range(first(out, _LAYERS))]
    if data.rope:
        out["rope_parameters"] = _rope(data, given)
    return out


# --- one family each ---------------------------------------------------------------------------------------------------------------


def _bigcode(out: Values, _given: Given) -> None:
    out["num_key_value_heads"] = 1 if out["multi_query"] else out["n_head"]


def _falcon(out: Values, _given: Given) -> None:
    out["num_key_value_heads"] = out["num_kv_heads"] if out["new_decoder_architecture"] or not out["multi_query"] else 1


def _no_window(value: Any) -> Callable[[Values, Given], None]:
    def switch_off(out: Values, _given: Given) -> None:
        if not out["use_sliding_window"]:
            out["sliding_window"] = value

    return switch_off


def _smollm3(out: Values, _given: Given) -> None:
    if out["no_rope_layers"] is None:
        every = max(1, out["no_rope_layer_interval"])
        out["no_rope_layers"] = [int((index + 1) % every != 0) for index in range(out["num_hidden_layers"])]


def _gpt_neo(out: Values, _given: Given) -> None:
    types = out["attention_types"]
    if types is None:
        out["attention_types"] = types = [[["global", "local"], 12]]
    layers: list[str] = []
    for item in types if isinstance(types, (list, tuple)) else ():
        if (
            isinstance(item, (list, tuple))
            and len(item) == 2
            and isinstance(item[0], list)
            and isinstance(item[1], int)
            and item[1] < 1 << 13
        ):
            layers += [str(kind) for kind in item[0][:16]] * item[1]
    out["attention_layers"] = layers


def _mpt(out: Values, given: Given) -> None:
    inner = given.get("attn_config")
    base = {"attn_type": "multihead_attention", "attn_pdrop": 0, "alibi": True, "qk_ln": False, "clip_qkv": None, "alibi_bias_max": 8}
    out["attn_config"] = {**base, **(inner if isinstance(inner, Mapping) else {})}
    out["intermediate_size"] = out["expansion_ratio"] * out["d_model"]
    out["num_key_value_heads"] = out["n_heads"]


def _lfm2(out: Values, _given: Given) -> None:
    if out["full_attn_idxs"] is None and out["layer_types"] is None:
        out["full_attn_idxs"] = list(range(out["num_hidden_layers"]))


def _glm4_moe_lite(out: Values, _given: Given) -> None:
    if out["mlp_layer_types"] is None:
        out["mlp_layer_types"] = ["dense"] + ["sparse"] * (out["num_hidden_layers"] - 1)


def _exaone4(out: Values, _given: Given) -> None:
    if out["sliding_window"] is None:
        out["sliding_window_pattern"] = 0


def _gemma3(out: Values, _given: Given) -> None:
    if out["use_bidirectional_attention"] is True:
        out["sliding_window"] = out["sliding_window"] // 2 + 1


def _baichuan(out: Values, given: Given) -> None:
    # The 7B models have rotary embeddings, the 13B models ALiBi; their code differs, their model_type does not. Only the former's
    # configurations give max_position_embeddings.
    out["alibi"] = "max_position_embeddings" not in given
    out["num_key_value_heads"] = out["num_attention_heads"]
    if "model_max_length" in given and out["alibi"]:
        out["max_position_embeddings"] = given["model_max_length"]


def _chatglm(out: Values, _given: Given) -> None:
    out["num_key_value_heads"] = out["multi_query_group_num"] if out["multi_query_attention"] else out["num_attention_heads"]
    out["head_dim"] = out["kv_channels"]


def _qwen1(out: Values, _given: Given) -> None:
    out["head_dim"] = out["kv_channels"]
    out["num_key_value_heads"] = out["num_attention_heads"]


def _internlm(out: Values, _given: Given) -> None:
    out["num_key_value_heads"] = out["num_attention_heads"]


_SPECIAL: dict[str, Callable[[Values, Given], None]] = {
    "baichuan": _baichuan,
    "chatglm": _chatglm,
    "exaone4": _exaone4,
    "falcon": _falcon,
    "gemma3_text": _gemma3,
    "glm4_moe_lite": _glm4_moe_lite,
    "gpt_bigcode": _bigcode,
    "gpt_neo": _gpt_neo,
    "internlm": _internlm,
    "lfm2": _lfm2,
    "mpt": _mpt,
    "qwen": _qwen1,
    "qwen2": _no_window(None),
    "qwen2_moe": _no_window(0),
    "qwen3": _no_window(None),
    "qwen3_moe": _no_window(None),
    "smollm3": _smollm3,
}


# --- which layers look through a window -----------------------------------------------------------------------------------------------

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def _every(number: int, other: str = SLIDING, key: str = "sliding_window_pattern") -> Callable[[Values, Given, int], str]:
    """Every `number`-th layer is full (the configuration may say another number), the others are `other`."""

    def kind(_out: Values, given: Given, index: int) -> str:
        value = given.get(key)
        every = value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else number
        return other if (index + 1) % every else FULL

    return kind


def _late_window(out: Values, _given: Given, index: int) -> str:
    return SLIDING if out["sliding_window"] is not None and index >= out["max_window_layers"] else FULL


def _qwen2_moe_window(out: Values, _given: Given, index: int) -> str:
    return SLIDING if out["use_sliding_window"] and (index + 1) % 2 and index < out["max_window_layers"] else FULL


def _exaone4_window(out: Values, _given: Given, index: int) -> str:
    every = out["sliding_window_pattern"]
    if isinstance(every, str):  # "LLLG"
        return SLIDING if every and every[index % len(every)] == "L" else FULL
    return SLIDING if every and (index + 1) % every else FULL


def _ministral_window(out: Values, _given: Given, _index: int) -> str:
    return FULL if out["sliding_window"] is None else SLIDING


def _smollm3_window(out: Values, _given: Given, index: int) -> str:
    rotary = index < len(out["no_rope_layers"]) and out["no_rope_layers"][index]
    return SLIDING if out["use_sliding_window"] and out["sliding_window"] is not None and not rotary else FULL


def _lfm2_kind(out: Values, _given: Given, index: int) -> str:
    return FULL if index in out["full_attn_idxs"] else "conv"


_linear = _every(4, LINEAR, "full_attention_interval")
_PATTERNS: dict[str, Callable[[Values, Given, int], str]] = {
    "cohere2": _every(4), "exaone4": _exaone4_window, "gemma2": _every(2, key=""), "gemma3_text": _every(6), "gpt_oss": _every(2, key=""),
    "lfm2": _lfm2_kind, "ministral": _ministral_window, "olmo3": _every(4, key=""), "qwen2": _late_window, "qwen2_moe": _qwen2_moe_window,
    "qwen3": _late_window, "qwen3_5_moe_text": _linear, "qwen3_5_text": _linear, "qwen3_next": _linear, "smollm3": _smollm3_window,
}  # fmt: skip


# --- rotary embedding -------------------------------------------------------------------------------------------------------------------


def _rope(data: FamilyData, given: Given) -> Values:
    """``rope_parameters`` as transformers 5 holds them, from either version's fields."""
    written = given.get("rope_parameters") or {}
    scaling = given.get("rope_scaling") or {}
    if "full_attention" in data.rope:  # two kinds of layer, two bases
        base = {kind: dict(values) for kind, values in data.rope.items()}
        if "full_attention" in written or "sliding_attention" in written:
            for kind in base:
                base[kind].update(written.get(kind) or {})
            return base
        base["full_attention"].update(scaling or written)
        for kind, key in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
            if given.get(key) is not None:
                base[kind]["rope_theta"] = given[key]
        if data.name == "olmo3" and given.get("rope_theta") is not None:
            base["sliding_attention"]["rope_theta"] = given["rope_theta"]
        return base
    # A configuration that scales or gives its own parameters replaces the class's, all but the base and the rotary share.
    kept = ("rope_theta", "partial_rotary_factor")
    out_rope = {k: v for k, v in data.rope.items() if k in kept or not (scaling or written)}
    for key in ("rotary_emb_base", "rope_theta"):
        if given.get(key) is not None:
            out_rope["rope_theta"] = given[key]
    for key in ("rotary_pct", "partial_rotary_factor"):
        if given.get(key) is not None:
            out_rope["partial_rotary_factor"] = given[key]
    out_rope |= {k: v for k, v in (scaling or written).items() if v is not None}
    out_rope.setdefault(
        "rope_type",
        out_rope.pop("type", None) or ("yarn" if "beta_fast" in out_rope else "llama3" if "low_freq_factor" in out_rope else "default"),
    )
    return out_rope


def rope_problems(given: Given) -> list[str]:
    """What is wrong with the fields of the rotary embedding."""
    problems = []
    for key in ("rope_parameters", "rope_scaling"):
        value = given.get(key)
        if value is not None and (not isinstance(value, Mapping) or len(value) > 64):
            problems.append(f"{key} is not a small object")
        elif value is not None:
            problems += [
                f"{key}.{k} is not an object"
                for k in ("full_attention", "sliding_attention")
                if not isinstance(value.get(k, {}), (Mapping, type(None)))
            ]
            problems += [p for k in ("rope_theta", "factor", "partial_rotary_factor") for p in _number(f"{key}.{k}", value.get(k))]
    for key in ("rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct", "rope_local_base_freq"):
        problems += _number(key, given.get(key))
    return problems


def _number(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return [f"{key} is not a number of at least 0"]
    return [f"{key} is above 1"] if key.endswith(("partial_rotary_factor", "rotary_pct")) and value > 1 else []


# --- what must fit together -----------------------------------------------------------------------------------------------------------


def shape_problems(values: Given) -> list[str]:
    """Sizes that contradict each other in a completed configuration."""
    problems = []
    hidden, heads, layers = first(values, _HIDDEN), first(values, _HEADS), first(values, _LAYERS)
    kv_heads = values.get("num_key_value_heads") or values.get("num_kv_heads") or heads
    if heads % kv_heads:
        problems.append(f"{heads} attention heads are not divisible by {kv_heads} key-value heads")
    if hidden % heads and values.get("head_dim") == hidden // heads:
        problems.append(f"hidden size {hidden} is not divisible by {heads} attention heads")
    for key in ("layer_types", "mlp_layer_types", "attention_layers"):
        listed = values.get(key)
        if listed is not None and len(listed) != layers:
            problems.append(f"{key} lists {len(listed)} layers of {layers}")
        if listed is not None and not all(isinstance(kind, str) for kind in listed):
            problems.append(f"{key} holds something that is not a string")
    for key in ("mlp_only_layers", "full_attn_idxs", "no_rope_layers"):
        listed = values.get(key)
        if listed is not None and not all(isinstance(index, int) for index in listed):
            problems.append(f"{key} holds something that is not a whole number")
    experts = values.get("num_experts") or values.get("num_local_experts") or values.get("n_routed_experts")
    top_k = values.get("num_experts_per_tok")
    if experts and top_k and top_k > experts:
        problems.append(f"{top_k} experts per token of only {experts}")
    return problems
