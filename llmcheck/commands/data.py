"""`llmcheck data`: training data to token files, and samples of them. The work is the trainer's, in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

from llmcheck.commands.values import choice, whole
from llmcheck.errors import UserError

if TYPE_CHECKING:
    import subprocess

MODULE = "llmcheck_trainer.dataprep"
ACTIONS = ("prepare", "show")
ROW_FORMATS = ("auto", "alpaca", "sharegpt", "belle", "messages", "text")
TEMPLATES = "tokenizer, alpaca, belle, vicuna, chatml, llama3, plain"
ROW_OPTIONS = ("template", "rows_are", "too_long", "max_bad", "pad_token", "fast", "date")
SHOW_OPTIONS = ("rows", "row", "line")
DEFAULT_ROWS = 3
MAX_SEQ_LEN = 1 << 24
MAX_ROWS = 1 << 48


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `data`."""
    parser.add_argument("action", metavar="|".join(ACTIONS), type=choice("llmcheck data", ACTIONS), help="prepare FILE...; show DIR")
    parser.add_argument("path", nargs="*", metavar="PATH", help="prepare: files of rows, or Hub names; show: the folder that prepare wrote")
    group = parser.add_argument_group("prepare")
    group.add_argument(
        "--tokenizer", "--model", metavar="DIR", help="the model's folder with its tokenizer, or a Hub name (show: where it has moved)"
    )
    group.add_argument(
        "--seq-len", metavar="TOKENS", type=whole("--seq-len", 2, MAX_SEQ_LEN, unit="tokens"), help="longest row; the rest is cut off"
    )
    group.add_argument("--out", metavar="DIR", help="the folder to write; replaced only when it holds prepared data")
    configure_rows(group)
    group = parser.add_argument_group("show")
    group.add_argument(
        "--rows",
        metavar="N",
        type=whole("--rows", 0, 10_000, unit="rows"),
        help=f"number of rows, spread over all (default: {DEFAULT_ROWS})",
    )
    group.add_argument(
        "--row",
        metavar="N",
        type=whole("--row", 0, MAX_ROWS, unit="rows"),
        action="append",
        default=[],
        help="this row, from 0; repeatable",
    )
    group.add_argument("--line", metavar="FILE:LINE", help="what became of this line of a source")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def configure_rows(group: Any) -> None:
    """Add the options that say how rows become tokens, ROW_OPTIONS."""
    group.add_argument("--template", metavar="NAME", help=f"{TEMPLATES}, or a Jinja file (default: the tokenizer's)")
    group.add_argument(
        "--rows-are",
        metavar="|".join(ROW_FORMATS),
        type=choice("--rows-are", ROW_FORMATS),
        help="shape of the rows (default: told by their fields, row by row)",
    )
    group.add_argument(
        "--too-long",
        metavar="truncate|drop",
        type=choice("--too-long", ("truncate", "drop")),
        help="conversations longer than --seq-len (plain text is cut into pieces)",
    )
    group.add_argument(
        "--max-bad",
        metavar="N",
        type=whole("--max-bad", 0, MAX_ROWS, unit="rows"),
        help="write nothing when more rows cannot be read (default: half of them)",
    )
    group.add_argument("--pad-token", metavar="TOKEN", help="padding token, where the tokenizer has none or pads with its end token")
    group.add_argument(
        "--fast",
        metavar="auto|off|require",
        type=choice("--fast", ("auto", "off", "require")),
        help="the encoder of the extra `fast-data`; the files are the same",
    )
    group.add_argument("--date", metavar="YYYY-MM-DD", help="what a chat template takes for today (default: today)")


def rows_of(args: argparse.Namespace, *, date: str) -> dict[str, Any]:
    """The options of :func:`configure_rows` as settings of a preparation; `date` where none is given. Raises UserError."""
    return {
        "template": args.template or "auto",
        "format": args.rows_are or "auto",
        "too_long": args.too_long or "truncate",
        "max_bad": args.max_bad,
        "pad_token": args.pad_token,
        "fast": args.fast or "auto",
        "date": date if args.date is None else _date(args.date),
    }


def run(args: argparse.Namespace) -> int:
    """Hand the request to the trainer's process; returns its exit code."""
    request = _prepare(args) if args.action == "prepare" else _show(args)
    return call({**request, "output": args.format})


def _prepare(args: argparse.Namespace) -> dict[str, Any]:
    if not args.path:
        raise UserError(
            "which files? none is named", code="usage", where="llmcheck data prepare", hint="llmcheck data prepare train.jsonl ..."
        )
    for value, flag in ((args.tokenizer, "--tokenizer"), (args.seq_len, "--seq-len"), (args.out, "--out")):
        if value is None:
            raise UserError(
                f"{flag} is missing",
                code="usage",
                where="llmcheck data prepare",
                hint="llmcheck data prepare train.jsonl --tokenizer DIR --seq-len 2048 --out data",
            )
    _refuse(args, SHOW_OPTIONS, "prepare", "show")
    return {
        "action": "prepare",
        "files": args.path,
        "tokenizer": args.tokenizer,
        "seq_len": args.seq_len,
        "out": args.out,
        **rows_of(args, date=date.today().isoformat()),
    }


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as reason:
        told, hint = f"--date needs YYYY-MM-DD, not {text[:60]!r}", "for example --date 2026-01-31"
        raise UserError(told, code="usage", where="--date", why="chat templates are given a day", hint=hint) from reason


def _show(args: argparse.Namespace) -> dict[str, Any]:
    if len(args.path) != 1:
        raise UserError("data show takes one folder", code="usage", where="llmcheck data show", hint="llmcheck data show DIR")
    _refuse(args, ("seq_len", "out", *ROW_OPTIONS), "show", "prepare")
    if args.rows is not None and (args.row or args.line):
        raise UserError(
            "--rows spreads rows over all", code="conflict", where="--rows", why="--row and --line name theirs", hint="give one"
        )
    if args.row and args.line:
        raise UserError("--row and --line both say which rows", code="conflict", where="--row, --line", hint="give one")
    return {
        "action": "show",
        "path": args.path[0],
        "num_rows": DEFAULT_ROWS if args.rows is None else args.rows,
        "rows": args.row,
        "line": args.line,
        "tokenizer": args.tokenizer,
    }


def _refuse(args: argparse.Namespace, names: tuple[str, ...], action: str, other: str) -> None:
    """Raises UserError where an option of the other action is given: it would do nothing."""
    for name in names:
        if getattr(args, name) not in (None, []):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} belongs to `data {other}`", code="usage", where=f"llmcheck data {action}", hint="leave it out")


def call(request: dict[str, Any], *, command: str = "llmcheck data") -> int:
    """Have the trainer's process do `request`; its exit code. Raises UserError where it was killed while `command` waited."""
    import signal
    import subprocess  # both only here: `llmcheck --help` does without

    # The same packages as this process, and nothing from the current folder unless this process has it too.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    running: list[subprocess.Popen[bytes]] = []
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        for process in running:
            process.terminate()

    # What a scheduler sends before it kills, or a terminal that closes, would end this process alone and leave the other at work.
    numbers = [number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        # By a pipe: one argument holds 128 KiB, the names of some thousand files.
        process = subprocess.Popen([sys.executable, "-m", MODULE, "-"], env=environment, stdin=subprocess.PIPE)
        running.append(process)
        if asked:
            process.terminate()
        code, interrupted = _answer(process, json.dumps(request).encode())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == 0 and (asked or interrupted):  # it was done already, or did not hear: whoever asked wants nothing more to begin
        return 128 + signal.SIGINT if interrupted else 128 + signal.SIGTERM
    if code == 1:  # a traceback, which it printed
        raise RuntimeError("the process that prepares data failed")
    if code == -signal.SIGKILL:
        raise UserError(
            "the process that prepares data was killed",
            code="killed",
            where=command,
            why="by another process, or by the system for want of memory",
            hint="run it again: nothing half-written is left that a later run would take for data",
        )
    return code if code >= 0 else 128 - code


def _answer(process: subprocess.Popen[bytes], text: bytes) -> tuple[int, bool]:
    """Hand `text` to the process, and wait for its exit code; whether Ctrl-C was pressed: then it got it too, clears away and ends."""
    assert process.stdin is not None
    interrupted = False
    try:
        process.stdin.write(text)
        process.stdin.flush()
    except BrokenPipeError:  # it has ended before it read; its exit code says why
        pass
    except KeyboardInterrupt:
        interrupted = True
    with suppress(BrokenPipeError):
        process.stdin.close()
    while True:
        try:
            return process.wait(), interrupted
        except KeyboardInterrupt:  # noqa: PERF203 - as often as somebody presses the keys
            interrupted = True
