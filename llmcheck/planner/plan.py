"""What goes into the planner and what comes out of it: values only, no work.

`planner.search.search(request)` returns the chosen :class:`Plan` with its `alternatives`, `what_if` and `findings` filled in;
`planner.solve.solve(request)` returns a :class:`SolveResult` for the quantity that `request.solve` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmcheck.types import (
    AllocatorKind,
    Attention,
    ClusterSpec,
    Loss,
    MemoryEstimate,
    Method,
    ModelSpec,
    Offload,
    Optimizer,
    Precision,
    StepTime,
    TrainEmbeddings,
    TrainingRecipe,
    Verdict,
)

SolveTarget = Literal["seq-len", "micro-batch", "gpus", "lora-rank", "model"]
Severity = Literal["error", "warning", "note"]

SOLVE_TARGETS: tuple[SolveTarget, ...] = ("seq-len", "micro-batch", "gpus", "lora-rank", "model")
DEFAULT_SEQ_LEN = 1024  # tokens; both of the FAQ's model families are trained at it (LLaMA 1024 or 2048, BLOOMZ 512 or 1024)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the user fixed; None (or an empty mapping) leaves the planner free.

    `seq_len` is never searched unless `solve == "seq-len"`. At most two of `micro_batch_size`, `grad_accum_steps` and
    `global_batch_size` are independent: global = micro x accumulation x GPUs; the planner raises UserError when all three
    are given and disagree. `ds_config` is the user's DeepSpeed file as parsed, "auto" values still in it.
    The price of a GPU hour, the memory of the GPU and the network are in `cluster`.
    """

    model: ModelSpec
    cluster: ClusterSpec
    seq_len: int = DEFAULT_SEQ_LEN  # tokens
    micro_batch_size: int | None = None  # sequences per GPU per forward
    grad_accum_steps: int | None = None
    global_batch_size: int | None = None  # sequences per optimizer step, over all GPUs
    method: Method | None = None
    lora_rank: int | None = None
    lora_targets: str | None = None  # "all-linear", "attention", or comma-separated module name endings
    lora_dropout: float | None = None
    train_embeddings: TrainEmbeddings | None = None
    precision: Precision | None = None
    optimizer: Optimizer | None = None
    zero_stage: int | None = None
    offload: Offload | None = None
    offload_device: Literal["cpu", "nvme"] | None = None
    checkpointing: bool | None = None
    attention: Attention | None = None
    loss: Loss | None = None
    allocator: AllocatorKind | None = None
    ds_config: Mapping[str, Any] | None = None
    num_samples: int | None = None  # training sequences in all, for hours, cost and data preparation
    num_tokens: int | None = None  # training tokens in all
    solve: SolveTarget | None = None
    packing: bool = False
    profile: Any = None  # a steptime.profile.Profile: what the GPU and its host reach, measured; None: the catalogue's figures


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another recipe, ranked behind the chosen one. Bytes are the worst rank's."""

    title: str  # what distinguishes it, for a table: "LoRA r16, ZeRO-2, micro-batch 4"
    flags: tuple[str, ...]  # what to type to get it: ("--method", "lora", "--zero", "2")
    recipe: TrainingRecipe
    verdict: Verdict
    peak_allocated_bytes: int
    process_bytes: int
    required_bytes: int
    host_bytes_per_node: int
    step_s: float
    tokens_per_s: float
    note: str = ""  # why it is not the first: "12 % slower", "trains 0.6 % of the parameters"


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One change to the chosen recipe and what it brings. At most five are shown."""

    title: str  # "recompute activations (checkpointing)"
    flags: tuple[str, ...]  # ("--checkpointing", "on")
    delta_bytes: int  # change of required_bytes; negative frees memory
    speed_ratio: float  # new tokens per second / those of the plan
    quality: str  # what it costs in quality; "none" when the result is the same
    verdict: Verdict  # after the change


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the plan that the user should know. Codes: LCM001-LCM089 the planner, LCM090-LCM099 the command line."""

    code: str  # "LCM001", never reused
    severity: Severity
    message: str
    fix: str = ""
    where: str = ""  # the flag or field that it concerns


@dataclass(frozen=True, kw_only=True)
class DataPrepWay:
    """What one way of preparing the training data takes, on one node."""

    name: str  # "every rank tokenizes all samples into Python lists"
    host_bytes: int
    time_s: float
    disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class DataPrep:
    """Preparation of `num_samples` samples: the way of BELLE's own script beside ours."""

    num_samples: int
    naive: DataPrepWay
    ours: DataPrepWay
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One recipe on one cluster with its estimate, and what the planner has to say about it."""

    model: ModelSpec
    cluster: ClusterSpec
    recipe: TrainingRecipe
    memory: MemoryEstimate
    time: StepTime
    verdict: Verdict
    reasons: tuple[str, ...] = ()  # why this recipe, or why it does not fit; one sentence each
    alternatives: tuple[Alternative, ...] = ()
    what_if: tuple[Lever, ...] = ()
    findings: tuple[Finding, ...] = ()
    data: DataPrep | None = None


@dataclass(frozen=True, kw_only=True)
class SolveResult:
    """The largest (for GPUs: the smallest) value of `target` that fits, with the plan at that value.

    `value` is None when nothing fits; `plan` is then the nearest one. `next_value` is the first value that does not fit
    (None when the search ended at `limit`, for the reason `limited_by`, for example the positions that the model has).
    """

    target: SolveTarget
    value: int | str | None
    plan: Plan
    next_value: int | str | None = None
    limited_by: str = ""
    tried: tuple[tuple[int | str, int, Verdict], ...] = ()  # (value, required_bytes, verdict), in order of value
