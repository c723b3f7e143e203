"""Finding a GPU by the names people, datasheets and drivers use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llmcheck.catalog import tables
from llmcheck.errors import UserError, did_you_mean
from llmcheck.types import GpuSpec

FILE, HEADER = "gpus.toml", "[[gpu]]"
_PUNCTUATION = str.maketrans("", "", "-_. ()/")
_MAKERS = ("nvidia", "amd", "geforce", "tesla", "instinct", "radeon")  # words that people leave out
# Boards of one device name but another memory size differ by at least a fifth; what drivers report of one board by less than a twentieth.
SAME_MEMORY_FRACTION = 0.08


@dataclass(frozen=True, kw_only=True)
class CatalogGpu:
    """One GPU of the catalogue with what its figures rest on."""

    spec: GpuSpec
    aliases: tuple[str, ...]
    devices: tuple[str, ...]
    memory_evidence: str
    memory_source: str
    context_source: str


def find_gpu(name: str) -> GpuSpec:
    """The GPU of a catalogue name, alias or driver's name. Raises UserError; where a name leaves the size open, with the candidates."""
    found = _match(name)
    if len(found) == 1:
        return _entry(found[0]).spec
    if found:
        raise UserError(
            f"{_shown(name)} is more than one GPU", code="ambiguous-gpu", where="--gpu",
            why="they differ in memory or speed: " + ", ".join(_entry(block).spec.name for block in found), hint="name one of them",
        )  # fmt: skip
    raise UserError(
        f"unknown GPU {_shown(name)}", code="unknown-gpu", where="--gpu",
        hint=did_you_mean(name, known_names()) or "`llmcheck gpus` lists the names; for another GPU name the nearest and give --gpu-memory",
    )  # fmt: skip


def find_device(device: str, memory_bytes: int) -> GpuSpec | None:
    """The GPU that a driver calls `device` and whose memory is near `memory_bytes`; None when the catalogue has none."""
    near = [
        spec
        for block in _index().get(squeezed(device), ())
        if abs((spec := _entry(block).spec).memory_bytes - memory_bytes) <= SAME_MEMORY_FRACTION * memory_bytes
    ]
    return min(near, key=lambda spec: abs(spec.memory_bytes - memory_bytes), default=None)


def all_gpus() -> tuple[CatalogGpu, ...]:
    """Every GPU of the catalogue, in file order."""
    return tuple(_entry(block) for block in range(len(tables.blocks(FILE, HEADER))))


def known_names() -> tuple[str, ...]:
    """Every name and alias, then the drivers' names."""
    blocks = tables.blocks(FILE, HEADER)
    return tuple(text for key in ("name", "aliases", "devices") for block in blocks for text in tables.strings(block, key))


def squeezed(name: str) -> str:
    """`name` without case, punctuation and maker, and with ``gb`` as ``g``."""
    text = name.lower()
    for maker in _MAKERS:
        text = text.replace(maker, "")
    return text.translate(_PUNCTUATION).replace("gb", "g") if "gb2" not in text else text.translate(_PUNCTUATION)


@cache
def _index() -> dict[str, tuple[int, ...]]:
    """Spelling -> blocks that answer to it. A name or alias goes before the drivers' names."""
    own: dict[str, tuple[int, ...]] = {}
    driver: dict[str, tuple[int, ...]] = {}
    for block, text in enumerate(tables.blocks(FILE, HEADER)):
        for key, table in (("name", own), ("aliases", own), ("devices", driver)):
            for spelling in tables.strings(text, key):
                there = table.get(squeezed(spelling), ())
                if block not in there:
                    table[squeezed(spelling)] = (*there, block)
    return {**driver, **own}


def _match(name: str) -> tuple[int, ...]:
    """Blocks that a name may mean: those that answer to it, else those whose own name begins with it."""
    wanted = squeezed(name)
    if not wanted or len(name) > 200:
        return ()
    exact = _index().get(wanted)
    if exact is not None:
        return exact
    found = []
    for block, text in enumerate(tables.blocks(FILE, HEADER)):
        (own,) = tables.strings(text, "name")
        spellings = (squeezed(own), squeezed(own).removeprefix("rtx"))
        # "a100" begins "A100-40G", but "a10" does not: the rest of a number is another number.
        if any(s.startswith(wanted) and _ends_a_part(own, wanted) for s in spellings):
            found.append(block)
    return tuple(found)


def _ends_a_part(name: str, wanted: str) -> bool:
    """True when `wanted` is the squeezed form of whole leading parts of `name` ("a100" of "A100-40G")."""
    parts = name.split("-")
    joined = ["".join(parts[: n + 1]) for n in range(len(parts))]
    return any(wanted in (squeezed(text), squeezed(text).removeprefix("rtx")) for text in joined)


@cache
def _entry(block: int) -> CatalogGpu:
    table: dict[str, Any] = tables.parse(tables.blocks(FILE, HEADER)[block])
    about = {
        key: table.pop(key, default) for key, default in (("aliases", ()), ("devices", ()), ("memory_evidence", ""), ("memory_source", ""))
    }
    context_source = table.pop(
        "context_source", "4.8 MiB per multiprocessor, the largest ratio among the published figures, and no less than a T4's"
    )
    table["compute_capability"] = tuple(table["compute_capability"])
    return CatalogGpu(
        spec=GpuSpec(**table), aliases=tuple(about["aliases"]), devices=tuple(about["devices"]), memory_evidence=about["memory_evidence"],
        memory_source=about["memory_source"], context_source=context_source,
    )  # fmt: skip


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
