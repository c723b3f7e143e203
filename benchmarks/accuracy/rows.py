"""The measured runs under ``data/`` as the product's own types. Used by the benchmark and by the golden tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.gpus import find_gpu
from llmcheck.types import ClusterSpec, LoraSpec, ModelSpec, TrainingRecipe
from llmcheck.units import GIB

DATA = Path(__file__).parent / "data"
SETS = {"peaks": "peaks.jsonl", "boundary": "boundary.jsonl", "campaign": "h100-2026-11.jsonl"}
_MODEL_FILES = {"campaign": "models-2026-11.json"}  # the other sets have one file a model, under configs/
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_OPTIMIZERS = {
    "fused": "fused-adam",
    "torch": "adamw",
    "torch_ds": "adamw",
    "torch_foreach": "adamw",
    "offload": "cpu-adam",
    "adam8bit": "adam-8bit",
}
_DEFAULTS = {"rank": 0, "accum": 1, "ds": {}, "lora_r": 16, "dtype": "bf16", "liger": False, "alloc_conf": None, "steps": 3}


@dataclass(frozen=True)
class Row:
    """One measured run. `raw` is the line of the data file, `group` the set (of `SETS`) that it belongs to."""

    group: str
    raw: dict[str, Any]
    model: ModelSpec
    recipe: TrainingRecipe
    cluster: ClusterSpec
    rank: int

    @property
    def label(self) -> str:
        if "id" in self.raw:
            return str(self.raw["id"])
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

    @property
    def num_layers(self) -> int:
        return next(int(self.model.config[key]) for key in LAYER_KEYS if key in self.model.config)

    @property
    def verdict(self) -> str | None:
        """``ok`` or ``oom`` under the run's cap; None without a cap."""
        return (self.raw.get("outcome") or self.raw["verdict"]) if "cap_gib" in self.raw else None


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


@cache
def _configs(file: str) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = json.loads((DATA / file).read_text())
    return configs


def _model_config(raw: dict[str, Any], group: str) -> dict[str, Any]:
    """The configuration that `raw` was run with: its model's, with the row's overrides and number of layers."""
    if "model_type" in raw.get("config", {}):  # the row has the whole configuration
        return dict(raw["config"])
    config = dict(_configs(_MODEL_FILES[group])[raw["model"]]) if group in _MODEL_FILES else config_of(raw["model"])
    config.update(raw.get("config", {}))
    layers = raw.get("layers")
    if layers:
        config.update({key: layers for key in LAYER_KEYS if key in config})
        if config.get("layer_types"):
            config["layer_types"] = config["layer_types"][:layers]
    return config


def _lora(raw: dict[str, Any]) -> LoraSpec | None:
    if raw["method"] == "full":
        return None
    targets = raw.get("lora_targets") or "all-linear"
    return LoraSpec(
        rank=raw["lora_r"],
        dropout=raw.get("lora_dropout", 0.05),
        targets=targets if isinstance(targets, str) else ",".join(targets),
        # the harness of these runs named both in peft's modules_to_save (data/README.md)
        train_embeddings="modules-to-save" if raw.get("train_embeddings") else None,
    )


def to_row(raw: dict[str, Any], group: str = "peaks") -> Row:
    """A line of a data file as model, recipe and cluster."""
    raw = {**_DEFAULTS, **raw}
    model = spec_of_config(_model_config(raw, group), name=raw["model"], source="benchmarks/accuracy/data", where=raw["model"])
    zero = raw["ds"].get("zero_optimization", {})
    offload = "params" if zero.get("offload_param") else "optimizer" if zero.get("offload_optimizer") else "none"
    recipe = TrainingRecipe(
        method=raw["method"],
        lora=_lora(raw),
        precision=raw["dtype"],
        optimizer=_OPTIMIZERS[raw["optimizer"]],  # type: ignore[arg-type]
        zero_stage=raw["zero"],
        offload=offload,  # type: ignore[arg-type]
        checkpointing=raw["ckpt"],
        attention=raw.get("attn_used") or ("sdpa" if raw["attn"] == "auto" else raw["attn"]),
        loss="liger" if raw["liger"] else "hf",
        allocator="expandable" if raw["alloc_conf"] else "native",
        micro_batch_size=raw["mbs"],
        grad_accum_steps=raw["accum"],
        seq_len=raw["seq"],
        gradient_clipping=raw.get("clip", 1.0),
        deepspeed=deepspeed_config(raw),
    )
    return Row(group, raw, model, recipe, ClusterSpec(gpu=find_gpu("h100"), gpus_per_node=raw["world"]), raw["rank"])


def rows(name: str) -> Iterator[Row]:
    """All rows of the set `name`."""
    for line in (DATA / SETS[name]).read_text().splitlines():
        if line.strip():
            yield to_row(json.loads(line), name)


def cap_bytes(row: Row) -> int | None:
    """The allocator's cap in `row`, if the run had one."""
    cap = row.raw.get("cap_gib")
    return None if cap is None else int(cap * GIB)
