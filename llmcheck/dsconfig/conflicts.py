"""A DeepSpeed configuration against the recipe that it is to run, and the recipe's own optimizer and offload against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcheck.dsconfig.checking import Problem, offload_device, raise_for
from llmcheck.dsconfig.overrides import built_optimizer, dtype_of, overrides_of
from llmcheck.types import TrainingRecipe

BF16_STATES = ("bf16_master_weights_and_grads", "bf16_optimizer_states")
UNTESTED = ("adam-8bit", "adam-bf16")  # neither bitsandbytes' Adam nor the trainer's is on DeepSpeed's list


def with_recipe(config: Mapping[str, Any], recipe: TrainingRecipe, world_size: int, problems: list[Problem]) -> None:
    """The file against what the flags fixed (the planner has put into the recipe whatever the file fixes and no flag does)."""
    fixed = overrides_of(config)
    micro, accum = recipe.micro_batch_size, recipe.grad_accum_steps
    rows: tuple[tuple[str, str, Any, Any], ...] = (
        ("zero_optimization.stage", "--zero", fixed.zero_stage, recipe.zero_stage),
        ("bf16.enabled, fp16.enabled", "--precision", fixed.precision, recipe.precision),
        ("train_micro_batch_size_per_gpu", "--micro-batch", fixed.micro_batch_size, micro),
        ("gradient_accumulation_steps", "--grad-accum", fixed.grad_accum_steps, accum),
        ("zero_optimization.offload_optimizer, offload_param", "--offload", fixed.offload, recipe.offload),
        ("gradient_clipping", "the recipe's gradient clipping", fixed.gradient_clipping, recipe.gradient_clipping),
        ("optimizer.type", "--optimizer", built_optimizer(config), recipe.optimizer),
    )
    found = [
        Problem(path, f"says {theirs}, {flag} says {ours}", "change the one or the other")
        for path, flag, theirs, ours in rows
        if theirs is not None and theirs != ours
    ]
    if fixed.offload_device is not None and recipe.offload != "none" and fixed.offload_device != recipe.offload_device:
        found.append(Problem("zero_optimization.offload_*.device", f"says {fixed.offload_device}, the recipe says {recipe.offload_device}"))
    total = fixed.global_batch_size
    batch = {p.where for p in found} & {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    if total is not None and not batch and total != micro * accum * world_size:
        found.append(
            Problem(
                "train_batch_size",
                f"says {total}; micro-batch {micro} × accumulation {accum} × {world_size} GPUs is {micro * accum * world_size}",
                "leave train_batch_size out, or make the product right",
            )
        )
    bf16, fp16 = config.get("bf16", {}).get("enabled"), config.get("fp16", {}).get("enabled")
    if (recipe.precision == "bf16" and bf16 is False) or (recipe.precision == "fp16" and fp16 is False):
        found.append(Problem(f"{recipe.precision}.enabled", f"says false, --precision says {recipe.precision}"))
    problems += found


def within_recipe(config: Mapping[str, Any], recipe: TrainingRecipe, problems: list[Problem]) -> None:
    """Optimizer and offload, which DeepSpeed allows in few pairs (runtime/engine.py, _configure_optimizer)."""
    if problems:
        return
    zero = config["zero_optimization"]
    offloaded = offload_device(zero, "offload_optimizer") != "none"
    if offloaded and recipe.optimizer != "cpu-adam" and config.get("zero_force_ds_cpu_optimizer") is not False:
        problems.append(
            Problem(
                "zero_optimization.offload_optimizer",
                f"needs --optimizer cpu-adam, not {recipe.optimizer}",
                "choose cpu-adam, or set zero_force_ds_cpu_optimizer to false",
                "DeepSpeed refuses another optimizer for states in host memory",
            )
        )
    if recipe.optimizer == "cpu-adam" and not offloaded:
        problems.append(
            Problem("zero_optimization.offload_optimizer", "--optimizer cpu-adam needs it", "add --offload optimizer, or choose fused-adam")
        )
    if recipe.optimizer in UNTESTED and zero["stage"] != 0 and config.get("zero_allow_untested_optimizer") is False:
        what = f"must be true for --optimizer {recipe.optimizer}, which DeepSpeed calls untested"
        problems.append(Problem("zero_allow_untested_optimizer", what, "leave it out"))
    if recipe.optimizer == "adam-bf16":
        _bf16_adam_conflicts(config, recipe, problems)
    dtypes = config.get("data_types", {})
    param_dtype, grad_dtype = dtype_of(dtypes.get("param_dtype")), dtype_of(dtypes.get("grad_accum_dtype"))
    if param_dtype not in (None, recipe.precision):
        problems.append(Problem("data_types.param_dtype", f"says {param_dtype}, the precision is {recipe.precision}"))
    if zero["stage"] == 0 and grad_dtype not in (None, recipe.precision):
        problems.append(
            Problem("data_types.grad_accum_dtype", f"must be {recipe.precision} in ZeRO stage 0, not {grad_dtype}", "use stage 1, 2 or 3")
        )
    if zero["stage"] == 1 and grad_dtype == "fp32" and recipe.precision == "bf16" and zero.get("compute_grad_norm") is False:
        problems.append(Problem("zero_optimization.compute_grad_norm", "false excludes stage 1 with data_types.grad_accum_dtype fp32"))


def _bf16_adam_conflicts(config: Mapping[str, Any], recipe: TrainingRecipe, problems: list[Problem]) -> None:
    """adam-bf16 keeps weights and moments in bf16 and no second copy: what the file says must allow that."""
    stage, bf16 = config["zero_optimization"]["stage"], config.get("bf16", {})
    if recipe.precision != "bf16":
        problems.append(Problem("bf16.enabled", f"--optimizer adam-bf16 works on bf16 weights, the precision is {recipe.precision}"))
    if stage == 0:
        return
    for key in BF16_STATES:
        if bf16.get(key) is False:
            problems.append(Problem(f"bf16.{key}", "must be true for --optimizer adam-bf16", "leave it out"))
    if stage == 1 and dtype_of(config.get("data_types", {}).get("grad_accum_dtype")) == "fp32":
        problems.append(
            Problem("data_types.grad_accum_dtype", "fp32 in stage 1 makes DeepSpeed keep fp32 masters", "leave it out, or use stage 2 or 3")
        )


def check_batch(config: Mapping[str, Any], world_size: int, where: str) -> None:
    """The identity that DeepSpeed asserts; a user's numbers cannot break it here, a caller's can."""
    total, micro, accum = (int(config[k]) for k in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if total != micro * accum * world_size:
        what = f"train_batch_size {total} is not micro-batch {micro} × accumulation {accum} × {world_size} GPUs"
        raise_for([Problem("train_batch_size", what)], where)
