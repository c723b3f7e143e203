"""The data of `llmcheck train`: prepared folders as they are, files of rows prepared into the output folder before any rank starts."""

from __future__ import annotations

import argparse
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmcheck import lock
from llmcheck.commands import data as preparing
from llmcheck.errors import UserError
from llmcheck.paths import unreadable
from llmcheck.planner.plan import Plan

MANIFEST = "manifest.json"
PLACES = {"--data": "data", "--eval-data": "eval-data"}  # folders in --output
_MAX_NAMED = 3
_HUB_NAME = re.compile(r"hf:|[A-Za-z0-9][\w.-]*/[A-Za-z0-9]")  # may be one: the preparation asks


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an option names: one prepared `folder`, or `files` of rows (paths or Hub names) that are to be prepared into `folder`."""

    flag: str
    folder: str
    files: tuple[str, ...] = ()


def given(flag: str, paths: list[str], output: str) -> Given:
    """What `paths` are. Raises UserError for several folders, folders beside files, and folders that hold no prepared data."""
    folders = [path for path in paths if os.path.isdir(path)]
    prepared = [path for path in folders if os.path.isfile(os.path.join(path, MANIFEST))]
    if len(prepared) > 1 or (prepared and len(paths) > 1):
        raise UserError(
            f"{flag} takes one prepared folder, or files of rows",
            code="conflict",
            where=f"{flag} {' '.join(paths[:_MAX_NAMED])}",
            why=f"{prepared[0]} is prepared data, and {len(paths) - 1} more stand beside it",
            hint="prepare the files together: `llmcheck data prepare FILE...`, or name them all here",
        )
    if prepared:
        return Given(flag=flag, folder=os.path.abspath(prepared[0]))
    if folders:
        raise _no_data(flag, folders[0])
    for path in paths:
        if not os.path.lexists(path) and _HUB_NAME.match(path) is None:
            reason = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise unreadable(path, what="data file", where=f"{flag} {path}", reason=reason)
    return Given(flag=flag, folder=os.path.join(os.path.abspath(output), PLACES[flag]), files=tuple(paths))


def _no_data(flag: str, folder: str) -> UserError:
    endings = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".txt", ".gz")
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(endings))
    except OSError:
        names = []
    rows = [os.path.join(folder, name) for name in names]
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return UserError(
        f"{folder} holds no prepared data",
        code="data",
        where=f"{flag} {folder}",
        why=f"it has no {MANIFEST}" + (f"; it has {', '.join(names[:_MAX_NAMED])}{more}" if names else ""),
        hint=f"name the files themselves: {flag} {' '.join(rows[:_MAX_NAMED])}{' ...' if more else ''}"
        if rows
        else "name files of rows, or the folder that `llmcheck data prepare` wrote",
    )


def tokenizer_of(args: argparse.Namespace, plan: Plan) -> str:
    """The tokenizer of the data: --tokenizer, else the one beside the weights or the plan's model, else the Hub's. Raises UserError."""
    if args.tokenizer is not None:
        return str(args.tokenizer)
    folders = [folder for folder in (weights_folder(args, plan), _own_folder(plan)) if folder is not None]
    if folders:
        return next((folder for folder in folders if has_tokenizer(folder)), folders[0])
    name = args.weights or plan.model.hub_id
    if name:
        return str(name)
    raise UserError(
        f"which tokenizer? {plan.model.name} names none",
        code="tokenizer",
        where="--tokenizer",
        why="the plan has neither a model folder nor a Hub name",
        hint="--tokenizer DIR, the model's folder",
    )


def weights_folder(args: argparse.Namespace, plan: Plan) -> str | None:
    """The folder of the weights where it is on this disk: --weights, else the plan's own."""
    if not args.weights:
        return _own_folder(plan)
    return os.path.abspath(args.weights) if os.path.isdir(args.weights) else None


def check_weights(given: str | None) -> None:
    """Raises UserError for weights at a path where nothing is: a name of the Hub has one slash at most."""
    if given is None or os.path.exists(given) or not (given.startswith((".", "/", "~")) or given.count("/") > 1):
        return
    where = f"--weights {given}"
    if given.startswith("~"):
        hint = "the shell did not put your home in place of ~: write the path in full"
        raise UserError(f"there are no weights at {given}", code="weights", where=where, why="no such folder", hint=hint)
    reason = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    raise unreadable(given, what="folder of the weights", where=where, reason=reason)


def _own_folder(plan: Plan) -> str | None:
    source = plan.model.source
    place = os.path.dirname(source) or "." if source.endswith(".json") else source
    return os.path.abspath(place) if os.path.isdir(place) else None


def has_tokenizer(folder: str) -> bool:
    """True when `folder` holds files of a tokenizer."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def check_options(args: argparse.Namespace, sets: Iterable[Given]) -> None:
    """Raises UserError for options of a preparation where nothing is to be prepared."""
    if any(each.files for each in sets):
        return
    for name in preparing.ROW_OPTIONS:
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} has no meaning with prepared data",
                code="conflict",
                where=f"--data, {flag}",
                why="it decides how files of rows become tokens",
                hint="name the files, or leave it out",
            )


def request(args: argparse.Namespace, plan: Plan, sets: Iterable[Given], allowed: Iterable[str], *, dry: bool) -> dict[str, Any]:
    """What the trainer's process is asked to make ready, and to compare with the plan. Raises UserError."""
    asked: list[dict[str, Any]] = []
    for each in sets:
        if not each.files:
            asked.append({"flag": each.flag, "folder": each.folder})
            continue
        rows = preparing.rows_of(args, date="")
        prepare = {**rows, "files": each.files, "tokenizer": tokenizer_of(args, plan), "seq_len": plan.recipe.seq_len, "out": each.folder}
        asked.append({"flag": each.flag, "prepare": prepare})
    wanted = {
        "seq_len": plan.recipe.seq_len,
        "num_rows": plan.model.config["vocab_size"],
        "tokenizer": weights_folder(args, plan),
        "allowed": sorted(allowed),
    }
    return {"action": "ready", "plan": wanted, "sets": asked, "dry": dry}


def make_ready(asked: dict[str, Any], output: str) -> int:
    """Have it done; 0, or the exit code of what failed and was told. Others that prepare for the same output are waited for."""
    if asked["dry"] or not any("prepare" in each for each in asked["sets"]):
        return preparing.call(asked, command="llmcheck train")
    wait = f"another llmcheck prepares data for {output}: waiting for it"
    with lock.waiting(os.path.join(os.path.abspath(output), lock.DATA), wait):
        return preparing.call(asked, command="llmcheck train")
