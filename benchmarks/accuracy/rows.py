"""The measured runs under ``data/`` as the product's own types. Used by the benchmark and by the golden tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.gpus import find_gpu
from llmcheck.types import ClusterSpec, LoraSpec, ModelSpec, TrainingRecipe
from llmcheck.units import GIB

DATA = Path(__file__).parent / "data"
_OPTIMIZERS = {"fused": "fused-adam", "torch": "adamw", "torch_ds": "adamw", "offload": "cpu-adam", "adam8bit": "adam-8bit"}
_DEFAULTS = {"rank": 0, "accum": 1, "ds": {}, "lora_r": 16, "dtype": "bf16", "liger": False, "alloc_conf": None, "steps": 3}


@dataclass(frozen=True)
class Row:
    """One measured run. `raw` is the line of the data file."""

    raw: dict[str, Any]
    model: ModelSpec
    recipe: TrainingRecipe
    cluster: ClusterSpec
    rank: int

    @property
    def label(self) -> str:
        r = self.recipe
        parts = [self.model.name, r.method, f"z{r.zero_stage}", f"w{self.cluster.num_gpus}", f"b{r.micro_batch_size}", f"s{r.seq_len}"]
        parts += [] if r.checkpointing else ["nc"]
        parts += [f"ga{r.grad_accum_steps}"] if r.grad_accum_steps > 1 else []
        parts += [r.attention] if r.attention != "sdpa" else []
        parts += [r.precision] if r.precision != "bf16" else []
        parts += [r.loss] if r.loss != "hf" else []
        parts += [r.offload] if r.offload != "none" else []
        parts += [r.optimizer] if r.optimizer not in ("fused-adam", "cpu-adam") else []
        parts += ["exp"] if r.allocator == "expandable" else []
        parts += [f"rank{self.rank}"] if self.rank else []
        parts += ["ds*"] if self.raw.get("ds") and r.offload == "none" else []
        return " ".join(parts)


def deepspeed_config(row: dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed configuration that the harness used for `row`."""
    ds: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": row["mbs"],
        "gradient_accumulation_steps": row["accum"],
        "train_batch_size": row["mbs"] * row["accum"] * row["world"],
        "zero_optimization": {"stage": row["zero"]},
        "gradient_clipping": row.get("clip", 1.0),
    }
    if row["dtype"] != "fp32":
        ds["bf16" if row["dtype"] == "bf16" else "fp16"] = {"enabled": True}
    for key, value in row["ds"].items():
        if isinstance(value, dict) and isinstance(ds.get(key), dict):
            ds[key].update(value)
        else:
            ds[key] = value
    return ds


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / "configs" / f"{name}.json").read_text())
    return config


def to_row(raw: dict[str, Any]) -> Row:
    """A line of a data file as model, recipe and cluster."""
    raw = {**_DEFAULTS, **raw}
    config = config_of(raw["model"])
    if raw.get("layers"):
        for key in ("num_hidden_layers", "n_layer"):
            if key in config:
                config[key] = raw["layers"]
    model = spec_of_config(config, name=raw["model"], source="benchmarks/accuracy/data", where=raw["model"])
    zero = raw["ds"].get("zero_optimization", {})
    offload = "params" if zero.get("offload_param") else "optimizer" if zero.get("offload_optimizer") else "none"
    lora = None
    if raw["method"] != "full":
        lora = LoraSpec(rank=raw["lora_r"], dropout=raw.get("lora_dropout", 0.05), targets=raw.get("lora_targets") or "all-linear")
    recipe = TrainingRecipe(
        method=raw["method"],
        lora=lora,
        precision=raw["dtype"],
        optimizer=_OPTIMIZERS[raw["optimizer"]],  # type: ignore[arg-type]
        zero_stage=raw["zero"],
        offload=offload,  # type: ignore[arg-type]
        checkpointing=raw["ckpt"],
        attention=raw["attn"],
        loss="liger" if raw["liger"] else "hf",
        allocator="expandable" if raw["alloc_conf"] else "native",
        micro_batch_size=raw["mbs"],
        grad_accum_steps=raw["accum"],
        seq_len=raw["seq"],
        gradient_clipping=raw.get("clip", 1.0),
        deepspeed=deepspeed_config(raw),
    )
    return Row(raw, model, recipe, ClusterSpec(gpu=find_gpu("h100"), gpus_per_node=raw["world"]), raw["rank"])


def rows(name: str) -> Iterator[Row]:
    """All rows of ``data/<name>.jsonl``."""
    for line in (DATA / f"{name}.jsonl").read_text().splitlines():
        if line.strip():
            yield to_row(json.loads(line))


def cap_bytes(row: Row) -> int | None:
    """The allocator's cap in `row`, if the run had one."""
    cap = row.raw.get("cap_gib")
    return None if cap is None else int(cap * GIB)
