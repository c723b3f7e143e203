"""How a layer of each family differs from the usual one: data/layers.toml."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

from llmcheck.catalog import tables

_FILE, _HEADER = "layers.toml", "[family."


class LayerData(NamedTuple):
    """One family's layer; the defaults are the usual one. The file says what each field means."""

    norm: Literal["rms", "layer"] = "rms"
    norm_params: int = 2
    num_norms: int = 2
    qk_norm: Literal["", "head", "layer"] = ""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    gated: bool = True
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    biases: tuple[str, ...] = ()
    bias_keys: tuple[str, ...] = ()
    out_bias_keys: tuple[str, ...] = ("attention_bias", "use_bias")
    rotary_fraction: float = 1.0
    learned_positions: bool = False
    position_offset: int = 0
    alibi: bool = False
    activation: Literal["", "python"] = ""
    embedding_norm: bool = False
    num_dropout_modules: int = 0
    dropout: float = 0.0


def names() -> tuple[str, ...]:
    """Every family of the file, by transformers' model_type."""
    return tuple(sorted(tables.by_name(_FILE, _HEADER)))


@cache
def layer_data(family: str) -> LayerData:
    """The layer of a model_type; the usual one where the file has none."""
    block = tables.by_name(_FILE, _HEADER).get(family)
    if block is None:
        return LayerData()
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in tables.parse(block).items()}
    return LayerData(**fields)
