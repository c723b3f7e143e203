"""A DeepSpeed configuration file into a dict. Strict JSON, save that comments and trailing commas are let through."""

from __future__ import annotations

import re
from typing import Any

from llmcheck import jsonfile
from llmcheck.errors import UserError

MAX_BYTES = 1 << 20  # the longest that people post is 4 KB; a mistaken path (a checkpoint) must not be read whole
MAX_DEPTH = 32  # DeepSpeed's own sections nest four deep
WHAT = "DeepSpeed configuration"

# Each alternative runs to its end once and cannot fail behind its first characters, so hostile text costs linear time.
_STRING = r'"(?:[^"\\\n]|\\.)*"?'
_COMMENTS = _STRING + r"|//[^\n]*|#[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?"
_TRAILING_COMMAS = _STRING + r"|,(?=\s*[}\]])"
_ACCELERATE_YAML = r"^(compute_environment|distributed_type|deepspeed_config)\s*:"


def read(path: str, *, where: str = "") -> dict[str, Any]:
    """The configuration in the file at `path` as written, "auto" still in it. Raises UserError, which names `where` (or the path)."""
    return parse(jsonfile.read_bytes(path, what=WHAT, where=where, max_bytes=MAX_BYTES), where=where or path)


def parse(data: bytes, *, where: str = WHAT) -> dict[str, Any]:
    """The configuration in `data`. Raises UserError for what is not JSON, NaN, a key given twice, or a document that is no object."""
    try:
        document = jsonfile.loads(data, what=WHAT, where=where)
    except UserError as error:
        # DeepSpeed reads with hjson, so files with comments and trailing commas are about and work.
        document = _parse_leniently(data, where, error)
    if not isinstance(document, dict):
        raise UserError(
            f"the {WHAT} must be a JSON object, not {jsonfile.kind_of(document)}",
            code="not-json",
            where=where,
            why="settings have names",
            hint="it begins with {",
        )
    if _depth(document) > MAX_DEPTH:
        why, hint = f"it has more than {MAX_DEPTH} levels", "is this the file?"
        raise UserError(f"the {WHAT} is nested too deeply", code="not-json", where=where, why=why, hint=hint)
    return document


def _parse_leniently(data: bytes, where: str, error: UserError) -> Any:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error from None
    plain = re.sub(_COMMENTS, _blank, text, flags=re.DOTALL)
    plain = re.sub(_TRAILING_COMMAS, _blank, plain, flags=re.DOTALL)
    if plain == text:
        if re.search(_ACCELERATE_YAML, text, re.MULTILINE):
            error.hint = "this is an accelerate configuration: give the file that its deepspeed_config_file names"
        raise error
    return jsonfile.loads(plain.encode(), what=WHAT, where=where)


def _blank(match: re.Match[str]) -> str:
    """Strings stay, newlines stay (line numbers in messages must hold), the rest of a match goes."""
    text = match[0]
    return text if text[0] == '"' else "\n" * text.count("\n")


def _depth(node: Any) -> int:
    deepest, stack = 0, [(node, 1)]
    while stack:
        value, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(value, dict):
            stack.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, list):
            stack.extend((v, depth + 1) for v in value)
    return deepest
