"""On which line each key of a JSON document stands, so that a finding can point at it."""

from __future__ import annotations

import json
import re

_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|#[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|[{}\[\]:,\n]', re.DOTALL)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line (from 1) of every key by its path, in a document that was found to be JSON; comments are skipped. Lists are not entered."""
    found: dict[tuple[str, ...], int] = {}
    line = 1
    path: list[str] = []  # keys of the objects that are open; "" stands for an object in a list
    brackets: list[str] = []
    last: tuple[str, int] | None = None  # the string before this mark
    for match in _MARKS.finditer(text):
        mark = match[0]
        if mark[0] == '"':
            last = (mark, line)
            line += mark.count("\n")
            continue
        if mark == ":" and last is not None and brackets and brackets[-1] == "{":
            key = _text(last[0])
            path[-1] = key
            if "[" not in brackets:
                found.setdefault(tuple(path), last[1])
        elif mark == "{":
            brackets.append(mark)
            path.append("")
        elif mark == "[":
            brackets.append(mark)
        elif mark in "}]" and brackets:
            if brackets.pop() == "{":
                path.pop()
        elif mark[0] in "\n/#":
            line += mark.count("\n")
            continue
        last = None
    return found


def _text(mark: str) -> str:
    try:
        return str(json.loads(mark, strict=False))
    except ValueError:
        return mark[1:-1]
