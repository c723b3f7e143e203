"""Host memory of loading and exporting, by what two ranks hold."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rig import EOS, Ranks, make_plan
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.trainer.host_memory import Counters, Peaks, counters, of_process

MIB = 1 << 20
TOKENS = {"vocab_size": 512, "eos_token_id": EOS, "bos_token_id": 1, "pad_token_id": 3}
# Many layers, so that one parameter is little beside the model; none as large as what the C library maps by itself.
WIDE: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 20, "num_attention_heads": 8, "num_key_value_heads": 8,
    },
    "mixtral": {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 4,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
}  # fmt: skip


def save_model(folder: Path, family: str) -> int:
    """A bf16 model of several files; its bytes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TOKENS, **WIDE[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20MB")
    return sum(parameter.numel() * 2 for parameter in model.parameters())


@pytest.fixture
def fresh() -> Iterator[Ranks]:
    """Two ranks that have done nothing yet: what others have freed, the C library would use again unseen."""
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


def peaks_of(ranks: Ranks, function: str, *args: str) -> Counters:
    """The highest above the start, of both ranks together, while they run `function`."""
    peaks = Peaks([process.pid for process in ranks.processes], interval_s=0.005)
    with peaks.watching():
        ranks.call(function, *args)
    return peaks.above


@pytest.mark.parametrize(("family", "method"), [("llama", "full"), ("llama", "lora"), ("mixtral", "full")])
def test_loading_holds_one_copy_and_exporting_hardly_more_than_a_parameter(family: str, method: str, fresh: Ranks, tmp_path: Path) -> None:
    """ZeRO-3 on the CPU: the partitions, which a GPU would hold, are the one copy; a mixture's experts come beside it by the layer."""
    size = save_model(tmp_path / "model", family)
    plan = make_plan(tmp_path / "plan.json", tmp_path / "model", "--zero", "3", "--precision", "bf16", "--method", method)
    fresh.call("prepare", str(plan))
    loading = peaks_of(fresh, "load", str(plan), str(tmp_path / "model"))
    fresh.call("build")
    (tmp_path / "out").mkdir()
    exporting = peaks_of(fresh, "export", str(tmp_path / "out"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / ("model" if method == "full" else "merged"))
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "model")

    assert size > 90 * MIB  # else the interpreter's own ups and downs would show
    # Building on the CPU leaves gaps in the heap, a half at most; a rank with a whole copy beside its part would make two.
    assert 0.9 * size < loading.held_bytes < 1.8 * size
    assert loading.mapped_bytes < 0.6 * size
    assert exporting.held_bytes < 0.6 * size
    for (name, exported), (_, loaded) in zip(whole.named_parameters(), start.named_parameters(), strict=True):
        assert torch.equal(exported, loaded), name


def test_the_page_cache_is_not_memory_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 64 * MIB)
    with (
        open(tmp_path / "file", "rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        before = of_process("self")
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        read, counted = of_process("self"), counters(["self"])
        mapped[: 32 * MIB] = b"y" * 32 * MIB
        written = of_process("self")

    assert read.file_bytes - before.file_bytes > 60 * MIB
    assert read.held_bytes - before.held_bytes < 8 * MIB
    assert abs(counted.held_bytes - read.held_bytes) < 8 * MIB
    assert abs(counted.mapped_bytes - read.file_bytes) < 100 * MIB  # libraries that other processes share count whole here
    assert written.held_bytes - read.held_bytes > 30 * MIB  # private copies are the process's own


def test_shared_memory_is_held_once() -> None:
    before = of_process("self")
    with mmap.mmap(-1, 32 * MIB) as shared:  # anonymous and shared
        shared.write(b"x" * 32 * MIB)
        after = of_process("self")

    assert after.shared_bytes - before.shared_bytes > 30 * MIB
    assert after.held_bytes - before.held_bytes > 30 * MIB
