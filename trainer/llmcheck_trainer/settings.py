"""The trainer's command line: the plan, and one option for each field of TrainSettings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from llmcheck.errors import UserError
from llmcheck.types import TrainSettings


class _Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, code="usage", where="llmcheck_trainer.train", hint="start it with `llmcheck train`")


def parse(argv: Sequence[str]) -> tuple[str, TrainSettings]:
    """The plan's path and the settings. Raises UserError for an unknown, missing or ill-typed option."""
    parser = _Parser(prog="python -m llmcheck_trainer.train", allow_abbrev=False, description=__doc__)
    parser.add_argument("--plan", required=True, metavar="FILE")
    defaults = TrainSettings._field_defaults
    for name, kind in get_type_hints(TrainSettings).items():
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, action="store_true")
            continue
        options: dict[str, Any] = {"required": name not in defaults, "default": defaults.get(name)}
        if get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["type"] = kind
        parser.add_argument(flag, **options)
    found = vars(parser.parse_args(list(argv)))
    plan = found.pop("plan")
    settings = TrainSettings(**found)
    _check(settings)
    return plan, settings


def _check(settings: TrainSettings) -> None:
    for name, low, high in (
        ("epochs", 0.0, 1e4),
        ("lr", 0.0, 10.0),
        ("warmup", 0.0, 1.0),
        ("min_lr", 0.0, 1.0),
        ("weight_decay", 0.0, 10.0),
        ("keep", 1, 1_000_000),
        ("max_steps", 0, 10**9),
        ("save_every", 0, 10**9),
        ("eval_every", 0, 10**9),
        ("patience", 0, 10**6),
        ("num_generations", 0, 1000),
    ):
        value = getattr(settings, name)
        if not low <= value <= high:  # also refuses NaN
            flag = "--" + name.replace("_", "-")
            why, hint = f"it lies between {low:g} and {high:g}", f"leave {flag} out for its default"
            raise UserError(f"{flag} {value} is out of range", code="usage", where=flag, why=why, hint=hint)
