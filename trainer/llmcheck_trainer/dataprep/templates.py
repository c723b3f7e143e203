"""The templates without Jinja: forms from templates.toml, filled in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from llmcheck import toml
from llmcheck_trainer.dataprep.rows import BadRowError, Sample, Turn

NO_TAIL = -1

# What follows the text of a segment: the id of one token, or NO_TAIL.
Segment = tuple[str, bool, int]  # text, whether it is learnt, tail


class _Form(NamedTuple):
    """A turn's form around {content} and {input}."""

    before: str
    between: str | None  # between content and input; None: input follows content after a line break
    after: str

    def fill(self, turn: Turn) -> str:
        if self.between is None:
            return self.before + turn.whole + self.after
        return self.before + turn.content + self.between + turn.input + self.after


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template of templates.toml, ready for a tokenizer's `eos_id`."""

    name: str
    adds_bos: bool
    begin: str
    default_system: str
    default_system_with_input: str
    forms: Mapping[str, _Form]  # system, user, user_with_input, tool
    prompt: str  # of an answer, before what is learnt
    answer: tuple[str, str]  # around the content, learnt
    tail: int  # eos after that, or NO_TAIL
    after: str  # and what is not learnt again
    digest: str

    def segments(self, sample: Sample) -> list[Segment]:
        """The conversation in order: text, whether it is learnt, the token after it. Raises BadRowError for a role without a form."""
        turns = sample.turns
        parts: list[Segment] = []
        pending = self.begin
        if turns[0].role != "system":
            pending += self._default_system(turns)
        for turn in turns:
            if turn.role != "assistant":
                pending += self._form(turn).fill(turn)
                continue
            if turn.calls_tools:
                raise BadRowError("template", f"the template {self.name} has no form for an answer that calls tools")
            pending += self.prompt
            answer = self.answer[0] + turn.content + self.answer[1]
            if turn.learn and turn.content.strip():
                if pending:
                    parts.append((pending, False, NO_TAIL))
                parts.append((answer, True, self.tail))
                pending = self.after
            elif self.tail != NO_TAIL:
                parts.append((pending + answer, False, self.tail))
                pending = self.after
            else:
                pending += answer + self.after
        if pending:
            parts.append((pending, False, NO_TAIL))
        return parts

    def _default_system(self, turns: list[Turn]) -> str:
        words = self.default_system
        if turns[0].input and self.default_system_with_input:
            words = self.default_system_with_input
        return self.forms["system"].fill(Turn("system", words)) if words else ""

    def _form(self, turn: Turn) -> _Form:
        form = self.forms.get("user_with_input") if turn.input and turn.role == "user" else None
        form = form or self.forms.get(turn.role)
        if form is None:
            raise BadRowError("unknown-role", f"the template {self.name} has no form for a turn by {turn.role!r}")
        return form


@cache
def _tables() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = toml.load(os.path.join(os.path.dirname(__file__), "templates.toml"))
    return tables


def names() -> tuple[str, ...]:
    """The names of the templates."""
    return tuple(_tables())


def needs(name: str) -> tuple[str, ...]:
    """The tokens that the template `name` wants the tokenizer to have."""
    return tuple(_tables()[name].get("needs", ()))


def uses_eos(name: str) -> bool:
    """True when the template ends answers with the tokenizer's end token, not with one of its own."""
    return "{eos}" in _tables()[name]["assistant"]


def load(name: str, *, eos_id: int) -> Template:
    """The template `name`, one of :func:`names`."""
    table = _tables()[name]
    prompt, _, rest = table["assistant"].partition("[[")
    learnt, _, after = rest.partition("]]")
    tail = eos_id if learnt.endswith("{eos}") else NO_TAIL
    begin, _, end = learnt.removesuffix("{eos}").partition("{content}")
    forms: dict[str, _Form] = {role: _form(table[role]) for role in ("system", "user", "user_with_input", "tool") if role in table}
    return Template(
        name=name,
        adds_bos=table["bos"] == "tokenizer",
        begin=table.get("begin", ""),
        default_system=table.get("default_system", ""),
        default_system_with_input=table.get("default_system_with_input", ""),
        forms=forms,
        prompt=prompt,
        answer=(begin, end),
        tail=tail,
        after=after,
        digest=hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest(),
    )


def _form(text: str) -> _Form:
    before, _, rest = text.partition("{content}")
    if "{input}" not in rest:
        return _Form(before, None, rest)
    between, _, after = rest.partition("{input}")
    return _Form(before, between, after)
