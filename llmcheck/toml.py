"""TOML reading: the standard library's parser, or its backport on Python 3.10."""

from __future__ import annotations

import sys
from os import PathLike
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - exercised by the 3.10 job only
    import tomli as tomllib


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The document at `path`. Raises ``tomllib.TOMLDecodeError`` or ``OSError``."""
    with open(path, "rb") as file:
        document: dict[str, Any] = tomllib.load(file)
    return document


def loads(text: str) -> dict[str, Any]:
    """The document in `text`. Raises ``tomllib.TOMLDecodeError``."""
    document: dict[str, Any] = tomllib.loads(text)
    return document
