"""What transformers' configuration classes take for granted, family by family: data/families.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmcheck.catalog import tables

_FILE, _HEADER = "families.toml", "[family."


@dataclass(frozen=True, kw_only=True)
class FamilyData:
    """One family's configuration class.

    `defaults` has every field on which shape, memory or time depends; None where the class derives the value from others.
    `keeps_null` names the fields with a default in which null is a value of its own: the class takes it, and the model runs with it.
    `aliases` maps the other names under which the class takes a field. `rope` is empty for a family without rotary embedding.
    """

    name: str
    defaults: Mapping[str, Any]
    keeps_null: frozenset[str]
    aliases: Mapping[str, str]
    rope: Mapping[str, Any]
    linear_targets: tuple[str, ...]
    attention_targets: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Every family of the file, by transformers' model_type."""
    return tuple(sorted(tables.by_name(_FILE, _HEADER)))


@cache
def family_data(name: str) -> FamilyData | None:
    """The configuration class of a model_type, or None where it is not known."""
    block = tables.by_name(_FILE, _HEADER).get(name)
    if block is None:
        return None
    table = tables.parse(block)
    return FamilyData(
        name=name,
        defaults={**table["defaults"], **dict.fromkeys(table["null"])},
        keeps_null=frozenset(table.get("keeps_null", ())),
        aliases=table["aliases"],
        rope=table["rope"],
        linear_targets=tuple(table["linear_targets"]),
        attention_targets=tuple(table["attention_targets"]),
    )
