"""A shell script as commands of words, without running it: only variables that the script itself sets to literal text are expanded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MAX_LINES = 20_000
MAX_COMMAND_LINES = 400  # that one command goes over
MAX_VALUE_CHARS = 4_096  # of a variable or word after expansion

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_DECLARATORS = ("export", "declare", "local", "readonly", "typeset", "env")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_BROKEN = re.compile(r"\\[ \t]+(#.*)?$")


@dataclass(frozen=True)
class Word:
    """One word of a command. `text` is None where it is only known when the script runs; `raw` is what stands there."""

    raw: str
    text: str | None
    line: int


@dataclass
class Script:
    """Commands in order, variables with literal values, and lines that end in a backslash and blanks, which continues nothing."""

    commands: list[list[Word]] = field(default_factory=list)
    variables: dict[str, Word] = field(default_factory=dict)
    broken_continuations: list[int] = field(default_factory=list)


def parse(text: str) -> Script:
    """The commands of `text`. What cannot be read as words (unclosed quotes) is left out."""
    script = Script()
    commands = [command for logical in _logical_lines(text, script) for command in _split(logical)]
    _assign(commands, script)
    for command in commands:
        script.commands.append([Word(word.raw, expand(word.raw, script.variables), word.line) for word in command])
    return script


def expand(raw: str, variables: dict[str, Word]) -> str | None:
    """`raw` with its variables replaced, or None where one of them, or a command's output, is not known before the script runs."""
    if "`" in raw or "$(" in raw or raw.endswith("$"):
        return None
    unknown = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal unknown
        word = variables.get(match[1] or match[2])
        if word is None or word.text is None:
            unknown = True
            return ""
        return word.text

    text = _VARIABLE.sub(replaced, raw)
    if unknown or "$" in text or len(text) > MAX_VALUE_CHARS:
        return None
    return text


def _logical_lines(text: str, script: Script) -> Iterator[list[tuple[int, str]]]:
    """Lines joined where a backslash ends them, as (number, text) of each; here-documents are left out."""
    logical: list[tuple[int, str]] = []
    closing = ""
    lines = text.replace("\r\n", "\n").split("\n")[:MAX_LINES]
    for number, line in enumerate(lines, 1):
        if closing:
            closing = "" if line.strip() == closing else closing
            continue
        if not logical and line.lstrip().startswith("#"):
            continue
        if _BROKEN.search(line) and number < len(lines) and lines[number].lstrip().startswith("-"):
            script.broken_continuations.append(number)
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 and len(logical) < MAX_COMMAND_LINES:
            logical.append((number, line[:-1]))
            continue
        logical.append((number, line))
        yield logical
        if (heredoc := _HEREDOC.search(line)) is not None and "<<<" not in line:
            closing = heredoc[2]
        logical = []
    if logical:
        yield logical


def _split(logical: Sequence[tuple[int, str]]) -> Iterator[list[Word]]:
    """The commands of one logical line."""
    command: list[Word] = []
    skip = False  # the file of a redirection
    depth = 0  # of brackets around a command's output, $(…), or an array
    for word in _words(logical):
        operator = bool(word.raw) and set(word.raw) <= set("<>&|;()")
        if depth:
            depth += word.raw.count("(") - word.raw.count(")") if operator else 0
            if depth <= 0 and word.raw[word.raw.rfind(")") + 1 :]:  # ");": the command ends as well
                yield command
                command = []
            depth = max(0, depth)
        elif operator:
            if "<" in word.raw or ">" in word.raw:
                skip = True
                if command and command[-1].raw in ("1", "2"):
                    command.pop()
                continue
            if word.raw[0] == "(" and command and command[-1].raw.endswith(("$", "=")):
                command[-1] = Word(raw=command[-1].raw.rstrip("$") + "$(", text=None, line=word.line)
                depth = max(0, word.raw.count("(") - word.raw.count(")"))
                continue
            if command:
                yield command
            command = []
        elif skip:
            skip = False
        else:
            command.append(word)
    if command:
        yield command


def _words(logical: Sequence[tuple[int, str]]) -> Iterator[Word]:
    pending, first = "", 0
    for number, text in logical:
        pending, first = (f"{pending}\n{text}", first) if pending else (text, number)
        try:
            lexer = shlex.shlex(pending, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:  # an open quote: the next line may close it
            continue
        pending = ""
        yield from (Word(raw=word, text=None, line=first) for word in words)


def _assign(commands: Sequence[Sequence[Word]], script: Script) -> None:
    """Literal assignments. A variable that gets two values is not known: which holds depends on how the script runs."""
    doubtful: set[str] = set()
    for command in commands:
        words = list(command)
        while words and words[0].raw in _DECLARATORS:
            words.pop(0)
        for word in words:
            match = _ASSIGNMENT.fullmatch(word.raw)
            if match is None:
                break
            value = expand(match[2], script.variables)
            known = script.variables.get(match[1])
            if known is not None and known.text != value:
                doubtful.add(match[1])
            script.variables[match[1]] = Word(raw=match[2], text=value, line=word.line)
        if words and words[0].raw in ("for", "read", "select", "while") and len(words) > 1:
            doubtful.add(words[1].raw)
    for name in doubtful:
        if name in script.variables:
            word = script.variables[name]
            script.variables[name] = Word(raw=word.raw, text=None, line=word.line)
