"""Recipes in words and flags."""

from __future__ import annotations

from dataclasses import replace

from llmcheck.planner import describe
from llmcheck.types import LoraSpec, TrainingRecipe

RECIPE = TrainingRecipe(zero_stage=3, micro_batch_size=4, checkpointing=True)


def test_title_names_what_distinguishes() -> None:
    assert describe.title(RECIPE) == "full fine-tuning, ZeRO-3, micro-batch 4, checkpointing"


def test_flags_give_the_recipe_back() -> None:
    lora = replace(RECIPE, method="lora", lora=LoraSpec(rank=8), checkpointing=False, grad_accum_steps=2)
    assert describe.flags(lora) == (
        "--method", "lora", "--lora-rank", "8", "--zero", "3", "--offload", "none", "--micro-batch", "4", "--grad-accum", "2",
        "--checkpointing", "off", "--loss", "hf",
    )  # fmt: skip


def test_compare_says_how_much_slower() -> None:
    assert describe.compare(80.0, 100.0, RECIPE, RECIPE) == "20 % slower"


def test_compare_names_the_price_of_adapters() -> None:
    lora = replace(RECIPE, method="lora", lora=LoraSpec())
    assert "learns less" in describe.compare(130.0, 100.0, lora, RECIPE)
