"""Measured steps as cases of the time model: what was run, and how long a step took."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import rows as accuracy
from benchmarks.probe import cases as probe
from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner.evaluate import complete
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ClusterSpec, LoraSpec, ModelSpec, Offload, Optimizer, TrainingRecipe

DATA = Path(__file__).parent / "data"
H100 = "H100"
DRAWN = Path(__file__).parents[1] / "holdout" / "data" / "measured-h100-2026-11.jsonl"
DRAWN_OP_S = 15.2e-6  # an operator on that machine's CPU, `llmcheck probe --calibrate`
OPTIMIZERS: dict[str, Optimizer] = {"fused": "fused-adam", "torch": "adamw", "offload": "cpu-adam"}


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
    return ModelSpec(
        name=name, family=config["model_type"], config=config, source="benchmarks/steptime/data/models.json", num_params=num_params
    )


def groundtruth() -> Iterator[Case]:
    """Our own runs: rank 0 of N on one H100, no communication."""
    models = json.loads((DATA / "models.json").read_text())
    for line in (DATA / "groundtruth.jsonl").read_text().splitlines():
        row = json.loads(line)
        lora = row["method"] == "lora"
        zero = dict(row.get("ds", {}).get("zero_optimization", {}), stage=row["zero"])
        offload: Offload = "params" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
        optimizer = OPTIMIZERS[row["optimizer"]]
        recipe = TrainingRecipe(
            method=row["method"],
            lora=LoraSpec(rank=row["lora_r"]) if lora else None,
            precision=row["dtype"],
            optimizer=optimizer,
            zero_stage=row["zero"],
            offload=offload,
            checkpointing=row["ckpt"],
            attention=row["attn"],
            loss="liger" if row.get("liger") else "hf",
            micro_batch_size=row["mbs"],
            grad_accum_steps=row["accum"],
            seq_len=row["seq"],
            allocator="expandable" if row.get("alloc_conf") else "native",
            deepspeed={"zero_optimization": zero},
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
        yield Case(name, spec(row["model"], models[row["model"]], row["n_params"]), recipe, cluster, row["step_s"], True, row)


def trainer() -> Iterator[Case]:
    """Steps of the bundled trainer on rented H100s: rank 0 of N on one GPU, no communication. `op_s`: the host's, where measured."""
    for line in (DATA / "trainer.jsonl").read_text().splitlines():
        row = json.loads(line)
        case = probe.case_of({key: value for key, value in row.items() if key not in ("source", "op_s", "step_s")})
        yield Case(f"{row['id']} ({row['source']})", case.model, case.recipe, case.cluster, row["step_s"], True, row | {"file": "trainer"})


def training() -> Iterator[Case]:
    """Training runs of the bundled trainer on one H100 (benchmarks/trainer): data loading and all, the mean of 20 steps or more."""
    for line in (DATA / "training.jsonl").read_text().splitlines():
        row = json.loads(line)
        model = find_model(row["model"], allow_network=False)
        cluster = ClusterSpec(gpu=find_gpu(H100))
        chosen = {key: value for key, value in row.items() if key not in ("id", "run", "model", "step_s")}
        lora = LoraSpec(dropout=0.0) if row["method"] == "lora" else None
        recipe = complete(
            model, TrainingRecipe(**chosen, lora=lora, fused_adapters=lora is not None, zero_stage=1, allocator="expandable"), cluster
        )
        yield Case(f"{row['id']}, run {row['run']}", model, recipe, cluster, row["step_s"], True, row | {"file": "training"})


def drawn() -> Iterator[Case]:
    """Runs drawn at random (benchmarks/holdout) that had the GPU for themselves: transformers and DeepSpeed without the trainer."""
    for line in DRAWN.read_text().splitlines():
        row = json.loads(line)
        if not row["alone"]:
            continue
        found = accuracy.to_row(row, "holdout")
        yield Case(row["id"], found.model, found.recipe, found.cluster, row["step_s"], True, {"op_s": DRAWN_OP_S, "file": "drawn"})


def phases() -> Iterator[tuple[Case, dict[str, Any]]]:
    """The steps of ``measure.py``, and what it found in them."""
    for line in (DATA / "phases.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "issue_s" in row:
            case = probe.case_of(row)
            yield Case(row["id"], case.model, case.recipe, case.cluster, row["step_s"], True, {"op_s": 13.43e-6, "file": "phases"}), row


def published() -> Iterator[Case]:
    """Other people's speeds, column `group` says which kind. MPT models are written ``gpt2:width:layers:heads:vocabulary``."""
    models = json.loads((DATA / "models.json").read_text())
    with (DATA / "published.csv").open(newline="", encoding="utf-8") as file:
        reader: Iterator[dict[str, Any]] = csv.DictReader(file)
        for row in reader:
            seq_len = int(row["seq_len"])
            config = models.get(row["config"])
            if config is None:
                _, width, layers, heads, vocab = row["config"].split(":")
                config = {
                    "model_type": "gpt2",
                    "n_embd": int(width),
                    "n_layer": int(layers),
                    "n_head": int(heads),
                    "vocab_size": int(vocab),
                    "n_positions": seq_len,
                    "activation_function": "gelu",
                    "tie_word_embeddings": True,
                    "resid_pdrop": 0.0,
                }
            model = spec(row["model"], config, 0)
            model = replace(model, num_params=read_shape(model).num_params)
            full = row["method"] == "full"
            recipe = TrainingRecipe(
                method=row["method"],
                lora=None if full else LoraSpec(rank=int(row["lora_rank"]), dropout=0.0, targets=_targets(row["group"])),
                precision=row["precision"],
                zero_stage=int(row["zero"]),
                checkpointing=row["checkpointing"] == "True",
                attention=row["attention"],
                loss=row["loss"],
                micro_batch_size=int(row["micro_batch"]),
                grad_accum_steps=int(row["grad_accum"]),
                seq_len=seq_len,
            )
            gpus, per_node = int(row["gpus"]), int(row["gpus_per_node"])
            network = float(row["network_bytes_per_s"] or 25e9)
            cluster = ClusterSpec(
                gpu=find_gpu(row["gpu"]), num_nodes=gpus // per_node, gpus_per_node=per_node, inter_node_bytes_per_s=network
            )
            tokens = recipe.micro_batch_size * recipe.grad_accum_steps * seq_len
            step_s = tokens / float(row["tokens_per_s_per_gpu"])
            name = f"{row['id']} {row['model']} s{seq_len} b{row['micro_batch']}x{row['grad_accum']} {gpus}x{row['gpu']}"
            name += " ck" if recipe.checkpointing else " nc"
            yield Case(name, model, recipe, cluster, step_s, False, dict(row))


def _targets(group: str) -> str:
    return "attention" if group == "fitcheck T4" else "all-linear"
