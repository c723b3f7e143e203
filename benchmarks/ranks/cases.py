"""The plans that are run with real ranks."""

from __future__ import annotations

from collections.abc import Iterator

from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner.evaluate import complete, evaluate
from llmcheck.planner.plan import Plan
from llmcheck.types import ClusterSpec, LoraSpec, TrainingRecipe

CASES = (
    ("llama-3.2-1b-z2", "llama-3.2-1b", "full", 2),
    ("llama-3.2-1b-z3", "llama-3.2-1b", "full", 3),
    ("llama-7b-lora-z2", "llama-7b", "lora", 2),
    ("bloomz-1b7-z3", "bloomz-1b7", "full", 3),
)
SEQ_LEN, MICRO_BATCH = 1024, 4


def plans(gpu: str, num_gpus: int) -> Iterator[tuple[str, Plan]]:
    """Each case's name and plan on one node of `num_gpus`."""
    cluster = ClusterSpec(gpu=find_gpu(gpu), gpus_per_node=num_gpus)
    for name, model_name, method, stage in CASES:
        model = find_model(model_name, allow_network=False)
        recipe = TrainingRecipe(
            method=method,  # type: ignore[arg-type]
            lora=LoraSpec() if method == "lora" else None,
            zero_stage=stage,
            seq_len=SEQ_LEN,
            micro_batch_size=MICRO_BATCH,
            loss="chunked",
            attention="sdpa",
        )
        yield name, evaluate(model, complete(model, recipe, cluster), cluster)
