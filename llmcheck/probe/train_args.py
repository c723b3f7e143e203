"""Training arguments -> ``train.*`` facts, under the names of transformers' TrainingArguments; a launch script gives ``launcher.*`` too.

Read are JSON and YAML files of transformers, TRL, LLaMA-Factory and axolotl, accelerate's own YAML, and shell scripts. The names and
what tells the trainers apart are data (data/train_keys.toml).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from llmcheck import toml
from llmcheck.errors import UserError, did_you_mean
from llmcheck.probe import launch_script, settings_file
from llmcheck.rules.facts import ABSENT, Fact, Facts, Location

_TABLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "train_keys.toml")
_SCRIPTS = (".sh", ".bash", ".sbatch", ".slurm")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_\-]+")
_MAX_LISTED = 20
_MAX_TEXT_CHARS = 2_000
_OWN_COMMANDS = ("llamafactory", "axolotl", "trl")
_BELLE = ("belle-v1", "belle-v2")


def facts(path: str) -> Facts:
    """The ``train.*`` facts of the file at `path`, and ``launcher.*`` of a script.

    Raises UserError when it holds no training arguments, CouldNotCheckError for YAML where PyYAML is missing.
    """
    if os.path.splitext(path)[1].lower() in _SCRIPTS:
        return _of_script(path)
    settings = settings_file.read(path)
    if "compute_environment" in settings.values and "distributed_type" in settings.values:
        return _of_accelerate(settings, path)
    result = Facts()
    result.examined("training")
    framework = framework_of(settings.values)
    if framework is None:
        hint = next((near for key in settings.values if (near := did_you_mean(key[:60], _known_names()))), "")
        raise UserError(
            f"no training arguments in {path}", code="no-training-arguments", where=path,
            why="none of its keys is one of transformers', TRL's, LLaMA-Factory's or axolotl's",
            hint=hint or "give the file or script that the training is started with",
        )  # fmt: skip
    result.close("train.", Location(uri=path))
    shared = _tables()["shared"].get(framework)
    for keys, value in settings_file.walk(settings.values):
        if all(_PLAIN_KEY.fullmatch(key) for key in keys):
            place = Location(uri=path, line=settings.lines.get(keys))
            own = "" if shared is None or keys[0] in shared else f"{framework}."
            result.put(f"train.{own}" + ".".join(keys), sorted(value) if isinstance(value, dict) else value, place)
    _text_numbers(result, framework)
    first = next((settings.lines[name,] for name in settings.repeated if (name,) in settings.lines), None)
    result.put("train.repeated_keys", settings.repeated[:_MAX_LISTED] or None, Location(uri=path, line=first))
    _common(result, framework)
    return result


def framework_of(names: Mapping[str, Any], kind: str = "") -> str | None:
    """Which trainer's settings `names` are, or None. `kind` is the command that starts it."""
    if kind in _OWN_COMMANDS:
        return kind
    for row in _tables()["framework"]:
        if all(name in names for name in row.get("all", ())) and any(name in names for name in row["any"]):
            return str(row["name"])
    return None


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return toml.load(_TABLES)


def _known_names() -> list[str]:
    return [name for row in _tables()["framework"] for name in row["any"]]


def _of_script(path: str) -> Facts:
    result, launch = launch_script.read(path)
    result.examined("training")
    place = Location(uri=path, line=launch.line)
    framework = framework_of(launch.arguments, launch.kind)
    if launch.more:
        word = launch.more[0]
        result.could_not("train.*", f"line {word.line}: {word.raw[:60]} may hold more arguments, only known when the script runs")
    elif (config := _config_file(launch)) is not None:
        result.could_not("train.*", f"line {launch.line}: they are in {config[:120]}; give that file with --train-args")
    else:
        result.close("train.", place)
    for name, words in launch.arguments.items():
        if not _PLAIN_KEY.fullmatch(name):
            continue
        unknown = next((word for word in words if word.text is None), None)
        if unknown is not None:
            result.could_not(f"train.{name}", f"line {unknown.line}: {unknown.raw[:60]} is only known when the script runs")
            continue
        values = [value_of(word.text or "") for word in words]
        result.put(f"train.{name}", True if not values else values[0] if len(values) == 1 else values,
                   Location(uri=path, line=launch.lines[name]))  # fmt: skip
    _common(result, framework or "unknown")
    return result


def _config_file(launch: launch_script.Launch) -> str | None:
    """The file of arguments that the command is given, which is not read here."""
    named = launch.arguments.get("config")
    words = [*(named or ()), *launch.positional]
    return next((word.raw for word in words if word.raw.endswith((".yaml", ".yml", ".json"))), None)


def _of_accelerate(settings: settings_file.Settings, path: str) -> Facts:
    """accelerate's own configuration says how processes are started, not how is trained."""
    result = Facts()
    result.examined("launcher")
    result.close("launcher.", Location(uri=path))
    result.put("launcher.kind", "accelerate", Location(uri=path))
    for keys, value in settings_file.walk(settings.values):
        if all(_PLAIN_KEY.fullmatch(key) for key in keys):
            place = Location(uri=path, line=settings.lines.get(keys))
            result.put("launcher." + ".".join(keys), sorted(value) if isinstance(value, dict) else value, place)
    return result


def value_of(text: str) -> Any:
    """What `text` on a command line stands for: a number, true or false, a JSON object or list, None, or the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text in ("None", "none", "null"):
        return None if text != "none" else text
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,3})?", text) and math.isfinite(number := float(text)):
        return number
    if text[:1] in "{[" and text[-1:] in "}]":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text[:_MAX_TEXT_CHARS]
        return value if isinstance(value, (dict, list)) else text
    return text[:_MAX_TEXT_CHARS]


def _text_numbers(result: Facts, framework: str) -> None:
    """Numbers that YAML reads as text (``1e-5`` without a point): judged as numbers, and listed where the trainer takes them as text."""
    found = []
    place = None
    for name in _tables()["number"]["names"]:
        fact = result.known.get(f"train.{name}")
        if fact is None or not isinstance(fact.value, str):
            continue
        value = value_of(fact.value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(f"{name}: {fact.value[:40]}")
            place = place or fact.location
            result.put(f"train.{name}", value, fact.location)
    result.put("train.text_numbers", (found or None) if framework == "transformers" else None, place)


def _common(result: Facts, framework: str) -> None:
    """The names that rules use, for what the trainer calls otherwise."""
    result.put("train.framework", framework)  # without a place: findings point at the setting itself
    for theirs, ours in _tables()["alias"].get(framework, {}).items():
        fact = result.known.get(f"train.{theirs}") or result.known.get(f"train.{framework}.{theirs}")
        if fact is not None and f"train.{ours}" not in result.known:
            result.known[f"train.{ours}"] = fact
        elif (why := result.unreadable.get(f"train.{theirs}")) is not None:
            result.could_not(f"train.{ours}", why)
    for name in _tables()["seq_len"]["names"]:
        fact = result.known.get(f"train.{name}")
        if fact is not None and isinstance(fact.value, int):
            result.known["train.seq_len"] = fact
            break
        if (why := result.unreadable.get(f"train.{name}")) is not None:
            result.could_not("train.seq_len", why)
            break
    _method(result, framework)
    _attention(result, framework)
    _targets(result)
    for name in ("gradient_checkpointing_kwargs", "fsdp_config", "model_init_kwargs"):
        fact = result.known.get(f"train.{name}")
        if fact is not None and isinstance(fact.value, dict):
            for key, value in fact.value.items():
                if _PLAIN_KEY.fullmatch(str(key)):
                    result.put(f"train.{name}.{key}", value, fact.location)


def _value(result: Facts, name: str) -> Any:
    fact = result.get(f"train.{name}")
    return None if fact is None or fact.value is ABSENT else fact.value


def _method(result: Facts, framework: str) -> None:
    """train.method: full, lora, qlora or freeze; absent where the file does not tell."""
    names = ("use_lora", "use_peft", "lora_r", "lora_rank", "finetuning_type", "adapter", "use_int8_training", "load_in_4bit", "lora_dim")
    source = next((fact for name in names if (fact := result.known.get(f"train.{name}")) is not None), None)
    place = source.location if source is not None else None
    lora = "qlora" if _value(result, "load_in_4bit") is True or _value(result, "quantization_bit") == 4 else "lora"
    method: str | None = None
    if framework == "llamafactory":
        kind = _value(result, "finetuning_type") or "lora"  # its default
        method = lora if kind == "lora" else str(kind)
    elif framework == "axolotl":
        adapter = _value(result, "adapter")
        method = "full" if adapter is None else lora if adapter == "lora" else str(adapter)
    elif framework == "belle-v1":
        dim = _value(result, "lora_r")
        method = "lora" if isinstance(dim, int) and dim > 0 else "full"
    elif framework in ("trl", "belle-v2"):
        method = lora if _value(result, "use_peft") or _value(result, "use_lora") else "full"
    elif _value(result, "use_lora") or _value(result, "use_peft") or isinstance(_value(result, "lora_r"), int):
        method = lora
    if result.why_unknown("train.method") is not None and source is None:  # the script's further arguments may say it
        return
    result.put("train.method", method, place)


def _attention(result: Facts, framework: str) -> None:
    """train.attention under transformers' names: eager, sdpa, flash_attention_2; absent where the file leaves it to the trainer."""
    fact: Fact | None = result.known.get("train.attn_implementation")
    value = fact.value if fact is not None else None
    if framework == "llamafactory" and (fact := result.known.get("train.flash_attn")) is not None:
        value = {"fa2": "flash_attention_2", "disabled": "eager", "sdpa": "sdpa", "fa3": "flash_attention_3"}.get(str(fact.value))
    elif framework == "axolotl" and value is None:
        for name, ours in (("flash_attention", "flash_attention_2"), ("sdpa_attention", "sdpa"), ("flex_attention", "flex_attention")):
            fact = result.known.get(f"train.{name}")
            if fact is not None and fact.value is True:
                value = ours
                break
    elif value is None:
        fact = next((found for name in ("use_flash_attn", "use_flash_attention") if (found := result.known.get(f"train.{name}"))), None)
        value = "flash_attention_2" if fact is not None and fact.value is True else None
    if isinstance(value, str) and fact is not None:
        result.put("train.attention", value, fact.location)
    elif result.why_unknown("train.attention") is None:
        result.absent("train.attention")


def _targets(result: Facts) -> None:
    """train.lora_target_modules as a list; "all" and its kin as ["all-linear"]."""
    linear = result.known.get("train.lora_target_linear")
    fact = result.known.get("train.lora_target_modules")
    if fact is None or fact.value is ABSENT:
        if linear is not None and linear.value is True:
            result.put("train.lora_target_modules", ["all-linear"], linear.location)
        return
    value = fact.value
    parts = value if isinstance(value, list) else re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else []
    names = [str(part) for part in parts if isinstance(part, str) and part]
    if names in (["all"], ["all-linear"], ["all_linear"]):
        names = ["all-linear"]
    result.put("train.lora_target_modules", names[:200] or None, fact.location)
