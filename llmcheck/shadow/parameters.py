"""The parameters of a model under a recipe, and how ZeRO's flat buffer spreads them over the ranks: sizes alone, nothing is executed."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from llmcheck.shadow import families, lora
from llmcheck.shadow.families.base import Config, Family, Run
from llmcheck.shadow.module import Build
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.zero.stage12 import Partition
from llmcheck.types import ModelSpec, TrainingRecipe


class Touched(NamedTuple):
    """Per rank: elements of all parameters that its part of the flat buffer touches, each whole; elements of its largest piece."""

    whole: list[int]
    largest_piece: list[int]


def family_of(model: ModelSpec) -> Family:
    """The model's family, or the stand-in where its layer is not modelled. Raises KeyError for a name that neither knows."""
    family = families.get(model.family if model.family_known else families.STAND_IN)
    if family is None:
        raise KeyError(model.family)
    return family


def parameters(model: ModelSpec, recipe: TrainingRecipe) -> tuple[tuple[int, bool], ...]:
    """(elements, trainable) of each parameter in order of construction, adapters included, tied ones once. Raises KeyError."""
    return _parameters(_Key(model, recipe))


def trainable_numels(model: ModelSpec, recipe: TrainingRecipe) -> list[int]:
    """Elements of each trainable parameter in the order of the optimizer's group."""
    return [numel for numel, trainable in parameters(model, recipe) if trainable]


def touched(numels: list[int], world: int) -> Touched:
    """What each rank of `world` has to do with, where stages 1 and 2 cut the flat buffer without regard to parameters.

    DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py: a rank keeps the whole gradient of every parameter that touches its part.
    """
    part = Partition(numels, world, 2)
    out = Touched([0] * world, [0] * world)
    for i, n in enumerate(numels):
        for owner, piece in part.pieces(i, n):
            out.whole[owner] += n
            out.largest_piece[owner] = max(out.largest_piece[owner], piece)
    return out


class _Key:
    """Cache key: what the list of parameters depends on. A search asks for the same few again and again."""

    __slots__ = ("key", "model", "recipe")

    def __init__(self, model: ModelSpec, recipe: TrainingRecipe) -> None:
        self.model, self.recipe = model, recipe
        self.key = (model.family, model.family_known, repr(sorted(model.config.items(), key=lambda item: item[0])), recipe.lora)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@lru_cache(maxsize=32)
def _parameters(key: _Key) -> tuple[tuple[int, bool], ...]:
    model, adapters = key.model, key.recipe.lora
    family = family_of(model)
    cur.reset(Tape())
    try:
        build = Build(2)
        shadow = family.build(build, Config(model.config), Run())
        if adapters is not None:
            lora.inject(shadow, adapters, family, build)
        return tuple((p.numel, p.req) for p in shadow.parameters())
    finally:
        cur.reset(Tape())
