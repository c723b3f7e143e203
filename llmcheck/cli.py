"""The command line: picks a command, loads only its module, and turns every outcome into an exit code.

Exit codes: 0 clean; 1 findings, or the plan does not fit; 2 bad usage or input; 3 could not check; 70 bug; 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from llmcheck import __version__
from llmcheck.console import complain, emit
from llmcheck.errors import SEPARATOR, UserError, did_you_mean

# name -> (module, one line of help). A name is added together with its module, its page in docs/reference and its tests.
COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("llmcheck.commands.plan", "will it fit, with which settings, and how long will it take"),
    "train": ("llmcheck.commands.train", "run a plan with the bundled DeepSpeed trainer"),
    "probe": ("llmcheck.commands.probe", "the first steps of a plan on one GPU beside the plan; what this GPU reaches"),
    "compare": ("llmcheck.commands.compare", "what a plan predicted beside what its run measured"),
    "launch": ("llmcheck.commands.launch", "the command or job file that runs a plan on a cluster"),
    "doctor": ("llmcheck.commands.doctor", "what is wrong with an environment, a tokenizer, a configuration, data or a log"),
    "explain": ("llmcheck.commands.explain", "what a finding means, why, and what to do"),
    "rules": ("llmcheck.commands.rules", "list, lint and test the rules; start a new one"),
    "data": ("llmcheck.commands.data", "make training data ready: token files that every rank maps into memory; show samples"),
    "models": ("llmcheck.commands.models", "list the models of the catalogue, or show one"),
    "gpus": ("llmcheck.commands.gpus", "list the GPUs of the catalogue, or show one"),
}

EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT
_PATH = re.compile(r"\b(?:FILE|DIR|FOLDER|PATH)\b")  # in what help shows for the value of an option
_MAX_ARGUMENTS_CHARS = 2000  # of them that the block about a bug repeats; a shell's pattern can stand for thousands of files


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError instead of printing usage and exiting."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise `message` (argparse's words) as UserError."""
        hint = f"`{self.prog} --help` lists the options"
        match = re.match(r"argument (?P<flag>\S+): (?P<rest>.*)", message, re.DOTALL)
        if match is None:
            raise UserError(message, code="usage", where=self.prog, hint=hint)
        flag, rest = match["flag"].split("/")[0], match["rest"]
        if "expected one argument" in rest:
            raise UserError(f"{flag} needs a value", code="usage", where=flag, hint=hint)
        raise UserError(f"{flag}: {rest}", code="usage", where=flag, hint=hint)

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like `parse_args`, but names the unknown option or argument and what was probably meant."""
        args, rest = self.parse_known_intermixed_args(argv)  # files may stand between options
        self._refuse_empty_paths(args)
        if not rest:
            return args
        flags = [flag for action in self._actions for flag in action.option_strings]
        first = rest[0]
        if first.startswith("-") and first != "-":
            name = first.split("=")[0]
            raise UserError(
                f"unknown option {name!r}",
                code="usage",
                where=self.prog,
                hint=did_you_mean(name, flags) or f"`{self.prog} --help` lists the options",
            )
        raise UserError(
            f"unexpected argument {first!r}",
            code="usage",
            where=self.prog,
            hint=f"every value follows its option; `{self.prog} --help` lists the options",
        )

    def _refuse_empty_paths(self, args: argparse.Namespace) -> None:
        """An empty path is mostly an unset variable of a script; taken for "not given" it would check nothing and exit with 0."""
        for action in self._actions:
            takes_path = isinstance(action.metavar, str) and _PATH.search(action.metavar)
            given = getattr(args, action.dest, None)
            if takes_path and "" in (given if isinstance(given, list) else [given]):
                flag = action.option_strings[0] if action.option_strings else ""
                raise UserError(
                    f"{flag or 'a path'} is empty",
                    code="usage",
                    where=self.prog,
                    why="it names a file or a folder; an unset variable of the shell?",
                    hint=f"give the path, or leave {flag} out" if flag else "name a file or a folder",
                )


class _HelpFormatter(argparse.HelpFormatter):
    """Help at no more than 100 columns, option and metavar in one column of 34."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 34, width: int | None = None, **kwargs: Any) -> None:
        # 3.14's argparse passes `color`; older versions know no such argument.
        super().__init__(prog, indent_increment, max_help_position, width or 100, **kwargs)


def parser_of(command: str) -> Parser:
    """The parser of `command`, its options added; loads the command's module."""
    module, summary = COMMANDS[command]
    parser = Parser(prog=f"llmcheck {command}", description=summary[0].upper() + summary[1:] + ".")
    _load(module).configure(parser)
    return parser


def help_text() -> str:
    """What `llmcheck --help` prints; loads no command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: llmcheck COMMAND [OPTIONS]",
            "",
            "Check an LLM fine-tuning run before it is launched.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --help     this text; `llmcheck COMMAND --help` for a command",
            "  --version  the version",
            "",
            "exit codes: 0 clean, 1 findings or the plan does not fit, 2 bad usage or input, 3 could not check,",
            "            70 a bug in llmcheck, 130 interrupted",
            "",
            "example: llmcheck plan --model bloomz-7b1 --gpus 8",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    collecting = gc.isenabled()
    gc.disable()  # a command ends before there is garbage worth the time: looking for it while modules load takes a tenth of a short plan
    try:
        return _dispatch(args)
    except UserError as error:
        _complain_of(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # argparse's --help
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as bug:  # the last line of defence: a bug is reported as such, never as the user's fault
        _report_bug(bug, args)
        return EXIT_BUG
    finally:
        if collecting:
            gc.enable()


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        if len(args) > 1 and args[0] == "help" and args[1] in COMMANDS:
            return _dispatch([args[1], "--help"])
        emit(help_text())
        return 0
    if args[0] in ("-V", "--version"):
        emit(f"llmcheck {__version__}\n")
        return 0
    name = args[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        pool = [*COMMANDS, "--help", "--version"]
        hint = did_you_mean(name, pool) or "commands: " + ", ".join(COMMANDS)
        raise UserError(f"unknown {kind} {name!r}", code="usage", where="llmcheck", hint=hint)
    parser = parser_of(name)
    if any(arg in ("-h", "--help") for arg in args[1:]):
        emit(parser.format_help())
        return 0
    code: int = _load(COMMANDS[name][0]).run(parser.parse_strictly(args[1:]))
    return code


def _load(module: str) -> Any:
    """Import `module` (importlib.import_module without the 2 ms that importlib's own import takes)."""
    __import__(module)
    return sys.modules[module]


def _complain_of(error: UserError) -> None:
    lines = [f"error[{error.code}]: {error.what}"]
    for label, text in (("where", error.where), ("why", error.why), ("hint", error.hint)):
        first, *rest = text.split(SEPARATOR)
        lines += [f"  {label}: {first}", *(f"       {part}" for part in rest)] if text else []
    complain(_without_secrets(lines))


def _without_secrets(lines: list[str]) -> list[str]:
    """Errors quote files (an address in requirements.txt with its password), and pipelines keep them."""
    try:
        from llmcheck.report.redact import hide_secrets
    except Exception:  # nothing may keep an error from being told
        return lines
    return [hide_secrets(line) for line in lines]


def _report_bug(bug: Exception, args: list[str]) -> None:
    """Say on stderr that this is our fault, with what a bug report needs; the whole traceback goes to a file."""
    import platform
    import tempfile
    import traceback

    frames = traceback.extract_tb(bug.__traceback__)[-3:]
    lines = [
        f"bug: {type(bug).__name__}: {bug}",
        "  llmcheck failed; your input may be fine. Please report this block:",
        f"  llmcheck {__version__}, Python {platform.python_version()}, {sys.platform}",
        f"  arguments: {repr(args)[:_MAX_ARGUMENTS_CHARS]}",
        *[f"  at {os.path.basename(os.path.dirname(f.filename))}/{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in frames],
    ]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="llmcheck-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"llmcheck {__version__}, Python {sys.version}\narguments: {args!r}\n\n")
            file.writelines(traceback.format_exception(bug))
        lines.append(f"  full report: {file.name}")
    except OSError as reason:
        lines.append(f"  (no full report: {reason})")
    complain(lines)
