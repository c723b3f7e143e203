"""Record what DeepSpeed itself says, for the tests beside this file: ``python tests/unit/dsconfig/record_deepspeed.py``.

Needs deepspeed 0.19.8 and torch (CPU). Writes deepspeed_0_19_8.json: the fields and defaults of its configuration sections, its
verdict on small configurations, what it reads out of our completed ones, and which wrapper the engine puts around an optimizer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29531")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

# Configurations that DeepSpeed refuses, each for one reason.
REFUSED: tuple[dict[str, Any], ...] = (
    {"train_batch_size": 3, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1},
    {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True}, "bf16": {"enabled": True}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 4}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": "two"}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "reduce_bucket_size": 0}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "reduce_bucket_size": -5}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "reduce_bucket_size": 1.5}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "overlap_com": True}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 1.5}}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, "compute_grad_norm": False}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "mics_shard_size": 2}},
    {"train_micro_batch_size_per_gpu": 1, "amp": {"enabled": True}},
    {"train_micro_batch_size_per_gpu": 1, "nebula": {}},
    {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
    {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True, "loss_scale": 0}},
    {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True, "loss_scale": -1}},
    {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True, "loss_scale_window": 0}},
    {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True, "min_loss_scale": 0}},
    {"train_micro_batch_size_per_gpu": 1, "communication_data_type": "int8"},
    {"train_micro_batch_size_per_gpu": 1, "gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3}},
    {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}}},
)

# (recipe, the user's file) that DeepSpeed takes once completed.
TAKEN: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {}),
    ({"zero_stage": 0}, {}),
    ({"zero_stage": 1, "precision": "fp16"}, {}),
    ({"zero_stage": 3}, {}),
    ({"zero_stage": 2, "precision": "fp32", "micro_batch_size": 4, "grad_accum_steps": 3, "gradient_clipping": 0.0}, {}),
    ({"zero_stage": 2, "offload": "optimizer", "optimizer": "cpu-adam"}, {}),
    ({"zero_stage": 3, "offload": "params", "optimizer": "cpu-adam", "offload_device": "nvme"}, {}),
    ({"zero_stage": 2, "optimizer": "adam-bf16"}, {}),
    ({"zero_stage": 2, "optimizer": "adam-8bit"}, {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 2e8}}),
    (
        {"zero_stage": 3},
        {
            "bf16": {"enabled": "auto"},
            "zero_optimization": {
                "stage": 3,
                "sub_group_size": 1e9,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "stage3_max_live_parameters": 3e7,
                "stage3_max_reuse_distance": "auto",
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        },
    ),
    (
        {"zero_stage": 3, "offload": "optimizer", "optimizer": "cpu-adam"},
        {"zero_optimization": {"stage": 3, "cpu_offload": True, "prefetch_bucket_size": 7, "round_robin_gradients": True}},
    ),
    ({"zero_stage": 1}, {"bfloat16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "FP32"}),
    ({"zero_stage": 1}, {"zero_optimization": True, "steps_per_print": 10}),
    (
        {"zero_stage": 2, "precision": "fp16"},
        {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 100}},
    ),
    ({"zero_stage": 2}, {"zero_optimization": {"stage3_max_live_parameters": 3e7, "offload_param": {"device": "none"}}}),
)
HIDDEN_SIZE = 1024  # what "auto" is computed from in the cases above


def main() -> None:
    """Write the record."""
    import deepspeed
    import torch
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.config import DeepSpeedConfig, HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DEFAULT_LEAF_MODULE_CLASSES
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

    from llmcheck.dsconfig import complete
    from llmcheck.types import TrainingRecipe

    assert deepspeed.__version__ == "0.19.8", deepspeed.__version__

    def fields(model: Any) -> dict[str, Any]:
        found = {}
        for name, field in model.model_fields.items():
            default = None if field.is_required() or field.default_factory else field.default
            found[field.alias or name] = int(default) if isinstance(default, int) and not isinstance(default, bool) else default
        return found

    record: dict[str, Any] = {
        "version": deepspeed.__version__,
        "hidden_size": HIDDEN_SIZE,
        "fields": {
            "zero_optimization": fields(DeepSpeedZeroConfig),
            "zero_optimization.offload_optimizer": fields(DeepSpeedZeroOffloadOptimizerConfig),
            "zero_optimization.offload_param": fields(DeepSpeedZeroOffloadParamConfig),
            "bf16": fields(DeepSpeedBF16Config),
            "fp16": fields(DeepSpeedFP16Config),
            "aio": AIO_DEFAULT_DICT,
            "compile": fields(CompileConfig),
            "hybrid_engine": fields(HybridEngineConfig),
            "comms_logger": fields(CommsLoggerConfig),
            "tensorboard": fields(TensorBoardConfig),
            "wandb": fields(WandbConfig),
            "csv_monitor": fields(CSVConfig),
            "comet": fields(CometConfig),
        },
        "leaf_module_classes": list(DEFAULT_LEAF_MODULE_CLASSES),
        "refused": [],
        "taken": [],
    }
    for config in REFUSED:
        try:
            DeepSpeedConfig(json.loads(json.dumps(config)))
        except BaseException as error:
            record["refused"].append({"config": config, "error": type(error).__name__})
        else:
            raise AssertionError(f"DeepSpeed takes {config}")
    for recipe, user in TAKEN:
        config = complete(TrainingRecipe(**recipe), user, world_size=1, hidden_size=HIDDEN_SIZE)
        read = DeepSpeedConfig(json.loads(json.dumps(config)))
        zero = read.zero_config.model_dump(mode="json", by_alias=True, exclude={"zenflow"})
        record["taken"].append(
            {
                "recipe": recipe,
                "user": user,
                "config": config,
                "read": {
                    "zero": {k: v for k, v in zero.items() if v is not None},
                    "bf16": read.bfloat16_config.model_dump(mode="json"),
                    "fp16": read.float16_config.model_dump(mode="json"),
                    "train_batch_size": read.train_batch_size,
                    "micro_batch_size": read.train_micro_batch_size_per_gpu,
                    "grad_accum_steps": read.gradient_accumulation_steps,
                    "gradient_clipping": read.gradient_clipping,
                    "communication_data_type": str(read.communication_data_type),
                    "grad_accum_dtype": read.grad_accum_dtype,
                },
            }
        )
    record["wrappers"] = _wrappers(deepspeed, torch)
    parts = []
    for key, value in record.items():  # a line per entry, so that a difference can be read
        items = [json.dumps(v) for v in value] if isinstance(value, list) else []
        parts.append(f"{json.dumps(key)}: " + ("[\n  " + ",\n  ".join(items) + "\n ]" if items else json.dumps(value)))
    (HERE / "deepspeed_0_19_8.json").write_text("{\n " + ",\n ".join(parts) + "\n}\n")


def _wrappers(deepspeed: Any, torch: Any) -> list[dict[str, Any]]:
    """The class that the engine puts around torch's AdamW, by stage, precision and gradient dtype; None where it refuses."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would compile for a minute
    deepspeed.init_distributed("gloo")
    found = []
    for stage in (0, 1, 2, 3):
        for precision in ("bf16", "fp32"):  # the CPU has no fp16
            for grad_accum in (None, "fp32", "bf16"):
                config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
                if precision == "bf16":
                    config["bf16"] = {"enabled": True}
                if grad_accum:
                    config["data_types"] = {"grad_accum_dtype": grad_accum}
                model = torch.nn.Linear(8, 8)
                try:
                    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
                    name = type(engine.optimizer).__name__
                except NotImplementedError:
                    name = None
                found.append({"stage": stage, "precision": precision, "grad_accum_dtype": grad_accum, "wrapper": name})
    return found


if __name__ == "__main__":
    main()
