"""Which type the trained weights are kept and updated in, told only where the files decide it."""

from __future__ import annotations

from typing import Any

import pytest

from llmcheck.probe import related
from llmcheck.rules.facts import ABSENT, Facts

NAME = "train.master_dtype"
TORCHRUN = {"launcher.kind": "torchrun"}
HF = {"train.framework": "transformers", **TORCHRUN}
TRL = {"train.framework": "trl", "train.method": "full", **TORCHRUN}
FACTORY = {"train.framework": "llamafactory", "train.method": "full"}
AXOLOTL = {"train.framework": "axolotl", "train.method": "full"}
IN_BF16 = {"train.torch_dtype": "bfloat16"}


def masters(values: dict[str, Any], *more: str) -> Facts:
    """What follows from all training arguments and the launch command; `more` are subjects that are examined, too."""
    facts = Facts()
    facts.examined("training", "launcher", *more)
    facts.close("train.")
    facts.close("ds.")
    for name, value in values.items():
        facts.put(name, value)
    return facts.merged(related.facts(facts))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({**HF, **IN_BF16}, "bfloat16"),
        ({**HF, "train.dtype": "bfloat16", "train.bf16": True}, "bfloat16"),  # autocast leaves the weights as they are
        ({**HF, "train.torch_dtype": "torch.float16"}, "float16"),
        ({**HF, "train.torch_dtype": "float32", "train.bf16": True}, "float32"),
        ({**HF, "train.torch_dtype": "auto", "model.dtype": "bfloat16"}, "bfloat16"),
        ({**TRL, "train.model_init_kwargs.dtype": "bfloat16"}, "bfloat16"),
        ({**TRL, "train.model_init_kwargs.torch_dtype": "float32"}, "float32"),
        ({**TRL, **IN_BF16, "train.fsdp": ""}, "bfloat16"),
        ({**FACTORY, "train.pure_bf16": True}, "bfloat16"),
        ({**FACTORY, "train.bf16": True}, "float32"),  # it turns what is trained to float32
        ({**AXOLOTL, "train.bf16": True}, "bfloat16"),
        ({**AXOLOTL, "train.bf16": "full"}, "bfloat16"),
        ({**AXOLOTL, "train.axolotl.bfloat16": True}, "bfloat16"),
        ({**AXOLOTL, "train.fp16": True}, "float16"),
        ({**AXOLOTL, "train.bf16": False, "train.tf32": True}, "float32"),
    ],
)
def test_what_the_arguments_decide(values: dict[str, Any], dtype: str) -> None:
    fact = masters(values).get(NAME)
    assert fact is not None
    assert fact.value == dtype


@pytest.mark.parametrize(
    ("section", "dtype"),
    [
        ({"ds.precision": "bf16"}, "float32"),
        ({"ds.precision": "fp16"}, "float32"),
        ({"ds.precision": "bf16", "ds.bf16.bf16_master_weights_and_grads": True}, "bfloat16"),
        ({"ds.precision": "fp16", "ds.fp16.fp16_master_weights_and_grads": True}, "float16"),
    ],
)
def test_deepspeeds_file_decides(section: dict[str, Any], dtype: str) -> None:
    fact = masters({**HF, **IN_BF16, "train.deepspeed": "ds.json", **section}, "ds_config").get(NAME)
    assert fact is not None
    assert fact.value == dtype


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({**HF}, "the script, or the release of transformers, decides"),
        ({**HF, "train.torch_dtype": "auto"}, "give its folder with --model"),
        ({**HF, **IN_BF16, "launcher.kind": "accelerate"}, "accelerate's configuration may add"),
        ({**HF, **IN_BF16, "launcher.kind": ABSENT}, "give the launch script too"),
        ({**TRL, **IN_BF16, "train.accelerate_config": "zero3"}, "accelerate's configuration may add"),
        ({**HF, **IN_BF16, "train.deepspeed": "ds.json"}, "give its file with --ds-config"),
        ({**HF, **IN_BF16, "train.fsdp": "full_shard auto_wrap"}, "FSDP's mixed precision decides"),
        ({**AXOLOTL, "train.bf16": "auto"}, "bf16 is only known when the training runs"),
        ({"train.framework": "belle-v1", "train.method": "full", **IN_BF16}, "not known"),
    ],
)
def test_what_they_do_not_decide_is_left_open(values: dict[str, Any], why: str) -> None:
    facts = masters(values)
    assert facts.get(NAME) is None
    assert why in (facts.why_open(NAME) or "")


def test_a_configuration_without_precision_is_left_open() -> None:
    facts = masters({**HF, **IN_BF16, "train.deepspeed": "ds.json", "ds.precision": "fp32"}, "ds_config")
    assert facts.why_open(NAME) == "the DeepSpeed configuration names no precision"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_have_none(method: str) -> None:
    fact = masters({**HF, **IN_BF16, "train.method": method}).get(NAME)
    assert fact is not None
    assert fact.value is ABSENT


def test_arguments_that_a_script_takes_from_elsewhere_make_it_unknown() -> None:
    facts = Facts()
    facts.examined("training", "launcher")
    facts.could_not("train.*", "line 3: $ARGS may hold more arguments")
    for name, value in {**HF, **IN_BF16}.items():
        facts.put(name, value)
    assert related.facts(facts).why_unknown(NAME) == "line 3: $ARGS may hold more arguments"
