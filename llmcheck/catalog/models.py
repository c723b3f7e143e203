"""Finding a model: by the catalogue's names, by Hub id, or from a local config.json or folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from llmcheck.catalog import tables
from llmcheck.catalog.config import read_config, spec_of_config, spec_of_fields
from llmcheck.errors import UserError, did_you_mean
from llmcheck.types import ModelSpec
from llmcheck.units import human_count

FILE, HEADER = "models.toml", "[[model]]"
MAX_NAME = 4096  # the longest path of Linux
# Endings by which people name a checkpoint of the same shape: taken off when nothing else matches, and the answer says so.
ENDINGS = ("hf", "instruct", "chat", "base", "it", "pt")

_PUNCTUATION = str.maketrans("", "", "-_. ")


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model of the catalogue. `config` has the Hub's fields; `num_params` counts what transformers builds, tied weights once.

    `published` is what the checkpoint's headers hold (None: not known exactly); `stored_beside` says why it differs.
    """

    name: str
    aliases: tuple[str, ...]
    hub_ids: tuple[str, ...]
    source: str
    family: str
    num_params: int
    config: Mapping[str, Any]
    per_checkpoint: Mapping[str, Mapping[str, Any]]
    published: int | None = None
    published_for: str = ""
    published_rounded: str = ""
    published_source: str = ""
    stored_beside: str = ""


class _Match(NamedTuple):  # hundreds are made for one lookup: a tuple is three times as quick as a frozen dataclass
    """An entry that answers to a name: `spelled` is how the catalogue writes what matched."""

    block: int
    spelled: str
    hub_id: str | None
    note: str = ""


def find_model(name_or_path: str, *, allow_network: bool = True) -> ModelSpec:
    """The model of a catalogue name, alias, Hub id, config.json or folder with one. Raises UserError (unknown, ambiguous, unreadable)."""
    name = name_or_path.strip()
    if not name or len(name) > MAX_NAME or "\0" in name:
        raise UserError(
            "no model was named" if not name else "that is no model name",
            code="unknown-model",
            where="--model",
            why="it is empty" if not name else f"a name has at most {MAX_NAME} characters, none of them NUL",
            hint="`llmcheck models` lists the names",
        )
    if name.endswith(".json") or name.startswith(("/", "./", "../", "~")) or (os.sep in name and os.path.exists(name)):
        return from_path(os.path.expanduser(name))
    match = _match(name)
    if match is not None:
        return _spec(match)
    if os.path.exists(name):
        return from_path(name)
    if re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name, re.ASCII):
        return _from_hub(name, allow_network)
    raise UserError(
        f"unknown model {_shown(name)}", code="unknown-model", where="--model",
        why="the catalogue has no such name, nothing here is called so, and a Hub id has an owner (owner/name)",
        hint=(did_you_mean(name, known_names()).rstrip("?") or "`llmcheck models` lists the names")
        + "; a folder, a config.json or a Hub id will do, too",
    )  # fmt: skip


def from_path(path: str) -> ModelSpec:
    """The model of a config.json, or of a folder with one; safetensors beside it are compared by their headers. Raises UserError."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    if os.path.isdir(path) and not os.path.lexists(file):
        adapter = os.path.lexists(os.path.join(path, "adapter_config.json"))
        raise UserError(
            f"the folder has no config.json: {path}", code="unreadable", where="--model",
            hint="that folder holds an adapter: name its base model" if adapter else "name the folder that the checkpoint was saved in",
        )  # fmt: skip
    name = os.path.basename(os.path.abspath(path if os.path.isdir(path) else folder)) or "model"
    if not os.path.isdir(path) and os.path.basename(path) != "config.json":
        name = os.path.splitext(os.path.basename(path))[0]
    spec = spec_of_config(read_config(file), name=name, source=path, where=file)
    # Only the file's own folder can hold its weights; a lone config.json in a folder without is the usual case.
    return _with_weights(spec, folder or ".")


def all_models() -> tuple[CatalogEntry, ...]:
    """Every model of the catalogue, in file order."""
    return tuple(_entry(index) for index in range(len(tables.blocks(FILE, HEADER))))


def known_names() -> tuple[str, ...]:
    """Every name, alias and Hub id."""
    return tuple(
        text for block in tables.blocks(FILE, HEADER) for key in ("name", "aliases", "hub_ids") for text in tables.strings(block, key)
    )


def plain(name: str) -> str:
    """`name` with case, and ``_`` and spaces for ``-``, made alike."""
    return name.lower().replace("_", "-").replace(" ", "-")


def loose(name: str) -> str:
    """`name` without case and punctuation."""
    return name.lower().translate(_PUNCTUATION)


@cache
def _entry(index: int) -> CatalogEntry:
    table = tables.parse(tables.blocks(FILE, HEADER)[index])
    config = {**table["config"], **dict.fromkeys(table.get("null", ()))}
    return CatalogEntry(
        name=table["name"], aliases=tuple(table.get("aliases", ())), hub_ids=tuple(table["hub_ids"]), source=table["source"],
        family=config.pop("model_type"), num_params=table["num_params"], config=config, per_checkpoint=table.get("per_checkpoint", {}),
        published=table.get("published"), published_for=table.get("published_for", table["hub_ids"][0]),
        published_rounded=table.get("published_rounded", ""), published_source=table.get("published_source", ""),
        stored_beside=table.get("stored_beside", ""),
    )  # fmt: skip


@cache
def _exact() -> dict[str, _Match]:
    """Names, aliases and Hub ids -> match."""
    table: dict[str, _Match] = {}
    for block, text in enumerate(tables.blocks(FILE, HEADER)):
        hub_ids = tables.strings(text, "hub_ids")
        (name,) = tables.strings(text, "name")
        table[plain(name)] = _Match(block, name, hub_ids[0])
        for alias in tables.strings(text, "aliases"):
            table[plain(alias)] = _Match(block, alias, _hub_id_of_alias(alias, name, hub_ids))
        for hub_id in hub_ids:
            table[plain(hub_id)] = _Match(block, name if hub_id == hub_ids[0] else hub_id.split("/")[1], hub_id)
    return table


@cache
def _by_last_part() -> dict[str, _Match]:
    """What follows the owner in a Hub id -> match. Two owners may call different shapes alike: those answer to block -1."""
    table: dict[str, _Match] = {}
    for block, text in enumerate(tables.blocks(FILE, HEADER)):
        for hub_id in tables.strings(text, "hub_ids"):
            last = hub_id.split("/")[1]
            _add(table, plain(last), _Match(block, last, hub_id))
    return table


@cache
def _squeezed() -> dict[str, _Match]:
    """All spellings without punctuation -> match."""
    table: dict[str, _Match] = {}
    for spellings in (_exact(), _by_last_part()):
        for spelling, match in spellings.items():
            _add(table, loose(spelling), match)
    return table


def _add(table: dict[str, _Match], key: str, match: _Match) -> None:
    there = table.setdefault(key, match)
    if there.block != match.block:
        table[key] = _Match(-1, "", None)


def _hub_id_of_alias(alias: str, name: str, hub_ids: tuple[str, ...]) -> str | None:
    """The checkpoint that an alias means: one that is called so, else the entry's own if the alias is another spelling of its name."""
    wanted = loose(alias)
    for hub_id in hub_ids:
        if loose(hub_id.split("/")[1]).startswith(wanted):
            return hub_id
    return hub_ids[0] if _letters(alias) == _letters(name) else None


def _letters(name: str) -> str:
    """The letters before anything else: "llama" of "llama2-7b"."""
    end = next((i for i, c in enumerate(name) if not c.isalpha()), len(name))
    return name[:end].lower()


def _match(name: str) -> _Match | None:
    for table, key in ((_exact, plain(name)), (_by_last_part, plain(name)), (_squeezed, loose(name))):
        match = table().get(key)
        if match is not None and match.block >= 0:
            return match
    if "/" in name:  # an unknown owner's checkpoint may have any shape, whatever it is called
        return None
    parts = plain(name).split("-")
    while len(parts) > 1 and parts[-1] in ENDINGS:
        parts.pop()
        shorter = "-".join(parts)
        match = _exact().get(shorter) or _squeezed().get(loose(shorter))
        if match is not None and match.block >= 0:
            return match._replace(hub_id=None, note=f"{_shown(name)} was taken as {match.spelled!r}")
    return None


def _without_ending(name: str) -> str:
    """`name` squeezed, less the endings that do not tell shapes apart."""
    parts = plain(name).split("-")
    while len(parts) > 1 and parts[-1] in ENDINGS:
        parts.pop()
    return loose("-".join(parts))


def _spec(match: _Match) -> ModelSpec:
    entry = _entry(match.block)
    config = {**entry.config, **entry.per_checkpoint.get(match.hub_id or "", {})}
    notes = (match.note,) if match.note else ()
    if _without_ending(match.spelled) != _without_ending(entry.name):
        notes = (*notes, f"{match.spelled} has the shape of {entry.name}")
    return spec_of_fields(
        config,
        entry.family,
        name=match.spelled,
        source=entry.source,
        where=f"catalogue entry {entry.name}",
        hub_id=match.hub_id,
        notes=notes,
        num_params=entry.num_params,
    )


def _from_hub(hub_id: str, allow_network: bool) -> ModelSpec:
    from llmcheck.catalog import hub  # late: names of the catalogue never need it

    match = _by_last_part().get(plain(hub_id.split("/")[1]))
    near = f"the catalogue has {match.hub_id!r}" if match is not None and match.block >= 0 else did_you_mean(hub_id, known_names())
    config, source = hub.fetch_config(hub_id, allow_network=allow_network, near=near)
    return spec_of_config(config, name=hub_id.split("/")[1], source=source, where=f"config.json of {hub_id}", hub_id=hub_id)


def _with_weights(spec: ModelSpec, folder: str) -> ModelSpec:
    """`spec` with a note on the safetensors in its folder; an unknown family takes its parameter count from them."""
    from llmcheck.catalog import safetensors

    files = safetensors.read_folder(folder)
    if files is None:
        return spec
    found = f"{files.num_tensors:,} tensors, {files.num_elements:,} parameters"
    if not spec.family_known:
        note = f"parameters counted from the safetensors headers: {found}"
        return replace(spec, num_params=max(1, files.num_elements), notes=(*spec.notes, note))
    difference = _difference(spec, files.shapes)
    if not difference:
        return replace(spec, notes=(*spec.notes, f"safetensors headers agree: {found}"))
    note = (
        f"safetensors headers differ from config.json: {found}, {human_count(spec.num_params)} ({spec.num_params:,}) expected; {difference}"
    )
    return replace(spec, notes=(*spec.notes, note))


def _difference(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How the tensors of a checkpoint differ from the model's parameters, in words; empty when they are the same."""
    from llmcheck.shadow import families

    expected = dict(families.parameters(spec.family, spec.config))
    # Checkpoints of the bare model lack the prefix; tied weights may be stored twice; buffers are no parameters.
    prefix = next(iter(expected)).split(".")[0] + "."
    found = {(name if name in expected or (prefix + name) not in expected else prefix + name): shape for name, shape in shapes.items()}
    missing = [name for name in expected if name not in found]
    other = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    extra = [name for name in found if name not in expected and not _harmless(name, found, spec)]
    words = []
    if other:
        words.append(f"{len(other)} of another shape ({other[0]}: {list(found[other[0]])}, expected {list(expected[other[0]])})")
    if missing:
        words.append(f"{len(missing)} missing ({missing[0]})")
    if extra:
        words.append(f"{len(extra)} unexpected ({_shown(extra[0])})")
    return "; ".join(words)


def _harmless(name: str, found: Mapping[str, tuple[int, ...]], spec: ModelSpec) -> bool:
    """True for what checkpoints store beside the parameters: causal masks, rotary buffers, a head tied to the embedding."""
    last = name.rsplit(".", 1)[-1]
    if last in ("inv_freq", "masked_bias") or (last == "bias" and len(found[name]) == 4):
        return True
    return bool(spec.config.get("tie_word_embeddings")) and name in ("lm_head.weight", "embed_out.weight", "transformer.lm_head.weight")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
