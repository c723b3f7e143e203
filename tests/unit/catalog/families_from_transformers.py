"""Writes llmcheck/data/families.toml from the configuration classes of the installed transformers.

``python tests/unit/catalog/families_from_transformers.py > llmcheck/data/families.toml``; `test_families_data.py` proves the file equal to it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

NATIVE = (
    "apertus arcee bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 glm4_moe "
    "glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense lfm2 llama minimax_m2 ministral "
    "ministral3 mistral mixtral mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text "
    "qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2"
).split()

# Fields on which neither shape, memory nor time depends.
DROPPED = {
    "bos_token_id", "eos_token_id", "pad_token_id", "eod_token_id", "use_cache", "initializer_range", "init_std", "initializer_factor",
    "classifier_dropout", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "chunk_size_feed_forward", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "init_device", "is_decoder", "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps",
    "norm_epsilon", "norm_eps",
}  # fmt: skip

# Families whose code is on the Hub, not in transformers: the defaults of their configuration_*.py, and the names of their linear layers.
REMOTE = '''
[family.baichuan]  # https://huggingface.co/baichuan-inc/Baichuan2-7B-Base/blob/main/configuration_baichuan.py
defaults = {vocab_size = 125696, hidden_size = 4096, intermediate_size = 11008, num_hidden_layers = 32, num_attention_heads = 32, hidden_act = "silu", max_position_embeddings = 4096, tie_word_embeddings = false}
null = []
aliases = {model_max_length = "max_position_embeddings"}
rope = {rope_theta = 10000.0}
linear_targets = ["W_pack", "down_proj", "gate_proj", "o_proj", "up_proj"]
attention_targets = ["W_pack", "o_proj"]

[family.chatglm]  # https://huggingface.co/THUDM/chatglm3-6b/blob/main/configuration_chatglm.py
defaults = {num_layers = 28, padded_vocab_size = 65024, hidden_size = 4096, ffn_hidden_size = 13696, kv_channels = 128, num_attention_heads = 32, seq_length = 2048, hidden_dropout = 0.0, attention_dropout = 0.0, rmsnorm = true, apply_residual_connection_post_layernorm = false, post_layer_norm = true, add_bias_linear = false, add_qkv_bias = false, multi_query_attention = false, multi_query_group_num = 1, apply_query_key_layer_scaling = true, attention_softmax_in_fp32 = true, fp32_residual_connection = false, tie_word_embeddings = false}
null = []
aliases = {num_hidden_layers = "num_layers", vocab_size = "padded_vocab_size"}
rope = {rope_theta = 10000.0, partial_rotary_factor = 0.5}
linear_targets = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
attention_targets = ["dense", "query_key_value"]

[family.internlm]  # https://huggingface.co/internlm/internlm-7b/blob/main/configuration_internlm.py
defaults = {vocab_size = 103168, hidden_size = 4096, intermediate_size = 11008, num_hidden_layers = 32, num_attention_heads = 32, hidden_act = "silu", max_position_embeddings = 2048, tie_word_embeddings = false, bias = true}
null = []
aliases = {}
rope = {rope_theta = 10000.0}
linear_targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
attention_targets = ["k_proj", "o_proj", "q_proj", "v_proj"]

[family.internlm2]  # https://huggingface.co/internlm/internlm2-7b/blob/main/configuration_internlm2.py
defaults = {vocab_size = 103168, hidden_size = 4096, intermediate_size = 11008, num_hidden_layers = 32, num_attention_heads = 32, hidden_act = "silu", max_position_embeddings = 2048, tie_word_embeddings = false, bias = true}
null = ["num_key_value_heads"]
aliases = {}
rope = {rope_theta = 10000.0}
linear_targets = ["w1", "w2", "w3", "wo", "wqkv"]
attention_targets = ["wo", "wqkv"]

[family.qwen]  # https://huggingface.co/Qwen/Qwen-7B/blob/main/configuration_qwen.py
defaults = {vocab_size = 151936, hidden_size = 4096, num_hidden_layers = 32, num_attention_heads = 32, emb_dropout_prob = 0.0, attn_dropout_prob = 0.0, max_position_embeddings = 8192, seq_length = 8192, scale_attn_weights = true, kv_channels = 128, rotary_pct = 1.0, no_bias = true, intermediate_size = 22016, tie_word_embeddings = false}
null = []
aliases = {}
rope = {rope_theta = 10000.0}
linear_targets = ["c_attn", "c_proj", "w1", "w2"]
attention_targets = ["c_attn", "c_proj"]
'''  # noqa: E501

HEADER = """\
# What transformers {version}'s configuration class of each family takes for granted. Generated: tests/unit/catalog/families_from_transformers.py
#   defaults           every field on which shape, memory or time depends, with the class's default; `null` names those whose default is None
#   aliases            other names under which the class takes a field
#   rope               rotary parameters of a configuration that gives none
#   linear_targets     last names of the linear layers of the blocks (what LoRA's "all-linear" adapts); attention_targets: those within attention
"""


def config_class(family: str) -> Any:
    """The transformers configuration class of a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


def plain(value: Any) -> Any:
    """`value` as TOML can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in DROPPED}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def defaults(family: str) -> dict[str, Any]:
    """Every kept field of the configuration class with its class default (None where the class derives it)."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config_class(family)):
        if field.name in DROPPED:
            continue
        value = field.default
        if value is dataclasses.MISSING:
            value = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        out[field.name] = plain(value)
    if family == "mpt":  # the class fills this one by itself; the model reads its members
        out["attn_config"] = plain(config_class(family)().attn_config)
    return out


def aliases(family: str) -> dict[str, str]:
    """Other names under which the class takes a field: its ``attribute_map``, and those that its ``__post_init__`` takes."""
    fields = defaults(family)
    out = {}
    for other, name in config_class(family).attribute_map.items():
        if other in fields and name not in fields:  # the stored name is the field: both spellings mean it
            out[name] = other
        elif name in fields and other not in fields:
            out[other] = name
    out |= {"bloom": {"n_embed": "hidden_size"}, "falcon": {"n_embed": "hidden_size"}}.get(family, {})
    out |= {"lfm2": {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}}.get(family, {})
    return dict(sorted(out.items()))


def rope(family: str) -> dict[str, Any]:
    """The rotary parameters of a configuration that gives none; empty for a family without."""
    if family == "ministral3":  # the class needs a length beside its own default
        return {"rope_theta": 1000000.0}
    given = getattr(small(family, layers=8), "rope_parameters", None) or {}
    return {k: plain(v) for k, v in given.items() if v is not None and k != "rope_type"} if given else {}


def small(family: str, layers: int) -> Any:
    """A configuration of the family with few layers, everything else as the class has it."""
    cls, fields = config_class(family), defaults(family)
    name = next(n for n in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if n in fields)
    more: dict[str, Any] = {name: layers}
    if family == "gpt_neo":
        more["attention_types"] = [[["global", "local"], layers // 2]]
    if family in ("ministral", "hunyuan_v1_dense", "nemotron"):
        more["head_dim"] = 128
    if family == "lfm2":
        more["full_attn_idxs"] = [2, 5]
    return cls(**more)


def linear_layers(family: str) -> tuple[list[str], list[str]]:
    """Last names of the linear layers of the blocks, and of those that are within attention."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small(family, layers=8))
    head = model.get_output_embeddings()
    every, attention = set(), set()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is head or not any(part.isdigit() for part in name.split(".")):
            continue
        *path, last = name.split(".")
        every.add(last)
        if any("att" in part for part in path):
            attention.add(last)
    return sorted(every), sorted(attention)


def toml(value: Any) -> str:
    """`value` as a TOML literal; members that are None are left out."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return repr(value)


def document() -> str:
    """The whole of families.toml."""
    import transformers

    parts = [HEADER.format(version=transformers.__version__)]
    for family in NATIVE:
        fields = defaults(family)
        every, attention = linear_layers(family)
        parts.append(
            f"\n[family.{family}]\n"
            f"defaults = {toml(fields)}\n"
            f"null = {toml([k for k, v in fields.items() if v is None])}\n"
            f"aliases = {toml(aliases(family))}\n"
            f"rope = {toml(rope(family))}\n"
            f"linear_targets = {toml(every)}\n"
            f"attention_targets = {toml(attention)}\n"
        )
    return "".join(parts) + REMOTE


if __name__ == "__main__":
    sys.stdout.write(document())
