"""Facts from files that name packages: requirements.txt, pyproject.toml, lock files, conda's environment.yml. Nothing is installed or run.

A pin gives a fact with its file and line. A range does not say which release a run will have, so it gives a reason instead. A lock file
lists everything, so what is not in it is not there; other files leave out what their packages bring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcheck import jsonfile
from llmcheck.errors import UserError
from llmcheck.paths import trouble, trouble_with
from llmcheck.probe.environment import normalised, put_package
from llmcheck.rules.facts import Facts, Location

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MAX_BYTES = 32 << 20  # a lock file of a large workspace has 2 MiB
_MAX_FILES = 64
_MAX_DEPTH = 8
_OPTION = re.compile(
    r"(-r|-c|--requirement|--constraint|-i|--index-url|--extra-index-url|-f|--find-links)(?:\s+|=|(?<=-[rcif]))(\S+)"
)  # -rfile is allowed too
_EDITABLE = re.compile(r"(?:-e\s*|--editable(?:\s+|=))(\S.*)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One package in a file. `version` is None where it is not pinned, and `why` says so."""

    name: str
    version: str | None
    location: Location
    why: str = ""
    commit: str = ""


def facts(path: str, flag: str = "--requirements") -> Facts:
    """``pkg.*`` and ``build.*`` of what `path` names. Raises UserError, naming `flag`, when it cannot be read or is of no known kind."""
    if (wrong := trouble_with(path)) is not None:  # before its name is judged
        why, hint = wrong
        raise _bad(path, flag, why, "name the file itself, for example requirements.txt or uv.lock" if os.path.isdir(path) else hint)
    read_entries, is_lock = _reader(path, flag)
    text = read_text(path, flag)
    indexes: list[str] = []
    entries = read_entries(path, text, flag, indexes)
    result = Facts()
    result.examined("packages")
    _record(result, entries)
    result.put("packages.other_indexes", indexes or None, Location(uri=path))
    result.put("packages.is_lock", is_lock, Location(uri=path))
    if is_lock:
        result.close("pkg.", Location(uri=path))
        result.close("build.", Location(uri=path))
    else:
        result.leave_open("pkg.", f"not in {os.path.basename(path)}")
        result.leave_open("build.", f"not in {os.path.basename(path)}")
        for entry in entries:
            if f"pkg.{entry.name}" in result.known and f"build.{entry.name}" not in result.known:
                result.absent(f"build.{entry.name}", entry.location)
    return result


Reader = Callable[[str, str, str, list[str]], list[Entry]]


def _reader(path: str, flag: str) -> tuple[Reader, bool]:
    from llmcheck.probe import lockfiles

    name = os.path.basename(path).lower()
    if name in ("uv.lock", "poetry.lock", "pdm.lock"):
        return lockfiles.packages, True
    if re.fullmatch(r"pylock(\.[^.]+)?\.toml", name):
        return lockfiles.packages, True
    if name in ("pipfile.lock",):
        return lockfiles.pipfile, True
    if name == "pyproject.toml":
        return lockfiles.pyproject, False
    if name.endswith((".yml", ".yaml")):
        return lockfiles.conda, False
    if name.endswith((".txt", ".in", ".pip")) or "requirements" in name or "constraints" in name:
        return requirements_text, False
    raise _bad(
        path, flag, "its name is none that we know",
        hint="requirements*.txt, pyproject.toml, uv.lock, poetry.lock, pdm.lock, Pipfile.lock, pylock.toml or environment.yml",
    )  # fmt: skip


def read_text(path: str, flag: str) -> str:
    """A text file of at most 32 MiB. Raises UserError."""
    with jsonfile.open_regular(path, what="list of packages", where=f"{flag} {path}") as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as reason:
            raise _bad(path, flag, *trouble(path, reason)) from reason
    if len(data) > MAX_BYTES:
        raise _bad(path, flag, f"it is larger than {MAX_BYTES >> 20} MiB", "is this the file? none that we know is that large")
    # pip writes UTF-8; PowerShell's ">" writes UTF-16 with a mark
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as reason:
        raise _bad(path, flag, f"it is not {encoding.removesuffix('-sig').upper()} text", "is it a text file? save it as UTF-8") from reason


def _bad(path: str, flag: str, why: str, hint: str = "") -> UserError:
    return UserError(f"cannot read packages from {path}", code="requirements", where=f"{flag} {path}", why=why, hint=hint)


def _record(result: Facts, entries: list[Entry]) -> None:
    """Put the pins. A package that is named twice is known when both agree, or when the other only gives a range."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    for name, found in by_name.items():
        pins = {entry.version: entry for entry in found if entry.version is not None}
        if len(pins) > 1:
            listed = ", ".join(f"{version} ({_place(entry)})" for version, entry in pins.items())
            result.could_not(f"pkg.{name}", f"several versions are pinned: {listed}"[:300])
            result.could_not(f"build.{name}", "several versions are pinned")
        elif pins:
            entry = next(iter(pins.values()))
            put_package(result, name, str(entry.version), entry.location)
            if entry.commit:
                result.put(f"build.{name}", entry.commit[:64], entry.location)
        else:
            result.could_not(f"pkg.{name}", f"not pinned: {found[0].why} ({_place(found[0])})"[:300])
            result.could_not(f"build.{name}", f"not pinned ({_place(found[0])})")


def _place(entry: Entry) -> str:
    return entry.location.uri + (f":{entry.location.line}" if entry.location.line else "")


def requirements_text(path: str, text: str, flag: str, indexes: list[str]) -> list[Entry]:
    """Entries of a pip requirements file and of those it includes, which must lie in its folder or below.

    https://pip.pypa.io/en/stable/reference/requirements-file-format/
    """
    root = os.path.dirname(os.path.realpath(path))
    seen: set[str] = set()
    return _requirements(path, text, root, flag, indexes, seen, 0)


def _requirements(path: str, text: str, root: str, flag: str, indexes: list[str], seen: set[str], depth: int) -> list[Entry]:
    seen.add(os.path.realpath(path))
    entries: list[Entry] = []
    for number, line in logical_lines(text):
        location = Location(uri=path, line=number)
        option = _OPTION.match(line)
        if option is not None and option[1] in ("-r", "--requirement"):
            entries += _include(path, option[2], root, flag, indexes, seen, depth, location)
        elif option is not None and option[1] in ("-c", "--constraint"):
            # A constraint installs nothing: its pins count for packages that are asked for
            pins = {entry.name: entry for entry in _include(path, option[2], root, flag, indexes, seen, depth, location)}
            entries = [pins.get(entry.name, entry) if entry.version is None else entry for entry in entries]
        elif option is not None:
            indexes.append(re.sub(r"//[^/@]*@", "//", option[2])[:200])  # without a password
        elif (editable := _EDITABLE.match(line)) is not None:
            entries += _from_url(editable[1], location)
        elif not line.startswith("-"):
            entries += requirement(re.split(r"\s--[a-z]", line)[0], location)
    return entries


def _include(path: str, name: str, root: str, flag: str, indexes: list[str], seen: set[str], depth: int, location: Location) -> list[Entry]:
    target = os.path.join(os.path.dirname(path), name)
    real = os.path.realpath(target)
    where = f"{path}:{location.line}"
    if "://" in name or not (real.startswith(root.rstrip(os.sep) + os.sep)):
        raise UserError(
            f"{where} includes {name[:200]}, which lies outside {root}", code="requirements", where=f"{flag} {path}",
            why="files are only read from the folder of the first one, and below", hint="give that file with a flag of its own",
        )  # fmt: skip
    if real in seen:
        return []
    if depth >= _MAX_DEPTH or len(seen) >= _MAX_FILES:
        raise UserError(
            f"{where}: too many files include each other",
            code="requirements",
            where=f"{flag} {path}",
            why=f"at most {_MAX_FILES} are read, {_MAX_DEPTH} deep",
            hint="give the one with the pins, or what `pip freeze` prints",
        )
    return _requirements(target, read_text(target, flag), root, flag, indexes, seen, depth + 1)


def logical_lines(text: str) -> list[tuple[int, str]]:
    """(number, text) of each line of a requirements file: continued lines joined, comments and empty ones gone."""
    lines: list[tuple[int, str]] = []
    pending, start = "", 0
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        line = raw if not raw.lstrip().startswith("#") else ""
        start = start or number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = re.sub(r"(?:^|\s)#.*$", "", pending + line).strip()
        if whole:
            lines.append((start, whole))
        pending, start = "", 0
    return lines


def requirement(text: str, location: Location) -> list[Entry]:
    """The entry of one PEP 508 requirement; empty when its marker rules it out here, or when it is no requirement with a name."""
    from packaging.requirements import InvalidRequirement, Requirement  # 20 ms

    try:
        parsed = Requirement(text.strip())
    except InvalidRequirement:
        return _from_url(text.strip(), location)
    if parsed.marker is not None and not marker_holds(str(parsed.marker)):
        return []
    name = normalised(parsed.name)
    if parsed.url:
        return [_url_entry(name, parsed.url, location)]
    return [Entry(name=name, version=pinned(parsed), location=location, why=str(parsed.specifier) or "any version")]


def pinned(parsed: Requirement) -> str | None:
    """The one version that a requirement allows, or None."""
    exact = [spec.version for spec in parsed.specifier if spec.operator in ("==", "===") and not spec.version.endswith("*")]
    return exact[0] if exact and len(set(exact)) == 1 else None


def marker_holds(marker: str) -> bool:
    """Whether an environment marker holds for this machine and Python; an unreadable one counts as holding."""
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName

    try:
        return Marker(marker).evaluate({"extra": ""})
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName, KeyError):
        return True


def _from_url(text: str, location: Location) -> list[Entry]:
    """A path or URL: known by the name of its wheel or by ``#egg=``; else nobody can tell which package it is."""
    egg = re.search(r"[#&]egg=([A-Za-z0-9._-]+)", text)
    wheel = re.search(r"([A-Za-z0-9_.]+)-([^/\s-]+)-[^/\s]*\.whl\b", text)
    if egg is not None:
        return [_url_entry(normalised(egg[1]), text, location)]
    if wheel is not None:
        return [_url_entry(normalised(wheel[1]), text, location)]
    return []


def _url_entry(name: str, url: str, location: Location) -> Entry:
    wheel = re.search(r"/[A-Za-z0-9_.]+-([^/\s-]+)-[^/\s]*\.whl(?:$|[#?\s])", "/" + url)
    if wheel is not None:
        return Entry(name=name, version=wheel[1].replace("%2B", "+").replace("%2b", "+"), location=location)
    commit = re.search(r"@([0-9a-f]{40})\b", url)
    return Entry(name=name, version=None, location=location, why="from a URL" + (f", commit {commit[1]}" if commit else ""))
