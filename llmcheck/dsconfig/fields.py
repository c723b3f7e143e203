"""Every key of a DeepSpeed 0.19.8 configuration: its kind, its default, the values it takes.

Read from deepspeed/runtime/config.py, constants.py, precision_config.py, zero/config.py, zero/offload_config.py and the
sections' own config modules of release 0.19.8. `tests/unit/dsconfig/deepspeed_0_19_8.json` holds the same, dumped from the
package itself, and a test compares the two.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

MAX_ELEMENTS = sys.maxsize  # DeepSpeed's own "no limit"; larger numbers overflow torch's sizes
MAX_COUNT = 2**31 - 1  # of sequences, steps, buffers: numbers that some C code counts with


class Field(NamedTuple):
    """One key. `kind`: int, float, bool, str, choice, dtype, list, dict or any. `default` None: not written, DeepSpeed decides."""

    kind: str
    default: Any = None
    low: float = 0
    high: float = MAX_ELEMENTS
    choices: tuple[Any, ...] = ()
    nullable: bool = False
    native_auto: bool = False  # "auto" is a value of DeepSpeed's own here, and its default
    stage3_only: bool = False
    any_case: bool = False  # DeepSpeed lowers the value before it looks


Section = dict[str, "Field | Section"]


def _int(default: int | None, low: int = 0, high: int = MAX_ELEMENTS, **more: Any) -> Field:
    return Field("int", default, low, high, nullable=default is None, **more)


def _float(default: float | None, low: float = 0.0, high: float = 1e30, **more: Any) -> Field:
    return Field("float", default, low, high, nullable=default is None, **more)


def _flag(default: bool | None, **more: Any) -> Field:
    return Field("bool", default, nullable=default is None, **more)


def _text(default: str | None = None, **more: Any) -> Field:
    return Field("str", default, nullable=default is None, **more)


_ANY = Field("any", nullable=True)  # passed on as it is; no memory depends on it
_DICT = Field("dict", nullable=True)
_LIST = Field("list", nullable=True)
_AUTO = Field("any", "auto", nullable=True, native_auto=True)
_DTYPE = Field("dtype", nullable=True)

DTYPES: dict[str, str] = {  # deepspeed/runtime/config.py, DtypeEnum
    **dict.fromkeys(("torch.float16", "fp16", "float16", "half"), "fp16"),
    **dict.fromkeys(("torch.float32", "fp32", "float32", "float"), "fp32"),
    **dict.fromkeys(("torch.bfloat16", "bf16", "bfloat16"), "bf16"),
}

_OFFLOAD_DEVICE = Field("choice", "none", choices=("none", "cpu", "nvme"))

OFFLOAD_OPTIMIZER: Section = {
    "device": _OFFLOAD_DEVICE,
    "nvme_path": _text(),
    "buffer_count": _int(4, high=MAX_COUNT),
    "pin_memory": _flag(True),
    "pipeline_read": _flag(False),
    "pipeline_write": _flag(False),
    "fast_init": _flag(False),
    "ratio": _float(1.0, high=1.0),
    "super_offload": _flag(False),
    "cpuadam_cores_perc": _float(0.8, high=1.0),
}
OFFLOAD_PARAM: Section = {
    "device": _OFFLOAD_DEVICE,
    "nvme_path": _text(),
    "buffer_count": _int(5, high=MAX_COUNT),
    "buffer_size": _int(100_000_000),
    "max_in_cpu": _int(1_000_000_000),
    "pin_memory": _flag(True),
}

ZERO: Section = {
    "stage": _int(0, high=3),
    "contiguous_gradients": _flag(True),
    "reduce_scatter": _flag(True),
    "reduce_bucket_size": _int(500_000_000, low=1),
    "use_multi_rank_bucket_allreduce": _flag(True),
    "allgather_partitions": _flag(True),
    "allgather_bucket_size": _int(500_000_000),
    "overlap_comm": _flag(None),  # stage 3: true, else false
    "compute_grad_norm": _flag(True),
    "load_from_fp32_weights": _flag(True),
    "elastic_checkpoint": _flag(False),
    "offload_param": OFFLOAD_PARAM,
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "zenflow": _DICT,
    "sub_group_size": _int(1_000_000_000, stage3_only=True),
    "cpu_offload_param": _flag(None),
    "cpu_offload_use_pin_memory": _flag(None),
    "cpu_offload": _flag(None),
    "stage3_prefetch_bucket_size": _int(50_000_000, stage3_only=True),
    "stage3_param_persistence_threshold": _int(100_000, stage3_only=True),
    "stage3_model_persistence_threshold": _int(sys.maxsize, stage3_only=True),
    "stage3_max_live_parameters": _int(1_000_000_000, stage3_only=True),
    "stage3_max_reuse_distance": _int(1_000_000_000, stage3_only=True),
    "stage3_gather_16bit_weights_on_model_save": _flag(False, stage3_only=True),
    "stage3_module_granularity_threshold": _int(0, low=-sys.maxsize, stage3_only=True),
    "stage3_use_all_reduce_for_fetch_params": _flag(False, stage3_only=True),
    "stage3_allgather_sequential": _flag(False, stage3_only=True),
    "stage3_gather_fp16_weights_on_model_save": _flag(False, stage3_only=True),
    "ignore_unused_parameters": _flag(True),
    "legacy_stage1": _flag(False),
    "round_robin_gradients": _flag(False),
    "parameter_alignment": _flag(False),
    "zero_hpz_partition_size": _int(1, high=MAX_COUNT, stage3_only=True),
    "zero_quantized_weights": _flag(False, stage3_only=True),
    "zero_quantized_nontrainable_weights": _flag(False, stage3_only=True),
    "zero_quantized_gradients": _flag(False, stage3_only=True),
    "memory_efficient_linear": _flag(True, stage3_only=True),
    "pipeline_loading_checkpoint": _flag(False, stage3_only=True),
    "override_module_apply": _flag(True, stage3_only=True),
    "log_trace_cache_warnings": _flag(False, stage3_only=True),
    "enable_sanity_checks": _flag(False, stage3_only=True),
    "save_muon_momentum_buffer_in_memory": _flag(False, stage3_only=True),
    "leaf_module": {"classes": _ANY, "names": _ANY, "name_suffixes": _ANY},
}
# The section's pydantic model takes these under both names.
ZERO_SECOND_NAMES: dict[str, str] = {
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
    "model_persistence_threshold": "stage3_model_persistence_threshold",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
    "gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "module_granularity_threshold": "stage3_module_granularity_threshold",
    "use_all_reduce_for_fetch_params": "stage3_use_all_reduce_for_fetch_params",
    "allgather_sequential": "stage3_allgather_sequential",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
# Leaf modules keep all their parameters together under ZeRO-3 (zero/leaf_module_config.py).
LEAF_MODULE_CLASSES = (
    "transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock",
    "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock",
    "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock",
)

BF16: Section = {
    "enabled": _flag(False),
    "immediate_grad_update": _flag(False),
    "check_grad_overflow": _flag(True),
    "bf16_master_weights_and_grads": _flag(False),
    "bf16_optimizer_states": _flag(False),
}
FP16: Section = {
    "enabled": _flag(False),
    "auto_cast": _flag(False),
    "loss_scale": _float(0.0),
    "initial_scale_power": _int(16, low=-1000, high=1000),
    "loss_scale_window": _int(1000, high=MAX_COUNT),
    "hysteresis": _int(2, high=MAX_COUNT),
    "consecutive_hysteresis": _flag(False),
    "min_loss_scale": _int(1),
    "fp16_master_weights_and_grads": _flag(False),
}
AIO: Section = {
    "block_size": _int(1_048_576, low=1),
    "queue_depth": _int(8, low=1, high=MAX_COUNT),
    "intra_op_parallelism": _int(1, low=1, high=MAX_COUNT),
    "single_submit": _flag(False),
    "overlap_events": _flag(True),
    "use_gds": _flag(False),
}

TOP: Section = {
    "train_batch_size": _int(None, low=1, high=MAX_COUNT),
    "train_micro_batch_size_per_gpu": _int(None, low=1, high=MAX_COUNT),
    "gradient_accumulation_steps": _int(None, low=1, high=MAX_COUNT),
    "managed_gradient_accumulation": _flag(True),
    "optimizer": {"type": _text(), "params": _DICT, "legacy_fusion": _flag(False)},
    "scheduler": {"type": _text(), "params": _DICT},
    "zero_allow_untested_optimizer": _flag(False),
    "zero_force_ds_cpu_optimizer": _flag(True),
    "steps_per_print": _int(None, low=1),
    "bf16": BF16,
    "fp16": FP16,
    "torch_autocast": {"enabled": _flag(False), "dtype": _DTYPE, "lower_precision_safe_modules": _LIST},
    "gradient_clipping": _float(1.0),
    "communication_data_type": Field("choice", choices=("fp16", "bf16", "fp32"), nullable=True, any_case=True),
    "seq_parallel_communication_data_type": Field("choice", choices=("fp16", "bf16", "fp32"), nullable=True, any_case=True),
    "prescale_gradients": _flag(False),
    "gradient_predivide_factor": _float(1.0),
    "gradient_allreduce_op": Field("choice", "mean", choices=("mean", "sum"), any_case=True),
    "disable_allgather": _flag(False),
    "dump_state": _flag(False),
    "disable_python_gc": _flag(False),
    "vocabulary_size": _int(None),
    "wall_clock_breakdown": _flag(False),
    "memory_breakdown": _flag(False),
    "zero_optimization": ZERO,
    "activation_checkpointing": {
        "partition_activations": _flag(False),
        "number_checkpoints": _int(None, high=MAX_COUNT),
        "contiguous_memory_optimization": _flag(False),
        "synchronize_checkpoint_boundary": _flag(False),
        "profile": _flag(False),
        "cpu_checkpointing": _flag(False),
    },
    "aio": AIO,
    "checkpoint": {
        "tag_validation": _text("WARN"),
        "load_universal": _flag(False),
        "use_node_local_storage": _flag(False),
        "parallel_write": {"pipeline_stage": _flag(False)},
        "checkpoint_serialization": _flag(True),
        "writer": {
            "type": _text("FAST"),
            "io_buffer_size": _int(67_108_864),
            "io_buffer_double": _flag(True),
            "show_statistics": _flag(False),
            "data_parallel": _text(),
            "decoupled": _flag(False),
            "io_multiplier": _int(1, high=MAX_COUNT),
        },
    },
    "data_types": {
        "grad_accum_dtype": _DTYPE,
        "param_dtype": _DTYPE,
        "buffer_dtype": _DTYPE,
        "keep_in_fp32_modules": _AUTO,
    },
    "dataloader_drop_last": _flag(False),
    "use_data_before_expert_parallelism": _flag(False),
    "log_level": _text(),
    "flops_profiler": {
        "enabled": _flag(False),
        "recompute_fwd_factor": _float(0.0),
        "profile_step": _int(1),
        "module_depth": _int(-1, low=-1),
        "top_modules": _int(1),
        "detailed": _flag(True),
        "output_file": _text(),
    },
    "comms_logger": {"enabled": _flag(False), "verbose": _flag(False), "prof_all": _flag(True), "debug": _flag(False), "prof_ops": _LIST},
    "tensorboard": {"enabled": _flag(False), "output_path": _text(""), "job_name": _text("DeepSpeedJobName")},
    "wandb": {"enabled": _flag(False), "group": _text(), "team": _text(), "project": _text("deepspeed")},
    "csv_monitor": {"enabled": _flag(False), "output_path": _text(""), "job_name": _text("DeepSpeedJobName")},
    "comet": {
        "enabled": _flag(False),
        "samples_log_interval": _int(100),
        **dict.fromkeys(("project", "workspace", "api_key", "experiment_name", "experiment_key", "mode"), _text()),
        "online": _flag(None),
    },
    "timers": {"throughput": {"enabled": _flag(True), "synchronized": _flag(True)}},
    "compile": {
        "deepcompile": _flag(False),
        "autoep_non_moe": _flag(False),
        "free_activation": _flag(False),
        "free_activation_threshold": _int(10_485_760),
        "offload_activation": _flag(False),
        "offload_activation_pin_memory": _flag(True),
        "offload_opt_states": _flag(False),
        "double_buffer": _flag(True),
        "symmetric_memory": _flag(False),
        "debug_log": _flag(False),
        "offload_parameters": _flag(False),
        "sync_before_reduce": _flag(False),
        "sync_after_reduce": _flag(False),
        "sync_before_allgather": _flag(False),
        "sync_after_allgather": _flag(False),
        "keep_int_input_tensors": _flag(True),
        "keep_all_input_tensors": _flag(False),
        "passes": _LIST,
    },
    "hybrid_engine": {
        "enabled": _flag(False),
        "max_out_tokens": _int(512, low=1),
        "inference_tp_size": _int(1, high=MAX_COUNT),
        "release_inference_cache": _flag(False),
        "pin_parameters": _flag(True),
        "tp_gather_partition_size": _int(8),
        "enable_cuda_graph": _flag(False),
    },
    "tensor_parallel": {
        "autotp_size": _int(0, high=MAX_COUNT),
        **dict.fromkeys(
            (
                "dtype",
                "tp_overlap_comm",
                "vocab_parallel_lm_head",
                "vocab_parallel_ce_backend",
                "tensor_parallel",
                "tp",
                "injection_policy_tuple",
                "partition_config",
                "preset_model",
                "keep_module_on_host",
                "replace_with_kernel_inject",
                "kernel_inject",
            ),
            _ANY,
        ),
    },
    "sequence_parallel_size": _int(1, low=1, high=MAX_COUNT),
    "data_parallel_size": _int(None, low=1, high=MAX_COUNT),
    # No run that is planned here depends on these; their insides are passed on unread.
    "expert_parallel": _DICT,
    "pipeline": _DICT,
    "data_efficiency": _DICT,
    "autotuning": _DICT,
    "weight_quantization": _DICT,
    "datastates_ckpt": _ANY,
}

# Removed from DeepSpeed before 0.19.8, which refuses to start when it finds them (runtime/config.py).
REMOVED: dict[str, str] = {
    "nebula": "Nebula checkpointing is gone",
    "compression_training": "the compression library is gone: the model would train unquantised",
    "amp": "Apex AMP is gone: use fp16, bf16 or torch_autocast",
    "quantize_training": "mixture-of-quantisation is gone",
    "sparse_gradients": "sparse embedding gradients need no key now",
    "eigenvalue": "it served mixture-of-quantisation, which is gone",
    "sparse_attention": "DeepSpeed's sparse attention is gone",
    "elasticity": "elastic training is gone: set the batch sizes themselves",
    "graph_harvesting": "it is gone",
    "curriculum_learning": "it moved to data_efficiency.data_sampling.curriculum_learning",
    "progressive_layer_drop": "it is gone",
    "zero_optimization.mics_shard_size": "MiCS is gone",
    "zero_optimization.mics_hierarchical_params_gather": "MiCS is gone",
    "zero_optimization.zeropp_loco_param": "LoCo is gone: remove it for plain ZeRO++ quantised gradients",
}

# What DeepSpeed's `optimizer.type` builds, for the types that are simulated (runtime/engine.py, _configure_basic_optimizer).
ADAM_TYPES = ("adam", "adamw")
OTHER_OPTIMIZERS = ("adagrad", "lamb", "lion", "muadam", "muadamw", "musgd", "muon")
