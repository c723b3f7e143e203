"""The DeepSpeed configuration of a run: read, checked against itself and the flags, completed with DeepSpeed 0.19.8's defaults."""

from __future__ import annotations

from llmcheck.dsconfig.completion import Completion, complete, hidden_size_of, resolve
from llmcheck.dsconfig.overrides import RecipeOverrides, recipe_overrides
from llmcheck.dsconfig.reading import parse, read
from llmcheck.dsconfig.settings import OffloadSettings, ZeroSettings

__all__ = [
    "Completion",
    "OffloadSettings",
    "RecipeOverrides",
    "ZeroSettings",
    "complete",
    "hidden_size_of",
    "parse",
    "read",
    "recipe_overrides",
    "resolve",
]
