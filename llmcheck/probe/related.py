"""Facts that follow from training arguments together with a DeepSpeed configuration, a model, data or a launch command.

Pure: takes facts and gives facts. Rules hold no arithmetic, so what must be computed or compared name by name is computed here.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

from llmcheck import toml
from llmcheck.probe.masters import put_masters
from llmcheck.rules.facts import ABSENT, Facts

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
_HF = ("transformers", "trl", "llamafactory", "axolotl", "belle-v2")  # trainers that are Hugging Face's Trainer
_MAX_LISTED = 20
# Linear layers and embeddings beside the blocks that LoRA may name, over the families of transformers.
_OUTSIDE_BLOCKS = {"lm_head", "embed_out", "output_layer", "embed_tokens", "wte", "word_embeddings", "embed_in", "score", "gate", "router"}

# What Hugging Face's integration compares (transformers 5.17 integrations/deepspeed.py, trainer_config_process): DeepSpeed's key,
# TrainingArguments' name. betas, which are two names, are left out.
_MUST_MATCH = (
    ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
    ("gradient_accumulation_steps", "gradient_accumulation_steps"),
    ("gradient_clipping", "max_grad_norm"),
    ("optimizer.params.lr", "learning_rate"),
    ("optimizer.params.eps", "adam_epsilon"),
    ("optimizer.params.weight_decay", "weight_decay"),
    ("scheduler.params.warmup_max_lr", "learning_rate"),
    ("fp16.enabled", "fp16"),
    ("bf16.enabled", "bf16"),
)


def facts(known: Facts) -> Facts:
    """What follows from `known`; nothing where no training arguments are among it."""
    result = Facts()
    if "training" in known.subjects:
        _mismatches(known, result)
        _lora_targets(known, result)
        _global_batch(known, result)
        put_masters(known, result)
    return result


@lru_cache(maxsize=2)
def _table(name: str) -> dict[str, Any]:
    return toml.load(os.path.join(_DATA, name))


def _value(known: Facts, name: str) -> Any:
    """The fact's value; None where it is absent or not known."""
    fact = known.get(name)
    return None if fact is None or fact.value is ABSENT else fact.value


def _mismatches(known: Facts, result: Facts) -> None:
    """Values that the DeepSpeed configuration and the training arguments give differently, where the Trainer refuses that."""
    name = "train.ds_mismatches"
    if "ds_config" not in known.subjects:
        return
    framework = _value(known, "train.framework")
    if framework == "belle-v1":  # it builds its own configuration and compares nothing
        result.absent(name)
        return
    if framework not in _HF:
        result.could_not(name, "the trainer is not known")
        return
    defaults = _table("train_keys.toml")["default"]
    found: list[str] = []
    open_names: list[str] = []
    place = None
    for theirs, ours in _MUST_MATCH:
        value = _value(known, f"ds.{theirs}")
        if value is None or value == "auto":
            continue
        fact = known.get(f"train.{ours}")
        if fact is None:
            open_names.append(ours)
            continue
        default = fact.value is ABSENT
        mine = defaults[ours] if default else fact.value
        if isinstance(mine, str) or _same(value, mine):  # "auto" of axolotl; text that is no number has a rule of its own
            continue
        where = " (its default)" if default else ""
        found.append(f"{theirs} {_shown(value)}, {ours} {_shown(mine)}{where}")
        there = known.get(f"ds.{theirs}")
        place = place or (there.location if there is not None else None)
    if found:
        result.put(name, found[:_MAX_LISTED], place)
    elif open_names:
        why = known.why_unknown(f"train.{open_names[0]}") or "not found out"
        result.could_not(name, f"{', '.join(open_names)}: {why}")
    else:
        result.absent(name)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:40]


def _lora_targets(known: Facts, result: Facts) -> None:
    """LoRA's target modules that the model has no layer for."""
    targets, family = known.get("train.lora_target_modules"), known.get("model.model_type")
    missing, none_match = "train.lora_targets_missing", "train.lora_targets_none_match"
    if targets is None or targets.value is ABSENT:
        if targets is not None:
            result.absent(missing)
            result.put(none_match, False)
        return
    if family is None or family.value is ABSENT:
        return
    row = _table("families.toml")["family"].get(str(family.value))
    names = [str(name) for name in targets.value] if isinstance(targets.value, list) else []
    if row is None or any(re.search(r"[*+?()\[\]|^$\\]", name) for name in names):
        why = f"the layers of {str(family.value)[:40]!r} are not known" if row is None else "the target is a pattern"
        result.could_not(missing, why)
        result.could_not(none_match, why)
        return
    layers = {*row["linear_targets"], *_OUTSIDE_BLOCKS, "all-linear"}
    absent = [name for name in names if name.rpartition(".")[2] not in layers]
    result.put(missing, absent[:_MAX_LISTED] or None, targets.location)
    result.put(none_match, bool(names) and len(absent) == len(names), targets.location)
    result.put("train.lora_targets_of_model", ", ".join(row["linear_targets"]), targets.location)


def _global_batch(known: Facts, result: Facts) -> None:
    """Sequences of one optimizer step over all processes."""
    name = "train.global_batch_size"
    micro, accum = known.get("train.per_device_train_batch_size"), known.get("train.gradient_accumulation_steps")
    if not known.subjects & {"launcher", "plan"}:
        result.absent(name)
        return
    processes = _value(known, "launcher.num_processes")
    if processes is None:
        processes = _value(known, "plan.num_gpus")
    if not isinstance(processes, int) or micro is None or accum is None:
        result.could_not(name, "the number of processes is not known" if not isinstance(processes, int) else "the arguments are not known")
        return
    defaults = _table("train_keys.toml")["default"]
    numbers = [
        defaults[key] if fact.value is ABSENT else fact.value
        for key, fact in (("per_device_train_batch_size", micro), ("gradient_accumulation_steps", accum))
    ]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        result.put(name, numbers[0] * numbers[1] * processes, micro.location or accum.location)
    else:
        result.could_not(name, "a batch size is no number")
