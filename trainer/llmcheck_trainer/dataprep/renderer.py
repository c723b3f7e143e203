"""The process that renders a stranger's chat template, in jinja2's sandbox and under limits; chat_template.py starts it and talks to it.

A chat template is a program. The sandbox keeps it from the interpreter, the limits keep it from using the machine up, and a process of its
own can be ended whatever it does. One JSON document a line, in and out.
"""

from __future__ import annotations

import datetime
import json
import re
import resource
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROW_S = 2.0  # of one row; a thousand times what the longest take
MAX_SLOW_ROWS = 3  # after so many that took longer, the template is to blame and not the rows
MAX_MEMORY_BYTES = 1 << 30
MAX_CHARS = 32 << 20  # of one rendering

# What brackets a {% generation %} block in the output; drawn anew for each process, so no row can hold them.
OPEN, CLOSE = (f"\ue000{secrets.token_hex(12)}{mark}\ue001" for mark in "[]")
_HAS_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_CHECKED_CHARS = 20  # of an answer that must be found in its rendering

Message = dict[str, Any]
Segments = list[tuple[str, bool]]


class _TooSlowError(BaseException):
    """Raised by the timer; no Exception, so that nothing in between takes it for its own."""


class _RefusedError(Exception):
    """The template cannot be used for this row; the text says why."""


class _Generation(jinja2.ext.Extension):
    """The block {% generation %}: what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("bracket"), [], [], body).set_lineno(line)

    def bracket(self, caller: Any) -> str:
        """The block's output between the marks."""
        return f"{OPEN}{caller()}{CLOSE}"


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which neither powers nor repetitions make values that fill the memory."""

    intercepted_binops = frozenset({"**", "*"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, where the result is of a usual size."""
        if operator == "**":
            raise _RefusedError("the template computes a power, which no chat template needs")
        for text, times in ((left, right), (right, left)):
            if isinstance(text, (str, list, tuple)) and isinstance(times, int) and len(text) * times > MAX_CHARS:
                raise _RefusedError("the template repeats a text without measure")
        return super().call_binop(context, operator, left, right)


class Renderer:
    """A compiled template. `ends` are the tokens that may end a turn."""

    def __init__(self, template: str, variables: dict[str, str], ends: Sequence[str], date: str) -> None:
        today = datetime.datetime.fromisoformat(date)
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = today.strftime
        self._template = environment.from_string(template)
        self._variables = variables
        self._ends = tuple(ends)
        self._eos = variables.get("eos_token", "")
        self.marked = _HAS_GENERATION.search(template) is not None

    def segments(self, messages: list[Message], tools: list[Any] | None, learn: list[bool]) -> tuple[Segments, int]:
        """The conversation in order, each text with whether it is learnt; and how many answers could not be told from the rest."""
        if self.marked:
            return self._by_marks(messages, tools, learn)
        return self._by_prefixes(messages, tools, learn)

    def _render(self, messages: list[Message], tools: list[Any] | None, prompt: bool = False) -> str:
        parts, size = [], 0
        for part in self._template.generate(
            messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **self._variables
        ):
            size += len(part)
            if size > MAX_CHARS:
                raise _RefusedError("the template makes more text than a row may have")
            parts.append(part)
        return "".join(parts)

    def _by_marks(self, messages: list[Message], tools: list[Any] | None, learn: list[bool]) -> tuple[Segments, int]:
        first, *rest = self._render(messages, tools).split(OPEN)
        segments: Segments = [(first, False)]
        answers = [message for message in messages if message["role"] == "assistant"]
        paired = len(answers) == len(rest)
        missing = max(len(answers) - len(rest), 0)
        for index, part in enumerate(rest):
            answer, _, after = part.partition(CLOSE)
            # A block that leaves the end token outside teaches no model to stop.
            if self._eos and after.startswith(self._eos) and not answer.endswith(self._eos):
                answer, after = answer + self._eos, after.removeprefix(self._eos)
            wanted = not paired or learn[index]
            lost = paired and not _holds(answer, answers[index])
            missing += wanted and lost
            segments += [(answer, wanted and not lost), (after, False)]
        return _merged(segments), missing

    def _by_prefixes(self, messages: list[Message], tools: list[Any] | None, learn: list[bool]) -> tuple[Segments, int]:
        """An answer is what the whole has beyond the same conversation rendered up to the answer's place."""
        whole = self._render(messages, tools)
        wants = iter(learn)
        segments: Segments = []
        at = missing = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or not next(wants):
                continue
            span = self._span(whole, messages, tools, index)
            if span is None or span[0] < at or not _holds(whole[span[0] : span[1]], message):
                missing += 1
                continue
            segments += [(whole[at : span[0]], False), (whole[span[0] : span[1]], True)]
            at = span[1]
        segments.append((whole[at:], False))
        return _merged(segments), missing

    def _span(self, whole: str, messages: list[Message], tools: list[Any] | None, index: int) -> tuple[int, int] | None:
        """Where the answer `index` begins and ends in `whole`; None when that cannot be told."""
        start = self._start(whole, messages[:index], tools)
        if start is None:
            return None
        end = len(whole) if index == len(messages) - 1 else self._end(whole, messages[: index + 1], tools, start)
        if end is None:
            return None
        answer = whole[start:end]
        kept = answer.rstrip()
        # The line break after the end token belongs to the next turn's header, not to what a model writes.
        return (start, start + len(kept)) if kept.endswith(self._ends) else (start, end)

    def _start(self, whole: str, before: list[Message], tools: list[Any] | None) -> int | None:
        try:
            prompt = self._render(before, tools, prompt=True)
            if whole.startswith(prompt):
                return len(prompt)
            # Templates of reasoning models open a thought in the prompt that the rendered answer lacks: as far as the two agree, back to
            # the last line's or token's end, it is the prompt.
            header = len(self._render(before, tools)) if before else 0
        except jinja2.TemplateError:
            return None
        agreed = _agreed(whole, prompt)
        places = [prompt.rfind("\n", header, agreed) + 1]
        places += [place + len(token) for token in self._ends if (place := prompt.rfind(token, header, agreed)) >= 0]
        return best if (best := max(places)) > header and agreed >= header else None

    def _end(self, whole: str, upto: list[Message], tools: list[Any] | None, start: int) -> int | None:
        rendered = self._render(upto, tools)
        if whole.startswith(rendered):
            return len(rendered)
        # Later turns changed how this one is rendered, by its end token or by leaving out what was thought. The answer itself is the same.
        content = str(upto[-1].get("content") or "").strip()
        if not content:
            return None
        found = rendered.find(content, start)
        if found >= 0 and whole.startswith(rendered[start : found + len(content)], start):
            end = found + len(content)
        elif whole.startswith(content, start):
            end = start + len(content)
        else:
            return None
        return end + max((len(token) for token in self._ends if whole.startswith(token, end)), default=0)


def _holds(rendered: str, message: Message) -> bool:
    """True when an answer's text is in what was rendered of it, at least its end: what was thought may be left out."""
    content = message.get("content")
    return not isinstance(content, str) or content.strip()[-_CHECKED_CHARS:] in rendered


def _agreed(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def _merged(segments: Segments) -> Segments:
    """`segments` without empty ones, neighbours of one kind together."""
    merged: Segments = []
    for text, learnt in segments:
        if not text:
            continue
        if merged and merged[-1][1] == learnt:
            merged[-1] = (merged[-1][0] + text, learnt)
        else:
            merged.append((text, learnt))
    return merged


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """The filter tojson without HTML's escapes, as transformers has it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _limit() -> None:
    """No more memory than a template may take, no files, no core dumps; SIGALRM ends a row that takes too long."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    signal.signal(signal.SIGALRM, _ring)


def _ring(*_: object) -> NoReturn:
    raise _TooSlowError


def _answer(renderer: Renderer, row: Any) -> Any:
    """What is sent back for one row: [segments, answers not found] or {"error": why}; the error of a slow row has "slow" too."""
    try:
        signal.setitimer(signal.ITIMER_REAL, ROW_S)
        try:
            segments, missing = renderer.segments(*row)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return [segments, missing]
    except _TooSlowError:
        return {"error": f"it took longer than {ROW_S:g} s", "slow": True}
    except MemoryError:
        return {"error": "it took more memory than a template may"}
    except Exception as reason:  # a stranger's program may raise anything
        return {"error": f"{type(reason).__name__}: {reason}"[:300] if not isinstance(reason, _RefusedError) else str(reason)}


def main() -> int:
    """Read the template, then batches of rows, from stdin; write an answer for each to stdout."""
    _limit()
    request = json.loads(sys.stdin.buffer.readline())
    try:
        signal.setitimer(signal.ITIMER_REAL, ROW_S)
        renderer = Renderer(request["template"], request["variables"], request["ends"], request["date"])
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (Exception, _TooSlowError) as reason:
        _send({"error": f"{type(reason).__name__}: {reason}"[:300]})
        return 0
    _send({"marked": renderer.marked})
    slow = 0
    for line in sys.stdin.buffer:
        answers = []
        for row in json.loads(line):
            answer = _answer(renderer, row)
            slow += isinstance(answer, dict) and "slow" in answer
            answers.append(answer)
            if slow >= MAX_SLOW_ROWS:
                _send({"error": f"{slow} rows took longer than {ROW_S:g} s each"})
                return 0
        _send(answers)
    return 0


def _send(document: Any) -> None:
    sys.stdout.buffer.write(json.dumps(document, ensure_ascii=True).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
