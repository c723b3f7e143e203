"""What a user's DeepSpeed configuration fixes of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from llmcheck.dsconfig import checking
from llmcheck.dsconfig.checking import AUTO, Problem, definite, offload_device, raise_for
from llmcheck.dsconfig.fields import ADAM_TYPES, DTYPES
from llmcheck.dsconfig.reading import WHAT
from llmcheck.types import Offload, Optimizer, Precision


class RecipeOverrides(NamedTuple):
    """What a user's configuration fixes of the recipe. None: it leaves that open."""

    zero_stage: int | None = None
    precision: Precision | None = None
    micro_batch_size: int | None = None
    grad_accum_steps: int | None = None
    global_batch_size: int | None = None
    offload: Offload | None = None
    offload_device: Literal["cpu", "nvme"] | None = None
    gradient_clipping: float | None = None
    optimizer: Optimizer | None = None


def recipe_overrides(config: Mapping[str, Any] | None, *, where: str = WHAT) -> RecipeOverrides:
    """What `config` fixes. Raises UserError when DeepSpeed 0.19.8 would not take it, or when it contradicts itself."""
    if not config:
        return RecipeOverrides()
    problems: list[Problem] = []
    found = checking.normalise(config, problems, [])
    if not problems:
        checking.own_conflicts(found, problems, [])
    raise_for(problems, where)
    return overrides_of(found)


def overrides_of(config: Mapping[str, Any]) -> RecipeOverrides:
    """What a checked configuration fixes."""
    zero = config.get("zero_optimization", {})
    stage = whole_of(zero.get("stage"))
    mentioned = [definite(zero[name].get("device", "none")) for name in ("offload_optimizer", "offload_param") if name in zero]
    offload: Offload | None = None
    device: Literal["cpu", "nvme"] | None = None
    if mentioned and None not in mentioned:
        optimizer_device, param_device = offload_device(zero, "offload_optimizer"), offload_device(zero, "offload_param")
        offload = "params" if param_device != "none" else "optimizer" if optimizer_device != "none" else "none"
        if offload == "params" and stage is None:
            stage = 3  # nothing below it offloads parameters
        if offload != "none":
            device = "nvme" if "nvme" in (optimizer_device, param_device) else "cpu"
    clipping = definite(config.get("gradient_clipping"))
    return RecipeOverrides(
        zero_stage=stage,
        precision=_precision(config),
        micro_batch_size=whole_of(config.get("train_micro_batch_size_per_gpu")),
        grad_accum_steps=whole_of(config.get("gradient_accumulation_steps")),
        global_batch_size=whole_of(config.get("train_batch_size")),
        offload=offload,
        offload_device=device,
        gradient_clipping=None if clipping is None else float(clipping),
        optimizer=_optimizer(config),
    )


def _precision(config: Mapping[str, Any]) -> Precision | None:
    bf16, fp16 = config.get("bf16", {}).get("enabled"), config.get("fp16", {}).get("enabled")
    if bf16 is True:
        return "bf16"
    if fp16 is True:
        return "fp16"
    return "fp32" if bf16 is False and fp16 is False else None


def _optimizer(config: Mapping[str, Any]) -> Optimizer | None:
    section = config.get("optimizer", {})
    kind = definite(section.get("type"))
    if not isinstance(kind, str) or kind.lower() not in ADAM_TYPES:
        return None
    params = section.get("params")
    if isinstance(params, Mapping) and params.get("torch_adam") is True:
        return "adamw"
    zero = config.get("zero_optimization", {})
    if "offload_optimizer" not in zero and "offload_param" not in zero:
        return None  # FusedAdam on the GPU, DeepSpeedCPUAdam with offload: left to whoever decides the offload
    return "cpu-adam" if offload_device(zero, "offload_optimizer") != "none" else "fused-adam"


def built_optimizer(config: Mapping[str, Any]) -> Optimizer | None:
    """What DeepSpeed builds from the file once the offload is decided."""
    zero = config.get("zero_optimization", {})
    return _optimizer({**config, "zero_optimization": {"offload_optimizer": {}, **zero}})


def whole_of(value: Any) -> int | None:
    """A number that is given; None for "auto"."""
    return None if value is None or value == AUTO else int(value)


def dtype_of(value: Any) -> str | None:
    """A type that is given, by its short name; None for "auto"."""
    return None if value is None or value == AUTO else DTYPES[value]
