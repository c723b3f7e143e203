"""``llmcheck models``: list the models of the catalogue, or show one."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from llmcheck.catalog.models import CatalogEntry, all_models, find_model
from llmcheck.commands.values import choice
from llmcheck.console import emit, terminal
from llmcheck.errors import UserError, did_you_mean
from llmcheck.render.draw import Pen, clean, table, wrap
from llmcheck.types import ModelSpec
from llmcheck.units import human_count

SCHEMA = "llmcheck.models/1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `models`."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show this model (name, Hub id, config.json or its folder), or list those with NAME in a name",
    )
    parser.add_argument(
        "--family", metavar="FAMILY", help="only models of this family (transformers' model_type: llama, bloom, qwen3, ...)"
    )
    # Not argparse's own `choices`: its message cannot say what was probably meant.
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or the model; returns 0. Raises UserError when nothing matches."""
    if args.family is not None:
        families = sorted({entry.family for entry in all_models()})
        if args.family not in families:
            hint = did_you_mean(args.family, families) or "families: " + ", ".join(families)
            raise UserError(f"no model of family {args.family[:80]!r} in the catalogue", code="unknown-family", where="--family", hint=hint)
    pen = Pen(terminal(sys.stdout))
    if args.name is not None:
        listed = _listed(args.name, args.family)
        spec = _one(args.name, bool(listed))
        if spec is not None:
            emit(_json_of(spec) if args.format == "json" else _page(spec, pen))
            return 0
    else:
        listed = _listed("", args.family)
    emit(_json(listed) if args.format == "json" else _list(listed, pen))
    return 0


def _one(name: str, listed: bool) -> ModelSpec | None:
    """The model that `name` names; None where it names none but is part of names."""
    try:
        return find_model(name, allow_network=os.environ.get("HF_HUB_OFFLINE", "") in ("", "0"))
    except UserError as error:
        if listed and error.code == "unknown-model":
            return None
        raise


def _listed(part: str, family: str | None) -> tuple[CatalogEntry, ...]:
    wanted = part.lower()
    return tuple(
        entry
        for entry in all_models()
        if (family is None or entry.family == family)
        and (any(wanted in name.lower() for name in (entry.name, *entry.aliases, *entry.hub_ids)) or wanted == entry.family)
    )


def _list(entries: tuple[CatalogEntry, ...], pen: Pen) -> str:
    rows = [("model", "parameters", "family", "Hub id")]
    rows += [(e.name, human_count(e.num_params), e.family, e.hub_ids[0] + _more(e)) for e in entries]
    head, *lines = table(rows, (False, True, False, False), pen.terminal.columns, pen)
    foot = f"{len(entries)} model" + ("" if len(entries) == 1 else "s") + "; `llmcheck models NAME` shows one with all its names"
    return "\n".join([pen.bold(head), *lines, "", pen.dim(foot), ""])


def _more(entry: CatalogEntry) -> str:
    return f" (+{len(entry.hub_ids) - 1})" if len(entry.hub_ids) > 1 else ""


def _page(spec: ModelSpec, pen: Pen) -> str:
    columns = pen.terminal.columns
    entry = next((e for e in all_models() if spec.source == e.source), None)
    rows = [("family", spec.family + ("" if spec.family_known else " (layer not modelled: conservative stand-in)"))]
    rows += [("parameters", f"{spec.num_params:,} ({human_count(spec.num_params)})")]
    if entry is not None:
        rows += [("in the checkpoint", _published(entry))] if entry.published or entry.published_rounded else []
        rows += [("also called", ", ".join(entry.aliases))] if entry.aliases else []
        rows += [("Hub ids", ", ".join(entry.hub_ids))]
    rows += [("source", spec.source)]
    rows += [("config", ", ".join(f"{k} {_brief(v)}" for k, v in spec.config.items() if v not in (None, [], {})))]
    rows += [("note", note) for note in spec.notes]
    lines = [pen.bold(clean(spec.name))]
    for label, text in rows:
        folded = wrap(clean(text).split(" "), columns - 20)
        lines += [f"  {label if i == 0 else '':18}{part}" for i, part in enumerate(folded)]
    return "\n".join([*lines, ""])


def _published(entry: CatalogEntry) -> str:
    if entry.published is None:
        return f"{entry.published_rounded} as published ({entry.published_source})"
    if entry.published == entry.num_params:
        return f"{entry.published:,} (the same)"
    return f"{entry.published:,}: it also stores {entry.stored_beside.replace('-', ' ').replace('+', ' and ')}"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {_brief(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} items]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _document(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name, "family": entry.family, "num_params": entry.num_params, "aliases": list(entry.aliases),
        "hub_ids": list(entry.hub_ids), "source": entry.source, "published_params": entry.published,
    }  # fmt: skip


def _json(entries: tuple[CatalogEntry, ...]) -> str:
    return _dumps({"schema": SCHEMA, "models": [_document(entry) for entry in entries]})


def _json_of(spec: ModelSpec) -> str:
    entry = next((e for e in all_models() if spec.source == e.source), None)
    document = {
        "name": spec.name, "family": spec.family, "num_params": spec.num_params, "hub_id": spec.hub_id, "source": spec.source,
        "family_known": spec.family_known, "notes": list(spec.notes), "config": dict(spec.config),
    }  # fmt: skip
    if entry is not None:
        document |= {"aliases": list(entry.aliases), "hub_ids": list(entry.hub_ids), "published_params": entry.published}
    return _dumps({"schema": SCHEMA, "models": [document]})


def _dumps(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
