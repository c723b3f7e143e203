"""Rows of the usual shapes to conversations: alpaca, ShareGPT, BELLE, messages, prompt and completion, plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_SHOWN = 60  # characters of a stranger's key or value that a message repeats

# Why rows are left out, in the words of the report.
REASONS = {
    "not-utf8": "not UTF-8 text",
    "not-json": "not JSON",
    "too-large": "larger than a row may be",
    "not-an-object": "not an object with fields",
    "unknown-shape": "none of the known shapes",
    "not-text": "a field that should be text is not",
    "unknown-role": "a turn by an unknown role",
    "template": "the chat template refuses it",
    "empty": "nothing in it",
    "no-answer": "no turn of the assistant",
    "empty-answer": "every answer is empty",
    "no-supervised-token": "no token of an answer is left to learn from",
    "too-long": "longer than the sequence length",
}
# Of these the row could not be read; of the others it could, but has nothing to learn from.
BAD = frozenset({"not-utf8", "not-json", "too-large", "not-an-object", "unknown-shape", "not-text", "unknown-role", "template"})

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "function_call": "assistant",  # LLaMA-Factory's, with the call as JSON
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
_LISTS = ("messages", "conversations", "conversation")
# All that is read of a row.
FIELDS = frozenset({*(name for pair in _PAIRS for name in pair), *_LISTS, "context", "history", "system", "text", "tools"})
_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class BadRowError(Exception):
    """A row that cannot be used: `reason` is a key of REASONS, `detail` says more about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Turn(NamedTuple):
    """One turn. `role` is system, user, assistant or tool; `input` is alpaca's second field; `learn`: whether an answer is learnt."""

    role: str
    content: str
    input: str = ""
    learn: bool = True
    extra: Mapping[str, Any] | None = None  # tool calls and the like, which only chat templates know

    @property
    def whole(self) -> str:
        """Content and input, as BELLE's and most converters join them."""
        return f"{self.content}\n{self.input}" if self.input else self.content

    @property
    def calls_tools(self) -> bool:
        """Whether it calls tools, which only chat templates have a form for."""
        return self.extra is not None and any(self.extra.get(key) for key in _CALLS)

    @property
    def says_something(self) -> bool:
        """Whether there is anything in it to learn: an id or a date beside an empty answer is nothing."""
        return bool(self.content.strip()) or self.calls_tools or self.thinks

    @property
    def thinks(self) -> bool:
        """Whether it has thoughts beside its content, which only chat templates have a form for."""
        return self.extra is not None and any(self.extra.get(key) for key in _THOUGHTS)


@dataclass(slots=True)
class Sample:
    """A conversation, or plain text (then there are no turns)."""

    turns: list[Turn]
    text: str | None = None
    tools: list[Any] | None = None


Reader = Callable[[dict[str, Any]], Sample]


def reader_of(form: str) -> Reader:
    """The function from a row to a Sample for a `--format`; it raises BadRowError."""
    return {"auto": _any_shape, "alpaca": _pair, "text": _text_row}.get(form, _conversation_row)


def _any_shape(row: dict[str, Any]) -> Sample:
    if type(row) is not dict:
        raise BadRowError("not-an-object", f"it is {_kind(row)}")
    # The most usual first. Tables of several shapes have all columns in every row, null where they are another shape's.
    if row.get("instruction") is not None and (row.get("output") is not None or row.get("response") is not None):
        return _pair(row)
    for key in _LISTS:
        if isinstance(row.get(key), list):
            return _conversation(row, row[key])
    if _pair_of(row) is not None:
        return _pair(row)
    if "text" in row:
        return _text_row(row)
    raise _no_shape(row)


def _pair_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The fields of question and answer: both filled, else one of them, else both null where the row has no text either."""
    for pair in _PAIRS:
        if row.get(pair[0]) is not None and row.get(pair[1]) is not None:
            return pair
    there = [pair for pair in _PAIRS if pair[0] in row and pair[1] in row]
    filled = [sum(row[name] is not None for name in pair) for pair in there]
    for wanted in (1, 0):
        if wanted in filled and (wanted or row.get("text") is None):
            return there[filled.index(wanted)]
    return None


def _no_shape(row: dict[str, Any]) -> BadRowError:
    for key in _LISTS:
        if row.get(key) is not None:
            return BadRowError("unknown-shape", f'"{key}" is {_kind(row[key])}, not a list')
    return BadRowError("unknown-shape", _fields(row))


def _pair(row: dict[str, Any]) -> Sample:
    if type(row) is not dict:
        raise BadRowError("not-an-object", f"it is {_kind(row)}")
    found = _pair_of(row)
    if found is None:
        raise BadRowError("unknown-shape", _fields(row))
    prompt, answer = found
    asked, answered = row[prompt], row[answer]
    if isinstance(asked, list) and isinstance(answered, list):  # prompt and completion as messages
        before = [turn._replace(learn=False) for turn in _turns(asked)]
        return _checked(Sample([*before, *_turns(answered)], tools=_tools(row)))
    turns: list[Turn] = []
    if not _is_empty(row.get("system")):
        turns.append(Turn("system", _text(row["system"], "system")))
    history = row.get("history")
    if not _is_empty(history) and not isinstance(history, (list, tuple)):
        raise BadRowError("not-text", '"history" is not a list of pairs')
    for pair in history or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRowError("not-text", '"history" is not a list of pairs')
        turns += (Turn("user", _text(pair[0], "history")), Turn("assistant", _text(pair[1], "history")))
    second = ("context" if _is_empty(row.get("input")) else "input") if prompt == "instruction" else ""
    beside = "" if _is_empty(row.get(second)) else _text(row[second], second)
    turns.append(Turn("user", _text(asked, prompt), beside))
    turns.append(Turn("assistant", _text(answered, answer)))
    return _checked(Sample(turns))


def _conversation_row(row: dict[str, Any]) -> Sample:
    if type(row) is not dict:
        raise BadRowError("not-an-object", f"it is {_kind(row)}")
    for key in _LISTS:
        if isinstance(row.get(key), list):
            return _conversation(row, row[key])
    raise _no_shape(row)


def _conversation(row: dict[str, Any], items: list[Any]) -> Sample:
    turns = _turns(items)
    if not _is_empty(row.get("system")) and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", _text(row["system"], "system")))
    return _checked(Sample(turns, tools=_tools(row)))


def _turns(items: Iterable[Any]) -> list[Turn]:
    turns = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise BadRowError("not-an-object", f"turn {number} is {_kind(item)}")
        said = item.get("from") if item.get("role") is None else item["role"]
        role = _ROLES.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            raise BadRowError("unknown-role", f"turn {number} is by {_shown(said)}")
        key = "content" if item.get("content") is not None or "value" not in item else "value"
        content = item.get(key)
        extra = None
        if len(item) > 2:
            extra = {k: v for k, v in item.items() if k not in ("role", "from", "content", "value", "weight", "train") and v is not None}
        if isinstance(content, list):
            content = _parts(content, number)
        elif content is None and extra and "tool_calls" in extra:
            content = ""
        if role == "assistant" and isinstance(said, str) and said.lower() == "function_call":
            content, extra = "", {**(extra or {}), "tool_calls": _called(_text(content, key), number)}
        learn = role == "assistant" and item.get("weight", 1) not in (0, False) and item.get("train", True) is not False
        turns.append(Turn(role, _text(content, key), learn=learn, extra=extra or None))
    return turns


def _called(text: str, number: int) -> list[dict[str, Any]]:
    """The calls of tools that a turn holds as JSON, one or a list, in the form that chat templates know."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise BadRowError("not-json", f"turn {number} calls a tool in text that is not JSON") from reason
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise BadRowError("not-text", f"turn {number} calls a tool without a name")
    return [{"type": "function", "function": call} for call in calls]


def _parts(parts: list[Any], number: int) -> str:
    """The text of a content given in parts; pictures and sound are no text."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            what = part.get("type") if isinstance(part, dict) else part
            raise BadRowError("not-text", f"turn {number} has a part that is not text: {_shown(what)}")
        texts.append(part["text"])
    return "".join(texts)


def _checked(sample: Sample) -> Sample:
    """`sample` when there is something to learn in it."""
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if not answers:
        raise BadRowError("no-answer")
    if not any(turn.says_something for turn in answers):
        raise BadRowError("empty-answer")
    return sample


def _text_row(row: dict[str, Any]) -> Sample:
    if type(row) is not dict:
        raise BadRowError("not-an-object", f"it is {_kind(row)}")
    if "text" not in row:
        raise BadRowError("unknown-shape", _fields(row))
    text = _text(row["text"], "text")
    if not text.strip():
        raise BadRowError("empty")
    return Sample([], text=text)


def _tools(row: dict[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as reason:
            raise BadRowError("not-json", '"tools" is text that is not JSON') from reason
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list):
        raise BadRowError("not-text", '"tools" is not a list')
    return tools


def _is_empty(value: Any) -> bool:
    """Whether an optional field says nothing. Zero and false are no text, and are told."""
    return value is None or value == "" or value == []


def _text(value: Any, key: str) -> str:
    if type(value) is str:
        return value
    raise BadRowError("not-text", f'"{key}" is {_kind(value)}')


def _fields(row: dict[str, Any]) -> str:
    return "its fields: " + (", ".join(_shown(key) for key in list(row)[:6]) or "none")


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, (str, int, float, bool)) or value is None else _kind(value)
    return repr(text[:MAX_SHOWN])


def _kind(value: object) -> str:
    if value is None:
        return "null"
    for kinds, name in (
        ((bool,), "true or false"),
        ((int, float), "a number"),
        ((str,), "a string"),
        ((bytes,), "bytes"),
        ((list, tuple), "a list"),
    ):
        if isinstance(value, kinds):
            return name
    return "an object"
