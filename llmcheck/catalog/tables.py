"""The catalogues' files, read table by table: `plan` wants one model of hundreds, and parsing TOML takes 0.2 ms per KB."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from llmcheck import toml

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")


@cache
def blocks(file: str, header: str) -> tuple[str, ...]:
    """The texts of the tables that begin with a line that starts with `header`, in file order, without that line's first part."""
    with open(os.path.join(_DATA, file), encoding="utf-8") as data:
        return tuple(data.read().split("\n" + header)[1:])


@cache
def by_name(file: str, header: str) -> dict[str, str]:
    """The texts of the tables whose lines begin with `header` and go on with a name and a bracket, by that name."""
    return {block[: block.index("]")]: block[block.index("\n") :] for block in blocks(file, header)}


def strings(block: str, key: str) -> tuple[str, ...]:
    """The quoted strings of `key`'s line in a block, without parsing it; empty when the block has no such line."""
    start = block.find(f"\n{key} = ")
    if start < 0:
        return ()
    return tuple(block[start : block.find("\n", start + 1)].split('"')[1::2])


def parse(block: str) -> dict[str, Any]:
    """The table of one block."""
    return toml.loads(block)
