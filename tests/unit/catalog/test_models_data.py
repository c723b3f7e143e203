"""data/models.toml: every entry has a source, is found without parsing the rest, and has as many parameters as published."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import llmcheck
from llmcheck import toml
from llmcheck.catalog import tables
from llmcheck.catalog.config import complete
from llmcheck.catalog.familydata import family_data
from llmcheck.catalog.models import FILE, HEADER, CatalogEntry, all_models, plain
from llmcheck.shadow import families

DATA = Path(llmcheck.__file__).parent / "data" / FILE
MODELS = all_models()
FAMILIES = sorted({entry.family for entry in MODELS})
REMOTE = {"baichuan", "chatglm", "internlm", "internlm2", "qwen"}  # code on the Hub, not in transformers


def completed(entry: CatalogEntry) -> dict[str, Any]:
    data = family_data(entry.family)
    assert data is not None
    return complete(data, entry.config, entry.name)


def by_name(entry: CatalogEntry) -> str:
    return entry.name


def test_there_are_enough_models() -> None:
    assert len(MODELS) >= 130


@pytest.mark.parametrize(
    "family",
    (
        "bloom llama qwen2 qwen2_moe qwen3 qwen3_moe mistral mixtral gemma gemma2 gemma3_text phi phi3 phimoe gpt2 opt gpt_neox "
        "gptj falcon smollm3 deepseek_v2 deepseek_v3 baichuan chatglm glm internlm internlm2 olmo olmo2 olmoe granite granitemoe "
        "stablelm starcoder2 cohere mpt codegen"
    ).split(),
)
def test_the_families_that_people_fine_tune_are_there(family: str) -> None:
    assert family in FAMILIES


def test_no_two_entries_answer_to_one_name() -> None:
    owners: dict[str, set[str]] = {}
    for entry in MODELS:
        for name in (entry.name, *entry.aliases, *entry.hub_ids):
            owners.setdefault(plain(name), set()).add(entry.name)
    assert {name: who for name, who in owners.items() if len(who) > 1} == {}


def test_no_name_is_given_twice() -> None:
    names = [plain(name) for entry in MODELS for name in (entry.name, *entry.aliases, *entry.hub_ids)]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_the_quick_scan_sees_what_the_parser_sees() -> None:
    parsed = toml.loads(DATA.read_text(encoding="utf-8"))["model"]
    scanned = [{key: tables.strings(block, key) for key in ("name", "aliases", "hub_ids")} for block in tables.blocks(FILE, HEADER)]
    assert scanned == [{"name": (m["name"],), "aliases": tuple(m.get("aliases", ())), "hub_ids": tuple(m["hub_ids"])} for m in parsed]


def test_one_table_alone_is_what_it_is_in_the_whole_file() -> None:
    assert [tables.parse(block) for block in tables.blocks(FILE, HEADER)] == toml.loads(DATA.read_text(encoding="utf-8"))["model"]


@pytest.mark.parametrize("entry", MODELS, ids=by_name)
def test_an_entry_has_a_source(entry: CatalogEntry) -> None:
    assert re.fullmatch(r"https://(huggingface\.co/[\w.-]+/[\w.-]+/blob/main/config\.json|arxiv\.org/abs/[\d.]+)", entry.source)


@pytest.mark.parametrize("entry", MODELS, ids=by_name)
def test_what_a_checkpoint_changes_is_a_checkpoint_of_the_entry(entry: CatalogEntry) -> None:
    assert set(entry.per_checkpoint) <= set(entry.hub_ids)


# --- parameters ---------------------------------------------------------------------------------------------------------------------


def remote_count(config: Mapping[str, Any], family: str) -> int:
    """Parameters of the families whose code is on the Hub, by their modeling_*.py."""
    h, vocab = config["hidden_size"], config.get("vocab_size") or config["padded_vocab_size"]
    layers = config.get("num_hidden_layers") or config["num_layers"]
    if family == "baichuan":  # W_pack, o_proj, gate, up, down; two norms; norm, head
        layer = 3 * h * h + h * h + 3 * h * config["intermediate_size"] + 2 * h
    elif family == "internlm":
        layer = 4 * h * h + (4 * h if config["bias"] else 0) + 3 * h * config["intermediate_size"] + 2 * h
    elif family == "internlm2":  # wqkv, wo, w1, w2, w3
        kv = config["num_key_value_heads"] * config["head_dim"]
        layer = h * (h + 2 * kv) + h * h + 3 * h * config["intermediate_size"] + 2 * h
    elif family == "qwen":  # the configuration's intermediate_size counts gate and up together
        layer = 3 * h * h + 3 * h + h * h + 3 * h * (config["intermediate_size"] // 2) + 2 * h
    else:
        qkv = h + 2 * config["multi_query_group_num"] * config["kv_channels"]
        layer = h * qkv + qkv + h * h + 3 * h * config["ffn_hidden_size"] + 2 * h
    return int(2 * vocab * h + layers * layer + h)


@pytest.mark.parametrize("entry", [e for e in MODELS if e.family in REMOTE], ids=by_name)
def test_parameters_of_families_with_their_own_code_follow_its_layers(entry: CatalogEntry) -> None:
    assert remote_count(completed(entry), entry.family) == entry.num_params


@pytest.mark.parametrize("entry", [e for e in MODELS if families.get(e.family) is not None], ids=by_name)
def test_the_shadow_model_has_the_parameters(entry: CatalogEntry) -> None:
    assert families.num_params(entry.family, completed(entry)) == entry.num_params


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in REMOTE])
def test_transformers_builds_as_many_parameters(family: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.17")
    counted = {}
    for entry in (e for e in MODELS if e.family == family):
        config = transformers.AutoConfig.for_model(family, **entry.config)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        counted[entry.name] = sum(p.numel() for p in model.parameters())
    assert counted == {e.name: e.num_params for e in MODELS if e.family == family}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in REMOTE])
def test_completed_fields_are_those_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.17")
    data = family_data(family)
    assert data is not None
    different = {}
    for entry in (e for e in MODELS if e.family == family):
        ours, theirs = completed(entry), transformers.AutoConfig.for_model(family, **entry.config)
        for key in data.defaults:
            if not same(key, ours.get(key), getattr(theirs, key)):
                different[entry.name, key] = ours.get(key), getattr(theirs, key)
    assert different == {}


def same(key: str, ours: Any, theirs: Any) -> bool:
    if theirs is None:  # fields that the layer itself fills, and rotary parameters of families without
        return key in ("n_inner", "intermediate_size", "head_dim") or not ours
    if key == "rope_parameters":  # transformers adds the length that a scaling starts from; nothing depends on it
        return ours == {k: v for k, v in theirs.items() if k in ours or k != "original_max_position_embeddings"}
    if key == "attn_config":
        return all(getattr(theirs, k) == v for k, v in ours.items())
    return bool(ours == (list(theirs) if isinstance(theirs, tuple) else theirs))


# --- published counts ---------------------------------------------------------------------------------------------------------------


def test_most_models_have_an_exact_published_count() -> None:
    assert sum(entry.published is not None for entry in MODELS) >= 200


@pytest.mark.parametrize("entry", [e for e in MODELS if e.published is not None and not e.stored_beside], ids=by_name)
def test_the_published_count_is_the_model(entry: CatalogEntry) -> None:
    assert entry.published == entry.num_params


@pytest.mark.parametrize("entry", [e for e in MODELS if e.stored_beside], ids=by_name)
def test_what_a_checkpoint_stores_beside_the_parameters_makes_up_the_difference(entry: CatalogEntry) -> None:
    assert entry.published is not None
    kinds = {
        "causal-masks": causal_masks,
        "multi-token-prediction": mtp_layer,
        "rotary-buffers": rotary_buffers,
        "router-bias": router_biases,
        "tied-head": tied_head,
        "vision-tower": gemma3_vision,
    }
    if entry.stored_beside == "vision-tower+multi-token-prediction":
        extra = qwen35_vision(entry) + qwen35_mtp(completed(entry))
    else:
        extra = kinds[entry.stored_beside](completed(entry), entry)
    assert entry.published - entry.num_params == extra


def tied_head(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """The head's own copy of the embedding."""
    return int(config["vocab_size"] * (config.get("hidden_size") or config["n_embd"]))


def rotary_buffers(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """``inv_freq`` of every layer, or one for all (ChatGLM: half of the head is rotated)."""
    if entry.family == "chatglm":
        return int(config["kv_channels"] // 4)
    return int(config["num_hidden_layers"] * config["head_dim"] // 2)


def causal_masks(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """The causal mask of every layer; GPT-Neo stored those of its local layers, GPT-NeoX its rotary buffers, too."""
    if entry.family == "gpt2":
        return int(config["n_layer"] * config["n_positions"] ** 2)
    length = config["max_position_embeddings"]
    if entry.family == "gpt_neo":
        return int(config["attention_layers"].count("local") * length**2)
    rotated = int(config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"])
    return int(config["num_hidden_layers"] * (length**2 + rotated // 2))


def router_biases(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """One number per routed expert and layer, corrected outside of the optimizer."""
    if entry.family == "minimax_m2":
        return int(config["num_hidden_layers"] * config["num_local_experts"])
    return int((config["num_hidden_layers"] - config["first_k_dense_replace"]) * config["n_routed_experts"])


def mtp_layer(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """One more layer with its own embedding, head, projection and norms, and the routers' biases of all layers (GLM-4.5, 4.7)."""
    h, experts, width = config["hidden_size"], config["n_routed_experts"], config["moe_intermediate_size"]
    heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    if entry.family == "glm4_moe":
        attention = 2 * h * heads * dim + 2 * h * kv * dim + (heads + 2 * kv) * dim + (2 * dim if config["use_qk_norm"] else 0)
        dense = config["first_k_dense_replace"]
    else:
        q, kv_rank, nope, rot, v = (
            config[k] for k in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        attention = h * q + q + q * heads * (nope + rot) + h * (kv_rank + rot) + kv_rank + kv_rank * heads * (nope + v) + heads * v * h
        dense = config["mlp_layer_types"].count("dense")
    mlp = experts * (3 * h * width + h) + config["n_shared_experts"] * 3 * h * width
    layer = attention + mlp + 2 * h + 2 * h * h + 3 * h + 2 * config["vocab_size"] * h
    return int(layer + (config["num_hidden_layers"] - dense + 1) * experts)


def gemma3_vision(config: Mapping[str, Any], entry: CatalogEntry) -> int:
    """SigLIP So400m as Gemma 3 has it (896 pixels, patches of 14), and the projector to the text width."""
    width, mlp, layers, patches = 1152, 4304, 27, (896 // 14) ** 2
    layer = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
    tower = 3 * 14 * 14 * width + width + patches * width + layers * layer + 2 * width
    return int(tower + width * config["hidden_size"] + width)


def qwen35_vision(entry: CatalogEntry) -> int:
    """The vision tower that goes with each size, counted by transformers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.17")
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    sizes = {"qwen3.5-0.8b": (12, 768, 3072, 12), "qwen3.5-2b": (24, 1024, 4096, 16), "qwen3.5-4b": (24, 1024, 4096, 16)}
    depth, width, mlp, heads = sizes.get(entry.name, (27, 1152, 4304, 16))
    with torch.device("meta"):
        tower = Qwen3_5VisionModel(
            Qwen3_5VisionConfig(
                depth=depth, hidden_size=width, intermediate_size=mlp, num_heads=heads, out_hidden_size=completed(entry)["hidden_size"]
            )
        )
    return sum(p.numel() for p in tower.parameters())


def qwen35_mtp(config: Mapping[str, Any]) -> int:
    """One more full-attention layer (its query twice as wide, for the gate), the projection of two inputs, and norms."""
    h, heads, kv, dim = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))
    attention = h * heads * dim * 2 + 2 * h * kv * dim + heads * dim * h + 2 * dim
    return int(attention + 3 * h * config["intermediate_size"] + 2 * h + 2 * h * h + 3 * h)


@pytest.mark.parametrize("entry", [e for e in MODELS if e.published_rounded], ids=by_name)
def test_a_rounded_published_count_is_the_model_rounded(entry: CatalogEntry) -> None:
    number, unit = float(entry.published_rounded[:-1]), {"M": 1e6, "B": 1e9}[entry.published_rounded[-1]]
    digits = len(entry.published_rounded[:-1].partition(".")[2])
    assert math.isclose(entry.num_params / unit, number, abs_tol=0.5 * 10**-digits)


def test_the_figures_of_the_issue() -> None:
    counted = {entry.name: entry.num_params for entry in MODELS}
    assert counted["bloomz-7b1"] == 7_069_016_064
    assert counted["llama-7b"] == 6_738_415_616
