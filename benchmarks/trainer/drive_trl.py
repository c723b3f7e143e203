"""One case in TRL's SFTTrainer, on the same rows and random weights."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from benchmarks.trainer import common


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, seconds and bytes of SFTTrainer with the job's settings."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from transformers.initialization import no_init_weights
    from trl import SFTConfig, SFTTrainer

    from llmcheck import planfile
    from llmcheck_trainer.data import Prepared

    plan = planfile.read(job["plan"]).plan
    spec = plan.model
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    fields = dict(job["trl"])
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[str(fields.pop("weights", "bf16"))]
    adapters: Any = fields.pop("lora", None)
    data = Prepared(job["data"])
    rows = [data.tokens[a:b].astype("int64").tolist() for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(spec.family, **{k: v for k, v in spec.config.items() if k != "model_type"})
    torch.set_default_dtype(dtype)
    with no_init_weights(), device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    common.randomise(model)
    window = common.Window(device, job["warm"])
    per_step = job["micro_batch"] * job["grad_accum"] * job["seq_len"]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            window.reset_peak()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            window.step(per_step, per_step)

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["grad_accum"],
            max_length=job["seq_len"],
            max_steps=job["warm"] + job["steps"],
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            packing=job["packing"] == "on",
            use_cpu=not gpu,
            bf16=gpu,
            disable_tqdm=True,
            **fields,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Watch()],
            peft_config=None if adapters is None else LoraConfig(task_type="CAUSAL_LM", **adapters),
        )
        done = trainer.train()
        result = window.result()
    fill = sum(map(len, rows)) / (len(trainer.train_dataset) * job["seq_len"]) if job["packing"] == "on" else 1.0
    result["tokens_per_s"] *= fill  # SFTTrainer does not say how many of a step's tokens are padding; the packed share of all is the same
    return result | {
        "loss": done.training_loss,
        "mfu": plan.time.mfu * result["padded_tokens_per_s"] / plan.time.tokens_per_s,
        "settings": {
            "gradient_checkpointing": args.gradient_checkpointing,
            "use_liger_kernel": args.use_liger_kernel,
            "optim": str(args.optim),
            "weights": str(dtype),
            "loss_type": getattr(args, "loss_type", None),
            "attention": trainer.model.config._attn_implementation,
        },
    }


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import peft  # noqa: F401
    import trl  # noqa: F401

    common.emit(measure(common.wait_for_turn()))


if __name__ == "__main__":
    main()
