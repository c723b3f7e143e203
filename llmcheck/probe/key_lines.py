"""On which line each key of a JSON document stands, so that a finding can point at it."""

from __future__ import annotations

import json
import re

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|#[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|[{}\[\]:,\n]', re.DOTALL)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line (from 1) of every key by its path, in a document that was found to be JSON; comments are skipped. Lists are not entered."""
    found: dict[tuple[str, ...], int] = {}
    line = 1
    path: list[str] = []  # keys of the objects that are open; "" stands for an object in a list
    brackets: list[str] = []
    last: tuple[str, int] | None = None  # the string before this token
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token[0] == '"':
            last = (token, line)
            line += token.count("\n")
            continue
        if token == ":" and last is not None and brackets and brackets[-1] == "{":
            key = _text(last[0])
            path[-1] = key
            if "[" not in brackets:
                found.setdefault(tuple(path), last[1])
        elif token == "{":
            brackets.append(token)
            path.append("")
        elif token == "[":
            brackets.append(token)
        elif token in "}]" and brackets:
            if brackets.pop() == "{":
                path.pop()
        elif token[0] in "\n/#":
            line += token.count("\n")
            continue
        last = None
    return found


def _text(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]
