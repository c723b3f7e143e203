"""The cases of ``data/cases.jsonl`` as the product's own types: what `llmcheck plan` would plan with the same choices spelt out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import rows as accuracy
from llmcheck import dsconfig
from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner.evaluate import complete
from llmcheck.types import ClusterSpec, LoraSpec, ModelSpec, TrainingRecipe

DATA = Path(__file__).parent / "data"
CASES, MEASURED = DATA / "cases.jsonl", DATA / "h100-2026-11.jsonl"
_MODELS = "models-2026-11.json"  # of benchmarks/accuracy/data; a name that is not there is the catalogue's
_SEQ_LEN, _MICRO_BATCH = 1024, 2
_RECIPE_KEYS = (
    "precision", "optimizer", "zero_stage", "offload", "checkpointing", "attention", "loss", "allocator", "micro_batch_size",
    "grad_accum_steps", "seq_len", "packing", "fused_adapters",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run. `raw`: its line; `rank`: which of the cluster's."""

    raw: dict[str, Any]
    model: ModelSpec
    recipe: TrainingRecipe
    cluster: ClusterSpec
    rank: int

    @property
    def label(self) -> str:
        return str(self.raw["id"])


def _model(raw: dict[str, Any]) -> ModelSpec:
    known = json.loads((accuracy.DATA / _MODELS).read_text())
    name, layers = raw["model"], raw.get("layers")
    if name in known:
        config = dict(known[name])
    else:
        spec = find_model(name, allow_network=False)
        config = {**spec.config, "model_type": spec.family}
    if layers:
        config.update({key: layers for key in accuracy.LAYER_KEYS if key in config})
        if config.get("layer_types"):
            config["layer_types"] = config["layer_types"][:layers]
    return spec_of_config(config, name=name, source=f"benchmarks/accuracy/data/{_MODELS}", where=name)


def case_of(raw: dict[str, Any]) -> Case:
    """A line of a data file as model, recipe, cluster and rank."""
    method = raw.get("method", "full")
    offload = raw.get("offload", "none")
    model = _model(raw)
    cluster = ClusterSpec(gpu=find_gpu("h100"), gpus_per_node=raw["num_gpus"])
    recipe = TrainingRecipe(
        **{
            "seq_len": _SEQ_LEN,
            "micro_batch_size": _MICRO_BATCH,
            "optimizer": "cpu-adam" if offload != "none" else "fused-adam",
            **{key: raw[key] for key in _RECIPE_KEYS if key in raw},
        },
        method=method,
        lora=None if method == "full" else LoraSpec(train_embeddings=raw.get("train_embeddings")),
    )
    if "bf16" in raw:  # what a user's DeepSpeed file says
        config = dsconfig.complete(recipe, {"bf16": raw["bf16"]}, world_size=cluster.num_gpus, hidden_size=dsconfig.hidden_size_of(model))
        recipe = replace(recipe, deepspeed=config)
    recipe = complete(model, recipe, cluster)
    return Case(raw, model, recipe, cluster, raw.get("rank", 0))


def cases(path: Path = CASES) -> Iterator[Case]:
    """The cases of a file, in its order."""
    for line in path.read_text().splitlines():
        if line.strip():
            yield case_of(json.loads(line))
