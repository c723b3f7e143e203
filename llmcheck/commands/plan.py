"""``llmcheck plan``: will it fit, with which settings, and how long will it take."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from llmcheck.commands.next_steps import next_steps
from llmcheck.commands.request import configure_request, request_of, solve_request
from llmcheck.commands.values import add_choice, add_option
from llmcheck.errors import UserError
from llmcheck.planner.plan import Plan, SolveResult


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    configure_request(parser)
    add_choice(
        parser.add_argument_group("data"),
        "--packing",
        ("on", "off"),
        "several rows in a sequence, none seeing another (default: off)",  # `llmcheck train` has an option of that name, too
    )
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add_choice(group, "--format", ("text", "json", "markdown"), "form of the answer on stdout (default: text)")
    group.add_argument(
        "--verbose", action="store_true", help="text: everything, however long, and the next command with every choice spelt out"
    )
    add_option(group, "--out", "FILE", str, "write the plan file (JSON) too")
    add_option(group, "--timeline", "FILE", _timeline_path, "draw memory over one step, by category: FILE.svg, or FILE.png with matplotlib")
    group.add_argument("--force", action="store_true", help="let --out and --timeline replace files that are not llmcheck's own")
    add_choice(
        group, "--fail-on", ("error", "warning", "never"), "exit 1 when it does not fit (error, the default), also when tight (warning)"
    )


def run(args: argparse.Namespace) -> int:
    """Plan, write the files asked for, print the answer. Returns 0 or 1 by `--fail-on`."""
    _check_places(args)
    request, notes = request_of(args)
    try:
        plan, solved = solve_request(request)
    except UserError as error:
        if error.code == "ds-config" and args.ds_config is not None:  # the planner knows the values, not the file
            error.where = f"--ds-config {args.ds_config}"
        raise
    plan = replace(plan, findings=(*plan.findings, *notes))
    if solved is not None:
        solved = replace(solved, plan=plan)
    _write_files(plan, solved, args)
    _print(plan, solved, args)
    return exit_code(plan, solved, args.fail_on or "error")


def exit_code(plan: Plan, solved: SolveResult | None, fail_on: str) -> int:
    """1 when the plan fails by `fail_on`: error (does not fit, or an error finding), warning (also tight, or a warning), never."""
    if fail_on == "never":
        return 0
    severities = {finding.severity for finding in plan.findings}
    if plan.verdict == "does-not-fit" or "error" in severities or (solved is not None and solved.value is None):
        return 1
    return 1 if fail_on == "warning" and (plan.verdict == "tight" or "warning" in severities) else 0


def _timeline_path(text: str) -> str:
    if text.lower().endswith((".svg", ".png")):
        return text
    why, hint = "the name must end in .svg or .png", "for example --timeline memory.svg"
    raise UserError(f"--timeline cannot write {text!r}", code="usage", where="--timeline", why=why, hint=hint)


def _check_places(args: argparse.Namespace) -> None:
    """Fail before the work, not after it, where a file could not be written."""
    if args.out is None and args.timeline is None:
        return
    if args.out and args.timeline and os.path.realpath(args.out) == os.path.realpath(args.timeline):
        raise UserError("--out and --timeline name one file", code="conflict", where=args.out, hint="name two")
    from llmcheck.files import find_place
    from llmcheck.planfile import is_untouched_plan
    from llmcheck.render.timeline import is_ours

    for path, flag, judge in ((args.out, "--out", is_untouched_plan), (args.timeline, "--timeline", is_ours)):
        if path is not None:
            find_place(path, flag=flag, replaceable=judge, force=args.force)


def _write_files(plan: Plan, solved: SolveResult | None, args: argparse.Namespace) -> None:
    """The files first: when one cannot be written, nothing is on stdout."""
    if args.timeline is not None:
        from llmcheck.files import write_atomically
        from llmcheck.render import timeline

        draw = timeline.svg if args.timeline.lower().endswith(".svg") else timeline.png
        write_atomically(args.timeline, draw(plan), flag="--timeline", replaceable=timeline.is_ours, force=args.force)
    if args.out is not None:
        from llmcheck import planfile

        document = planfile.document(plan, solve=solved, out=os.path.abspath(args.out))
        planfile.write(args.out, document, force=args.force)


def _print(plan: Plan, solved: SolveResult | None, args: argparse.Namespace) -> None:
    from llmcheck.console import emit, terminal

    if args.format == "json":
        from llmcheck import planfile

        emit(planfile.dumps(planfile.document(plan, solve=solved, out=os.path.abspath(args.out) if args.out else "plan.json")))
        return
    if args.format == "markdown":
        from llmcheck.render import markdown

        emit(markdown.render(plan, solve=solved, next_steps=next_steps(plan, args, explicit=True)))
        return
    from llmcheck.render import text

    steps = next_steps(plan, args, explicit=args.verbose)
    emit(text.render(plan, solve=solved, next_steps=steps, terminal=terminal(sys.stdout), verbose=args.verbose))
