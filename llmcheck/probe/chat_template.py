"""What can be told about a chat template from its text alone. It is a program in Jinja by a stranger: it is never rendered or compiled."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 1 << 20  # the longest in use are below 30,000

# Linear patterns over text without comments: no repeat stands inside another.
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_VARIABLE = {role: re.compile(rf"\b{role}_token\b") for role in ("bos", "eos")}
_MARKS = re.compile(r"<\|[A-Za-z0-9_.\-]{1,60}\|>|<[A-Za-z0-9_]{1,60}>|</[A-Za-z0-9_]{1,60}>|\[/?[A-Z_]{2,40}\]")
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eot|>", "<turn|>", "<|END_OF_TURN_TOKEN|>")
MAX_MARKS = 200


@dataclass(frozen=True, kw_only=True)
class Template:
    """Facts about a template."""

    names_bos: bool  # the variable bos_token, or the token itself
    names_eos: bool
    has_generation: bool  # a {% generation %} block: transformers can tell the assistant's tokens
    turn_end: str | None  # the known end-of-turn token in it; None where there is none, or several
    marks: tuple[str, ...]  # what looks like a special token, in order of appearance


def analyse(text: str, *, bos: str | None, eos: str | None) -> Template:
    """Facts about the template `text`; `bos` and `eos` are the tokenizer's strings. At most 1 MiB of it is looked at."""
    plain = _without_comments(text[:MAX_CHARS])
    ends = [end for end in _ENDS if end in plain]
    return Template(
        names_bos=_names(plain, "bos", bos),
        names_eos=_names(plain, "eos", eos),
        has_generation=_GENERATION.search(plain) is not None,
        turn_end=ends[0] if len(ends) == 1 else None,
        marks=tuple(dict.fromkeys(found[0] for found in _MARKS.finditer(plain)))[:MAX_MARKS],
    )


def _without_comments(text: str) -> str:
    """`text` without ``{# … #}``. Not by a pattern: on openings without an end it would take quadratic time."""
    parts, position = [], 0
    while (start := text.find("{#", position)) >= 0 and (end := text.find("#}", start + 2)) >= 0:
        parts.append(text[position:start])
        position = end + 2
    return "".join(parts) + text[position:]


def _names(text: str, role: str, token: str | None) -> bool:
    return _VARIABLE[role].search(text) is not None or (bool(token) and str(token) in text)
