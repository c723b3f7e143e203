"""Measured steps as cases of the time model: what was run, and how long a step took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcheck.catalog.gpus import find_gpu
from llmcheck.types import ClusterSpec, LoraSpec, ModelSpec, TrainingRecipe

DATA = Path(__file__).parent / "data"
H100 = "h100-sxm-80g"


@dataclass(frozen=True)
class Case:
    """One measured step. `without_network`: collectives were not executed."""

    name: str
    model: ModelSpec
    recipe: TrainingRecipe
    cluster: ClusterSpec
    measured_s: float
    without_network: bool
    row: dict[str, Any]


def spec(name: str, config: dict[str, Any], num_params: int) -> ModelSpec:
    """A model by its configuration."""
    return ModelSpec(name=name, family=config["model_type"], config=config, source="benchmarks/steptime/data/models.json", num_params=num_params)


def groundtruth() -> Iterator[Case]:
    """Our own runs: rank 0 of N on one H100, no communication."""
    models = json.loads((DATA / "models.json").read_text())
    for line in (DATA / "groundtruth.jsonl").read_text().splitlines():
        row = json.loads(line)
        lora = row["method"] == "lora"
        zero = dict(row.get("ds", {}).get("zero_optimization", {}), stage=row["zero"])
        offload = "params" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
        optimizer = {"fused": "fused-adam", "torch": "adamw", "offload": "cpu-adam"}[row["optimizer"]]
        recipe = TrainingRecipe(
            method=row["method"], lora=LoraSpec(rank=row["lora_r"]) if lora else None, precision=row["dtype"], optimizer=optimizer,
            zero_stage=row["zero"], offload=offload, checkpointing=row["ckpt"], attention=row["attn"],
            loss="liger" if row.get("liger") else "hf", micro_batch_size=row["mbs"], grad_accum_steps=row["accum"], seq_len=row["seq"],
            allocator="expandable" if row.get("alloc_conf") else "native", deepspeed={"zero_optimization": zero},
        )
        cluster = ClusterSpec(gpu=find_gpu(H100), gpus_per_node=row["world"])
        tags = [row["method"], f"z{row['zero']}", f"w{row['world']}", f"b{row['mbs']}", f"s{row['seq']}", "ck" if row["ckpt"] else "nc"]
        tags += [row["dtype"]] if row["dtype"] != "bf16" else []
        tags += ["liger"] if row.get("liger") else []
        tags += [f"x{row['accum']}"] if row["accum"] > 1 else []
        tags += [row["optimizer"]] if row["optimizer"] != "fused" else []
        tags += ["expandable"] if row.get("alloc_conf") else []
        tags += [f"cap{row['cap_gib']}"] if row.get("cap_gib") else []
        tags += [",".join(k for k in row["ds"]["zero_optimization"])] if row.get("ds") else []
        name = f"{row['model']} {' '.join(tags)}"
        yield Case(name, spec(row["model"], models[row["model"]], row["n_params"]), recipe, cluster,
                   row["step_s"], True, row)
