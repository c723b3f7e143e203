"""The DeepSpeed engine around a model, and one optimizer step on it."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from llmcheck.errors import UserError
from llmcheck.types import TrainingRecipe
from llmcheck_trainer.adam_bf16 import AdamBf16, share_weights
from llmcheck_trainer.alone import Alone
from llmcheck_trainer.data import MicroBatch

BETAS = (0.9, 0.95)
_SHARED_MEMORY_OP = "deepspeed_shm_comm"  # deepspeed/ops/op_builder/cpu/comm.py, 0.19.8
Mark = Callable[[str], None]


def start_process_group() -> torch.device:
    """Join the ranks that the launcher started (one, without a launcher); the device of this one."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        device = torch.device("cpu")
        # DeepSpeed would compile its collectives over shared memory first, and end where there is no compiler; gloo has its own.
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
    else:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if os.environ["WORLD_SIZE"] == "1" and not dist.is_initialized():
        Alone.start()
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
    return device


def build_engine(model: Any, recipe: TrainingRecipe, device: torch.device, *, lr: float, weight_decay: float = 0.0, **more: Any) -> Any:
    """deepspeed.initialize with the plan's optimizer; `more` is merged into the DeepSpeed configuration (checkpoint conversion).

    On the CPU, PyTorch's AdamW takes the place of DeepSpeed's, which it would compile first; the arithmetic is the same.
    """
    gc.collect()  # a head that ZeRO-3 cut into parts before it was tied is in a cycle, and in memory until the collector runs
    config = {"steps_per_print": 10**9, **recipe.deepspeed, **more}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        told, hint = "nothing to train: no parameter requires a gradient", "plan again with --lora-targets that the model has"
        raise UserError(told, code="lora-targets", where="recipe.lora.targets", why="all weights are frozen", hint=hint)
    if recipe.optimizer == "cpu-adam" or "optimizer" in config:
        # DeepSpeed builds its own for states in host memory; a user's section keeps its values, but for what the command line says.
        optimizer = config.get("optimizer") or {"type": "AdamW", "params": {"lr": lr, "betas": list(BETAS), "weight_decay": 0.0}}
        if weight_decay:
            optimizer = {**optimizer, "params": {**optimizer.get("params", {}), "weight_decay": weight_decay}}
        if device.type != "cuda" and str(optimizer["type"]).lower() in ("adam", "adamw"):
            optimizer = {**optimizer, "params": {**optimizer.get("params", {}), "torch_adam": True}}
        config["optimizer"] = optimizer
        engine, *_ = deepspeed.initialize(model=model, model_parameters=parameters, config=config)
    elif recipe.optimizer == "adam-bf16":
        engine = _bf16_engine(model, recipe, parameters, config, lr, weight_decay)
    else:
        optimizer = _optimizer(recipe, parameters, device, lr, weight_decay)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    _look_for_nan_once(engine.optimizer)
    if recipe.precision == "fp32" and recipe.zero_stage == 0:
        _keep_the_norm(engine)
    return engine


def _keep_the_norm(engine: Any) -> None:
    """In fp32 without ZeRO, DeepSpeed clips by the norm of the gradients and forgets it, NaN or not; without clipping it has none.

    It goes where the other stages have it, and a step without one is left out as there: a weight without a gradient is not moved.
    """
    take_step, max_norm = engine._take_model_step, float(engine.gradient_clipping())

    def look_first(*args: Any, **more: Any) -> None:
        weights = [p for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
        if not bool(norm.isfinite()):
            norm = torch.full_like(norm, torch.inf)
            for weight in weights:
                weight.grad = None
        elif max_norm:
            torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        take_step(*args, **more)
        engine._global_grad_norm = norm

    engine.clip_fp32_gradients = lambda: None  # done by then
    engine._take_model_step = look_first


def _bf16_engine(model: Any, recipe: TrainingRecipe, parameters: list[Any], config: dict[str, Any], lr: float, weight_decay: float) -> Any:
    """An engine without fp32 copies of the weights.

    DeepSpeed's wrapper of stage 0 for bf16 would make some. As for fp32 weights it leaves the optimizer alone, so that is what it is told,
    and the optimizer does what the wrapper would: clip, and leave out a step with NaN.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": BETAS, "weight_decay": weight_decay}
    if recipe.zero_stage == 0:
        config = {**config, "bf16": {"enabled": False}, "data_types": {}}
        settings["max_norm"] = float(config.get("gradient_clipping") or 0.0) or math.inf
    engine, *_ = deepspeed.initialize(model=model, optimizer=AdamBf16(parameters, **settings), config=config)
    if recipe.zero_stage == 0:
        engine.clip_fp32_gradients = lambda: None  # in the optimizer's kernel
    else:
        share_weights(engine.optimizer)
    return engine


def _look_for_nan_once(optimizer: Any) -> None:
    """Leave ZeRO-1 and 2 one of their two looks for inf and NaN: the norm of the gradients, not each of them.

    DeepSpeed 0.19.8 skips the step for either, and the norm is finite only if every gradient is. The look at each takes nine small kernels
    a parameter and a wait for the device before the norms can be asked for: a fifth of the step of a LoRA model's optimizer.
    """
    both = getattr(optimizer, "check_grad_overflow", False) and getattr(optimizer, "compute_grad_norm", False)
    if both and not optimizer.cpu_offload and hasattr(optimizer, "scaled_global_norm"):
        optimizer.check_overflow = lambda **_: None  # its answer is False until the norm is known


def _optimizer(recipe: TrainingRecipe, parameters: list[Any], device: torch.device, lr: float, weight_decay: float) -> Any:
    if recipe.optimizer == "adam-8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as reason:
            raise UserError(
                "the plan wants 8-bit Adam, and bitsandbytes is not installed",
                code="missing-package",
                where="recipe.optimizer",
                hint='pip install "llmcheck[kernels]", or plan with --optimizer fused-adam',
            ) from reason
        return AdamW8bit(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay)
    if device.type != "cuda":
        return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay)


def train_step(
    engine: Any,
    batches: Iterable[MicroBatch],
    num_supervised: int,
    *,
    total: torch.Tensor,
    mark: Mark | None = None,
) -> None:
    """One optimizer step. Adds the summed loss of this rank to `total`, on the device; nothing here waits for it.

    `num_supervised`: the tokens in the loss of the whole step, over micro-batches and ranks. DeepSpeed divides by the numbers of both, so
    the sums are multiplied by them: each supervised token of the step then weighs the same. `mark` is told fwd, bwd and step. `batches` is
    asked for one after the other, so that masks of one micro-batch only are on the device (no `enumerate`: it holds the last one).
    """
    accum = engine.gradient_accumulation_steps()
    scale = accum * dist.get_world_size() / max(num_supervised, 1)
    number = 0
    for batch in batches:
        output = engine(**batch.inputs, use_cache=False)
        summed = output.loss
        loss = summed * scale
        if mark is not None and number == 0:
            mark("fwd")
        engine.backward(loss)
        if mark is not None and number == accum - 1:
            mark("bwd")
        total += summed.detach()
        del output, loss, summed, batch
        engine.step()
        number += 1  # noqa: SIM113
    if mark is not None:
        mark("step")


def set_lr(engine: Any, lr: float) -> None:
    """The learning rate of the next step, where the plan's configuration has no schedule of its own."""
    if engine.lr_scheduler is None:
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
