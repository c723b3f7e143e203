"""`llmcheck doctor`: what is wrong with this environment, a tokenizer, a configuration, data, a plan or a log; why; and the fix."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from llmcheck.commands.values import choice
from llmcheck.console import complain, emit, terminal
from llmcheck.doctor import recognise
from llmcheck.doctor.examine import examine
from llmcheck.doctor.subjects import Request, gather
from llmcheck.errors import UserError, did_you_mean
from llmcheck.files import find_place, write_atomically
from llmcheck.report import settings as gate_settings
from llmcheck.report.finding import Finding, Report
from llmcheck.report.gate import Gate, apply, exit_code, sure_enough, visible
from llmcheck.report.redact import hide_secrets
from llmcheck.report.secretless import finding_without_secrets, without_secrets
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_all, shipped_codes, shipped_ids
from llmcheck.rules.rule import CONFIDENCES, Pack

FORMATS = ("text", "json", "sarif", "junit", "github", "markdown")
FAIL_ON = ("error", "warning", "info", "never")

# How each form begins, or what it holds: only such a file is replaced without --force.
_MARKS = {
    "json": b'"schema": "llmcheck.report/',
    "sarif": b'"name": "llmcheck"',
    "junit": b'<testsuites name="llmcheck"',
    "github": b",title=",
    "markdown": b"### llmcheck doctor",
    "text": b"   examined: ",
    "baseline": b'"schema": "llmcheck.baseline/',
}
_WINDOW_BYTES = (16 << 20, 256 << 20)  # of a log, unless --full: how it began, and how it ended
_PINS = ("requirements.txt", "pyproject.toml", "uv.lock", "poetry.lock", "environment.yml", gate_settings.FILE)


@dataclass(frozen=True)
class _Output:
    """One form of the report, and the file that it goes to (None: stdout)."""

    form: str
    path: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.add_argument("path", nargs="*", metavar="PATH", help="files and folders to examine, each told by its name and content")
    what = parser.add_argument_group("what to examine (without any: this environment)")
    what.add_argument("--log", metavar="FILE", action="append", default=[], help="a log of a run, - for stdin; repeatable")
    what.add_argument("--full", action="store_true", help="read large logs whole, not only their first 16 and last 256 MiB")
    what.add_argument("--follow", action="store_true", help="go on reading the log as the run writes it; Ctrl-C ends")
    what.add_argument("--tokenizer", metavar="DIR", help="a tokenizer's folder")
    what.add_argument("--model", metavar="DIR", help="a model's folder: its configuration and the heads of its weight files")
    what.add_argument("--ds-config", metavar="FILE", help="a DeepSpeed configuration")
    what.add_argument("--train-args", metavar="FILE", help="training arguments: a launch script, or a JSON or YAML file")
    what.add_argument("--requirements", metavar="FILE", help="pinned packages: requirements.txt, pyproject.toml, environment.yml")
    what.add_argument("--lock", metavar="FILE", help="a lock file: uv, Poetry, PDM, Pipenv, pylock.toml")
    what.add_argument("--data", metavar="FILE", action="append", default=[], help="training data in JSON or JSON lines; repeatable")
    what.add_argument("--plan", metavar="FILE", help="a plan file of `llmcheck plan --out`")
    what.add_argument("--hostfile", metavar="FILE", help="DeepSpeed's hostfile")
    what.add_argument("--reach", action="store_true", help="try whether the hosts of the hostfile answer (SSH port)")
    what.add_argument("--python", metavar="PATH", help="look into another interpreter's packages instead of this one's")
    what.add_argument("--all", action="store_true", help="the environment too, beside what is given")
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--fail-on", metavar="|".join(FAIL_ON), type=choice("--fail-on", FAIL_ON), help="exit 1 from this severity on (default: error)"
    )
    gate.add_argument(
        "--min-confidence",
        metavar="|".join(CONFIDENCES),
        type=choice("--min-confidence", CONFIDENCES),
        help="what is less sure does not count and is told in no form, but how many it was (default: low)",
    )
    gate.add_argument("--select", metavar="CODES", default="", help="judge only codes that begin so: LCV,LCT003")
    gate.add_argument("--ignore", metavar="CODES", default="", help="do not judge codes that begin so")
    gate.add_argument("--allow-unknown", metavar="CODE", action="append", default=[], help="a rule that may stay undecided; repeatable")
    gate.add_argument("--strict", action="store_true", help="exit 3 when any rule could not be decided, not only those of severity error")
    gate.add_argument("--exit-zero", action="store_true", help="exit 0 in place of 1")
    gate.add_argument("--settings", metavar="FILE", help=f"settings and ignores (default: {gate_settings.FILE}, where it exists)")
    gate.add_argument("--baseline", metavar="FILE", help="findings in it are known and do not count")
    gate.add_argument("--write-baseline", metavar="FILE", help="write the findings of this run as the baseline")
    gate.add_argument("--rules", metavar="DIR", action="append", default=[], help="a team's own pack beside ours; repeatable")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--format",
        metavar="FORM[=FILE]",
        action="append",
        default=[],
        help=f"{', '.join(FORMATS)}; to stdout, or with =FILE to a file; repeatable (default: text)",
    )
    out.add_argument("--verbose", action="store_true", help="text: passed, skipped and suppressed rules too")
    out.add_argument("--bundle", metavar="FILE", help="write a redacted report to attach to an issue (.tar.gz); its manifest is shown")
    out.add_argument("--force", action="store_true", help="replace files that are not llmcheck's")


def run(args: argparse.Namespace) -> int:
    """Examine, report, and return the exit code."""
    requests = _requests(args)
    outputs = _outputs(args)
    registry = load_registry()
    _check_places(args, outputs)
    settings = gate_settings.load(args.settings)
    logs = [log for request in requests for log in request.logs]
    gathered = gather(requests)
    packs = load_all(registry, [*settings.rules_here(), *args.rules], _packs(bool(gathered.wanted), bool(logs)))
    gate = _gate(args, settings, packs)
    today = date.today()
    report = examine(packs, gathered, registry, gate, today)
    if logs and args.follow:
        report = _follow(report, logs[0], packs, gate, today)
    elif logs:
        from llmcheck.doctor.logs import add_logs
        from llmcheck.logs.source import Window

        report = add_logs(report, logs, packs, gate, today, window=None if args.full else Window(*_WINDOW_BYTES))
    report = sure_enough(apply(without_secrets(report), gate, today), gate)
    code = exit_code(report, gate)
    code = 0 if code == 1 and args.exit_zero else code
    for output in outputs:
        _write(output, report, gate, code, args)
    if args.write_baseline:
        _write_baseline(report, args)
    if args.bundle:
        from llmcheck.doctor.bundle import write_bundle

        write_bundle(args.bundle, report, gathered, exit_code=code)
    return code


def _follow(report: Report, path: str, packs: Sequence[Pack], gate: Gate, today: date) -> Report:
    """Tell on stdout what is new as the run writes it; the whole report comes when a pipe ends. Ctrl-C ends with 130, without a report."""
    from llmcheck.doctor import logs
    from llmcheck.render import report_text

    where = terminal(sys.stdout)

    def tell(findings: Sequence[Finding], notice: str) -> None:
        if notice:
            complain([hide_secrets(f"note: {notice}")])
        if findings:
            told = visible(findings, gate.min_confidence)
            emit(report_text.render_findings([finding_without_secrets(finding) for finding in told], where))

    results = logs.follow(path, packs, gate, today, tell)
    return logs.with_logs(report, results, packs, gate, today)


def _requests(args: argparse.Namespace) -> list[Request]:
    """What the options ask for, and one request for each path: two files of one kind are two subjects."""
    given = [
        args.tokenizer,
        args.model,
        args.ds_config,
        args.train_args,
        args.requirements,
        args.lock,
        args.plan,
        args.hostfile,
        args.python,
    ]
    named = any(value is not None for value in given) or bool(args.log) or bool(args.data)
    if args.requirements is not None and args.lock is not None:
        raise UserError("--requirements and --lock are two answers to one question", code="conflict", where="--lock", hint="give one")
    if args.reach and args.hostfile is None:
        raise UserError("--reach needs a hostfile", code="usage", where="--reach", hint="--hostfile FILE")
    asked = Request(
        environment=args.all or not (named or args.path),
        python=args.python,
        requirements=args.requirements,
        lock=args.lock,
        tokenizer=args.tokenizer,
        model=args.model,
        ds_config=args.ds_config,
        train_args=args.train_args,
        data=tuple(args.data),
        plan=args.plan,
        hostfile=args.hostfile,
        reach=args.reach,
        logs=tuple(args.log),
    )
    from_paths = recognise.requests(args.path)
    found = [asked, *from_paths] if named or args.all or not from_paths else from_paths
    if args.follow and sum(len(request.logs) for request in found) != 1:
        raise UserError("--follow reads one log", code="usage", where="--follow", hint="give one log")
    return found


def _outputs(args: argparse.Namespace) -> list[_Output]:
    outputs = []
    for text in args.format or ["text"]:
        form, equals, path = text.partition("=")
        if form not in FORMATS:
            raise UserError(
                f"--format cannot be {form!r}",
                code="usage",
                where="--format",
                why="it takes one of " + ", ".join(FORMATS),
                hint=did_you_mean(form, FORMATS),
            )
        if equals and not path:
            raise UserError(f"--format {form}= names no file", code="usage", where="--format", hint=f"{form}=report.{form}")
        outputs.append(_Output(form, path or None))
    if sum(output.path is None for output in outputs) > 1:
        raise UserError("only one form can go to stdout", code="usage", where="--format", hint="give the others a file: sarif=report.sarif")
    return outputs


def _check_places(args: argparse.Namespace, outputs: Sequence[_Output]) -> None:
    """Fail before the work, not after it, when an output cannot be written."""
    for output in outputs:
        if output.path is not None:
            find_place(output.path, flag="--format", replaceable=_replaceable(output.form), force=args.force)
    if args.write_baseline:
        find_place(args.write_baseline, flag="--write-baseline", replaceable=_replaceable("baseline"), force=args.force)
    if args.bundle:
        find_place(args.bundle, flag="--bundle", replaceable=lambda _: False)


def _packs(subjects: bool, logs: bool) -> list[str]:
    """The packs that are needed: signatures are for logs and for nothing else, and they are half of all rules."""
    return [name for name in shipped_ids() if (logs if name == "signatures" else subjects)]


def _gate(args: argparse.Namespace, settings: gate_settings.Settings, packs: Sequence[Pack]) -> Gate:
    codes = (*shipped_codes(), *(rule.code for pack in packs for rule in pack.rules))
    select, ignore = _codes(args.select), _codes(args.ignore)
    gate_settings.check(settings, codes, args.settings or gate_settings.FILE)
    gate_settings.check_prefixes("--select", select, codes)
    gate_settings.check_prefixes("--ignore", ignore, codes)
    allowed = tuple(code.strip().upper() for code in args.allow_unknown)
    gate_settings.check_prefixes("--allow-unknown", allowed, codes, whole=True)
    return gate_settings.gate(
        settings,
        fail_on=args.fail_on,
        min_confidence=args.min_confidence,
        select=select,
        ignore=ignore,
        baseline=args.baseline,
        allow_unknown=allowed,
        strict=args.strict,
    )


def _codes(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split(",") if part.strip())


def _replaceable(form: str) -> Any:
    return lambda old: not old or _MARKS[form] in old


def _write(output: _Output, report: Report, gate: Gate, code: int, args: argparse.Namespace) -> None:
    text = _render(output, report, gate, code, args)
    if output.path is None:
        emit(text, commands=output.form == "github")
    else:
        write_atomically(output.path, text.encode("utf-8"), flag="--format", replaceable=_replaceable(output.form), force=args.force)


def _render(output: _Output, report: Report, gate: Gate, code: int, args: argparse.Namespace) -> str:
    """The report in the form asked for; each form's module is loaded only then."""
    if output.form == "json":
        from llmcheck.render import report_json

        return report_json.render(report, code)
    if output.form == "sarif":
        from llmcheck.render import sarif

        return sarif.render(report, gate, fallback=next(_pins(args), gate_settings.FILE))
    if output.form == "junit":
        from llmcheck.render import junit

        return junit.render(report, gate)
    if output.form == "github":
        from llmcheck.render import annotations

        return annotations.render(report, gate)
    if output.form == "markdown":
        from llmcheck.render import report_markdown

        return report_markdown.render(report, code)
    from llmcheck.console import Terminal
    from llmcheck.render import report_text

    where = terminal(sys.stdout) if output.path is None else Terminal()
    return report_text.render(report, code, where, verbose=args.verbose)


def _pins(args: argparse.Namespace) -> Iterator[str]:
    """Files that pin the environment: what findings about it point to."""
    import os

    yield from (path for path in (args.requirements, args.lock) if path is not None)
    yield from (name for name in _PINS if os.path.isfile(name))


def _write_baseline(report: Report, args: argparse.Namespace) -> None:
    import json

    document = gate_settings.baseline_document(report.findings)
    data = (json.dumps(document, indent=1) + "\n").encode()
    write_atomically(args.write_baseline, data, flag="--write-baseline", replaceable=_replaceable("baseline"), force=args.force)
