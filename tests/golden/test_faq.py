"""BELLE's FAQ, rows 1 to 4, on 8 x A100-40G: what the plan says of the models that the FAQ names, in fp16 as there.

Source: the FAQ of the BELLE project ("our machine is 8 x A100 40G"), DeepSpeed-Chat without offload. The measured runs behind the
verdicts are the rows with a cap of 38.8 GiB in ``benchmarks/accuracy/data/boundary.jsonl``.
"""

from __future__ import annotations

from typing import Any

import pytest

from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner.plan import Plan, PlanRequest
from llmcheck.planner.search import search
from llmcheck.types import ClusterSpec


def plan(model: str, gpus: int, **fixed: Any) -> Plan:
    cluster = ClusterSpec(gpu=find_gpu("A100-40G"), gpus_per_node=gpus)
    return search(
        PlanRequest(model=find_model(model), cluster=cluster, offload="none", optimizer="fused-adam", loss="hf", precision="fp16", **fixed)
    )


@pytest.mark.parametrize(
    ("row", "model", "gpus", "seq_len", "fixed", "fits"),
    [
        # 1: one GPU, full fine-tuning, 1024 tokens: bloomz-1b1 at most, with the allocator of the time; 1b7 only with a short length
        (1, "bloomz-1b1", 1, 1024, {"method": "full", "zero_stage": 2, "allocator": "native"}, True),
        (
            1,
            "bloomz-1b7",
            1,
            1024,
            {"method": "full", "zero_stage": 2, "allocator": "native", "micro_batch_size": 1, "checkpointing": True},
            False,
        ),
        (1, "bloomz-3b", 1, 256, {"method": "full", "zero_stage": 2, "micro_batch_size": 1}, False),
        # 2: eight GPUs, full fine-tuning: BLOOMZ-7b1 and LLaMA-7B
        (2, "bloomz-7b1", 8, 1024, {"method": "full"}, True),
        (2, "llama-7b", 8, 1024, {"method": "full"}, True),
        (2, "llama-7b", 8, 2048, {"method": "full"}, True),
        # 3: one GPU, LoRA: LLaMA-7B
        (3, "llama-7b", 1, 1024, {"method": "lora"}, True),
        (3, "bloomz-7b1", 1, 512, {"method": "lora"}, True),
        # 4: eight GPUs, LoRA: 13B
        (4, "llama-13b", 8, 1024, {"method": "lora"}, True),
    ],
)
def test_the_faq_comes_out_right(row: int, model: str, gpus: int, seq_len: int, fixed: dict[str, Any], fits: bool) -> None:
    found = plan(model, gpus, seq_len=seq_len, **fixed)
    assert (found.verdict != "does-not-fit") is fits, (row, found.verdict, found.reasons)


def test_bloomz_1b7_does_fit_with_expandable_segments() -> None:
    # measured: it runs at 1024 tokens under the same cap once segments can grow
    found = plan("bloomz-1b7", 1, seq_len=1024, method="full", zero_stage=2, allocator="expandable", micro_batch_size=1)
    assert found.verdict != "does-not-fit"
