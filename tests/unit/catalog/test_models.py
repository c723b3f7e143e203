"""Finding a model: which spellings mean which entry, and what a miss says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog import models
from llmcheck.catalog.models import all_models, find_model, from_path
from llmcheck.errors import UserError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LLAMA_PARAMS = 2 * 1000 * 64 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("bloomz-7b1", 7_069_016_064),
        ("BLOOMZ-7B1", 7_069_016_064),
        ("bigscience/bloomz-7b1-mt", 7_069_016_064),
        ("BelleGroup/BELLE-7B-2M", 7_069_016_064),
        ("llama-7b", 6_738_415_616),
        ("vicuna-13b-v1.3", 13_015_864_320),
        ("Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/llama-2-7B-HF", 6_738_415_616),
        ("llama 2 7b", 6_738_415_616),
        ("llama2_7b", 6_738_415_616),
        ("Qwen2.5-7B-Instruct", 7_615_616_512),
        ("qwen25-7b", 7_615_616_512),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("mistral-7b", 7_241_732_096),
        ("gpt2", 124_439_808),
        ("deepseek-r1", 671_026_404_352),
    ],
)
def test_a_spelling_finds_its_model(name: str, params: int) -> None:
    assert find_model(name).num_params == params


@pytest.mark.parametrize("entry", all_models(), ids=lambda entry: entry.name)
def test_every_entry_is_found_by_its_name(entry: models.CatalogEntry) -> None:
    spec = find_model(entry.name)
    assert (spec.name, spec.num_params, spec.hub_id, spec.source) == (entry.name, entry.num_params, entry.hub_ids[0], entry.source)


def test_every_alias_and_hub_id_finds_its_entry() -> None:
    wrong = [(name, e.name) for e in all_models() for name in (*e.aliases, *e.hub_ids) if find_model(name).source != e.source]
    assert wrong == []


def test_an_alias_means_the_checkpoint_of_that_name() -> None:
    assert find_model("vicuna-7b").hub_id == "lmsys/vicuna-7b-v1.5"


def test_an_alias_without_a_checkpoint_of_its_own_has_no_hub_id() -> None:
    assert find_model("vicuna-7b-v1.1").hub_id is None


def test_another_spelling_of_the_name_means_the_entrys_own_checkpoint() -> None:
    assert find_model("llama2-7b").hub_id == "meta-llama/Llama-2-7b-hf"


def test_an_alias_says_whose_shape_it_has() -> None:
    assert find_model("belle-7b").notes == ("belle-7b has the shape of bloomz-7b1",)


def test_a_longer_spelling_of_the_same_name_says_nothing() -> None:
    assert find_model("Llama-2-7b-hf").notes == ()


def test_a_checkpoints_own_value_wins_over_the_entrys() -> None:
    assert find_model("Qwen/Qwen3-4B-Instruct-2507").config["max_position_embeddings"] == 262144
    assert find_model("Qwen/Qwen3-4B").config["max_position_embeddings"] == 40960


def test_an_ending_taken_off_is_said() -> None:
    spec = find_model("mistral-7b-instruct")
    assert (spec.notes[0], spec.hub_id) == ("'mistral-7b-instruct' was taken as 'mistral-7b'", None)


@pytest.mark.parametrize(("typo", "meant"), [("lama-7b", "llama-7b"), ("bloomz-7b2", "bloomz-7b1"), ("qwen3-8", "qwen3-8b")])
def test_a_miss_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(UserError, match="unknown model") as error:
        find_model(typo)
    assert meant in error.value.hint
    assert "the catalogue has no such name" in error.value.why
    assert (error.value.code, error.value.exit_code, error.value.where) == ("unknown-model", 2, "--model")


@pytest.mark.parametrize("name", ["", "   ", "x" * 5000, "nul\0byte"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        find_model(name)
    assert error.value.code == "unknown-model"


def test_an_unknown_owners_checkpoint_is_not_guessed_from_its_name() -> None:
    with pytest.raises(UserError) as error:
        find_model("somebody/Llama-2-7b-hf")
    assert "the catalogue has 'meta-llama/Llama-2-7b-hf'" in error.value.hint
    assert "download https://huggingface.co/somebody/Llama-2-7b-hf/resolve/main/config.json" in error.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_model_or_a_user_error(text: str) -> None:
    try:
        spec = find_model(text, allow_network=False)
    except UserError:
        return
    assert spec.num_params > 0


# --- local files --------------------------------------------------------------------------------------------------------------------


def folder(tmp_path: Path, config: object) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    spec = find_model(str(folder(tmp_path, LLAMA)))
    assert (spec.name, spec.family, spec.num_params, spec.family_known) == ("my-model", "llama", LLAMA_PARAMS, True)


def test_a_config_file_is_a_model(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA) / "config.json"
    spec = find_model(str(path))
    assert (spec.name, spec.source, spec.num_params) == ("my-model", str(path), LLAMA_PARAMS)


def test_a_json_file_of_another_name_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(LLAMA))
    assert find_model(str(path)).name == "mine"


def test_a_relative_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, LLAMA)
    monkeypatch.chdir(tmp_path)
    assert find_model("my-model").num_params == LLAMA_PARAMS
    assert find_model("./my-model").num_params == LLAMA_PARAMS


def test_a_link_to_a_config_file_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(folder(tmp_path, LLAMA) / "config.json")
    assert find_model(str(link)).num_params == LLAMA_PARAMS


def test_the_catalogue_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, LLAMA).rename(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert find_model("gpt2").family == "gpt2"
    assert find_model("./gpt2").family == "llama"


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        from_path(str(tmp_path))


def test_an_adapters_folder_points_to_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        from_path(str(tmp_path))
    assert error.value.hint == "that folder holds an adapter: name its base model"


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the model configuration"):
        find_model(str(tmp_path / "none.json"))
