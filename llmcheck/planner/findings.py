"""What a plan's reader should know: codes LCM001 to LCM089. A code is never reused."""

from __future__ import annotations

from collections.abc import Iterable

from llmcheck.planner.plan import Finding, Plan, Severity
from llmcheck.steptime.shape import Shape
from llmcheck.units import gib

HOST_MEMORY = "LCM001"
ZERO3_BOUND_BY_HOST = "LCM002"
BEYOND_POSITIONS = "LCM003"
GLOBAL_BATCH = "LCM004"
FP16_INSTEAD_OF_BF16 = "LCM005"
BF16_MISSING = "LCM006"
FLASH_UNSUPPORTED = "LCM007"
TIGHT = "LCM008"
KERNELS_NOT_MEASURED = "LCM009"
LARGE_VOCABULARY = "LCM010"
BOUND_BY_HOST = "LCM011"
STAND_IN = "LCM012"
DISK = "LCM013"
EAGER_ONLY = "LCM014"
FROZEN_NOT_SHARDED = "LCM015"
HOST_MEMORY_UNKNOWN = "LCM016"
COPIES_UNTIED = "LCM017"

_FLASH_CAPABILITY = (8, 0)  # FlashAttention-2 needs Ampere or newer


def findings(plan: Plan, shape: Shape) -> tuple[Finding, ...]:
    """The findings of one plan by itself, errors first."""
    found = [*_gpu(plan, shape), *_limits(plan, shape), *_memory(plan, shape), *_speed(plan)]
    return by_severity(found)


def by_severity(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, notes last."""
    return tuple(sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def global_batch(asked: int, planned: int) -> Finding:
    """The global batch could not be met exactly."""
    return Finding(
        code=GLOBAL_BATCH,
        severity="warning",
        message=f"a global batch of {asked} sequences does not divide over GPUs and micro-batches: planned {planned}",
        fix=f"say --global-batch {planned}",
        where="--global-batch",
    )


def zero3_slower(ratio: float, *, simulated: bool) -> Finding:
    """ZeRO-3 was asked for although ZeRO-2 is faster and fits (`simulated`), or very likely does."""
    fits = "fits too" if simulated else "probably fits too"
    return Finding(
        code=ZERO3_BOUND_BY_HOST,
        severity="warning",
        message=f"ZeRO-3 is bound by Python here: its hooks run at every module. ZeRO-2 {fits} and is {ratio:.1f} times as fast",
        fix="--zero 2",
        where="--zero",
    )


def _gpu(plan: Plan, shape: Shape) -> list[Finding]:
    gpu, recipe, out = plan.cluster.gpu, plan.recipe, []
    if recipe.precision == "bf16" and gpu.bf16_flops_per_s <= 0:
        message = f"{gpu.title} has no bf16 units: bf16 runs in emulation, far slower than fp16"
        out.append(Finding(code=BF16_MISSING, severity="error", message=message, fix="--precision fp16", where="--precision"))
    if recipe.precision == "fp16" and gpu.bf16_flops_per_s > 0:
        message = "fp16 needs a loss scale and may overflow; this GPU has bf16 at the same speed and memory"
        out.append(Finding(code=FP16_INSTEAD_OF_BF16, severity="warning", message=message, fix="--precision bf16", where="--precision"))
    if recipe.attention == "flash" and gpu.vendor == "nvidia" and gpu.compute_capability < _FLASH_CAPABILITY:
        message = (
            f"FlashAttention-2 does not run on {gpu.title} (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]})"
        )
        out.append(Finding(code=FLASH_UNSUPPORTED, severity="error", message=message, fix="--attention sdpa", where="--attention"))
    elif recipe.attention == "flash" and recipe.precision == "fp32":
        message = "FlashAttention-2 has no fp32 kernels"
        out.append(Finding(code=FLASH_UNSUPPORTED, severity="error", message=message, fix="--attention sdpa", where="--attention"))
    if recipe.attention == "eager" and not shape.has_sdpa:
        message = f"transformers has only eager attention for {plan.model.family}: scores of heads x length² are kept in memory"
        if shape.trainer_sdpa:
            message += "; the bundled trainer has fused attention for it"
        fix = "--attention sdpa, where the bundled trainer runs the plan" if shape.trainer_sdpa else ""
        out.append(Finding(code=EAGER_ONLY, severity="note", message=message, fix=fix, where="--attention" if fix else ""))
    elif recipe.attention == "sdpa" and not shape.has_sdpa:
        message = f"the fused attention of {plan.model.family} is the bundled trainer's: any other loop runs eager, and needs more memory"
        out.append(
            Finding(code=EAGER_ONLY, severity="note", message=message, fix="--attention eager for another loop", where="--attention")
        )
    return out


def _limits(plan: Plan, shape: Shape) -> list[Finding]:
    recipe, out = plan.recipe, []
    limit = shape.max_positions
    if limit is not None and recipe.seq_len > limit and not shape.alibi:
        learned = shape.num_position_rows > 0
        why = (
            "it has no positions beyond them, and the run fails" if learned else "quality beyond them is not given without position scaling"
        )
        message = f"{recipe.seq_len} tokens are more than the {limit} positions of {plan.model.name}: {why}"
        severity: Severity = "error" if learned else "warning"
        out.append(Finding(code=BEYOND_POSITIONS, severity=severity, message=message, fix=f"--seq-len {limit}", where="--seq-len"))
    host, node = plan.memory.host, plan.cluster.host_memory_bytes
    need = max(host.host_bytes_per_node, host.load_peak_bytes_per_node)
    if node is not None and need > node:
        message = f"needs {gib(need)} of host memory per node, which has {gib(node)}"
        out.append(Finding(code=HOST_MEMORY, severity="error", message=message, fix="offload less, or more nodes", where="--host-memory"))
    if node is None and recipe.offload != "none":
        message = f"offload needs {gib(need)} of host memory per node; whether it is there was not checked"
        out.append(Finding(code=HOST_MEMORY_UNKNOWN, severity="note", message=message, fix="say --host-memory", where="--host-memory"))
    if plan.cluster.disk_bytes is not None and host.disk_bytes > plan.cluster.disk_bytes:
        message = f"needs {gib(host.disk_bytes)} of disk, there are {gib(plan.cluster.disk_bytes)}"
        out.append(Finding(code=DISK, severity="error", message=message, fix="keep fewer checkpoints", where="--disk"))
    return out


def _memory(plan: Plan, shape: Shape) -> list[Finding]:
    recipe, worst, out = plan.recipe, plan.memory.worst, []
    if plan.verdict == "tight":
        message = "it fits, but barely: " + (plan.reasons[0] if plan.reasons else "the margin is small")
        out.append(Finding(code=TIGHT, severity="warning", message=message, fix="smaller micro-batch or shorter sequences"))
    if plan.memory.evidence == "conservative-stand-in":
        message = f"the layer of {plan.model.family} is not modelled: memory is that of a conservative stand-in of the same size"
        out.append(Finding(code=STAND_IN, severity="warning", message=message, where="--model"))
    elif plan.memory.evidence == "simulated-unmeasured-kernels":
        message = f"kernels of {plan.cluster.gpu.title} were not measured: workspaces may differ, the band is wider"
        out.append(Finding(code=KERNELS_NOT_MEASURED, severity="note", message=message, where="--gpu"))
    logits = recipe.micro_batch_size * recipe.seq_len * shape.vocab_size * 10  # bytes: 16-bit logits and two fp32 copies
    if recipe.loss == "hf" and logits > 0.25 * worst.peak_allocated_bytes:
        message = f"the stock loss keeps copies of the logits, about {gib(logits)} for a vocabulary of {shape.vocab_size:,}"
        out.append(Finding(code=LARGE_VOCABULARY, severity="note", message=message, fix="--loss chunked", where="--loss"))
    if recipe.method != "full" and recipe.zero_stage in (1, 2) and plan.cluster.num_gpus > 1:
        message = "ZeRO-1 and 2 do not shard frozen weights: every GPU holds them all; only ZeRO-3 divides them"
        out.append(Finding(code=FROZEN_NOT_SHARDED, severity="note", message=message, where="--zero"))
    if recipe.lora is not None and recipe.lora.train_embeddings == "modules-to-save" and shape.tied:
        message = "peft copies token embedding and head apart: two matrices are trained, and they are no longer tied"
        fix = "--train-embeddings in-place"
        out.append(Finding(code=COPIES_UNTIED, severity="warning", message=message, fix=fix, where="--train-embeddings"))
    return out


def _speed(plan: Plan) -> list[Finding]:
    if not plan.time.host_bound:
        return []
    message = (
        "the step is bound by Python and kernel launches, not by the GPU: a larger micro-batch takes hardly more time, "
        "another GPU model hardly less"
    )
    return [Finding(code=BOUND_BY_HOST, severity="note", message=message, fix="a larger --micro-batch", where="--micro-batch")]
