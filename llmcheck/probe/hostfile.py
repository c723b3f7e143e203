"""Facts about a DeepSpeed hostfile, read as DeepSpeed's launcher reads it (deepspeed/launcher/runner.py, 0.19): ``worker-0 slots=8``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from llmcheck import jsonfile
from llmcheck.probe.collect import DEADLINE_S
from llmcheck.rules.facts import Facts, Location

MAX_BYTES = 4 << 20
MAX_HOSTS_TO_REACH = 256
SSH_PORT = 22
_ENTRY = re.compile(r"^(\S+)\s+slots=(\d+)")  # not anchored at the end: what follows is ignored
# With the underscores that clusters use; IPv6. ssh would take one that begins with a hyphen for an option.
_HOST_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.)*[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.?|[0-9A-Fa-f:]+")
_THIS_HOST = ("localhost", "127.0.0.1", "::1")


@dataclass(kw_only=True)
class Hostfile:
    """What the launcher would make of a hostfile. `slots` is in the file's order."""

    slots: dict[str, int] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)  # line, text
    ignored: list[tuple[int, str]] = field(default_factory=list)  # text after the number of slots
    lines: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> Hostfile:
    """Read a hostfile; entries that the launcher would stop at are listed, not raised."""
    result = Hostfile()
    duplicates: set[str] = set()
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _ENTRY.match(line)
        if match is None or len(match[2]) > 9:
            result.bad.append((number, line[:100]))
            continue
        host, rest = match[1], line[match.end() :].strip()
        if host in result.slots:
            if host not in duplicates:
                duplicates.add(host)
                result.duplicates.append(host)
            continue
        result.slots[host], result.lines[host] = int(match[2]), number
        if rest and not rest.startswith("#"):
            result.ignored.append((number, rest[:100]))
    return result


def is_host_name(name: str) -> bool:
    """Whether `name` can be that of a host; others are text that a shell or ssh could take for something else."""
    return _HOST_NAME.fullmatch(name) is not None


def select(slots: dict[str, int], include: str = "", exclude: str = "") -> dict[str, list[int]]:
    """The slots that ``--include`` or ``--exclude`` (``worker-0@worker-1:0,2``) leave. Raises ValueError with the launcher's complaint."""
    everything = {host: list(range(number)) for host, number in slots.items()}
    if include and exclude:
        raise ValueError("--include and --exclude exclude each other")
    if not include and not exclude:
        return everything
    wanted: dict[str, list[int]] = {}
    for part in (include or exclude).split("@"):
        host, colon, numbers = part.partition(":")
        if host not in everything:
            raise ValueError(f"host {host!r} is not in the hostfile")
        chosen: list[int] = []
        if colon:
            if re.fullmatch(r"\s*\d{1,9}\s*(?:,\s*\d{1,9}\s*)*", numbers) is None:
                raise ValueError(f"{part!r}: slots are numbers with commas between them")
            chosen = [int(number) for number in numbers.split(",")]
        missing = [number for number in chosen if number not in everything[host]]
        if missing:
            raise ValueError(f"host {host!r} has no slot {missing[0]}")
        wanted.setdefault(host, []).extend(chosen)
    result: dict[str, list[int]] = {}
    for host, numbers_there in everything.items():
        if host not in wanted:
            kept = [] if include else numbers_there
        elif not wanted[host]:  # the whole host
            kept = numbers_there if include else []
        else:
            kept = [number for number in numbers_there if (number in wanted[host]) == bool(include)]
        if kept:
            result[host] = kept
    return result


def facts(
    path: str, *, include: str = "", exclude: str = "", wanted_slots: int | None = None, reach: bool = False, deadline_s: float = DEADLINE_S
) -> Facts:
    """``hostfile.*`` of `path`. `wanted_slots`: GPUs that the plan wants in all. `reach`: try port 22 of every host within `deadline_s`.

    Raises UserError when `path` cannot be read for another reason than not being there: the launcher only warns about that.
    """
    result = Facts()
    result.examined("hostfile")
    result.put("hostfile.wanted_slots", wanted_slots)
    result.put("hostfile.tried", reach)
    here = Location(uri=path)
    result.put("hostfile.exists", os.path.exists(path), here)
    if not os.path.exists(path):
        result.close("hostfile.")
        return result
    data = jsonfile.read_bytes(path, what="hostfile", where=f"--hostfile {path}", max_bytes=MAX_BYTES)
    found = parse(data.decode("utf-8", "replace"))
    _record(result, found, path)
    _selection(result, found, include, exclude, here)
    if reach:
        _reach(result, found, deadline_s)
    else:
        result.could_not("hostfile.unreachable", "not tried: it connects to every host, so ask for it")
    return result


def _record(result: Facts, found: Hostfile, path: str) -> None:
    here = Location(uri=path)
    result.put("hostfile.num_hosts", len(found.slots), here)
    result.put("hostfile.num_slots", sum(found.slots.values()), here)
    result.put("hostfile.duplicates", found.duplicates or None, here)
    bad_line = Location(uri=path, line=found.bad[0][0]) if found.bad else here
    result.put("hostfile.bad_lines", [text for _, text in found.bad] or None, bad_line)
    ignored_line = Location(uri=path, line=found.ignored[0][0]) if found.ignored else here
    result.put("hostfile.ignored_text", [text for _, text in found.ignored] or None, ignored_line)
    empty = [host for host, number in found.slots.items() if number == 0]
    result.put("hostfile.hosts_without_slots", empty or None, Location(uri=path, line=found.lines[empty[0]]) if empty else here)
    strange = [host for host in found.slots if not is_host_name(host)]
    result.put("hostfile.strange_names", strange or None, Location(uri=path, line=found.lines[strange[0]]) if strange else here)
    numbers = sorted(set(found.slots.values()))
    result.put("hostfile.slots_differ", len(numbers) > 1, here)
    local = [host for host in found.slots if host in _THIS_HOST]
    result.put("hostfile.localhost_among_others", bool(local) and len(found.slots) > 1, here)


def _selection(result: Facts, found: Hostfile, include: str, exclude: str, here: Location) -> None:
    try:
        selected = select(found.slots, include, exclude)
    except ValueError as reason:
        result.put("hostfile.filter_error", str(reason), here)
        result.absent("hostfile.selected_slots", here)
        result.absent("hostfile.selected_hosts", here)
        return
    result.absent("hostfile.filter_error", here)
    result.put("hostfile.selected_slots", sum(map(len, selected.values())), here)
    result.put("hostfile.selected_hosts", len(selected), here)


def _reach(result: Facts, found: Hostfile, deadline_s: float) -> None:
    """Try to connect to SSH's port of every host at once: the launcher starts its workers through it."""
    import threading

    hosts = list(found.slots)[:MAX_HOSTS_TO_REACH]
    answers: dict[str, bool] = {}

    def try_one(host: str) -> None:
        answers[host] = can_connect(host, SSH_PORT, deadline_s)

    threads = [threading.Thread(target=try_one, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline_s + 1.0)  # a slow name server is not bounded by the connection's deadline
    silent = [host for host in hosts if not answers.get(host, False)]
    result.put("hostfile.unreachable", silent or None)


def can_connect(host: str, port: int, deadline_s: float) -> bool:
    """Whether a TCP connection can be made within `deadline_s`."""
    import socket

    try:
        with socket.create_connection((host, port), timeout=deadline_s):
            return True
    except (OSError, UnicodeError):
        return False
