"""A Hugging Face config.json, as transformers 4 or 5 writes it, to a ModelSpec: checked field by field, the family's defaults filled in."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from typing import Any

from llmcheck import jsonfile
from llmcheck.catalog import derive
from llmcheck.catalog.familydata import FamilyData, family_data
from llmcheck.errors import UserError, did_you_mean
from llmcheck.paths import unreadable
from llmcheck.types import ModelSpec
from llmcheck.units import human_count

MAX_CONFIG_BYTES = 10 << 20  # the largest on the Hub are below 1 MiB (label tables of classifiers)
MAX_PARAMS = 10**14  # fifty times the largest open model

# The text part of models that also see or hear: outer model_type -> the family of a text configuration that does not name its own.
TEXT_FAMILIES = {
    "gemma3": "gemma3_text", "llava": "llama", "llava_next": "llama", "mistral3": "mistral", "paligemma": "gemma", "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe",
}  # fmt: skip
# Text configurations whose layers are those of another family.
SAME_LAYERS = {
    "qwen2_5_vl_text": "qwen2", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}  # fmt: skip
TEXT_PARTS = ("text_config", "llm_config", "language_config")
NOT_CAUSAL = {
    "albert", "bart", "bert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "longformer", "m2m_100", "marian", "mbart",
    "modernbert", "mpnet", "mt5", "nomic_bert", "pegasus", "roberta", "siglip", "t5", "t5gemma", "umt5", "vit", "whisper", "xlm-roberta",
}  # fmt: skip

# Other names that families without a known configuration class give the four numbers that every decoder has, and the rest we can use.
BASIC_FIELDS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab"),
}
MORE_FIELDS = {
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "ff_dim"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k"),
    "moe_intermediate_size": ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "intermediate_size"),
    "shared_expert_intermediate_size": ("shared_expert_intermediate_size",),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length"),
}


def read_config(path: str) -> dict[str, Any]:
    """The JSON object in the regular file at `path` (at most 10 MiB). Raises UserError."""
    check_regular(path, "model configuration")
    return jsonfile.load_object(path, what="model configuration", max_bytes=MAX_CONFIG_BYTES)


def check_regular(path: str, what: str) -> None:
    """Raises UserError unless `path` is a regular file or a link to one: opening a pipe or a device could block for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as reason:
        raise unreadable(path, what=what, where=path, reason=reason) from reason
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            why, hint = "a folder has no content of its own", "give the file's own path"
        else:
            why, hint = "a pipe or a device could be read for ever", "write its content to a file and give that"
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"the {what} is {kind}: {path}", code="unreadable", where=path, why=why, hint=hint)


def spec_of_config(raw: Mapping[str, Any], *, name: str, source: str, where: str, hub_id: str | None = None) -> ModelSpec:
    """The model that a config.json describes; `where` names the file in messages. Raises UserError.

    A family whose layer is not modelled gives a stand-in with ``family_known=False``, if it has the four basic numbers.
    """
    text, family, notes = text_part(raw, where)
    return spec_of_fields(text, family, name=name, source=source, where=where, hub_id=hub_id, notes=notes)


def spec_of_fields(
    raw: Mapping[str, Any], family: str, *, name: str, source: str, where: str, hub_id: str | None = None, notes: tuple[str, ...] = (),
    num_params: int | None = None,
) -> ModelSpec:  # fmt: skip
    """Like :func:`spec_of_config` for fields of one family; `num_params` when it is known already. Raises UserError."""
    from llmcheck.shadow import families  # late: the family's module is only wanted now

    data = family_data(family)
    config = complete(data, raw, where) if data is not None else {}
    known = families.get(family) is not None and bool(config)
    if not known:
        config = {**config, **stand_in(config or raw, family, where)}
        notes = (*notes, f"the layer of family {family!r} is not modelled: the estimate is that of a conservative stand-in")
    if num_params is None:
        num_params = families.num_params(family if known else families.STAND_IN, config)
    if num_params > MAX_PARAMS:
        raise UserError(
            f"the model configuration describes {human_count(num_params)} parameters", code="config", where=where,
            why=f"llmcheck takes at most {human_count(MAX_PARAMS)}", hint="check the sizes in it",
        )  # fmt: skip
    return ModelSpec(
        name=name, family=family, config=config, source=source, num_params=num_params, hub_id=hub_id, family_known=known, notes=notes
    )


def text_part(raw: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """The fields of the language model in a configuration, its family, and notes. Raises UserError for what is no causal LM."""
    notes = _notes(raw)
    outer = raw.get("model_type")
    part = next((raw[key] for key in TEXT_PARTS if isinstance(raw.get(key), Mapping)), None)
    if outer is not None and not isinstance(outer, str):
        raise _wrong("model_type", outer, "a string", where)
    if isinstance(outer, str) and (outer in NOT_CAUSAL or (raw.get("is_encoder_decoder") is True and part is None)):
        raise UserError(
            f"{outer!r} is not a causal language model",
            code="config",
            where=where,
            hint="llmcheck plans decoder-only models (…ForCausalLM)",
        )
    if part is None and outer in TEXT_FAMILIES and outer not in SAME_LAYERS:
        part = {}
    if part is not None:
        inner = part.get("model_type", TEXT_FAMILIES.get(outer or ""))
        if not isinstance(inner, str):
            why, hint = "its model_type is missing", "add that of the language model, for example llama"
            told = "the text part of the model configuration names no family"
            raise UserError(told, code="config", where=f"{where}: model_type", why=why, hint=hint)
        # What concerns the head stands outside in some files.
        outside = {key: raw[key] for key in ("tie_word_embeddings", "vocab_size") if key in raw and key not in part}
        notes = (
            f"text part of a {outer or 'multimodal'} model: its other parts (vision, audio, projector) are not in the estimate",
            *notes,
        )
        return {**outside, **part}, SAME_LAYERS.get(inner, inner), notes
    if outer is None:
        raise UserError(
            "the model configuration has no model_type", code="config", where=where, hint="is this the config.json of a transformers model?"
        )
    if outer in SAME_LAYERS:
        notes = (f"text part of a {outer} model: the vision part is not in the estimate", *notes)
    return raw, SAME_LAYERS.get(outer, outer), notes


_HINT = "compare it with the config.json of the model that it came from"


def complete(data: FamilyData, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every field of the family's configuration class, as transformers 5 would hold it. Raises UserError listing all wrong fields."""
    given: dict[str, Any] = {}
    for key, value in raw.items():
        given.setdefault(data.aliases.get(key, key), value)
    given |= {key: raw[key] for key in data.defaults if key in raw}  # a field's own name wins over its aliases
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, default in data.defaults.items():
        if key == "rope_parameters":
            continue
        value = given.get(key, default)
        nullable = key in data.keeps_null or key in _NULLABLE
        problem = "" if value is None and nullable else _problem(key, value, default)
        if problem:
            problems.append(problem)
        # null in a field that the class does not leave open means "not said" in the files that write every field
        values[key] = default if value is None and not nullable else value
    extra = given.get("head_dim")  # many layers read it though their configuration class does not list it
    if "head_dim" not in values and extra is not None:
        values["head_dim"] = extra
        problems += filter(None, [_problem("head_dim", extra, 1)])
    problems += derive.rope_problems(given)
    if not problems:
        values = derive.derived(data, values, given)
        problems = derive.shape_problems(values)
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise UserError(
            f"the model configuration ({data.name}) has " + ("a wrong field" if len(problems) == 1 else f"{len(problems)} wrong fields"),
            code="config", where=where, why=shown, hint=_HINT,
        )  # fmt: skip
    return values


def stand_in(raw: Mapping[str, Any], family: str, where: str) -> dict[str, Any]:
    """A layer at least as large as an unknown family's: gated MLP, biases, untied head. Raises UserError without the basic four."""
    fields: dict[str, Any] = {}
    for name, others in {**BASIC_FIELDS, **MORE_FIELDS}.items():
        value = next((raw[other] for other in others if raw.get(other) is not None), None)
        if value is None and name in BASIC_FIELDS:
            near = did_you_mean(family, _families())
            raise UserError(
                f"llmcheck does not know the model family {family!r}, and its configuration lacks {name}",
                code="unknown-family",
                where=where,
                why="without hidden size, layers, heads and vocabulary not even a stand-in can be built",
                hint=near or "is it a decoder?",
            )
        if value is not None:
            problem = _problem(name, value[0] if isinstance(value, list) and value else value, 1)
            if problem:
                raise UserError(
                    f"the model configuration ({family}) has a wrong field", code="config", where=where, why=problem, hint=_HINT
                )
            # Lists give a value per layer: the largest is the conservative one.
            fields[name] = max(v for v in value if isinstance(v, int)) if isinstance(value, list) else value
    fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", max(1, fields["hidden_size"] // fields["num_attention_heads"]))
    fields.setdefault("num_experts", 0)
    if not fields["num_experts"]:
        fields.pop("moe_intermediate_size", None)
    act = raw.get("hidden_act", "silu")
    fields["hidden_act"] = act if isinstance(act, str) else "silu"
    return {**fields, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}


def _families() -> tuple[str, ...]:
    from llmcheck.catalog.familydata import names

    return names()


def _notes(raw: Mapping[str, Any]) -> tuple[str, ...]:
    quantization = raw.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return ()
    method = quantization.get("quant_method")
    kind = method if isinstance(method, str) and len(method) < 40 else "unnamed method"
    bits = quantization.get("bits")
    size = f", {bits} bit" if isinstance(bits, int) and not isinstance(bits, bool) and 0 < bits < 33 else ""
    return (f"the checkpoint is quantised ({kind}{size}): the estimate is for weights in the precision of the recipe",)


# Whole numbers that must be at least 1.
_SHAPE = frozenset(
    "hidden_size n_embd d_model num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads num_heads "
    "num_key_value_heads num_kv_heads multi_query_group_num vocab_size padded_vocab_size intermediate_size ffn_hidden_size ffn_dim n_inner "
    "head_dim kv_channels moe_intermediate_size word_embed_proj_dim max_position_embeddings n_positions max_seq_len seq_length "
    "expansion_ratio kv_lora_rank qk_nope_head_dim v_head_dim num_experts_per_tok linear_key_head_dim linear_value_head_dim "
    "linear_num_key_heads linear_num_value_heads linear_conv_kernel_dim".split()
)
_MANY = {"num_hidden_layers": 1 << 13, "n_layer": 1 << 13, "n_layers": 1 << 13, "num_layers": 1 << 13}
_MAX_SHAPE = 1 << 27  # 50 times the widest embedding known; products stay far below what Python shows at a glance
_MAX_COUNT = 1 << 40
_FLOATS = frozenset({"clip_qkv", "final_logit_softcapping", "attn_logit_softcapping"})
_LISTS = frozenset({"layer_types", "mlp_only_layers", "no_rope_layers", "mlp_layer_types", "full_attn_idxs", "attention_types"})
# Null where the class default is a number, in the files of transformers 4 of any family: data/families.toml has what 5 takes.
_NULLABLE = frozenset({"sliding_window", "num_key_value_heads", "q_lora_rank", "clip_qkv"})


def _problem(key: str, value: Any, default: Any) -> str:
    """What is wrong with one field, or an empty string. The kind of a field follows from the class's default."""
    if value is None:
        return "" if default is None or key not in _SHAPE else f"{key} is null"
    if key in ("logit_scale", "use_bidirectional_attention") and default is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else _want(key, value, "true or false")
    if isinstance(default, str):
        return "" if isinstance(value, str) else _want(key, value, "a string")
    if isinstance(default, float) or key in _FLOATS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return _want(key, value, "a number")
        return f"{key} is {value:g}, not between 0 and 1" if ("dropout" in key or "pdrop" in key) and not 0 <= value <= 1 else ""
    if key in _LISTS or isinstance(default, list):
        return "" if isinstance(value, (list, tuple)) and len(value) <= 1 << 13 else _want(key, value, "a list")
    if isinstance(default, dict):
        return "" if isinstance(value, Mapping) else _want(key, value, "an object")
    if isinstance(value, bool) or not isinstance(value, int):
        return _want(key, value, "a whole number")
    low, high = (1, _MANY.get(key, _MAX_SHAPE)) if key in _SHAPE else (0, _MAX_COUNT)
    return "" if low <= value <= high else f"{key} is {_shown(value)}, not between {low} and {high}"


def _want(key: str, value: Any, kind: str) -> str:
    return f"{key} is {_shown(value)}, not {kind}"


def _wrong(key: str, value: Any, kind: str, where: str) -> UserError:
    why, hint = _want(key, value, kind), "mend it, or take the config.json that the model was published with"
    return UserError("the model configuration has a wrong field", code="config", where=where, why=why, hint=hint)


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        return jsonfile.kind_of(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return {"True": "true", "False": "false"}.get(text, text)
