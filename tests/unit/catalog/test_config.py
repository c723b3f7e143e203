"""config.json: what transformers 4 and 5 write means one thing, and what is wrong with a file is said."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck.catalog.config import complete, read_config, spec_of_config
from llmcheck.catalog.familydata import family_data
from llmcheck.errors import UserError
from llmcheck.shadow import families
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ModelSpec

SMALL = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    return spec_of_config(config, name="m", source="here", where="config.json")


def completed(family: str, **fields: Any) -> dict[str, Any]:
    data = family_data(family)
    assert data is not None
    return complete(data, fields, "config.json")


def refused(config: Mapping[str, Any]) -> UserError:
    with pytest.raises(UserError) as error:
        spec_of(config)
    assert error.value.exit_code == 2
    return error.value


# --- two versions of transformers, and older names ------------------------------------------------------------------------------------


def test_rotary_fields_of_both_versions_mean_the_same() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    four = completed("llama", rope_theta=500000.0, rope_scaling=scaling)
    five = completed("llama", rope_parameters={"rope_theta": 500000.0, **scaling})
    assert four["rope_parameters"] == five["rope_parameters"] == {"rope_theta": 500000.0, **scaling}


def test_a_null_scaling_is_none() -> None:
    assert completed("llama", rope_theta=10000.0, rope_scaling=None)["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("family", "key", "expected"),
    [
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "sliding_window", None),
        ("falcon", "multi_query", None),
        ("falcon", "parallel_attn", None),
        ("deepseek_v3", "norm_topk_prob", None),
        ("deepseek_v3", "q_lora_rank", None),
        ("seed_oss", "head_dim", 51),  # the class derives it
        ("seed_oss", "num_key_value_heads", 80),
        ("ernie4_5", "head_dim", 1024 // 16),
        ("smollm3", "num_key_value_heads", 16),
        ("granite", "num_key_value_heads", 32),
        # null where neither the class nor the model takes it: the field was not said
        ("qwen3_next", "norm_topk_prob", True),
        ("llama", "attention_dropout", 0.0),
        ("gemma2", "query_pre_attn_scalar", 256),
        ("mixtral", "num_key_value_heads", 32),  # taken by transformers 4
    ],
)
def test_null_means_what_it_means_to_transformers(family: str, key: str, expected: object) -> None:
    more = {"hidden_size": 4080} if (family, key) == ("seed_oss", "head_dim") else {}  # divisible by its heads
    actual = completed(family, **{key: None}, **more)[key]
    assert actual == expected


@pytest.mark.parametrize("name", families.names())
def test_every_null_that_a_family_takes_gives_a_model(name: str) -> None:
    data = family_data(name)
    assert data is not None
    for key in data.keeps_null:
        fields = {"hidden_size": 5120} if name == "seed_oss" else {"num_experts_per_tok": 2} if name == "deepseek_v2" else {}
        spec = spec_of({"model_type": name, "num_hidden_layers": 2, "n_layer": 2, key: None, **fields})
        assert spec.num_params > 0
        assert read_shape(spec).num_layers == 2


def test_falcon_without_multi_query_has_all_heads() -> None:
    assert completed("falcon", multi_query=None)["num_key_value_heads"] == 71


def test_a_scaling_of_the_old_spelling_keeps_its_type() -> None:
    assert completed("llama", rope_scaling={"type": "linear", "factor": 2.0})["rope_parameters"]["rope_type"] == "linear"


def test_neox_names_of_rotary_fields_are_understood() -> None:
    rope = completed("gpt_neox", rotary_pct=1.0, rotary_emb_base=5000)["rope_parameters"]
    assert (rope["partial_rotary_factor"], rope["rope_theta"]) == (1.0, 5000)


def test_gemma_has_rotary_parameters_per_kind_of_layer() -> None:
    rope = completed("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=20000.0)["rope_parameters"]
    assert rope == {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    }


def test_the_other_names_of_a_field_are_understood() -> None:
    fields = completed("bloom", n_embed=1024, num_attention_heads=16, num_hidden_layers=24)
    assert (fields["hidden_size"], fields["n_head"], fields["n_layer"]) == (1024, 16, 24)


def test_a_fields_own_name_wins_over_its_other_names() -> None:
    assert completed("gpt2", num_hidden_layers=3, n_layer=5)["n_layer"] == 5


def test_gpt2_by_common_names() -> None:
    fields = completed("gpt2", hidden_size=768, num_attention_heads=12, max_position_embeddings=512)
    assert (fields["n_embd"], fields["n_head"], fields["n_positions"], fields["n_inner"]) == (768, 12, 512, 3072)


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_checkpoints_type_changes_nothing(key: str) -> None:
    assert spec_of({**SMALL, key: "float32"}) == spec_of(SMALL)


def test_what_is_not_given_is_what_transformers_takes() -> None:
    assert completed("llama")["hidden_size"] == 4096


def test_key_value_heads_are_the_heads_unless_given() -> None:
    assert spec_of(SMALL).config["num_key_value_heads"] == 4


def test_a_window_that_is_switched_off_is_none() -> None:
    fields = completed("qwen2", use_sliding_window=False, sliding_window=32768)
    assert (fields["sliding_window"], set(fields["layer_types"])) == (None, {"full_attention"})


def test_windows_are_spelt_out_per_layer() -> None:
    kinds = completed("gemma3_text", num_hidden_layers=12)["layer_types"]
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11]


def test_alibi_of_the_larger_baichuan_is_known_by_what_its_file_lacks() -> None:
    assert completed("baichuan", model_max_length=4096)["alibi"] is True
    assert completed("baichuan", max_position_embeddings=4096)["alibi"] is False


def test_a_field_of_the_layer_that_the_class_does_not_list_is_kept() -> None:
    assert completed("glm4_moe", head_dim=128)["head_dim"] == 128


# --- several models in one file -------------------------------------------------------------------------------------------------------


def test_the_text_part_of_a_multimodal_model_is_taken_and_said() -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    spec = spec_of(config)
    assert (spec.family, spec.config["num_hidden_layers"], spec.config["num_attention_heads"]) == ("gemma3_text", 34, 8)
    assert "text part of a gemma3 model" in spec.notes[0]


def test_a_flat_multimodal_file_of_transformers_4_is_its_text_part() -> None:
    flat = {"model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
    spec = spec_of({**flat, "intermediate_size": 8960, "tie_word_embeddings": True, "vision_config": {"depth": 32}})
    assert (spec.family, spec.num_params) == ("qwen2", 1_543_714_304)


def test_the_nested_file_of_transformers_5_means_the_same() -> None:
    text = {
        "model_type": "qwen2_vl_text",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    }
    spec = spec_of({"model_type": "qwen2_vl", "tie_word_embeddings": True, "text_config": {**text, "intermediate_size": 8960}})
    assert (spec.family, spec.num_params) == ("qwen2", 1_543_714_304)


def test_a_quantised_checkpoint_is_said_to_be_one() -> None:
    spec = spec_of({**SMALL, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert spec.notes == ("the checkpoint is quantised (gptq, 4 bit): the estimate is for weights in the precision of the recipe",)


def test_code_beside_the_file_is_ignored() -> None:
    assert spec_of({**SMALL, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}) == spec_of(SMALL)


# --- families that are not modelled ---------------------------------------------------------------------------------------------------


def test_an_unknown_family_gets_a_stand_in_labelled_as_such() -> None:
    spec = spec_of({"model_type": "newnet", "d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 1000})
    assert not spec.family_known
    assert spec.family == "newnet"
    assert "not modelled" in spec.notes[0]


def test_the_stand_in_is_no_smaller_than_a_llama_of_its_sizes() -> None:
    known = spec_of(SMALL)
    assert spec_of({**SMALL, "model_type": "newnet"}).num_params >= known.num_params


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_an_unknown_family_without_a_basic_number_is_refused(missing: str) -> None:
    config = {key: value for key, value in SMALL.items() if key != missing} | {"model_type": "newnet"}
    error = refused(config)
    assert (error.code, error.what) == (
        "unknown-family",
        f"llmcheck does not know the model family 'newnet', and its configuration lacks {missing}",
    )


def test_an_unknown_mixture_counts_all_its_experts() -> None:
    dense = {**SMALL, "model_type": "newnet"}
    mixture = spec_of({**dense, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128})
    assert mixture.num_params > spec_of(dense).num_params + 2 * 7 * 3 * 64 * 128 - 1


@given(
    hidden=st.integers(1, 1024),
    layers=st.integers(1, 64),
    heads=st.integers(1, 64),
    vocab=st.integers(1, 300_000),
    experts=st.integers(0, 64),
)
def test_the_stand_ins_count_grows_with_its_layers(hidden: int, layers: int, heads: int, vocab: int, experts: int) -> None:
    def count(num: int) -> int:
        fields = {"model_type": "newnet", "head_dim": 8, "num_experts": experts, "vocab_size": vocab}
        return spec_of({**fields, "hidden_size": hidden, "num_hidden_layers": num, "num_attention_heads": heads}).num_params

    assert count(layers + 1) > count(layers) > 2 * vocab * hidden


@pytest.mark.parametrize("kind", ["bert", "t5", "whisper"])
def test_what_is_no_decoder_is_refused(kind: str) -> None:
    assert refused({"model_type": kind, "hidden_size": 768}).what == f"'{kind}' is not a causal language model"


def test_an_encoder_and_decoder_is_refused() -> None:
    assert refused({"model_type": "newseq", "is_encoder_decoder": True}).code == "config"


def test_a_file_without_a_family_is_refused() -> None:
    assert refused({"hidden_size": 64}).what == "the model configuration has no model_type"


# --- wrong values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("hidden_size", "64", "hidden_size is '64', not a whole number"),
        ("hidden_size", 64.0, "hidden_size is 64.0, not a whole number"),
        ("hidden_size", True, "hidden_size is true, not a whole number"),
        ("hidden_size", None, "hidden_size is null"),
        ("hidden_size", [64], "hidden_size is a list, not a whole number"),
        ("hidden_size", {}, "hidden_size is an object, not a whole number"),
        ("hidden_size", 0, "hidden_size is 0, not between 1 and 134217728"),
        ("hidden_size", -64, "hidden_size is -64, not between 1 and 134217728"),
        ("hidden_size", 10**40, "hidden_size is a number of more than 30 digits, not between 1 and 134217728"),
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000, not between 1 and 8192"),
        ("vocab_size", 10**12, "vocab_size is 1000000000000, not between 1 and 134217728"),
        ("attention_dropout", 1.5, "attention_dropout is 1.5, not between 0 and 1"),
        ("attention_dropout", math.nan, "attention_dropout is nan, not a number"),
        ("attention_dropout", "0", "attention_dropout is '0', not a number"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1, not true or false"),
        ("hidden_act", 3, "hidden_act is 3, not a string"),
        ("rope_scaling", [1], "rope_scaling is not a small object"),
        ("rope_scaling", {"factor": "8"}, "rope_scaling.factor is not a number of at least 0"),
        ("rope_theta", "big", "rope_theta is not a number of at least 0"),
        ("num_attention_heads", 5, "hidden size 64 is not divisible by 5 attention heads"),
        ("num_key_value_heads", 3, "4 attention heads are not divisible by 3 key-value heads"),
    ],
)
def test_a_wrong_field_is_named(key: str, value: Any, why: str) -> None:
    error = refused({**SMALL, key: value})
    assert (error.what, error.why) == ("the model configuration (llama) has a wrong field", why)


def test_all_wrong_fields_are_named_at_once() -> None:
    error = refused({**SMALL, "hidden_size": "x", "vocab_size": -1, "hidden_act": None, "attention_dropout": 2})
    assert error.what == "the model configuration (llama) has 3 wrong fields"


def test_null_in_a_field_that_is_not_a_size_means_the_default() -> None:
    assert completed("llama", attention_bias=None)["attention_bias"] is False


def test_a_list_of_layers_must_have_one_for_each() -> None:
    error = refused({"model_type": "qwen2", "num_hidden_layers": 3, "layer_types": ["full_attention"] * 2})
    assert error.why == "layer_types lists 2 layers of 3"


def test_more_experts_per_token_than_experts_are_refused() -> None:
    with pytest.raises(UserError) as error:
        completed("mixtral", num_experts_per_tok=9)
    assert error.value.why == "9 experts per token of only 8"


def test_a_model_larger_than_any_is_refused() -> None:
    huge = {"hidden_size": 1 << 17, "intermediate_size": 1 << 20, "num_hidden_layers": 4096, "num_attention_heads": 1024}
    assert "parameters" in refused({**SMALL, **huge}).what


def test_a_model_type_that_is_no_string_is_refused() -> None:
    assert refused({"model_type": 7}).why == "model_type is 7, not a string"


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(max_size=5), scalars, max_size=3))
families = st.sampled_from(
    ["llama", "bloom", "gpt2", "qwen2", "gemma3_text", "gpt_neo", "mpt", "deepseek_v2", "exaone4", "lfm2", "smollm3", "newnet"]
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw may read a family's data file
@given(family=families, data=st.data())
def test_any_values_give_a_configuration_or_a_user_error(family: str, data: st.DataObject) -> None:
    known = family_data(family)
    keys = sorted(known.defaults) if known is not None else ["hidden_size", "num_experts", "num_hidden_layers", "vocab_size"]
    config = data.draw(st.dictionaries(st.sampled_from([*keys, "rope_scaling", "sliding_window_pattern"]), values, max_size=4))
    try:
        if known is not None:
            complete(known, config, "config.json")
        else:
            spec_of({"model_type": family, **config})
    except UserError:
        pass


# --- hostile files ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is not valid JSON: it ends too early"),
        (b'{"model_type": "llama", "hidden', "is not valid JSON"),
        (b"<html>not found</html>", "is not valid JSON"),
        (b'{"model_type": "ll\xff"}', "is not UTF-8 text"),
        (b"[1, 2]", "must be a JSON object, not a list"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "is not acceptable JSON"),
        (b'{"attention_dropout": NaN}', "is not acceptable JSON"),
        (b'{"a": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "holds a number that is too long"),
        (b'{"a": "' + b"x" * (11 << 20) + b'"}', "is larger than 10 MiB"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_config(str(path))
    assert what in error.value.what


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_config(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a regular file"):
        read_config(str(path))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_is_not_read() -> None:
    with pytest.raises(UserError, match="is not a regular file"):
        read_config("/dev/zero")


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot read the model configuration"):
        read_config(str(path))


def test_a_link_to_itself_says_so(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot read the model configuration"):
        read_config(str(path))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SMALL).encode())
    assert read_config(str(path)) == SMALL
