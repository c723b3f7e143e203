"""Settings in a JSON or YAML file, each with its line. Nothing in the file is executed; YAML's own types are not built."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmcheck import jsonfile
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.probe.key_lines import key_lines

MAX_BYTES = 1 << 20
MAX_NODES = 50_000  # of a YAML document, aliases counted each time that they are used
MAX_DEPTH = 32
WHAT = "file with training arguments"

Path = tuple[str, ...]


@dataclass
class Settings:
    """What a file holds: values by path, lines (from 1) by path, and keys that were given twice (the last one counts)."""

    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)


def read(path: str) -> Settings:
    """The settings in the file at `path`. Raises UserError when it is neither, CouldNotCheckError for YAML where PyYAML is missing."""
    data = jsonfile.read_bytes(path, what=WHAT, max_bytes=MAX_BYTES)
    if os.path.splitext(path)[1].lower() in (".yaml", ".yml"):
        return _yaml(data, path)
    document = jsonfile.loads(data, what=WHAT, where=path)
    return Settings(values=_object(document, path), lines=key_lines(data.decode("utf-8-sig")))


def walk(values: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key with its value, depth first."""
    for key, value in values.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from walk(value, (*path, key))


def _object(document: Any, path: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UserError(
            f"the {WHAT} must hold names and values, not {jsonfile.kind_of(document)}", code="not-settings", where=path,
            hint="a file of TrainingArguments, or of LLaMA-Factory, axolotl or TRL",
        )  # fmt: skip
    return document


def _yaml(data: bytes, path: str) -> Settings:
    try:
        import yaml  # optional: only for files in YAML
    except ImportError:
        raise CouldNotCheckError(
            f"reading {path} needs PyYAML", code="missing-package", where=path, hint="pip install pyyaml, or give the arguments as JSON"
        ) from None
    reader = _YamlReader(path)
    try:
        loader = yaml.SafeLoader(data.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            document = reader.value(loader, node, (), 0) if node is not None else {}
        finally:
            loader.dispose()
    except UnicodeDecodeError as reason:
        raise UserError(f"the {WHAT} is not UTF-8 text", code="not-yaml", where=path, why=f"byte {reason.start} is none",
                        hint="save it as UTF-8") from reason  # fmt: skip
    except yaml.YAMLError as reason:
        mark = getattr(reason, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else path
        parts = [str(part) for name in ("context", "problem") if (part := getattr(reason, name, None))]
        why = (", ".join(parts) or str(reason)).splitlines()[0][:200]
        raise UserError(f"the {WHAT} is not valid YAML", code="not-yaml", where=where, why=why, hint="mend that line") from reason
    except RecursionError as reason:
        raise _too_deep(path) from reason
    except ValueError as reason:  # a date that is none; a number beyond the interpreter's limit of digits
        why = "a number in it has thousands of digits" if "set_int_max_str_digits" in str(reason) else str(reason)[:200]
        raise UserError(f"the {WHAT} is not acceptable YAML", code="not-yaml", where=path, why=why, hint="mend that value") from reason
    return Settings(values=_object(document, path), lines=reader.lines, repeated=reader.repeated)


def _too_deep(path: str) -> UserError:
    why = f"it has more than {MAX_NODES:,} values or {MAX_DEPTH} levels; aliases count as copies"
    return UserError(f"the {WHAT} is too large or nested too deeply", code="not-yaml", where=path, why=why, hint="is this the file?")


class _YamlReader:
    """Plain values from YAML's nodes: numbers, text, true and false, lists and mappings with text keys."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Path, int] = {}
        self.repeated: list[str] = []
        self._num_nodes = 0

    def value(self, loader: Any, node: Any, path: Path, depth: int) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise _too_deep(self.path)
        if node.id == "sequence":
            return [self.value(loader, part, (*path, ""), depth + 1) for part in node.value]
        if node.id != "mapping":
            value = loader.construct_object(node) if node.tag.startswith("tag:yaml.org,2002:") else node.value
            return value if value is None or isinstance(value, (bool, int, float, str)) else str(node.value)  # dates, bytes
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if key_node.id == "scalar" else "?"
            if key in found and key != "<<":
                self.repeated.append(".".join((*path, key))[:200])
            keys = (*path, key)
            if "" not in path:
                self.lines[keys] = key_node.start_mark.line + 1
            value = self.value(loader, value_node, keys, depth + 1)
            if key == "<<" and isinstance(value, dict):
                found = {**value, **found}
            else:
                found[key] = value
        return found
