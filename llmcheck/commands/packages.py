"""Packages of the extras: whether they are installed, told without importing them."""

from __future__ import annotations

from collections.abc import Iterable

from llmcheck.errors import CouldNotCheckError


def missing(names: Iterable[str]) -> list[str]:
    """Those of `names` that cannot be imported here."""
    from importlib.util import find_spec

    return [name for name in names if find_spec(name) is None]


def require(names: Iterable[str], *, what: str, where: str, hint: str) -> None:
    """Raises CouldNotCheckError where one is missing; `what` needs them."""
    absent = missing(names)
    if absent:
        raise CouldNotCheckError(
            f"{what} needs packages that are not installed", code="missing-package", where=where, why="no " + ", ".join(absent), hint=hint
        )
