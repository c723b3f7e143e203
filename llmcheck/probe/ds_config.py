"""A DeepSpeed configuration file -> ``ds.*`` facts: every key as it is written, and what follows from the keys together.

What DeepSpeed 0.19.8 takes is :mod:`llmcheck.dsconfig`'s knowledge; nothing of it is repeated here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmcheck import jsonfile
from llmcheck.dsconfig import checking, reading
from llmcheck.dsconfig.checking import AUTO, Problem, definite, offload_device
from llmcheck.dsconfig.fields import REMOVED, TOP, ZERO, ZERO_SECOND_NAMES, Field, Section
from llmcheck.probe.key_lines import key_lines
from llmcheck.rules.facts import Facts, Location

MAX_LISTED = 20
_MAX_TEXT_CHARS = 160  # of one problem in a list
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_\-]+")  # a key with a dot in it must not pass for a path
_STAGE3_SIZES = (
    "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)  # fmt: skip
# Conflicts that have rules of their own: the key that checking.py names, and how it begins to say what is wrong.
_OWN_RULES = (
    ("fp16.enabled", ""),
    ("zero_optimization.offload_param", "needs stage"),
    ("zero_optimization.offload_optimizer", "needs stage"),
)

Path = tuple[str, ...]


def facts(path: str) -> Facts:
    """The ``ds.*`` facts of the file at `path`. Raises UserError when it is not a JSON object, as DeepSpeed reads it."""
    data = jsonfile.read_bytes(path, what=reading.WHAT, max_bytes=reading.MAX_BYTES)
    config = reading.parse(data, where=path)
    text = data.decode("utf-8-sig")  # parse() has found it to be UTF-8
    return of(path, config, key_lines(text), strict=_is_strict(text))


def of(path: str, config: Mapping[str, Any], lines: Mapping[Path, int], *, strict: bool = True) -> Facts:
    """Likewise of a configuration that was read: from `path`, where its keys stand in `lines`. `strict`: it was JSON without extras."""
    file = _File(path, config, lines)
    result = Facts()
    result.examined("ds_config")
    result.close("ds.", Location(uri=path))
    for keys, value in _walk(config, ()):
        _put(result, file, keys, value)
    result.put("ds.strict_json", strict, Location(uri=path))
    _problems(result, file)
    _lists(result, file)
    return result


class _File:
    """The configuration, and where its keys stand."""

    def __init__(self, path: str, config: Mapping[str, Any], lines: Mapping[Path, int]) -> None:
        self.path, self.config, self.lines = path, config, lines

    def at(self, keys: Path) -> Location:
        """The place of a key, or of the closest section around it."""
        for length in range(len(keys), 0, -1):
            if (line := self.lines.get(keys[:length])) is not None:
                return Location(uri=self.path, line=line)
        return Location(uri=self.path)


def _walk(node: Mapping[str, Any], keys: Path) -> Iterator[tuple[Path, Any]]:
    """Every key with its value, depth first; keys that no rule could name are left out."""
    for key, value in node.items():
        if _PLAIN_KEY.fullmatch(key):
            yield (*keys, key), value
            if isinstance(value, dict):
                yield from _walk(value, (*keys, key))


def _put(result: Facts, file: _File, keys: Path, value: Any) -> None:
    """`value` under its own name and under the name that DeepSpeed keeps it by."""
    shown = sorted(value) if isinstance(value, dict) else value
    result.put("ds." + ".".join(keys), shown, file.at(keys))
    today = _canonical(keys)
    if today != keys and not _holds(file.config, today):
        result.put("ds." + ".".join(today), shown, file.at(keys))


def _canonical(keys: Path) -> Path:
    if keys[0] in checking.OLD_NAMES:
        return (checking.OLD_NAMES[keys[0]], *keys[1:])
    if len(keys) == 2 and keys[0] == "zero_optimization":
        return (keys[0], ZERO_SECOND_NAMES.get(keys[1], keys[1]))
    return keys


def _holds(config: Mapping[str, Any], keys: Path) -> bool:
    node: Any = config
    for key in keys:
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True


def _is_strict(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _problems(result: Facts, file: _File) -> None:
    """What checking.py says about keys, values and sections against each other, sorted by kind."""
    found: list[Problem] = []
    normal = checking.normalise(file.config, found, [])
    unknown = [problem for problem in found if problem.what in ("unknown key", "and more unknown keys")]
    removed = [problem for problem in found if problem.where in REMOVED]
    wrong = [problem for problem in found if problem not in unknown and problem not in removed]
    _put_problems(result, file, "unknown_keys", unknown, lambda problem: _told(problem, with_what=False))
    _put_problems(result, file, "removed_keys", removed, lambda problem: f"{problem.where}: {problem.why}")
    _put_problems(result, file, "wrong_values", wrong, _told)
    if wrong:
        why = "values of the wrong kind stand in the way: " + "; ".join(problem.where for problem in wrong[:3])
        for name in ("conflicts", "zero_stage", "offload_optimizer_device", "offload_param_device", "precision", "world_size_implied"):
            result.could_not(f"ds.{name}", why)
        result.could_not("ds.batch_identity_broken", why)
        return
    conflicts: list[Problem] = []
    checking.own_conflicts(normal, conflicts, [])
    others = [problem for problem in conflicts if not problem.ours and not _has_rule(problem)]
    _put_problems(result, file, "conflicts", others, _told)
    _derived(result, file, normal)


def _has_rule(problem: Problem) -> bool:
    return any(problem.where == where and problem.what.startswith(start) for where, start in _OWN_RULES)


def _told(problem: Problem, with_what: bool = True) -> str:
    text = f"{problem.where}: {problem.what}" if with_what else problem.where
    return f"{text} ({problem.hint})" if problem.hint else text


def _put_problems(result: Facts, file: _File, name: str, problems: Iterable[Problem], tell: Any) -> None:
    listed = list(problems)
    place = file.at(tuple(listed[0].where.split("."))) if listed else Location(uri=file.path)
    result.put(f"ds.{name}", [tell(problem)[:_MAX_TEXT_CHARS] for problem in listed[:MAX_LISTED]] or None, place)


def _derived(result: Facts, file: _File, normal: Mapping[str, Any]) -> None:
    """What rules would need arithmetic or DeepSpeed's defaults for."""
    zero = normal.get("zero_optimization", {})
    at_zero = file.at(("zero_optimization", "stage"))
    stage = zero.get("stage", 0)
    if stage == AUTO:
        result.could_not("ds.zero_stage", "the file leaves the stage to 'auto'")
    else:
        result.put("ds.zero_stage", int(stage), at_zero)
    for name in ("offload_optimizer", "offload_param"):
        result.put(f"ds.{name}_device", offload_device(zero, name), file.at(("zero_optimization", name)))
    result.put("ds.precision", _precision(normal), file.at(("bf16",)) if "bf16" in normal else file.at(("fp16",)))
    _batch(result, file, normal)


def _precision(normal: Mapping[str, Any]) -> str:
    bf16, fp16 = (normal.get(name, {}).get("enabled", False) for name in ("bf16", "fp16"))
    if bf16 is True:
        return "bf16"
    if fp16 is True:
        return "fp16"
    return "auto" if AUTO in (bf16, fp16) else "fp32"


def _batch(result: Facts, file: _File, normal: Mapping[str, Any]) -> None:
    """The identity train = micro × accumulation × world, as far as the file alone says it."""
    place = file.at(("train_batch_size",))
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, accum = (definite(normal.get(name)) for name in names)
    if total is None and micro is None and AUTO not in (normal.get(name) for name in names):
        result.put("ds.batch_size_missing", True, Location(uri=file.path))
    if total is None or micro is None or accum is None:
        result.absent("ds.world_size_implied", place)
        broken = any(part is not None and total is not None and int(total) % int(part) for part in (micro, accum))
        result.put("ds.batch_identity_broken", broken, place)
        return
    product = int(micro) * int(accum)
    result.put("ds.batch_identity_broken", bool(int(total) % product), place)
    result.put("ds.world_size_implied", None if int(total) % product else int(total) // product, place)


def _lists(result: Facts, file: _File) -> None:
    """Lists of keys that share a trait."""
    auto = [keys for keys, value in _walk(file.config, ()) if value == AUTO and not _native_auto(keys)]
    _put_keys(result, file, "auto_keys", auto)
    zero = file.config.get("zero_optimization")
    stage = definite(zero.get("stage", 0)) if isinstance(zero, Mapping) else None
    old: list[Path] = [(name,) for name in checking.OLD_NAMES if name in file.config]
    if isinstance(zero, bool):
        old.append(("zero_optimization",))
    ignored: list[Path] = []
    zeros: list[Path] = []
    if isinstance(zero, Mapping):
        old += [("zero_optimization", key) for key in zero if key in checking.OLD_ZERO_NAMES]
        for key, value in zero.items():
            name = str(ZERO_SECOND_NAMES.get(key, key))
            part = ZERO.get(name)
            if stage in (0, 1, 2) and isinstance(part, Field) and part.stage3_only and value != AUTO:
                ignored.append(("zero_optimization", key))
            if name in _STAGE3_SIZES and value == 0 and not isinstance(value, bool):
                zeros.append(("zero_optimization", key))
    _put_keys(result, file, "deprecated_keys", old)
    _put_keys(result, file, "ignored_keys", ignored)
    _put_keys(result, file, "stage3_zeros", zeros)


def _put_keys(result: Facts, file: _File, name: str, found: list[Path]) -> None:
    texts = [".".join(keys)[:_MAX_TEXT_CHARS] for keys in found[:MAX_LISTED]]
    result.put(f"ds.{name}", texts or None, file.at(found[0]) if found else Location(uri=file.path))


def _native_auto(keys: Path) -> bool:
    """Whether "auto" is a word of DeepSpeed's own here."""
    if keys[0] in ("optimizer", "scheduler"):
        return False
    spec: Field | Section | None = TOP
    for key in keys:
        if not isinstance(spec, dict):
            return True  # inside a section that DeepSpeed hands on unread
        spec = spec.get(key)
    return isinstance(spec, Field) and spec.native_auto
