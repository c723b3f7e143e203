"""Recipes in words and in flags."""

from __future__ import annotations

from llmcheck.types import Method, Offload, Optimizer, TrainingRecipe

METHOD: dict[Method, str] = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
OPTIMIZER: dict[Optimizer, str] = {"adam-8bit": "8-bit Adam", "adam-bf16": "Adam in bf16"}  # what is not the default
_OFFLOAD: dict[Offload, str] = {"none": "", "optimizer": "optimizer offloaded", "params": "parameters and optimizer offloaded"}

# What the methods cost in quality. Sources: Biderman et al. 2024 (LoRA learns less and forgets less), arXiv:2405.09673; Dettmers et
# al. 2023 (QLoRA), arXiv:2305.14314, section 4; Dettmers et al. 2022 (8-bit optimizers), arXiv:2110.02861; Zamirai et al. 2020 (stochastic
# rounding), arXiv:2010.06192; Ozkara et al. 2025, PMLR 258:4402 (the same for language models of up to 6.7 B parameters).
QUALITY = {
    "lora": "learns less than full fine-tuning on large or distant data, forgets less",
    "qlora": "as LoRA; 4-bit base weights cost little in published comparisons",
    "adam-8bit": "8-bit moments: no loss in published comparisons",
    "adam-bf16": "rounded at random: no loss in published comparisons",
    "shorter": "longer samples are cut",
    "none": "none",
}


def title(recipe: TrainingRecipe) -> str:
    """What distinguishes a recipe, for a table."""
    parts = [METHOD[recipe.method]]
    if recipe.lora is not None:
        parts[0] += f" r{recipe.lora.rank}"
    parts.append(f"ZeRO-{recipe.zero_stage}")
    if recipe.optimizer in OPTIMIZER:
        parts.append(OPTIMIZER[recipe.optimizer])
    if recipe.offload != "none":
        parts.append(_OFFLOAD[recipe.offload])
    parts.append(f"micro-batch {recipe.micro_batch_size}" + (f" x {recipe.grad_accum_steps}" if recipe.grad_accum_steps > 1 else ""))
    parts.append("checkpointing" if recipe.checkpointing else "no checkpointing")
    if recipe.loss != "hf":
        parts.append(f"{recipe.loss} loss")
    return ", ".join(parts)


def flags(recipe: TrainingRecipe) -> tuple[str, ...]:
    """What to type to get the recipe."""
    out = ["--method", recipe.method]
    if recipe.lora is not None:
        out += ["--lora-rank", str(recipe.lora.rank)]
    if recipe.optimizer in OPTIMIZER:
        out += ["--optimizer", recipe.optimizer]
    out += ["--zero", str(recipe.zero_stage), "--offload", recipe.offload, "--micro-batch", str(recipe.micro_batch_size)]
    if recipe.grad_accum_steps > 1:
        out += ["--grad-accum", str(recipe.grad_accum_steps)]
    out += ["--checkpointing", "on" if recipe.checkpointing else "off", "--loss", recipe.loss]
    return tuple(out)


def compare(speed: float, reference: float, recipe: TrainingRecipe, chosen: TrainingRecipe) -> str:
    """Why an alternative is not the first."""
    parts = []
    change = speed / reference - 1
    if abs(change) >= 0.02:
        parts.append(f"{abs(100 * change):.0f} % " + ("slower" if change < 0 else "faster"))
    else:
        parts.append("as fast")
    if recipe.method != chosen.method:
        if recipe.method == "full":
            parts.append("trains every weight" + (f"; {QUALITY[recipe.optimizer]}" if recipe.optimizer in OPTIMIZER else ""))
        else:
            parts.append(QUALITY[recipe.method])
    return "; ".join(parts)


def stage_reason(recipe: TrainingRecipe) -> str:
    """Why this ZeRO stage."""
    return {
        0: "ZeRO-0: nothing needs to be sharded",
        1: "ZeRO-1 reduces gradients once per step and fits; higher stages only save memory",
        2: "ZeRO-2 shards gradients and optimizer states; ZeRO-3's hooks at every module would cost time",
        3: "ZeRO-3, since weights must be sharded too; its hooks run at every module and cost time",
    }[recipe.zero_stage]
