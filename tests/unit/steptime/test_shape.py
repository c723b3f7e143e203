"""The shape read from a configuration has the published number of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.models import find_model
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ModelSpec

# Parameters of the published checkpoints, tied weights once.
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "bloomz-7b1": 7_069_016_064,
    "qwen3-4b": 4_022_468_096,
    "mixtral-8x7b": 46_702_792_704,
}


@pytest.mark.parametrize(("name", "num_params"), PUBLISHED.items())
def test_shape_has_the_published_parameters(name: str, num_params: int) -> None:
    assert read_shape(find_model(name, allow_network=False)).num_params == num_params


def config(**fields: object) -> ModelSpec:
    base = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ModelSpec(name="m", family=str(fields.pop("family", "llama")), config={**base, **fields}, source="test", num_params=0)


def test_grouped_queries_narrow_keys_and_values() -> None:
    layer = read_shape(config(num_key_value_heads=2)).layers[0][0]
    assert layer.kv_width == layer.q_width  # half the heads, but keys and values


def test_windowed_layers_are_counted_apart() -> None:
    shape = read_shape(config(family="mistral", sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 2))
    assert sorted((layer.window or 0, count) for layer, count in shape.layers) == [(0, 2), (128, 2)]


def test_leading_dense_layers_of_a_mixture_have_no_experts() -> None:
    shape = read_shape(
        config(family="deepseek_v3", n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1)
    )
    assert [(layer.experts is not None, count) for layer, count in shape.layers] == [(False, 1), (True, 3)]


GOLDEN = json.loads((Path(__file__).parents[3] / "benchmarks" / "oracle" / "families.json").read_text())


@pytest.mark.parametrize("name", [name for name, case in GOLDEN.items() if "config" in case])
def test_the_parameters_of_a_shape_are_those_of_the_model(name: str) -> None:
    case = GOLDEN[name]
    spec = spec_of_config({**case["config"], "model_type": case["family"]}, name=name, source="test", where=name)
    assert read_shape(spec).num_params == pytest.approx(spec.num_params, rel=0.003)


def test_unknown_family_takes_the_mlp_that_fits_its_size() -> None:
    plain = 1000 * 64 * 2 + 4 * (4 * 64 * 64 + 2 * 64 * 256 + 2 * 64) + 64
    spec = ModelSpec(
        name="m", family="new", config=config(tie_word_embeddings=False).config, source="test", num_params=plain, family_known=False
    )
    assert read_shape(spec).layers[0][0].gated is False


def test_bloom_runs_eager_attention_only() -> None:
    assert read_shape(find_model("bloomz-560m", allow_network=False)).has_sdpa is False


def test_latent_attention_projects_through_its_low_ranks() -> None:
    fields = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    names = [linear.name for linear in read_shape(config(family="deepseek_v3", **fields)).layers[0][0].linears]
    assert names[:5] == ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]


def test_which_families_run_eager_attention_only_is_told_alike_by_time_and_memory() -> None:
    from llmcheck.shadow import families

    eager_only = {name for name in families.names() if not families.get(name).supports_sdpa}  # type: ignore[union-attr]
    assert eager_only == {"bloom", "mpt", "gptj", "codegen", "gpt_neo", "gpt_oss"}
