"""Published memory figures: the file, and how its rows become recipes. No network, no simulation."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.published.readings import Reading, read, rows
from llmcheck.types import LoraSpec
from llmcheck.units import GIB, MIB

ROWS = {row["id"]: row for row in rows()}


def reading(name: str) -> Reading:
    found = read(ROWS[name])
    assert isinstance(found, Reading), found
    return found


def test_file_has_all_rows() -> None:
    assert len(ROWS) == 415


def test_every_row_is_a_reading_or_has_a_reason() -> None:
    assert [name for name, row in ROWS.items() if not read(row)] == []


def test_known_sources_are_read() -> None:
    assert [name for name, row in ROWS.items() if read(row) == "no reading for this source"] == []


def test_guidance_is_never_scored() -> None:
    scored = {row["kind"] for row in ROWS.values() if isinstance(read(row), Reading)}
    assert scored == {"measured", "measured_rounded", "measured_oom", "measured_second_hand"}


def fields(found: Reading) -> dict[str, Any]:
    recipe = found.recipe
    return {
        "model": found.model.family,
        "gpu": found.cluster.gpu.name,
        "gpus": found.cluster.num_gpus,
        "method": recipe.method,
        "lora": None if recipe.lora is None else (recipe.lora.rank, recipe.lora.targets),
        "zero": recipe.zero_stage,
        "attention": recipe.attention,
        "checkpointing": recipe.checkpointing,
        "batch": (recipe.micro_batch_size, recipe.seq_len),
        "metric": found.metric,
        "known": found.known,
    }


def test_lora_run_of_a_trainer_without_deepspeed() -> None:
    assert fields(reading("M164")) == {
        "model": "qwen", "gpu": "A100-80G", "gpus": 1, "method": "lora", "lora": (8, "c_attn"), "zero": 0, "attention": "flash",
        "checkpointing": False, "batch": (1, 2048), "metric": None, "known": True,
    }  # fmt: skip


def test_lora_run_on_a_t4() -> None:
    assert fields(reading("M436")) == {
        "model": "qwen2", "gpu": "T4", "gpus": 1, "method": "lora", "lora": (32, "q_proj,k_proj,v_proj,o_proj"), "zero": 0,
        "attention": "eager", "checkpointing": True, "batch": (1, 2048), "metric": "allocated", "known": True,
    }  # fmt: skip


def test_deepspeed_run_of_eight_gpus() -> None:
    assert fields(reading("M269")) == {
        "model": "qwen2", "gpu": "A800-80G", "gpus": 8, "method": "full", "lora": None, "zero": 3,
        "attention": "flash", "checkpointing": True, "batch": (1, 8192), "metric": None, "known": True,
    }  # fmt: skip


def test_quantised_run_without_deepspeed_is_only_near() -> None:
    assert not reading("M433").known


def test_length_that_the_source_states_is_kept() -> None:
    assert reading("M342").recipe.seq_len == 32768


def test_rank_that_the_source_states_is_kept() -> None:
    assert reading("M169").recipe.lora == LoraSpec(rank=64, alpha=32, targets="c_attn")


@pytest.mark.parametrize(("name", "size"), [("M436", int(7410.32 * MIB)), ("M101", int(27.74 * GIB)), ("M508", 32 * GIB), ("M343", None)])
def test_figure_is_read_with_its_unit(name: str, size: int | None) -> None:
    assert reading(name).measured_bytes == size


@pytest.mark.parametrize(
    ("name", "word"),
    [("M295", "torchtitan"), ("M517", "Megatron"), ("M280", "torchtune"), ("M345", "Unsloth"), ("M144", "bf16"), ("M083", "GPTQ")],
)
def test_row_that_is_no_recipe_says_why(name: str, word: str) -> None:
    found = read(ROWS[name])
    assert isinstance(found, str)
    assert word in found
