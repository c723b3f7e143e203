"""The two streams of the command line: stdout carries the answer and nothing else, stderr everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TextIO

from llmcheck.errors import UserError

MAX_COLUMNS = 100  # wider lines are hard to read; the text report is laid out for this
MIN_COLUMNS = 60
_STDOUT_HINT = "is it closed, or its disk full? write it elsewhere: llmcheck ... > FILE"


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What the stream that text goes to can show."""

    columns: int = MAX_COLUMNS
    colour: bool = False
    unicode: bool = True


def terminal(stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> Terminal:
    """What `stream` can show: colour on a terminal only, unless NO_COLOR or FORCE_COLOR say otherwise; its width, at most 100."""
    tty = is_terminal(stream)
    if environ.get("NO_COLOR"):
        colour = False
    elif environ.get("FORCE_COLOR", "0") not in ("", "0"):
        colour = True
    else:
        colour = tty and environ.get("TERM") != "dumb"
    columns = _columns(stream, environ) if stream is not None and tty else MAX_COLUMNS
    return Terminal(columns=columns, colour=colour, unicode=stream is not None and _can_draw(stream))


def is_terminal(stream: TextIO | None) -> bool:
    """True when a person may be at `stream`. A process may be started without it (``2>&-``): then it is None."""
    return stream is not None and not stream.closed and stream.isatty()


def _columns(stream: TextIO, environ: Mapping[str, str]) -> int:
    columns = environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and 0 < len(columns) < 6:
        width = int(columns)
    else:
        try:
            width = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            width = MAX_COLUMNS
    return min(max(width, MIN_COLUMNS), MAX_COLUMNS) if width else MAX_COLUMNS


def _can_draw(stream: TextIO) -> bool:
    """True when the stream's encoding has the characters that the report draws with."""
    try:
        "█▓▒░▌Δ±×·─│".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def emit(text: str, *, commands: bool = False) -> None:
    """Write `text` to stdout and flush. A closed pipe (`| head`) is not an error; a full disk is UserError.

    `commands`: the text is meant for a pipeline's runner; else nothing in it is left that a runner would act on.
    """
    if sys.stdout is None:
        raise UserError("cannot write the answer: standard output is closed", code="output", where="stdout", hint=_STDOUT_HINT)
    try:
        _write(sys.stdout, text if commands else inert(text))
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as reason:
        _silence(sys.stdout)
        told = f"cannot write the answer: {reason.strerror or reason}"
        raise UserError(told, code="output", where="stdout", hint=_STDOUT_HINT) from reason


def complain(lines: Iterable[str]) -> None:
    """Write lines to stderr, control characters made visible. Never raises: there is nowhere left to say so."""
    text = inert("".join(escape(line) + "\n" for line in lines))
    try:
        if sys.stderr is not None:  # closed by `2>&-`
            _write(sys.stderr, text)
    except (OSError, ValueError):
        pass


def tell(text: str) -> None:
    """Write laid-out text (a report, which has escaped what is not ours) to stderr. Never raises, like :func:`complain`."""
    try:
        if sys.stderr is not None:
            _write(sys.stderr, inert(text))
    except (OSError, ValueError):
        pass


def inert(text: str) -> str:
    """`text` without what the runner of a pipeline takes for a command to itself.

    GitHub reads ``::error::`` at a line's beginning (blanks before it do not count) and ``##[error]`` anywhere; Azure ``##vso[``, TeamCity
    ``##teamcity[``. Source: actions/runner, ActionCommand.cs.
    """
    if "##" in text:
        for word in ("##[", "##vso[", "##teamcity["):
            text = text.replace(word, f"# {word[1:]}")
    if "::" not in text:
        return text
    lines = text.split("\n")
    for index, line in enumerate(lines):
        bare = line.lstrip()
        if bare.startswith("::"):
            lines[index] = f"{line[: len(line) - len(bare)]}: {bare[1:]}"
    return "\n".join(lines)


def escape(text: str) -> str:
    """`text` with control, direction-changing and undecodable characters spelt out, so that a name cannot drive the terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    # Never die of a character that the terminal does not have: spell it out instead.
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _silence(stream: TextIO) -> None:
    """Point the stream's descriptor at the null device, so that the interpreter's own flush at exit does not fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
