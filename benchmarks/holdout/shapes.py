"""Random models of a family: unusual widths, vocabularies, grouped heads, biases, windows; small enough for a step to take a second."""

from __future__ import annotations

import math
import random
from typing import Any

from llmcheck.catalog.familydata import family_data

HEAD_DIMS = (40, 48, 64, 64, 72, 80, 80, 88, 96, 100, 112, 128, 128, 160, 256)
NUM_HEADS = (4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24)
VOCABULARIES = (30522, 32000, 32003, 49157, 50257, 50280, 64001, 65024, 100277, 128257, 151643)
WIDEST, NARROWEST = 3328, 640
PARTIAL = ("phi", "gpt_neox", "glm", "glm4", "glm4_moe", "nemotron", "stablelm")  # rotary embedding of a part of each head
FLIPPED = (
    "attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "qkv_bias", "bias", "no_bias", "enable_bias", "qk_layernorm", "use_qk_norm",
    "use_parallel_residual", "parallel_attn", "multi_query", "new_decoder_architecture", "do_layer_norm_before", "norm_topk_prob",
    "output_router_logits", "attention_out_bias",
)  # fmt: skip
_HIDDEN, _LAYERS = ("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS, _KV = ("num_attention_heads", "n_head", "n_heads", "num_heads"), ("num_key_value_heads", "num_kv_heads")
_INNER = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def _key(fields: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in fields), None)


def draw(rng: random.Random, family: str, seq_len: int) -> dict[str, Any]:
    """A configuration of `family` (a config.json's fields) that takes sequences of `seq_len` tokens."""
    data = family_data(family)
    assert data is not None, family
    fields = data.defaults
    latent = "kv_lora_rank" in fields
    while True:
        head_dim, heads = rng.choice(HEAD_DIMS), rng.choice(NUM_HEADS)
        if family == "codegen":
            heads = 4 * max(1, heads // 4)  # its fused projection is cut for four chips
        if (family in PARTIAL and head_dim % 8) or (family in ("mpt", "bloom") and head_dim > 128):
            continue
        if NARROWEST <= head_dim * heads <= WIDEST:
            break
    hidden = head_dim * heads
    own_head_dim = "head_dim" in fields and not latent
    if own_head_dim and rng.random() < 0.35:
        step = math.lcm(8, heads)  # transformers refuses a width that the heads do not divide, whatever theirs
        hidden = step * rng.randint(-(-NARROWEST // step), WIDEST // step)
    layers = rng.randint(3, 14)
    inner = 32 * max(4, round(hidden * rng.uniform(1.5, 4.2) / 32))
    if rng.random() < 0.15 and _key(fields, _EXPERTS) is None:
        inner += rng.choice((2, 4, 12))
    config: dict[str, Any] = {"model_type": family, "vocab_size": rng.choice(VOCABULARIES), "tie_word_embeddings": rng.random() < 0.5}
    for names, value in ((_HIDDEN, hidden), (_LAYERS, layers), (_HEADS, heads)):
        key = _key(fields, names)
        assert key is not None, (family, names)
        config[key] = value
    kv_key = _key(fields, _KV)
    if kv_key is not None:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        config[kv_key] = heads if latent or rng.random() < 0.3 else rng.choice(divisors)
    inner_key = _key(fields, _INNER)
    if inner_key is not None:
        config[inner_key] = inner
    if own_head_dim:
        config["head_dim"] = head_dim
    positions = _key(fields, _POSITIONS)
    if positions is not None:
        config[positions] = max(seq_len, rng.choice((1024, 2048, 4096)))
    config.update({"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2})
    for key in FLIPPED:
        if isinstance(fields.get(key), bool) and rng.random() < 0.3:
            config[key] = not fields[key]
    _dropouts(rng, fields, config)
    _windows(rng, fields, config)
    _experts(rng, fields, config)
    if latent:
        config.update(
            q_lora_rank=rng.choice((None, 256, 384, 768)), kv_lora_rank=rng.choice((128, 256, 320, 512)),
            qk_nope_head_dim=rng.choice((64, 96, 128)), qk_rope_head_dim=rng.choice((32, 64)), v_head_dim=rng.choice((64, 96, 128)),
        )  # fmt: skip
    if family in PARTIAL and rng.random() < 0.6:
        theta, share = rng.choice((10000.0, 500000.0)), rng.choice((0.25, 0.5, 0.75, 1.0))
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
    _own_ways(rng, family, config, layers, head_dim)
    return config


def _dropouts(rng: random.Random, fields: Any, config: dict[str, Any]) -> None:
    for key, value in fields.items():
        if (key.endswith(("dropout", "_pdrop"))) and isinstance(value, float) and rng.random() < 0.3:
            config[key] = rng.choice((0.0, 0.05, 0.1))


def _windows(rng: random.Random, fields: Any, config: dict[str, Any]) -> None:
    if "sliding_window" not in fields or rng.random() < 0.4:
        return
    config["sliding_window"] = rng.choice((256, 500, 1024))
    if "use_sliding_window" in fields:
        config["use_sliding_window"] = rng.random() < 0.5
    if "max_window_layers" in fields:
        config["max_window_layers"] = 1


def _experts(rng: random.Random, fields: Any, config: dict[str, Any]) -> None:
    key = _key(fields, _EXPERTS)
    if key is None:
        return
    config[key] = rng.choice((4, 8, 12, 16))
    config["num_experts_per_tok"] = rng.choice((1, 2, 3, 4))
    width = 32 * rng.randint(8, 32)
    if "moe_intermediate_size" in fields:
        config["moe_intermediate_size"] = width
        config["intermediate_size"] = min(config["intermediate_size"], 4096)
    else:
        config["intermediate_size"] = width
    if "shared_expert_intermediate_size" in fields:
        config["shared_expert_intermediate_size"] = 32 * rng.randint(8, 48)
    if "n_shared_experts" in fields:
        config["n_shared_experts"] = rng.choice((1, 2))
    if isinstance(fields.get("n_group"), int):  # a group is chosen by the two best of its experts
        groups = rng.choice([g for g in (1, 2, 4) if config[key] >= 2 * g])
        config["n_group"], config["topk_group"] = groups, max(1, groups // 2)
        config["num_experts_per_tok"] = min(config["num_experts_per_tok"], config["topk_group"] * config[key] // groups)
    if "first_k_dense_replace" in fields:
        config["first_k_dense_replace"] = rng.choice((0, 1))
    if "decoder_sparse_step" in fields:
        config["decoder_sparse_step"] = rng.choice((1, 1, 2))


def _own_ways(rng: random.Random, family: str, config: dict[str, Any], layers: int, head_dim: int) -> None:
    if family == "gpt_neo":
        even = layers + layers % 2
        config.update(num_layers=even, attention_types=[[["global", "local"], even // 2]], window_size=rng.choice((128, 256, 300)))
    elif family in ("gptj", "codegen"):
        config["rotary_dim"] = rng.choice((min(64, head_dim // 2 // 2 * 2), head_dim // 4 * 2))
    elif family == "mpt":
        config["expansion_ratio"] = rng.choice((2, 3, 4))
    elif family == "falcon":
        config["alibi"] = rng.random() < 0.3
        if not config.get("new_decoder_architecture"):
            config.pop("num_kv_heads", None)
    elif family == "smollm3":
        config["no_rope_layer_interval"] = rng.choice((2, 3, 4))
    elif family == "opt" and rng.random() < 0.3:
        config["word_embed_proj_dim"] = 256
