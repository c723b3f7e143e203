"""Which type the optimizer keeps and updates the trained weights in, as far as arguments, launch command and DeepSpeed's file say it.

Pure: takes facts and gives the value of ``train.master_dtype``. What the trainer does with each setting:

- transformers' Trainer, and TRL's, which is one: autocast leaves the weights in the type that they were loaded in, and AdamW updates those
  (https://github.com/huggingface/trl/pull/6005).
- LLaMA-Factory turns the trained weights to float32, save with pure_bf16 (src/llamafactory/model/adapter.py, init_adapter).
- axolotl loads in bfloat16 with bf16 or bfloat16, in float16 with fp16 or float16, else in float32 (src/axolotl/utils/config).
- DeepSpeed keeps float32 masters beside bf16 or fp16 weights, save with *_master_weights_and_grads (runtime/base_optimizer.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llmcheck.rules.facts import ABSENT, Facts, Location

NAME = "train.master_dtype"
_DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16", "half": "float16", "float32": "float32",
           "fp32": "float32", "float": "float32"}  # fmt: skip
_LAUNCHERS = ("torchrun", "python", "deepspeed", "trl")  # that add neither DeepSpeed nor FSDP to what the arguments say
_NO_FSDP: tuple[object, ...] = (None, False, "", "no", [])


class _Answer(NamedTuple):
    """`dtype` at `place`, or None because of `why`."""

    dtype: str | None
    place: Location | None = None
    why: str = ""


def put_masters(known: Facts, result: Facts) -> None:
    """Record ``train.master_dtype`` from `known`: absent where only adapters are trained, open where the files given do not decide it."""
    unknown = next((name for name in ("method", "deepspeed", "fsdp") if known.get(f"train.{name}") is None), None)
    if unknown is not None:
        result.could_not(NAME, known.why_unknown(f"train.{unknown}") or f"train.{unknown} is not known")
        return
    if _value(known, "train.method") not in (None, "full", "freeze"):
        result.absent(NAME)  # adapters are another matter: peft keeps them in float32
        return
    answer = _dtype(known)
    if answer.dtype is not None:
        result.put(NAME, answer.dtype, answer.place)
    else:
        result.leave_open(NAME, answer.why)


def _dtype(known: Facts) -> _Answer:
    framework = _value(known, "train.framework")
    if _value(known, "train.deepspeed") not in (None, False, ""):
        return _of_deepspeed(known)
    if _value(known, "train.fsdp") not in _NO_FSDP:
        return _Answer(None, why="FSDP's mixed precision decides in which type the weights are kept")
    if framework == "llamafactory":
        return _of_flags(known, {"pure_bf16": "bfloat16"})
    if framework == "axolotl":
        return _of_flags(known, {"bf16": "bfloat16", "axolotl.bfloat16": "bfloat16", "fp16": "float16", "axolotl.float16": "float16"})
    if framework not in ("transformers", "trl"):
        return _Answer(None, why="what this trainer does with the type of the weights is not known")
    kind = _value(known, "launcher.kind")
    if kind not in _LAUNCHERS or _value(known, "train.accelerate_config") is not None:
        return _Answer(None, why="accelerate's configuration may add DeepSpeed or FSDP, which keep masters; give the launch script too")
    return _as_loaded(known)


def _of_deepspeed(known: Facts) -> _Answer:
    if "ds_config" not in known.subjects:
        return _Answer(None, why="DeepSpeed decides in which type the weights are kept; give its file with --ds-config")
    for section, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        low = known.get(f"ds.{section}.{section}_master_weights_and_grads")
        if low is not None and low.value is True:
            return _Answer(dtype, low.location)
    precision = known.get("ds.precision")
    if precision is not None and precision.value in ("bf16", "fp16"):
        return _Answer("float32", precision.location)
    return _Answer(None, why="the DeepSpeed configuration names no precision")


def _of_flags(known: Facts, flags: dict[str, str]) -> _Answer:
    """The type of the first of the trainer's `flags` that is on; float32 where none is."""
    for name, dtype in flags.items():
        fact = known.get(f"train.{name}")
        if fact is None or fact.value == "auto":
            return _Answer(None, why=f"{name} is only known when the training runs")
        if fact.value is not ABSENT and fact.value is not False:
            return _Answer(dtype, fact.location)
    return _Answer("float32")


def _as_loaded(known: Facts) -> _Answer:
    """The type that from_pretrained is told; "auto" is that of the model's configuration."""
    names = ("train.model_init_kwargs.dtype", "train.model_init_kwargs.torch_dtype", "train.dtype", "train.torch_dtype")
    told = next((fact for name in names if (fact := known.get(name)) is not None and fact.value is not ABSENT), None)
    if told is None:
        return _Answer(None, why="the script, or the release of transformers, decides in which type the model is loaded")
    word = str(told.value).removeprefix("torch.")
    if word == "auto":
        word = str(_value(known, "model.dtype")).removeprefix("torch.")
    if word not in _DTYPES:
        return _Answer(None, why="the model's configuration decides in which type it is loaded; give its folder with --model")
    return _Answer(_DTYPES[word], told.location)


def _value(known: Facts, name: str) -> Any:
    fact = known.get(name)
    return None if fact is None or fact.value is ABSENT else fact.value
