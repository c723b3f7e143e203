"""Packages in lock files, pyproject.toml and conda's environment.yml.

Lock files have megabytes of hashes. Only the heads of their package tables are parsed, which also gives line numbers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llmcheck import toml
from llmcheck.errors import UserError
from llmcheck.probe.environment import normalised
from llmcheck.probe.requirements import Entry, marker_holds, requirement
from llmcheck.rules.facts import Location

MAX_PACKAGES = 20_000
_HEAD_KEYS = re.compile(r"(name|version|source|marker|markers|resolution-markers|index|vcs)\s*=")
_CONDA_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch", "pytorch-cpu": "torch"}  # the same package under another name


def packages(path: str, text: str, flag: str, indexes: list[str]) -> list[Entry]:
    """uv.lock, poetry.lock, pdm.lock (``[[package]]``) and pylock.toml (``[[packages]]``)."""
    _no_conflict(path, text, flag)
    starts, heads = package_heads(text)
    try:
        tables = toml.loads("\n".join(heads)).get("package", []) if heads else []
    except (ValueError, RecursionError) as reason:
        raise _not_a(path, flag, "a lock file that we can read", str(reason)[:200], "lock again with the tool that wrote it") from reason
    entries: list[Entry] = []
    for number, table in zip(starts, tables, strict=False):
        entry = _locked(path, number, table, indexes)
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise UserError(
            f"{path} names no packages",
            code="requirements",
            where=f"{flag} {path}",
            why="it has no [[package]] and no [[packages]] with a name",
            hint="is it a lock file of uv, Poetry, PDM or pip?",
        )
    return entries


def package_heads(text: str) -> tuple[list[int], list[str]]:
    """(line of each package table, its first keys as TOML): names, versions, sources and markers, without files and dependencies."""
    starts: list[int] = []
    heads: list[str] = []
    inside = in_array = False
    for number, line in enumerate(text.splitlines(), 1):
        if in_array:
            heads.append(line)
            in_array = not line.startswith("]")
        elif line.startswith("["):
            inside = re.fullmatch(r"\[\[packages?\]\]\s*", line) is not None
            if inside:
                if len(starts) >= MAX_PACKAGES:
                    break
                starts.append(number)
                heads.append("[[package]]")
        elif inside and _HEAD_KEYS.match(line):
            heads.append(line)
            in_array = line.rstrip().endswith("[")
    return starts, heads


def _locked(path: str, number: int, table: dict[str, Any], indexes: list[str]) -> Entry | None:
    name, version = table.get("name"), table.get("version")
    if not isinstance(name, str):
        return None
    source = table.get("source")
    source = source if isinstance(source, dict) else {}
    if "virtual" in source or ("editable" in source and version is None):
        return None  # the project itself
    if not _applies(table.get("resolution-markers") or table.get("marker") or table.get("markers")):
        return None
    registry = source.get("registry") or source.get("url") or table.get("index")
    # The public index and its mirrors end in /simple (PEP 503); torch's own indexes are folders of one build.
    if isinstance(registry, str) and normalised(name) == "torch" and not registry.rstrip("/").endswith("/simple"):
        indexes.append(re.sub(r"//[^/@]*@", "//", registry)[:200])
    location = Location(uri=path, line=number)
    if not isinstance(version, str):
        return Entry(name=normalised(name), version=None, location=location, why="the lock file gives no version")
    commit = re.search(r"#([0-9a-f]{40})$", str(source.get("git", "")))
    return Entry(name=normalised(name), version=version, location=location, commit=commit[1] if commit else "")


def _applies(conditions: Any) -> bool:
    """Whether one of a package's markers holds: a text, a list (uv), or a table of texts by group (Poetry)."""
    values = list(conditions.values()) if isinstance(conditions, dict) else conditions if isinstance(conditions, list) else [conditions]
    texts = [text for text in values if isinstance(text, str)]
    return not texts or any(map(marker_holds, texts))


def pipfile(path: str, text: str, flag: str, indexes: list[str]) -> list[Entry]:
    """Pipfile.lock: JSON with ``default`` and ``develop``; only what a run needs counts."""
    _no_conflict(path, text, flag)
    try:
        document = _table(json.loads(text))
    except (ValueError, RecursionError) as reason:
        raise _not_a(path, flag, "a Pipfile.lock", "it is not JSON", "`pipenv lock` writes it") from reason
    default = document.get("default")
    if not isinstance(default, dict):
        raise _not_a(path, flag, "a Pipfile.lock", "it has no table of packages called default", "`pipenv lock` writes it")
    pins = {str(name): value for name, value in default.items() if isinstance(value, dict)}
    places: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*"([^"]+)"\s*:\s*\{', line)
        if match is not None:
            places.setdefault(match[1], number)
    indexes += [
        str(source.get("url"))[:200] for source in _list(_table(document.get("_meta")).get("sources"))[1:] if isinstance(source, dict)
    ]
    entries: list[Entry] = []
    for name, value in pins.items():
        if marker_holds(str(value["markers"])) if "markers" in value else True:
            version = str(value.get("version", ""))
            exact = version.startswith("==")
            location = Location(uri=path, line=places.get(name))
            why = "from a repository" if "git" in value else version or "any version"
            entries.append(Entry(name=normalised(name), version=version.lstrip("=") if exact else None, location=location, why=why))
    return entries


def pyproject(path: str, text: str, flag: str, indexes: list[str]) -> list[Entry]:
    """``[project] dependencies``, and Poetry's table. Extras and groups are not installed by default and do not count."""
    _no_conflict(path, text, flag)
    try:
        document = toml.loads(text)
    except (ValueError, RecursionError) as reason:
        raise _not_a(path, flag, "TOML", str(reason)[:200], "mend that line") from reason
    lines = text.splitlines()
    entries: list[Entry] = []
    for item in _list(_table(document.get("project")).get("dependencies")):
        if isinstance(item, str):
            number = next((number for number, line in enumerate(lines, 1) if item in line), None)
            entries += requirement(item, Location(uri=path, line=number))
    tool = _table(document.get("tool"))
    for name, value in _table(_table(tool.get("poetry")).get("dependencies")).items():
        wanted = value.get("version", "") if isinstance(value, dict) else value
        if name == "python" or not isinstance(wanted, str):
            continue
        # Poetry: "1.2.3" is exact, "^1.2" and "1.*" are not
        exact = re.fullmatch(r"(?:==)?\s*(\d[\w.+!-]*)", wanted.strip())
        number = next((number for number, line in enumerate(lines, 1) if re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=", line)), None)
        location = Location(uri=path, line=number)
        entries.append(Entry(name=normalised(name), version=exact[1] if exact else None, location=location, why=wanted or "any version"))
    for index in _list(_table(tool.get("uv")).get("index")):
        if isinstance(index, dict) and isinstance(index.get("url"), str):
            indexes.append(index["url"][:200])
    return entries


def conda(path: str, text: str, flag: str, indexes: list[str]) -> list[Entry]:
    """The ``dependencies`` list of a conda environment, with its ``pip`` list: read line by line, as this needs no YAML library.

    https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html
    """
    _no_conflict(path, text, flag)
    entries: list[Entry] = []
    section, pip_indent, seen = "", -1, False
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(?:^|\s)#.*$", "", raw).rstrip()
        if not line.strip():
            continue
        key = re.match(r"([A-Za-z_]+):", line)
        if key is not None:
            section, pip_indent = key[1], -1
            seen = seen or section == "dependencies"
            continue
        item = re.match(r"(\s*)-\s+(.*)$", line)
        if section != "dependencies" or item is None:
            continue
        indent, value = len(item[1]), item[2].strip().strip("\"'")
        location = Location(uri=path, line=number)
        if re.fullmatch(r"pip\s*:", value):
            pip_indent = indent
        elif pip_indent >= 0 and indent > pip_indent:
            if re.match(r"(-i|--index-url|--extra-index-url|-f|--find-links)\b", value):
                indexes.append(re.sub(r"//[^/@]*@", "//", value.split()[-1])[:200])
            elif not value.startswith("-"):
                entries += requirement(value, location)
        else:
            pip_indent = -1
            entries += _conda_entry(value, location)
    if not seen:
        raise UserError(
            f"{path} has no list of dependencies",
            code="requirements",
            where=f"{flag} {path}",
            why="no line of it begins with dependencies:",
            hint="is it a conda environment file?",
        )
    return entries


def _conda_entry(value: str, location: Location) -> list[Entry]:
    match = re.fullmatch(r"(?:[\w./-]+::)?([A-Za-z0-9_.-]+)\s*(.*)", value)
    if match is None:
        return []
    name = _CONDA_NAMES.get(match[1].lower(), normalised(match[1]))
    if name == "python":
        return []
    # name=1.2.3=build and name==1.2.3 are exact; name=1.2 means 1.2.*
    exact = re.fullmatch(r"==\s*(\d[\w.+!]*)|=(\d+(?:\.\d+){2,}[\w.+!]*)(?:=\S*)?|=(\d[\w.+!]*)=[^=*]\S*", match[2].strip())
    version = next((group for group in exact.groups() if group), None) if exact else None
    return [Entry(name=name, version=version, location=location, why=match[2].strip() or "any version")]


def _table(value: Any) -> dict[str, Any]:
    """`value` where it is a table; what stands in its place in a file that strangers wrote holds nothing."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _not_a(path: str, flag: str, what: str, why: str, hint: str) -> UserError:
    return UserError(f"{path} is not {what}", code="requirements", where=f"{flag} {path}", why=why, hint=hint)


def _no_conflict(path: str, text: str, flag: str) -> None:
    match = re.search(r"^(?:<{7} |>{7} |={7}$)", text, re.MULTILINE)
    if match is not None:
        number = text.count("\n", 0, match.start()) + 1
        what = f"{path}:{number} holds a conflict of a merge"
        raise UserError(
            what, code="requirements", where=f"{flag} {path}", why="which packages are meant is not decided", hint="resolve it first"
        )
