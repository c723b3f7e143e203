"""data/layers.toml: the names of a layer's linear layers are those that transformers' own classes have."""

from __future__ import annotations

import pytest

from llmcheck.catalog import familydata
from llmcheck.catalog.layerdata import LayerData, layer_data, names

# These have other layers: low-rank attention, which `reading.py` builds; linear attention and convolutions, for which the usual stand in.
OTHER_LAYERS = {
    "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "lfm2", "phimoe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text",
}  # fmt: skip
OUTSIDE = {"flex_olmo", "gemma3"}  # read by their shape; transformers' row is another's


def has_experts(family: str) -> bool:
    found = familydata.family_data(family)
    assert found is not None
    return any("experts" in key for key in found.defaults)


@pytest.mark.parametrize("family", [name for name in familydata.names() if name not in OTHER_LAYERS])
def test_the_linear_layers_have_the_names_that_adapters_look_for(family: str) -> None:
    data, known = layer_data(family), familydata.family_data(family)
    assert known is not None
    attention = {*data.qkv, data.out}
    if has_experts(family):  # whose expert layers are no modules of their own
        assert attention <= set(known.linear_targets)
    else:
        assert attention | set(data.mlp) == set(known.linear_targets)


def test_a_family_that_differs_in_nothing_has_no_row() -> None:
    assert [name for name in names() if layer_data(name) == LayerData()] == []
    assert set(names()) - set(familydata.names()) == OUTSIDE
