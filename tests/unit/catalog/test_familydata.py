"""data/families.toml: equal to what transformers' configuration classes say, and read one family at a time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import llmcheck
from llmcheck import toml
from llmcheck.catalog.familydata import family_data, names
from llmcheck.shadow import families

DATA = Path(llmcheck.__file__).parent / "data" / "families.toml"


def generator() -> ModuleType:
    path = Path(__file__).parent / "families_from_transformers.py"
    spec = importlib.util.spec_from_file_location("families_from_transformers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_installed_transformers_says() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers", minversion="5.17")
    if transformers.__version__ != "5.17.0":
        pytest.skip("the file describes transformers 5.17.0")
    assert generator().document() == DATA.read_text(encoding="utf-8")


def test_one_family_alone_is_what_it_is_in_the_whole_file() -> None:
    whole = toml.load(DATA)["family"]
    assert sorted(whole) == list(names())
    for name, table in whole.items():
        data = family_data(name)
        assert data is not None
        assert data.defaults == {**table["defaults"], **dict.fromkeys(table["null"])}
        assert (dict(data.aliases), dict(data.rope)) == (table["aliases"], table["rope"])
        assert (list(data.linear_targets), list(data.attention_targets)) == (table["linear_targets"], table["attention_targets"])


def test_a_family_that_is_not_there_is_none() -> None:
    assert family_data("newnet") is None


@pytest.mark.parametrize("name", names())
def test_attention_layers_are_linear_layers(name: str) -> None:
    data = family_data(name)
    assert data is not None
    assert set() < set(data.attention_targets) <= set(data.linear_targets)


@pytest.mark.parametrize("name", families.names())
def test_lora_adapts_what_peft_adapts(name: str) -> None:
    data, family = family_data(name), families.get(name)
    assert data is not None
    assert family is not None
    assert (set(family.linear_targets), set(family.attention_targets)) == (set(data.linear_targets), set(data.attention_targets))


@pytest.mark.parametrize("name", names())
def test_aliases_lead_to_fields(name: str) -> None:
    data = family_data(name)
    assert data is not None
    assert set(data.aliases.values()) <= set(data.defaults)
    assert not set(data.aliases) & set(data.defaults)


@pytest.mark.parametrize("name", families.names())
def test_every_modelled_family_has_its_defaults(name: str) -> None:
    assert family_data(name) is not None
