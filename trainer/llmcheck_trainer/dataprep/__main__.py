"""The process behind `llmcheck data` and `llmcheck train`: one JSON request on its standard input; prints and exits as llmcheck does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from shlex import quote
from typing import Any, NoReturn

from llmcheck.console import complain, emit, escape, terminal
from llmcheck.errors import CouldNotCheckError, UserError

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143  # 128 + SIGTERM
_AGAIN_S = 0.01


class _TerminatedError(BaseException):
    """SIGTERM, as an exception, so that the scratch folder is cleared away."""


def main(arguments: Sequence[str]) -> int:
    """Run one request ("-": on standard input); returns the exit code. A bug is a traceback here: `llmcheck data` reports it as one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    sys.unraisablehook = _raise_again
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # no process is forked here after the first text is encoded
    try:
        _need_packages()
        request: dict[str, Any] = json.loads(sys.stdin.buffer.read() if arguments[0] == "-" else arguments[0])
        return {"prepare": _prepare, "show": _show, "ready": _ready}[request.pop("action")](request)
    except UserError as error:
        lines = [f"error[{error.code}]: {error.what}"]
        lines += [f"  {label}: {text}" for label, text in (("where", error.where), ("why", error.why), ("hint", error.hint)) if text]
        complain(lines)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except _TerminatedError:
        return EXIT_TERMINATED


def _stop(number: int, *_: object) -> NoReturn:
    """The first signal ends the work; later ones must not end the clearing away."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else _TerminatedError


def _raise_again(lost: Any) -> None:
    """What raises in a callback of the interpreter's own (an import's lock, the end of an object) is lost there, a request to stop too."""
    reason = lost.exc_value
    if not isinstance(reason, (KeyboardInterrupt, _TerminatedError)):
        sys.__unraisablehook__(lost)
        return

    def stop(*_: object) -> NoReturn:
        raise reason

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _need_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("tokenizers", "numpy") if find_spec(name) is None]
    if missing:
        raise CouldNotCheckError(
            f"data preparation needs {' and '.join(missing)}",
            code="missing-package",
            where="llmcheck data",
            why="the core of llmcheck runs without",
            hint='pip install "llmcheck[data]"; with "llmcheck[fast-data]" it is many times faster',
        )


def _prepare(request: dict[str, Any]) -> int:
    from llmcheck_trainer.dataprep import report, settings
    from llmcheck_trainer.dataprep.prepare import prepare

    form = request.pop("output")
    asked = settings.from_json(json.dumps(request))
    changes: list[str] = []
    outcome = prepare(asked, lambda beginning: changes.extend(beginning.changes))
    if form == "json":
        emit(json.dumps(outcome.manifest, indent=1, ensure_ascii=False) + "\n")
        return 0
    where = terminal(sys.stdout)
    again = f" again, since {escape('; '.join(changes))}" if changes else ""
    first = f"{escape(asked.out)}: " + ("nothing has changed, the prepared data is used again" if outcome.reused else f"written{again}")
    lines = [first, *report.summary(outcome.manifest, where)]
    if outcome.note:
        lines.append(report.paint(f"note: {outcome.note}", "\x1b[33m", where))
    lines.append(f"see samples: llmcheck data show {escape(quote(asked.out))}")
    emit("\n".join(lines) + "\n")
    return 0


def _ready(request: dict[str, Any]) -> int:
    from llmcheck_trainer.dataprep import settings
    from llmcheck_trainer.dataprep.ready import Set, Wanted, make_ready

    plan = request["plan"]
    sets = [
        Set(
            flag=each["flag"],
            folder=each.get("folder"),
            settings=settings.from_json(json.dumps(each["prepare"])) if "prepare" in each else None,
        )
        for each in request["sets"]
    ]
    make_ready(sets, Wanted(**{**plan, "allowed": frozenset(plan["allowed"])}), dry=request["dry"])
    return 0


def _show(request: dict[str, Any]) -> int:
    from llmcheck_trainer.dataprep.show import Request, document, show

    form = request.pop("output")
    asked = Request(**{**request, "rows": tuple(request["rows"])})
    emit(json.dumps(document(asked), ensure_ascii=False) + "\n" if form == "json" else show(asked, terminal(sys.stdout)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
