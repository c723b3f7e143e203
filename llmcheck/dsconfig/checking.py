"""Is a DeepSpeed configuration one that DeepSpeed 0.19.8 takes? Keys, kinds, ranges, and the sections against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmcheck.dsconfig.fields import (
    ADAM_TYPES,
    DTYPES,
    OTHER_OPTIMIZERS,
    REMOVED,
    TOP,
    ZERO,
    ZERO_SECOND_NAMES,
    Field,
    Section,
)
from llmcheck.dsconfig.reading import WHAT
from llmcheck.errors import UserError, did_you_mean
from llmcheck.jsonfile import kind_of

AUTO = "auto"
_MAX_SHOWN = 60  # characters of a bad value or key that a message repeats
_MAX_UNKNOWN = 8  # unknown keys that get a message of their own
_NULLABLE_SECTIONS = ("offload_param", "offload_optimizer", "aio", "bf16")  # null means "not given" there
OLD_NAMES = {"bfloat16": "bf16"}
OLD_ZERO_NAMES = (  # DeepSpeed still takes them, with a warning
    "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "stage3_gather_fp16_weights_on_model_save",
)  # fmt: skip
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "list": "a list",
    "dict": "an object",
    "dtype": "one of fp32, fp16, bf16",
}


class Problem(NamedTuple):
    """One thing wrong. `where` is the key's path. `ours`: DeepSpeed takes it, but no plan is made for it."""

    where: str
    what: str
    hint: str = ""
    why: str = ""
    ours: bool = False


def normalise(config: Mapping[str, Any], problems: list[Problem], notes: list[str]) -> dict[str, Any]:
    """A copy of `config` in today's names, "auto" still in it. What is wrong with keys and kinds goes into `problems`."""
    config = {OLD_NAMES.get(k, k) if OLD_NAMES.get(k) not in config else k: v for k, v in config.items()}
    for path, why in REMOVED.items():
        if _get(config, path) is not None:
            problems.append(Problem(path, "DeepSpeed 0.19.8 no longer has this key and refuses to start", "remove it", why))
            config = _without(config, path)
    zero = config.get("zero_optimization")
    if isinstance(zero, bool):
        notes.append(f"zero_optimization: {str(zero).lower()} is the old way to write stage {int(zero)}")
        config["zero_optimization"] = {"stage": int(zero)}
    return _copy_section(config, TOP, "", problems, notes)


def _copy_section(node: Mapping[str, Any], spec: Section, path: str, problems: list[Problem], notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    unknown = 0
    for key, value in node.items():
        if not isinstance(key, str):
            problems.append(Problem(path or "top level", f"the key {key!r} is not a string"))
            continue
        name = ZERO_SECOND_NAMES.get(key, key) if spec is ZERO else key
        where = f"{path}{key}"
        if name != key and name in node:
            problems.append(Problem(where, f"the same value as {path}{name}, given twice", "keep one of them"))
        elif name not in spec:
            unknown += 1
            if unknown <= _MAX_UNKNOWN:
                problems.append(_unknown(key, spec, path))
            elif unknown == _MAX_UNKNOWN + 1:
                problems.append(Problem(path or "top level", "and more unknown keys"))
        else:
            part = spec[name]
            if isinstance(part, Field):
                found[name] = _checked(value, part, where, problems)
            elif value is None and name in _NULLABLE_SECTIONS:
                continue
            elif isinstance(value, Mapping):
                found[name] = _copy_section(value, part, where + ".", problems, notes)
            else:
                problems.append(Problem(where, f"needs an object, not {_shown(value)}"))
    if spec is ZERO:
        _replace_deprecated(found, problems, notes)
    return found


def _checked(value: Any, field: Field, where: str, problems: list[Problem]) -> Any:
    """`value`, with a problem when the field cannot take it."""
    if value == AUTO or (value is None and field.nullable):
        return value
    kind = field.kind
    if kind in ("any", "dict", "list"):
        value = _copied(value)  # "auto" inside is replaced later, and the user's own document must not change
    if kind == "any":
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    finite = number and (isinstance(value, int) or math.isfinite(value))
    good = {
        "int": finite and value == int(value),
        "float": finite,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "list": isinstance(value, list),
        "dict": isinstance(value, Mapping),
        "dtype": isinstance(value, str) and value in DTYPES,
        "choice": isinstance(value, str) and (value.lower() if field.any_case else value) in field.choices,
    }[kind]
    if not good:
        if kind == "choice":
            needs, hint = "one of " + ", ".join(field.choices), did_you_mean(str(value)[:_MAX_SHOWN], field.choices)
        else:
            needs, hint = _KINDS[kind], "write it without quotes" if kind in ("int", "float", "bool") and _is_quoted(value) else ""
        problems.append(Problem(where, f"needs {needs}, not {_shown(value)}", hint))
    elif number and kind in ("int", "float") and not field.low <= value <= field.high:
        bound = f"at least {field.low:,}" if value < field.low else f"at most {field.high:,}"
        problems.append(Problem(where, f"must be {bound}, not {_shown(value)}"))
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _unknown(key: str, spec: Section, path: str) -> Problem:
    homes = [name for name, part in TOP.items() if isinstance(part, dict) and part is not spec and key in part]
    if spec is not TOP and key in TOP:
        hint = "it belongs at the top level"
    elif len(homes) == 1:
        hint = f"it belongs in {homes[0]}"
    else:
        hint = did_you_mean(key[:_MAX_SHOWN], [*spec, *(ZERO_SECOND_NAMES if spec is ZERO else ())])
    # Source: deepspeed/runtime/config.py reads single keys of the top level; DeepSpeedZeroConfig forbids what it has no field for.
    effect = "DeepSpeed refuses a key of this section that it does not know" if spec is ZERO else ""
    return Problem(f"{path}{key[:_MAX_SHOWN]}", "unknown key", hint, effect if path else "DeepSpeed would ignore it without a word")


def _is_quoted(value: Any) -> bool:
    """True for a text that would be a number, true or false without its quotes."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"\s*(?:[-+]?[0-9.]{1,30}(?:[eE][-+]?[0-9]{1,3})?|true|false|True|False)\s*", value) is not None
    )


def _replace_deprecated(zero: dict[str, Any], problems: list[Problem], notes: list[str]) -> None:
    """`cpu_offload` and `cpu_offload_param` as the sections that replaced them, as DeepSpeed does it."""
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        value = zero.pop(old, None)
        if value is None or value == AUTO:
            continue
        if new in zero:
            problems.append(Problem(f"zero_optimization.{old}", f"stands beside {new}, which replaced it", f"keep {new}"))
        elif value is True:
            zero[new] = {"device": "cpu"}
            notes.append(f'zero_optimization.{old} is the old way to write {new}: {{"device": "cpu"}}')
    zero.pop("cpu_offload_use_pin_memory", None)  # DeepSpeed reads it and does nothing with it


def own_conflicts(config: Mapping[str, Any], problems: list[Problem], notes: list[str]) -> None:
    """What in a normalised configuration excludes what else in it. Looks at definite values only, never at "auto"."""
    _check_precision(config, problems)
    _check_optimizer(config, problems)
    for path, parallelism in (("sequence_parallel_size", "sequence"), ("tensor_parallel.autotp_size", "tensor")):
        size = _get(config, path)
        if isinstance(size, (int, float)) and size > 1:
            hint = "data parallelism (ZeRO) is; leave it out"
            problems.append(Problem(path, f"{parallelism} parallelism is not planned for", hint, ours=True))
    zero = config.get("zero_optimization", {})
    stage = definite(zero.get("stage"))
    if stage is None:
        return
    stage = int(stage)
    offload, offload_params = offload_device(zero, "offload_optimizer"), offload_device(zero, "offload_param")
    at = "zero_optimization."
    if offload_params != "none" and stage != 3:
        problems.append(
            Problem(f"{at}offload_param", f"needs stage 3; {at}stage is {stage}", "DeepSpeed would leave the parameters on the GPU")
        )
    if offload != "none" and stage == 0:
        problems.append(Problem(f"{at}offload_optimizer", f"needs stage 1, 2 or 3; {at}stage is 0"))
    for name, device in (("offload_optimizer", offload), ("offload_param", offload_params)):
        path = definite(zero.get(name, {}).get("nvme_path"))
        if device == "nvme" and stage == 3 and not path:
            problems.append(Problem(f"{at}{name}", "device nvme needs nvme_path", f"set {at}{name}.nvme_path to a folder on the disk"))
    if offload == "nvme" and stage in (1, 2):
        notes.append(f"{at}offload_optimizer: DeepSpeed swaps to NVMe in stage 3 only; in stage {stage} the states stay in host memory")
    if 0 < float(definite(zero.get("offload_optimizer", {}).get("ratio")) or 1.0) < 1.0 and stage != 3:
        problems.append(Problem(f"{at}offload_optimizer.ratio", f"below 1 needs stage 3; {at}stage is {stage}"))
    if zero.get("compute_grad_norm") is False:
        if stage not in (1, 2):
            problems.append(Problem(f"{at}compute_grad_norm", f"can be false in stages 1 and 2 only; {at}stage is {stage}"))
        elif clipping := definite(config.get("gradient_clipping", 1.0)):  # 1.0 is DeepSpeed's own default
            problems.append(Problem(f"{at}compute_grad_norm", f"false excludes gradient_clipping {clipping:g}", "set it to 0"))
        elif offload != "none":
            problems.append(Problem(f"{at}compute_grad_norm", "false excludes optimizer offload"))
    if zero.get("legacy_stage1") is True:
        problems.append(Problem(f"{at}legacy_stage1", "DeepSpeed no longer has the old stage 1", "remove it"))
    if zero.get("elastic_checkpoint") is True and stage == 3:
        problems.append(Problem(f"{at}elastic_checkpoint", "DeepSpeed raises when a stage 3 run with it is saved", "remove it"))
    if stage in (1, 2) and int(definite(zero.get("allgather_bucket_size")) or 0) % 2:
        problems.append(Problem(f"{at}allgather_bucket_size", f"must be even in stage {stage}, not {zero['allgather_bucket_size']}"))
    if config.get("gradient_allreduce_op") == "sum" and stage == 3:
        problems.append(Problem("gradient_allreduce_op", f"sum is not there in stage 3; {at}stage is 3"))
    if stage >= 2 and zero.get("reduce_scatter") is not False:
        if config.get("prescale_gradients") is True:
            problems.append(
                Problem("prescale_gradients", f"excludes {at}reduce_scatter in stage {stage}", f"set {at}reduce_scatter to false")
            )
        if definite(config.get("gradient_predivide_factor")) not in (None, 1):
            problems.append(Problem("gradient_predivide_factor", f"must be 1 with {at}reduce_scatter in stage {stage}"))
    if stage == 0:
        for key, section in (("bf16_master_weights_and_grads", "bf16"), ("fp16_master_weights_and_grads", "fp16")):
            if config.get(section, {}).get(key) is True:
                problems.append(Problem(f"{section}.{key}", f"needs ZeRO stage 1, 2 or 3; {at}stage is 0", f"set {at}stage to 2"))
    if stage != 3:
        ignored = [k for k in zero if isinstance(part := ZERO.get(k), Field) and part.stage3_only and zero[k] != AUTO]
        if ignored:
            notes.append(f"DeepSpeed ignores in stage {stage}: " + ", ".join(ignored))


def _check_precision(config: Mapping[str, Any], problems: list[Problem]) -> None:
    bf16, fp16 = config.get("bf16", {}), config.get("fp16", {})
    if bf16.get("enabled") is True and fp16.get("enabled") is True:
        problems.append(Problem("fp16.enabled", "fp16 and bf16 are both enabled", "keep one: bf16 on Ampere and later, fp16 before"))
    if bf16.get("bf16_optimizer_states") is True and bf16.get("bf16_master_weights_and_grads") is not True:
        problems.append(Problem("bf16.bf16_optimizer_states", "needs bf16.bf16_master_weights_and_grads"))
    if bf16.get("bf16_master_weights_and_grads") is True and fp16.get("fp16_master_weights_and_grads") is True:
        problems.append(Problem("fp16.fp16_master_weights_and_grads", "excludes bf16.bf16_master_weights_and_grads"))
    offloaded = offload_device(config.get("zero_optimization", {}), "offload_optimizer") != "none"
    if fp16.get("fp16_master_weights_and_grads") is True and not offloaded:
        problems.append(Problem("fp16.fp16_master_weights_and_grads", "needs zero_optimization.offload_optimizer"))
    if bf16.get("bf16_master_weights_and_grads") is True and bf16.get("bf16_optimizer_states") is not True and not offloaded:
        problems.append(
            Problem("bf16.bf16_master_weights_and_grads", "needs bf16_optimizer_states, or zero_optimization.offload_optimizer")
        )
    if fp16.get("enabled") is True and not definite(fp16.get("loss_scale")):
        problems.extend(
            Problem(f"fp16.{key}", "must be above 0 while the loss scale is dynamic (loss_scale 0)")
            for key in ("loss_scale_window", "min_loss_scale")
            if fp16.get(key) == 0
        )


def _check_optimizer(config: Mapping[str, Any], problems: list[Problem]) -> None:
    for name in ("optimizer", "scheduler"):
        section = config.get(name)
        if section is not None and not definite(section.get("type")):
            example = "AdamW" if name == "optimizer" else "WarmupLR"
            problems.append(Problem(name, "needs a type", f'set {name}.type, for example "{example}"'))
    params = config.get("optimizer", {}).get("params")
    if isinstance(params, Mapping) and "max_grad_norm" in params:
        problems.append(Problem("optimizer.params.max_grad_norm", "DeepSpeed refuses it here", "write gradient_clipping at the top level"))
    kind = definite(config.get("optimizer", {}).get("type"))
    if isinstance(kind, str) and kind.lower() not in ADAM_TYPES:
        known = kind.lower() in OTHER_OPTIMIZERS
        hint = "" if known else did_you_mean(kind[:_MAX_SHOWN], ("Adam", "AdamW"))
        what = f"{_shown(kind)} is not an optimizer whose memory is simulated"
        hint = hint or "Adam and AdamW are; leave the section out to choose with --optimizer"
        problems.append(Problem("optimizer.type", what, hint, ours=True))


def definite(value: Any) -> Any:
    """`value`, or None for "auto"."""
    return None if value == AUTO else value


def offload_device(zero: Mapping[str, Any], name: str) -> str:
    """Where `zero_optimization.<name>` puts things: "none", "cpu" or "nvme". "auto" counts as none."""
    section = zero.get(name)
    device = section.get("device") if isinstance(section, Mapping) else None
    return device if device in ("cpu", "nvme") else "none"


def _get(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node if node is not None else False


def _without(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {k: _without(v, rest) if k == head and rest else v for k, v in config.items() if k != head or rest}


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return kind_of(value)
    text = repr(value) if isinstance(value, str) else kind_of(value) if value is None else str(value).lower()
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


_MEND = "mend that value, or leave it out"


def raise_for(problems: list[Problem], where: str) -> None:
    """One UserError for all that is wrong, if anything is; `where` names the configuration."""
    if not problems:
        return
    if len(problems) == 1:
        (only,) = problems
        raise UserError(f"{WHAT}: {only.where}: {only.what}", where=where, why=only.why, hint=only.hint or _MEND, code="ds-config")
    listed = "; ".join(f"{p.where}: {p.what}" + (f" ({p.hint})" if p.hint.startswith("did you mean") else "") for p in problems)
    hint = next((p.hint for p in problems if p.hint), _MEND)
    raise UserError(f"{WHAT}: {len(problems)} problems", where=where, why=listed, hint=hint, code="ds-config")
