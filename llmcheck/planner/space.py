"""What a request leaves open, as recipes: every combination of the values that are allowed, batches included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from llmcheck.errors import UserError
from llmcheck.planner.findings import global_batch
from llmcheck.planner.plan import Finding, PlanRequest
from llmcheck.steptime.shape import Shape
from llmcheck.types import Attention, LoraSpec, Loss, Method, ModelSpec, Offload, Optimizer, Precision, TrainingRecipe

MAX_MICRO_BATCH = 64
MAX_MICRO_TOKENS = 65_536  # tokens of a micro-batch that the planner proposes by itself; throughput is flat long before
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")


class Batch(NamedTuple):
    """Sequences per GPU per forward, and micro-steps per optimizer step."""

    micro: int
    accum: int


class Space(NamedTuple):
    """The allowed values. A tuple of one is fixed by the user, by the DeepSpeed file, or by what can run at all."""

    methods: tuple[Method, ...]
    zero_stages: tuple[int, ...] | None  # None: the method decides
    offloads: tuple[Offload, ...] | None
    offload_device: Any
    checkpointing: tuple[bool, ...]
    attention: tuple[Attention, ...]
    losses: tuple[Loss, ...]
    batches: tuple[Batch, ...]
    optimizer: Optimizer | None
    base: TrainingRecipe
    lora: LoraSpec
    findings: tuple[Finding, ...]

    def recipes(self, method: Method) -> Iterator[TrainingRecipe]:
        """Every recipe of `method`; `deepspeed` is left empty."""
        lora = None if method == "full" else self.lora
        for stage, offload in self._sharding(method):
            optimizer = self.optimizer or ("cpu-adam" if offload != "none" else "fused-adam")
            for checkpointing in self.checkpointing:
                for attention in self.attention:
                    for loss in self.losses:
                        for batch in self.batches:
                            yield replace(
                                self.base,
                                method=method,
                                lora=lora,
                                zero_stage=stage,
                                offload=offload,
                                optimizer=optimizer,
                                checkpointing=checkpointing,
                                attention=attention,
                                loss=loss,
                                fused_adapters=method == "lora" and stage < 3,
                                micro_batch_size=batch.micro,
                                grad_accum_steps=batch.accum,
                            )

    def _sharding(self, method: Method) -> Iterator[tuple[int, Offload]]:
        stages = self.zero_stages or _stages(method, self._several_gpus, self.optimizer)
        offloads = self.offloads or _offloads(method, self.optimizer)
        for offload in offloads:
            for stage in (3,) if offload == "params" and self.zero_stages is None else stages:
                if offload == "params" and stage != 3:
                    continue
                if offload == "optimizer" and stage == 0:
                    continue
                if method == "qlora" and (stage == 3 or offload != "none"):
                    continue
                yield stage, offload

    @property
    def _several_gpus(self) -> bool:
        return self.base.zero_stage == 3  # the base carries the widest stage that makes sense


def _stages(method: Method, several: bool, optimizer: Optimizer | None) -> tuple[int, ...]:
    if not several:  # stage 0 has fp32 masters of all sizes twice for a moment; adam-bf16 has none, and no copies of gradients there either
        return (0,) if optimizer == "adam-bf16" else (2,)
    return {"full": (1, 2, 3), "lora": (2, 3), "qlora": (2,)}[method]


def _offloads(method: Method, optimizer: Optimizer | None) -> tuple[Offload, ...]:
    if method == "qlora":
        return ("none",)
    if method == "lora":  # the optimizer of the adapters is small; only weights are worth moving
        return ("none", "params") if optimizer in (None, "cpu-adam") else ("none",)
    if optimizer == "cpu-adam":
        return ("optimizer", "params")
    return ("none", "optimizer", "params") if optimizer is None else ("none",)


def space_of(request: PlanRequest, shape: Shape) -> Space:
    """What `request`, its DeepSpeed file and the model leave open. Raises UserError when they contradict each other."""
    from llmcheck.dsconfig import recipe_overrides

    fixed = recipe_overrides(request.ds_config)
    gpu = request.cluster.gpu
    precision: Precision = request.precision or fixed.precision or ("bf16" if gpu.bf16_flops_per_s > 0 else "fp16")
    stage = _first(request.zero_stage, fixed.zero_stage)
    offload = request.offload or fixed.offload
    _check(request, stage, offload)
    if request.optimizer == "adam-bf16" and precision != "bf16":
        raise UserError(
            f"adam-bf16 works on bf16 weights, and the precision is {precision}",
            code="conflict",
            where=f"--optimizer adam-bf16, --precision {precision}",
            hint="--precision bf16, or --optimizer adam-8bit"
            if gpu.bf16_flops_per_s > 0
            else "--optimizer adam-8bit: this GPU has no bf16",
        )
    _check_model(request, shape)
    several = request.cluster.num_gpus > 1
    base = TrainingRecipe(
        precision=precision,
        seq_len=request.seq_len,
        allocator=request.allocator or ("expandable" if gpu.vendor == "nvidia" else "native"),
        zero_stage=3 if several else 2,
        packing=request.packing,
        gradient_clipping=1.0 if fixed.gradient_clipping is None else fixed.gradient_clipping,
        offload_device=request.offload_device or fixed.offload_device or "cpu",
    )
    fused = shape.has_sdpa or shape.trainer_sdpa  # the plan is for the bundled trainer, which may have it where transformers has not
    attention: tuple[Attention, ...] = (request.attention,) if request.attention else ("sdpa" if fused else "eager",)
    losses: tuple[Loss, ...] = (request.loss,) if request.loss else ("hf", "chunked")
    batches, notes = _batches(
        _first(request.micro_batch_size, fixed.micro_batch_size),
        _first(request.grad_accum_steps, fixed.grad_accum_steps),
        _first(request.global_batch_size, fixed.global_batch_size),
        request.cluster.num_gpus,
        request.seq_len,
    )
    adapters = request.lora_rank is not None or request.lora_targets is not None or request.lora_dropout is not None
    methods = (request.method,) if request.method else ("lora", "qlora") if adapters or request.train_embeddings else METHODS
    default = LoraSpec()
    lora = LoraSpec(
        rank=request.lora_rank or default.rank,
        dropout=default.dropout if request.lora_dropout is None else request.lora_dropout,
        targets=request.lora_targets or default.targets,
        train_embeddings=request.train_embeddings,
    )
    return Space(
        methods=methods,
        zero_stages=None if stage is None else (stage,),
        offloads=None if offload is None else (offload,),
        offload_device=base.offload_device,
        checkpointing=(True, False) if request.checkpointing is None else (request.checkpointing,),
        attention=attention,
        losses=losses,
        batches=batches,
        optimizer=request.optimizer or fixed.optimizer,
        base=base,
        lora=lora,
        findings=notes,
    )


def _first(*values: int | None) -> int | None:
    return next((v for v in values if v is not None), None)


def supports_liger(model: ModelSpec) -> bool:
    """Whether Liger's kernels for the model are modelled."""
    from llmcheck.shadow.liger import FAMILIES

    return model.family_known and model.family in FAMILIES


def _check_model(request: PlanRequest, shape: Shape) -> None:
    """What is asked of the model that it, or its simulation, does not have."""
    model = request.model
    if request.loss == "liger" and not supports_liger(model):
        from llmcheck.shadow.liger import FAMILIES

        raise UserError(
            f"Liger's kernels are not modelled for the family {model.family!r}",
            code="conflict",
            where="--loss liger",
            why="Liger has no patch for it, or one whose allocations are unknown here; modelled: " + ", ".join(sorted(FAMILIES)),
            hint="--loss chunked saves the copies of the logits without a package",
        )
    if request.packing:
        _check_packing(request)
    if request.attention == "sdpa" and not (shape.has_sdpa or shape.trainer_sdpa):
        raise UserError(
            f"transformers has no SDPA attention for the family {model.family!r}",
            code="conflict",
            where="--attention sdpa",
            why="the model would not load with it",
            hint="--attention eager",
        )


def _check_packing(request: PlanRequest) -> None:
    """Raises UserError where the trainer would refuse to pack. It looks once more, at the configuration of the weights."""
    from llmcheck.shadow.attention import PACKED_FAMILIES

    family = request.model.family
    why = ""
    if family not in PACKED_FAMILIES:
        why = f"no test shows that transformers' {family} keeps packed rows apart"
    elif family == "bloom" and request.attention == "eager":
        why = "transformers' own attention of BLOOM ignores where rows begin; the trainer's, --attention sdpa, does not"
    elif family == "falcon" and request.model.config.get("alibi"):
        why = "Falcon with ALiBi takes a plain mask only"
    elif request.attention != "flash" and request.model.config.get("use_sliding_window", True):
        window = request.model.config.get("sliding_window")
        if window is not None and request.seq_len > window:
            why = f"its attention window of {window} tokens is shorter than a sequence, which a mask of packed rows does not express"
    if why:
        hint = "--attention sdpa" if family == "bloom" else "--packing off"
        raise UserError(f"{request.model.name} cannot be packed", code="packing", where="--packing on", why=why, hint=hint)


def _check(request: PlanRequest, stage: int | None, offload: Offload | None) -> None:
    if offload == "params" and stage not in (None, 3):
        raise UserError(
            f"parameters cannot be offloaded with ZeRO-{stage}",
            code="conflict",
            where=f"--offload params, --zero {stage}",
            why="DeepSpeed offloads parameters in stage 3 only",
            hint="--zero 3, or --offload optimizer",
        )
    if offload == "optimizer" and stage == 0:
        raise UserError(
            "the optimizer cannot be offloaded with ZeRO-0",
            code="conflict",
            where="--offload optimizer, --zero 0",
            why="DeepSpeed offloads from stage 1 on",
            hint="--zero 2",
        )
    if request.method == "qlora" and stage == 3:
        raise UserError(
            "QLoRA does not run under ZeRO-3",
            code="conflict",
            where="--method qlora, --zero 3",
            why="bitsandbytes' 4-bit weights cannot be partitioned and gathered by DeepSpeed's stage 3",
            hint="--zero 2: adapters are small, and 4-bit weights are held whole by every GPU",
        )
    if request.method == "qlora" and offload not in (None, "none"):
        raise UserError(
            "QLoRA does not run with offload",
            code="conflict",
            where=f"--method qlora, --offload {offload}",
            why="4-bit weights stay on the GPU, and the adapters' optimizer is too small to move",
            hint="--offload none",
        )
    if request.optimizer == "cpu-adam" and offload == "none":
        raise UserError(
            "cpu-adam works on offloaded states only",
            code="conflict",
            where="--optimizer cpu-adam, --offload none",
            hint="--offload optimizer, or --optimizer fused-adam",
        )
    if request.optimizer not in (None, "cpu-adam") and offload in ("optimizer", "params"):
        raise UserError(
            f"{request.optimizer} cannot work on states in host memory",
            code="conflict",
            where=f"--optimizer {request.optimizer}, --offload {offload}",
            why="DeepSpeed refuses it (zero_force_ds_cpu_optimizer)",
            hint="leave --optimizer out: the planner takes cpu-adam",
        )


def _batches(
    micro: int | None, accum: int | None, total: int | None, num_gpus: int, seq_len: int
) -> tuple[tuple[Batch, ...], tuple[Finding, ...]]:
    """Allowed pairs of micro-batch and accumulation; a finding when the global batch cannot be met."""
    if micro is not None and accum is not None and total is not None and micro * accum * num_gpus != total:
        raise UserError(
            f"global batch {total} is not micro-batch {micro} x accumulation {accum} x {num_gpus} GPUs = {micro * accum * num_gpus}",
            code="batch-identity",
            where="--global-batch, --micro-batch, --grad-accum",
            hint="leave one of the three out",
        )
    options = tuple(m for m in (1, 2, 4, 8, 16, 32, 64) if m == 1 or (m <= MAX_MICRO_BATCH and m * seq_len <= MAX_MICRO_TOKENS))
    if total is None:
        sizes = (micro,) if micro is not None else options
        return tuple(Batch(m, accum or 1) for m in sizes), ()
    if micro is not None:
        batches: tuple[Batch, ...] = (Batch(micro, accum or max(1, round(total / (micro * num_gpus)))),)
    elif accum is not None:
        batches = (Batch(max(1, round(total / (accum * num_gpus))), accum),)
    else:
        per_gpu = max(1, total // num_gpus)
        divisors = [m for m in range(1, min(per_gpu, MAX_MICRO_BATCH) + 1) if per_gpu % m == 0]
        fitting = [m for m in divisors if m == 1 or m * seq_len <= MAX_MICRO_TOKENS]
        batches = tuple(Batch(m, per_gpu // m) for m in fitting)
    planned = batches[0].micro * batches[0].accum * num_gpus
    return batches, () if planned == total else (global_batch(total, planned),)
