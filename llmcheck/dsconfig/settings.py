"""The numbers of a DeepSpeed configuration that decide what is allocated, on the GPU and in host memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llmcheck.dsconfig.checking import offload_device
from llmcheck.dsconfig.fields import (
    AIO,
    BF16,
    DTYPES,
    FP16,
    LEAF_MODULE_CLASSES,
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    TOP,
    ZERO,
    Field,
    Section,
)
from llmcheck.types import Optimizer, Precision

DTYPE_BYTES: dict[Precision, int] = {"bf16": 2, "fp16": 2, "fp32": 4}

# Elements that the engine itself all-reduces at a time in ZeRO stage 0 (runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
DDP_BUCKET_ELEMENTS = 500_000_000

# What deepspeed.initialize wraps the optimizer in (runtime/engine.py, _do_optimizer_sanity_check and _configure_fp16_optimizer):
#   zero-1-2, zero-3    DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3
#   bf16-optimizer      BF16_Optimizer: bf16, stage 1, gradients accumulated in fp32, no CPU offload
#   fp16-fused          FP16_Optimizer: stage 0 in bf16 or fp16 with FusedAdam; one flat fp32 master copy per group
#   fp16-unfused        FP16_UnfusedOptimizer: the same with any other optimizer; one fp32 master copy per parameter
#   none                stage 0 in fp32: the optimizer itself; with adam-bf16 the bundled trainer has DeepSpeed do the same in bf16
Wrapper = Literal["zero-1-2", "zero-3", "bf16-optimizer", "fp16-fused", "fp16-unfused", "none"]


class OffloadSettings(NamedTuple):
    """One of `offload_optimizer` and `offload_param`. Sizes are elements, as DeepSpeed counts them."""

    device: Literal["none", "cpu", "nvme"] = "none"
    pin_memory: bool = True
    nvme_path: str | None = None
    buffer_count: int = 0
    buffer_size: int = 0  # elements of one NVMe buffer; parameters only (the optimizer's are as large as its largest sub-group)
    max_in_cpu: int = 0  # parameters only: elements that stay in host memory when the device is nvme
    pipeline_read: bool = False
    pipeline_write: bool = False
    fast_init: bool = False
    ratio: float = 1.0  # optimizer only: share of the sub-groups whose states are offloaded

    @property
    def enabled(self) -> bool:
        """True when it puts anything off the GPU."""
        return self.device != "none"


@dataclass(frozen=True, kw_only=True)
class ZeroSettings:
    """What the simulation reads of a configuration. Bucket sizes and thresholds are elements; dtypes are "bf16", "fp16", "fp32"."""

    world_size: int
    stage: int
    wrapper: Wrapper
    precision: Precision  # of the parameters
    micro_batch_size: int
    grad_accum_steps: int
    gradient_clipping: float  # 0: off

    master_dtype: Precision  # of the optimizer's copy of the parameters, and of its gradients
    optimizer_state_dtype: Precision  # of Adam's two moments
    grad_accum_dtype: Precision
    communication_dtype: Precision

    reduce_bucket_size: int
    allgather_bucket_size: int
    overlap_comm: bool
    contiguous_gradients: bool  # as it takes effect: stages 1 and 2 force it on with optimizer offload
    reduce_scatter: bool
    use_multi_rank_bucket_allreduce: bool
    allgather_partitions: bool
    round_robin_gradients: bool
    parameter_alignment: bool  # stages 1 and 2: each parameter starts at 16 bytes in the flat buffer
    ignore_unused_parameters: bool
    compute_grad_norm: bool
    check_grad_overflow: bool
    load_from_fp32_weights: bool
    elastic_checkpoint: bool
    prescale_gradients: bool
    gradient_predivide_factor: float

    sub_group_size: int
    prefetch_bucket_size: int  # 1 with stage3_allgather_sequential
    param_persistence_threshold: int
    model_persistence_threshold: int  # as written; zero.Init divides it by the number of partitions
    max_live_parameters: int
    max_reuse_distance: int
    module_granularity_threshold: int
    use_all_reduce_for_fetch_params: bool
    allgather_sequential: bool
    gather_16bit_weights_on_model_save: bool
    memory_efficient_linear: bool
    zero_hpz_partition_size: int
    quantized_weights: bool
    quantized_nontrainable_weights: bool
    quantized_gradients: bool
    leaf_module_classes: tuple[str, ...]
    leaf_module_names: tuple[str, ...]
    leaf_module_name_suffixes: tuple[str, ...]

    offload_optimizer: OffloadSettings
    offload_param: OffloadSettings

    bf16_immediate_grad_update: bool
    fp16_dynamic_loss_scale: bool
    fp16_initial_loss_scale: float  # the scale of the first step, dynamic or not; 1 outside fp16
    fp16_auto_cast: bool

    aio_block_size: int  # bytes
    aio_intra_op_parallelism: int
    wall_clock_breakdown: bool

    @property
    def swaps_optimizer(self) -> bool:
        """True when optimizer states really go to NVMe: in stage 3. Stages 1 and 2 keep them in host memory whatever the device."""
        return self.stage == 3 and self.offload_optimizer.device == "nvme"

    @property
    def partitions(self) -> int:
        """Ranks that share the optimizer states: the world from stage 1 on, else 1."""
        return self.world_size if self.stage >= 1 else 1

    @property
    def master_bytes(self) -> int:
        """Of an element of the optimizer's weights and gradients; fp32 weights have no other."""
        return 4 if self.precision == "fp32" else DTYPE_BYTES[self.master_dtype]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], world_size: int, optimizer: Optimizer = "fused-adam") -> ZeroSettings:
        """The settings in `config`, which :func:`llmcheck.dsconfig.complete` wrote; what it lacks has DeepSpeed 0.19.8's default.

        `optimizer` decides the wrapper of stage 0; adam-bf16 has no master copy there, which DeepSpeed's keys cannot say.
        """
        zero, bf16, fp16 = config.get("zero_optimization", {}), config.get("bf16", {}), config.get("fp16", {})
        precision: Precision = "bf16" if bf16.get("enabled") else "fp16" if fp16.get("enabled") else "fp32"
        stage = int(_value(zero, ZERO, "stage"))
        offload_optimizer, offload_param = _offload(zero, "offload_optimizer"), _offload(zero, "offload_param")
        grad_accum = _dtype(config.get("data_types", {}).get("grad_accum_dtype")) or precision
        master, states = _master_dtypes(bf16, fp16, optimizer)
        sequential = bool(_value(zero, ZERO, "stage3_allgather_sequential"))
        overlap = zero.get("overlap_comm")
        leaf = zero.get("leaf_module", {})
        static_scale = float(_value(fp16, FP16, "loss_scale"))
        aio = config.get("aio") or {}
        return cls(
            world_size=world_size,
            stage=stage,
            wrapper=_wrapper(stage, precision, grad_accum, offload_optimizer.device, optimizer),
            precision=precision,
            micro_batch_size=int(config.get("train_micro_batch_size_per_gpu", 1)),
            grad_accum_steps=int(config.get("gradient_accumulation_steps", 1)),
            gradient_clipping=float(_value(config, TOP, "gradient_clipping")),
            master_dtype=master,
            optimizer_state_dtype=states,
            grad_accum_dtype=grad_accum,
            communication_dtype=_dtype(str(config.get("communication_data_type") or precision).lower()) or precision,
            reduce_bucket_size=int(_value(zero, ZERO, "reduce_bucket_size")),
            allgather_bucket_size=int(_value(zero, ZERO, "allgather_bucket_size")),
            overlap_comm=stage == 3 if overlap is None else bool(overlap),
            contiguous_gradients=bool(_value(zero, ZERO, "contiguous_gradients")) or (stage in (1, 2) and offload_optimizer.enabled),
            reduce_scatter=bool(_value(zero, ZERO, "reduce_scatter")),
            use_multi_rank_bucket_allreduce=bool(_value(zero, ZERO, "use_multi_rank_bucket_allreduce")),
            allgather_partitions=bool(_value(zero, ZERO, "allgather_partitions")),
            round_robin_gradients=bool(_value(zero, ZERO, "round_robin_gradients")),
            parameter_alignment=bool(_value(zero, ZERO, "parameter_alignment")),
            ignore_unused_parameters=bool(_value(zero, ZERO, "ignore_unused_parameters")),
            compute_grad_norm=bool(_value(zero, ZERO, "compute_grad_norm")),
            check_grad_overflow=precision == "fp16" or (precision == "bf16" and bool(_value(bf16, BF16, "check_grad_overflow"))),
            load_from_fp32_weights=bool(_value(zero, ZERO, "load_from_fp32_weights")),
            elastic_checkpoint=bool(_value(zero, ZERO, "elastic_checkpoint")),
            prescale_gradients=bool(_value(config, TOP, "prescale_gradients")),
            gradient_predivide_factor=float(_value(config, TOP, "gradient_predivide_factor")),
            sub_group_size=int(_value(zero, ZERO, "sub_group_size")),
            prefetch_bucket_size=1 if sequential else int(_value(zero, ZERO, "stage3_prefetch_bucket_size")),
            param_persistence_threshold=int(_value(zero, ZERO, "stage3_param_persistence_threshold")),
            model_persistence_threshold=int(_value(zero, ZERO, "stage3_model_persistence_threshold")),
            max_live_parameters=int(_value(zero, ZERO, "stage3_max_live_parameters")),
            max_reuse_distance=int(_value(zero, ZERO, "stage3_max_reuse_distance")),
            module_granularity_threshold=int(_value(zero, ZERO, "stage3_module_granularity_threshold")),
            use_all_reduce_for_fetch_params=bool(_value(zero, ZERO, "stage3_use_all_reduce_for_fetch_params")),
            allgather_sequential=sequential,
            gather_16bit_weights_on_model_save=bool(_value(zero, ZERO, "stage3_gather_16bit_weights_on_model_save")),
            memory_efficient_linear=bool(_value(zero, ZERO, "memory_efficient_linear")),
            zero_hpz_partition_size=int(_value(zero, ZERO, "zero_hpz_partition_size")),
            quantized_weights=bool(_value(zero, ZERO, "zero_quantized_weights")),
            quantized_nontrainable_weights=bool(_value(zero, ZERO, "zero_quantized_nontrainable_weights")),
            quantized_gradients=bool(_value(zero, ZERO, "zero_quantized_gradients")),
            leaf_module_classes=_names(leaf.get("classes"), LEAF_MODULE_CLASSES),
            leaf_module_names=_names(leaf.get("names"), ()),
            leaf_module_name_suffixes=_names(leaf.get("name_suffixes"), ()),
            offload_optimizer=offload_optimizer,
            offload_param=offload_param,
            bf16_immediate_grad_update=bool(_value(bf16, BF16, "immediate_grad_update")),
            fp16_dynamic_loss_scale=precision == "fp16" and static_scale == 0,
            fp16_initial_loss_scale=_initial_scale(fp16, static_scale) if precision == "fp16" else 1.0,
            fp16_auto_cast=bool(_value(fp16, FP16, "auto_cast")),
            aio_block_size=int(_value(aio, AIO, "block_size")),
            aio_intra_op_parallelism=int(_value(aio, AIO, "intra_op_parallelism")),
            wall_clock_breakdown=bool(_value(config, TOP, "wall_clock_breakdown")),
        )


def _wrapper(stage: int, precision: Precision, grad_accum: Precision, offload: str, optimizer: Optimizer) -> Wrapper:
    if stage == 3:
        return "zero-3"
    if stage in (1, 2):
        # The engine asks for CPU offload here, so NVMe offload does not keep the BF16_Optimizer away.
        return "bf16-optimizer" if stage == 1 and precision == "bf16" and grad_accum == "fp32" and offload != "cpu" else "zero-1-2"
    if precision == "fp32" or optimizer == "adam-bf16":
        return "none"
    return "fp16-fused" if optimizer == "fused-adam" else "fp16-unfused"


def _master_dtypes(bf16: Mapping[str, Any], fp16: Mapping[str, Any], optimizer: Optimizer) -> tuple[Precision, Precision]:
    """Of the master copy and of Adam's moments (runtime/base_optimizer.py, _configure_master_weights; ops/adam/cpu_adam.py)."""
    if optimizer == "adam-bf16":
        return "bf16", "bf16"
    if fp16.get("fp16_master_weights_and_grads"):
        return "fp16", "fp32"
    if bf16.get("bf16_master_weights_and_grads"):
        return "bf16", "bf16" if bf16.get("bf16_optimizer_states") else "fp32"
    return "fp32", "fp32"


def _offload(zero: Mapping[str, Any], name: str) -> OffloadSettings:
    device = offload_device(zero, name)
    if device == "none":
        return OffloadSettings()
    section, spec = zero[name], OFFLOAD_OPTIMIZER if name == "offload_optimizer" else OFFLOAD_PARAM
    path = section.get("nvme_path")
    return OffloadSettings(
        device="nvme" if device == "nvme" else "cpu",
        pin_memory=bool(_value(section, spec, "pin_memory")),
        nvme_path=None if path is None else str(path),
        buffer_count=int(_value(section, spec, "buffer_count")),
        buffer_size=int(_value(section, spec, "buffer_size") or 0),
        max_in_cpu=int(_value(section, spec, "max_in_cpu") or 0),
        pipeline_read=bool(_value(section, spec, "pipeline_read")),
        pipeline_write=bool(_value(section, spec, "pipeline_write")),
        fast_init=bool(_value(section, spec, "fast_init")),
        ratio=float(1.0 if (ratio := _value(section, spec, "ratio")) is None else ratio),
    )


def _initial_scale(fp16: Mapping[str, Any], static_scale: float) -> float:
    return static_scale or 2.0 ** float(_value(fp16, FP16, "initial_scale_power"))


def _value(section: Mapping[str, Any], spec: Section, key: str) -> Any:
    value = section.get(key)
    if value is not None:
        return value
    field = spec.get(key)
    return field.default if isinstance(field, Field) else None


def _dtype(name: Any) -> Precision | None:
    known: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
    return known.get(DTYPES.get(name, "")) if isinstance(name, str) else None


def _names(value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    return (value,) if isinstance(value, str) else tuple(map(str, value)) if isinstance(value, (list, tuple)) else default
