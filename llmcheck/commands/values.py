"""Values of command-line options: each maker returns a function from the text to the value, or UserError naming the option."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llmcheck.errors import UserError, did_you_mean

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_MAX_SHOWN = 60  # characters of a bad value that a message repeats


def add_option(group: Any, flag: str, metavar: str, kind: Callable[[str], Any], text: str) -> None:
    """An option with a value, to a parser or a group of its options; None where it is not given."""
    group.add_argument(flag, metavar=metavar, type=kind, help=text)


def add_choice(group: Any, flag: str, options: Sequence[str], text: str) -> None:
    """An option that takes one of `options`. Not argparse's own `choices`: its message cannot say what was probably meant."""
    add_option(group, flag, "|".join(options), choice(flag, options), text)


def choice(flag: str, options: Sequence[str]) -> Callable[[str], str]:
    """One of `options`."""

    def parse(text: str) -> str:
        if text in options:
            return text
        raise UserError(
            f"{flag} cannot be {_shown(text)}",
            code="usage",
            where=flag,
            why="it takes one of " + ", ".join(options),
            hint=did_you_mean(text, options),
        )

    return parse


def whole(flag: str, low: int, high: int, *, unit: str, why: str = "") -> Callable[[str], int]:
    """A whole number from `low` to `high`; `why` says where the bounds come from."""

    def parse(text: str) -> int:
        try:
            value = int(text) if len(text) <= 30 else None
        except ValueError:
            value = None
        if value is None:
            raise UserError(
                f"{flag} needs a whole number of {unit}, not {_shown(text)}", code="usage", where=flag, hint="digits only, such as 8"
            )
        _check_range(flag, value, low, high, unit, why)
        return value

    return parse


def count(flag: str, high: int, *, unit: str) -> Callable[[str], int]:
    """A positive whole number that may be written 2000000, 2_000_000, 2M or 1.5B."""

    def parse(text: str) -> int:
        digits, scale = (text[:-1], _SUFFIXES[text[-1:].lower()]) if text[-1:].lower() in _SUFFIXES else (text, 1)
        try:
            value = float(digits) * scale if scale > 1 else int(digits) if len(digits) <= 30 else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value != int(value):
            raise UserError(
                f"{flag} needs a whole number of {unit}, not {_shown(text)}", code="usage", where=flag, hint="write 2000000 or 2M"
            )
        _check_range(flag, int(value), 1, high, unit, "")
        return int(value)

    return parse


def number(flag: str, low: float, high: float, *, unit: str, why: str = "") -> Callable[[str], float]:
    """A finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{flag} needs a number of {unit}, not {_shown(text)}", code="usage", where=flag, hint="digits and a point, such as 39.5"
            )
        _check_range(flag, value, low, high, unit, why)
        return value

    return parse


def names(flag: str) -> Callable[[str], str]:
    """Comma-separated names of modules (or one word such as all-linear), without spaces."""

    def parse(text: str) -> str:
        cleaned = text.replace(" ", "")
        parts = cleaned.split(",")
        if len(cleaned) > 1000 or not all(part and all(c.isascii() and (c.isalnum() or c in "_.-") for c in part) for part in parts):
            raise UserError(
                f"{flag} needs names of modules, not {_shown(text)}",
                code="usage",
                where=flag,
                hint="all-linear, attention, or names such as q_proj,v_proj",
            )
        return cleaned

    return parse


def _check_range(flag: str, value: float, low: float, high: float, unit: str, why: str) -> None:
    if low <= value <= high:
        return
    span = f"{_plain(low)} to {_plain(high)}{' ' if unit else ''}{unit}"
    hint = f"give one from {span}"
    raise UserError(f"{flag} {value} is out of range", code="range", where=flag, why=why or f"it takes {span}", hint=hint if why else "")


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
