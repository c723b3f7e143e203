"""Rows of ``data/memory.csv`` as recipes, or the reason why a row is none. Nothing here was tuned to the rows' values."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.dsconfig import complete, hidden_size_of
from llmcheck.types import Attention, ClusterSpec, LoraSpec, Method, ModelSpec, TrainingRecipe
from llmcheck.units import GIB, MIB

DATA = Path(__file__).parent / "data" / "memory.csv"

Metric = Literal["allocated", "reserved", "process"]
NOT_MEASURED = ("vendor_minimum", "vendor_estimate", "max_context_at_budget")

# Names of the sources that the catalogue does not know.
MODELS = {
    "qwen-1_8b-chat": "qwen-1.8b",
    "openbuddy-zephyr-7b-chat": "mistral-7b-v0.1",
}
GPUS = {
    "A100 (80G by the values)": "A100-80G",
    "A100-40GB": "A100-40G",
    "A100-80G": "A100-80G",
    "A800-80G": "A800-80G",
    "Tesla T4 (sm_75, 14912 MiB)": "T4",
}
# ms-swift's "DEFAULT" targets: the projections of query, key and value.
QKV = {
    "qwen": "c_attn",
    "chatglm": "query_key_value",
    "baichuan": "W_pack",
    "llama": "q_proj,k_proj,v_proj",
    "mistral": "q_proj,k_proj,v_proj",
}
# ms-swift, swift/llm/ds_config/zero2.json and zero3.json; "auto" is what transformers makes of it.
SWIFT_ZERO: dict[int, dict[str, Any]] = {
    2: {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 200_000_000, "allgather_bucket_size": 200_000_000},
    3: {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    },
}


@dataclass(frozen=True)
class Reading:
    """One row as a recipe.

    `known`: False where the nearest recipe differs from the run in a way that moves memory, or where the source leaves open a setting that
    does; `differences` says what. `metric`: None where the source does not say which memory it is.
    """

    row: Mapping[str, str]
    group: str
    model: ModelSpec
    recipe: TrainingRecipe
    cluster: ClusterSpec
    measured_bytes: int | None  # None: the run went out of memory
    metric: Metric | None
    known: bool
    differences: tuple[str, ...]

    @property
    def label(self) -> str:
        r = self.recipe
        parts = [self.row["id"], self.model.name, r.method, f"z{r.zero_stage}", f"w{self.cluster.num_gpus}"]
        parts += [f"b{r.micro_batch_size}", f"s{r.seq_len}", r.attention, r.precision]
        parts += [f"r{r.lora.rank}"] if r.lora else []
        parts += [] if r.checkpointing else ["nc"]
        return " ".join(parts)


def rows() -> Iterator[dict[str, str]]:
    """All rows of the file."""
    with DATA.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def read(row: Mapping[str, str]) -> Reading | str:
    """The row as a recipe, or why it is none."""
    why = _obstacle(row)
    if why:
        return why
    source = row["source"]
    if source.startswith("ms-swift Benchmark"):
        return _swift(row)
    if source.startswith("ms-swift Megatron"):
        return _swift_deepspeed(row)
    if source.startswith("LLaMA-Factory wiki"):
        return _factory_wiki(row)
    if source == "LlamaFactory issue 7409":
        return _factory_issue(row)
    if source == "fitcheck measurements":
        return _fitcheck(row)
    if source.startswith("odyn-network/benchmark-finetune-lora"):
        return _longlora(row)
    return "no reading for this source"


def _obstacle(row: Mapping[str, str]) -> str:
    """Why no recipe of ours is this row, empty where one is."""
    source, framework, method, other = row["source"], row["framework"], row["method"], row["other"]
    for prefix, why in (
        ("torchtitan", "torchtitan: FSDP2, in part with tensor, pipeline or context parallelism"),
        ("Megatron", "Megatron-LM: tensor, pipeline or expert parallelism, its own layers and optimizer"),
        ("torchtune", "torchtune: its own modules, loss and (for full fine-tuning) Adam states in bf16"),
        ("experts4bit", "experts4bit-qlora: its own 4-bit expert kernels"),
        ("TRL DPO", "DPO: a reference model and two sequences a sample"),
    ):
        if framework.startswith(prefix):
            return why
    for words, why in (
        (NOT_MEASURED, "not a measurement"),
        (("Ascend",), "Ascend NPU: not CUDA, another allocator"),
    ):
        if row["kind"] in words or row["gpu_type"].startswith(words):
            return why
    if "Unsloth" in framework or "unsloth" in method:
        return "Unsloth's kernels and activation offload"
    if any(word in row["quant"] + row["model"] + framework for word in ("gptq", "GPTQ", "awq", "aqlm", "int8")):
        return "GPTQ, AWQ, AQLM or 8-bit weights: only NF4 is modelled"
    if row["mem_scope"].startswith("per_gpu_list"):
        return "layers spread over GPUs by device_map: model parallel without a pipeline"
    if "sequence parallel" in other and not other.endswith("parallel 1"):
        return "sequence parallel"
    if "[" in method and method.split("[")[1].rstrip("]").split("+")[0] not in ("lora", "rslora", "full"):
        return f"{method.split('[')[1].rstrip(']')}: a tuner that is not modelled"
    if any(word in method for word in ("galore", "lisa")):
        return "GaLore or LISA: an optimizer or schedule that is not modelled"
    if method.startswith("full") and source.startswith("ms-swift Benchmark"):
        return "weights, gradients and Adam states all bf16 (8 B a parameter): DeepSpeed always keeps fp32 master weights"
    if source == "DeepSpeed blog muon-optimizer":
        return "sequence length not stated, and the batch size neither" if row["optimizer"] != "Muon" else "Muon: not modelled"
    if source == "DeepSpeed issue 4527":
        return "which model it is and the sequence length are not stated"
    if source == "DeepSpeed issue 4093":
        return "offload, sequence length and batch size are not stated"
    if not row["seq_len"].isdigit():
        return "sequence length not stated"
    return ""


def _bytes(row: Mapping[str, str]) -> int | None:
    """The figure in bytes, the last one where it grew; None for a run that went out of memory. GB and G are read as GiB."""
    text = row["mem_value"].split("->")[-1].strip()
    if text.startswith("OOM"):
        return None
    return int(float(text) * (MIB if row["mem_unit"] == "MiB" else GIB))


def _metric(row: Mapping[str, str]) -> Metric | None:
    for name in ("allocated", "reserved", "process"):
        if row["mem_metric"].startswith(name):
            return name
    return "process" if "device memory" in row["mem_metric"] else None


def _reading(
    row: Mapping[str, str],
    group: str,
    recipe: TrainingRecipe,
    *,
    differences: tuple[str, ...] = (),
    known: bool = True,
    gpu: str = "",
    zero: dict[str, Any] | None = None,
) -> Reading:
    model = find_model(MODELS.get(row["model"], row["model"]), allow_network=False)
    cluster = ClusterSpec(gpu=find_gpu(gpu or GPUS[row["gpu_type"]]), gpus_per_node=int(row["gpus"]))
    if recipe.lora is not None and recipe.lora.targets == "qkv":
        recipe = replace(recipe, lora=replace(recipe.lora, targets=QKV[model.family]))
    config = {"zero_optimization": zero} if zero else None
    recipe = replace(recipe, deepspeed=complete(recipe, config, world_size=cluster.num_gpus, hidden_size=hidden_size_of(model)))
    if row["model"] == "openbuddy-zephyr-7b-chat":
        differences = (*differences, "read as Mistral 7B; OpenBuddy's larger vocabulary is not in the catalogue")
    return Reading(row, group, model, recipe, cluster, _bytes(row), _metric(row), known, differences)


def _swift(row: Mapping[str, str]) -> Reading:
    """ms-swift's old benchmark: transformers' Trainer and peft on one A100, no DeepSpeed; the cap is taken as the length of the longest."""
    stated = row["lora_rank"].isdigit() and bool(row["lora_targets"])
    every = "all" in row["lora_targets"].lower()
    recipe = TrainingRecipe(
        method="qlora" if row["method"] == "QLoRA" else "lora",
        lora=LoraSpec(rank=int(row["lora_rank"] or 8), alpha=32, targets="all-linear" if every else "qkv"),
        optimizer="adamw",
        zero_stage=0,
        checkpointing=row["grad_ckpt"] == "yes",
        attention="flash" if row["attention"].startswith("flash") else "eager",
        allocator="native",
        micro_batch_size=int(row["micro_batch"]),
        grad_accum_steps=int(row["grad_accum"] or 1),
        seq_len=int(row["seq_len"]),
    )
    group = "ms-swift QLoRA (bnb)" if recipe.method == "qlora" else "ms-swift LoRA"
    differences = ["no DeepSpeed; torch 2.1.1 and the models' own code of 2023; bf16 autocast"]
    if row["seq_kind"].startswith("cap"):
        differences.append("length is a cap")
    if "shorter than" in row["seq_kind"]:
        group = "ms-swift LoRA, second table" + (", packed" if "packing" in row["seq_kind"] else "")
    if not stated:
        differences.append("rank and targets not stated: ms-swift's defaults")
    if recipe.method == "qlora":
        differences.append("without DeepSpeed, QLoRA keeps norms, embeddings and so the activations in fp32")
    return _reading(row, group, recipe, differences=tuple(differences), known=stated and recipe.method == "lora")


def _swift_deepspeed(row: Mapping[str, str]) -> Reading:
    """The table's DeepSpeed rows: settings of ``examples/megatron/benchmark/deepspeed.sh``, which the table names."""
    stage = int(row["zero_stage"])
    recipe = TrainingRecipe(
        zero_stage=stage,
        attention="flash",
        optimizer="fused-adam" if stage == 2 else "adamw",  # zero2.json names AdamW, zero3.json none: the Trainer's default then
        allocator="expandable",
        micro_batch_size=1,
        grad_accum_steps=2,
        seq_len=int(row["seq_len"]),
    )
    differences = ("NCCL's buffers are in the figure, not in the estimate", "rounded to 1 GB")
    return _reading(row, "ms-swift DeepSpeed", recipe, differences=differences, zero=SWIFT_ZERO[stage])


def _factory_wiki(row: Mapping[str, str]) -> Reading:
    """LLaMA-Factory's wiki: Llama 2 7B, rank 8 on all linear layers, bitsandbytes NF4 with double quantisation (its default)."""
    third = "table 3" in row["source"]
    attention: Attention = "flash" if row["framework"].endswith(("FA2", "FlashAttention2")) else "eager"
    method: Method = "qlora" if row["method"] == "QLoRA" else "lora"
    recipe = TrainingRecipe(
        method=method,
        lora=LoraSpec(rank=8, targets="all-linear"),
        optimizer="adamw",
        zero_stage=0,
        attention=attention,
        allocator="native",
        micro_batch_size=int(row["micro_batch"]),
        seq_len=int(row["seq_len"]),
    )
    if third:
        return _reading(row, "LLaMA-Factory QLoRA", recipe, differences=("no DeepSpeed", "rounded to 1 GB"))
    differences = ("no DeepSpeed", "rounded to 1 GB", "GPU and checkpointing not stated: A100-40G, on", "'HF' read as eager")
    return _reading(row, "LLaMA-Factory LoRA, table 2", recipe, differences=differences, known=False, gpu="A100-40G")


def _factory_issue(row: Mapping[str, str]) -> Reading:
    recipe = TrainingRecipe(
        method="lora",
        lora=LoraSpec(rank=8, targets="all-linear"),
        optimizer="adamw",
        zero_stage=0,
        allocator="native",
        micro_batch_size=int(row["micro_batch"]),
        seq_len=int(row["seq_len"]),
    )
    differences = ("no DeepSpeed", "GPU, targets, checkpointing, attention and real lengths not stated: LLaMA-Factory's defaults")
    return _reading(row, "LLaMA-Factory issue 7409", recipe, differences=differences, known=False, gpu="A100-80G")


def _fitcheck(row: Mapping[str, str]) -> Reading:
    """fitcheck's T4 runs (its ``scripts/measure.py``): transformers, peft and bitsandbytes, no dropout, no attention mask, no DeepSpeed."""
    method: Method = "qlora" if row["method"] == "QLoRA" else "lora"
    recipe = TrainingRecipe(
        method=method,
        lora=LoraSpec(rank=32, alpha=64, dropout=0.0, targets="q_proj,k_proj,v_proj,o_proj"),
        precision="fp16",
        optimizer="adamw",
        zero_stage=0,
        attention="eager" if row["attention"] == "eager" else "sdpa",
        allocator="native",
        micro_batch_size=int(row["micro_batch"]),
        seq_len=int(row["seq_len"]),
        gradient_clipping=0.0,
    )
    if method == "lora":
        return _reading(row, "fitcheck T4 LoRA", recipe, differences=("no DeepSpeed: adapters fp32 without a copy, no loss scaling",))
    differences = (
        "without DeepSpeed, QLoRA keeps norms, embeddings and so the activations and logits in fp32",
        "no double quantisation",
    )
    return _reading(row, "fitcheck T4 QLoRA", recipe, differences=differences, known=False)


def _longlora(row: Mapping[str, str]) -> Reading:
    recipe = TrainingRecipe(
        method="lora",
        lora=LoraSpec(),
        zero_stage=2,
        attention="flash",
        allocator="native",
        micro_batch_size=int(row["micro_batch"]),
        grad_accum_steps=int(row["grad_accum"]),
        seq_len=int(row["seq_len"]),
    )
    differences = ("rank and targets not stated: llmcheck's defaults", "quoted second hand, metric not stated")
    return _reading(row, "LongLoRA, DeepSpeed ZeRO-2", recipe, differences=differences, known=False)
