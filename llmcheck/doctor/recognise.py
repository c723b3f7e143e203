"""What a path without an option is: told by its name and, for JSON, by its keys. What cannot be told is an error, not a guess."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from dataclasses import replace

from llmcheck import jsonfile
from llmcheck.doctor.subjects import Request
from llmcheck.errors import UserError
from llmcheck.paths import trouble_with, unreadable

_MAX_HEAD_BYTES = 1 << 20  # of a JSON file that is looked into; plan files and DeepSpeed configurations are smaller

_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lock", ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "pylock.*.toml")),
    (
        "requirements",
        ("requirements*.txt", "*requirements.txt", "constraints*.txt", "pyproject.toml", "environment.yml", "environment.yaml"),
    ),
    ("hostfile", ("hostfile*", "*.hostfile")),
    ("data", ("*.jsonl", "*.jsonl.gz", "*.ndjson")),
    ("train_args", ("*.sh", "*.bash", "*.sbatch", "*.slurm", "*.yaml", "*.yml")),
    ("log", ("*.log", "*.log.*", "*.out", "*.err", "*.gz", "log.*", "*.txt", "stdout*", "stderr*")),
)
_DEEPSPEED_KEYS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization", "bf16", "fp16", "optimizer",
    "scheduler", "gradient_clipping", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer",
}  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def requests(paths: Sequence[str]) -> list[Request]:
    """One request for each path, so that two files of one kind are two subjects; folders that hold a model and a tokenizer are both."""
    found = []
    for path in paths:
        kinds = kinds_of(path)
        request = Request()
        for kind in kinds:
            value = (path,) if kind in ("data", "log") else path
            request = replace(request, **{"logs" if kind == "log" else kind: value})  # type: ignore[arg-type]
        found.append(request)
    return found


def kinds_of(path: str) -> list[str]:
    """The names of the `Request` fields that `path` belongs to. Raises UserError when it cannot be told."""
    if path == "-":
        return ["log"]
    if not path:
        raise UserError(
            "a path is empty",
            code="usage",
            where="llmcheck doctor",
            why="''; an unset variable of the shell?",
            hint="name a file or a folder",
        )
    if os.path.isdir(path):
        kinds = [
            *(["tokenizer"] if any(os.path.isfile(os.path.join(path, name)) for name in _TOKENIZER_FILES) else []),
            *(["model"] if os.path.isfile(os.path.join(path, "config.json")) else []),
        ]
        return kinds or _unknown(path, "the folder holds neither a tokenizer nor a config.json")
    if not os.path.exists(path):
        why, hint = trouble_with(path) or ("it was removed meanwhile", "try again")
        raise UserError(f"no such file or folder: {path}", code="unreadable", where=path, why=why, hint=hint)
    name = os.path.basename(path)
    if name.endswith(".json"):
        return [_json_kind(path)]
    for kind, patterns in _NAMES:
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            return [kind]
    return _unknown(path, "its name tells nothing")


def _json_kind(path: str) -> str:
    try:
        with jsonfile.open_regular(path, what="file") as file:
            head = file.read(_MAX_HEAD_BYTES)
        if _looks_like_rows(head):
            return "data"
        document = json.loads(head.decode("utf-8-sig"))
    except OSError as reason:
        raise unreadable(path, what="file", where=path, reason=reason) from reason
    except (ValueError, RecursionError):
        return _unknown(path, "it is no JSON document of at most 1 MiB")[0]
    if isinstance(document, list):
        return "data"
    if isinstance(document, dict):
        if str(document.get("schema", "")).startswith("llmcheck.plan/"):
            return "plan"
        if document.keys() & _DEEPSPEED_KEYS and "output_dir" not in document:
            return "ds_config"
        if "output_dir" in document or "per_device_train_batch_size" in document:
            return "train_args"
        if "model_type" in document or "tokenizer_class" in document:
            raise UserError(
                f"{path} is one file of a model or a tokenizer",
                code="unrecognised",
                where=path,
                why="they are examined whole: configuration, weights, vocabulary",
                hint=f"give the folder: {os.path.dirname(path) or '.'}",
            )
    return _unknown(path, "it is neither a plan, a DeepSpeed configuration, training arguments nor data")[0]


def _looks_like_rows(head: bytes) -> bool:
    """A list, or an object in each of several lines: data, whatever its name says, and mostly too large to be read here."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return True
    first, newline, rest = head.partition(b"\n")
    if not newline or not rest.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _unknown(path: str, why: str) -> list[str]:
    hint = "say what it is: --log, --ds-config, --data, --tokenizer, --requirements …"
    raise UserError(f"cannot tell what {path} is", code="unrecognised", where=path, why=why, hint=hint)
