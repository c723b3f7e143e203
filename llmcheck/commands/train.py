"""``llmcheck train``: run a plan with the bundled trainer: checks, prepares the data, runs the launcher. Loads no torch."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import Any, NoReturn

from llmcheck import lock
from llmcheck.commands import data as preparing
from llmcheck.commands import launcher, packages, preflight, train_data
from llmcheck.commands import request as planning
from llmcheck.commands.values import choice, number, whole
from llmcheck.errors import UserError
from llmcheck.planfile import Allowed, PlanFile
from llmcheck.planner.plan import Plan, SolveResult
from llmcheck.types import TrainSettings

NEEDED = ("torch", "transformers", "deepspeed", "llmcheck_trainer")
_STEPS = 10**9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add_run(parser, raw=True)
    group = parser.add_argument_group("how files of rows are prepared, once, before any rank starts")
    group.add_argument("--tokenizer", metavar="DIR", help="a folder with a tokenizer, or a Hub name (default: the one beside the weights)")
    preparing.configure_rows(group)
    group = parser.add_argument_group("how it is started")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print the command and its environment, and what would be prepared, by the first rows; start and prepare nothing",
    )
    group.add_argument("--force", action="store_true", help="let the plan made from --model replace a plan.json that was edited")
    planning.configure_request(parser)


def add_run(parser: argparse.ArgumentParser, *, raw: bool) -> None:
    """Add the options that say what is run: the plan, and all of TrainSettings. `raw`: files of rows are taken, and doctor is asked."""
    group = parser.add_argument_group("what is run")
    first = "; without it, --model and the other options of `llmcheck plan` make one first" if raw else ""
    _value(group, "--plan", "FILE", str, "plan file to run" + first)
    kinds = "files of rows (JSON lines, JSON, Parquet, Arrow, text), or " if raw else ""
    _files(group, "--data", raw, kinds + "the folder that `llmcheck data prepare` wrote")
    _value(group, "--output", "FOLDER", str, "checkpoints, log, run.json and the trained model; every node must see it")
    _files(group, "--eval-data", raw, "held-out data, like --data")
    _value(group, "--weights", "FOLDER|NAME", str, "weights to start from (default: the plan's folder or Hub name)")
    _value(group, "--launcher", "deepspeed|torchrun", choice("--launcher", ("deepspeed", "torchrun")), "what starts the ranks")
    _value(group, "--hostfile", "FILE", str, "DeepSpeed hostfile of a plan with several nodes; checked first")
    _value(group, "--rendezvous", "HOST:PORT", str, "with torchrun on several nodes: where they meet (default: the hostfile's first)")
    codes = ", ".join(preflight.TRAINER_CODES)
    group.add_argument(
        "--allow",
        metavar="CODE=REASON" if raw else "CODES",
        action="append",
        default=[],
        help=f"go on in spite of a finding of doctor's, for a reason that the plan keeps; repeatable; with or without a reason: {codes}"
        if raw
        else f"go on in spite of these, with commas: {codes}",
    )
    group = parser.add_argument_group("how long, how fast")
    _value(group, "--epochs", "N", number("--epochs", 0.001, 1e4, unit="epochs"), "passes over the data (default: 1)")
    _value(group, "--max-steps", "N", whole("--max-steps", 1, _STEPS, unit="steps"), "stop after N optimizer steps")
    _value(group, "--lr", "RATE", number("--lr", 1e-12, 10, unit="per step"), "peak learning rate (default: 1e-5, with adapters 2e-4)")
    _value(group, "--schedule", "cosine|linear|constant", choice("--schedule", ("cosine", "linear", "constant")), "after warm-up")
    _value(group, "--warmup", "FRACTION", number("--warmup", 0, 1, unit="of the run"), "part of the run that warms up (default: 0.03)")
    _value(group, "--min-lr", "FRACTION", number("--min-lr", 0, 1, unit="of --lr"), "where the schedule ends (default: 0.1)")
    _value(group, "--weight-decay", "RATE", number("--weight-decay", 0, 10, unit="per step"), "AdamW's (default: 0)")
    _value(group, "--seed", "N", whole("--seed", 0, 2**31 - 1, unit=""), "of shuffling, packing, adapters, dropout (default: 42)")
    _value(
        group,
        "--packing",
        "auto|on|off",
        choice("--packing", ("auto", "on", "off")),
        "several rows to a sequence, none seeing another (auto: where the model's attention keeps them apart)",
    )
    _value(group, "--on-nan", "stop|continue", choice("--on-nan", ("stop", "continue")), "when the loss is not a number (default: stop)")
    group.add_argument("--compile", action="store_true", help="torch.compile the model; the plan's estimate is without")
    group = parser.add_argument_group("checkpoints, evaluation, result")
    _value(group, "--resume", "auto|never|FOLDER", str, "go on from a checkpoint (default: auto, the newest whole one in --output)")
    _value(group, "--save-every", "N", whole("--save-every", 0, _STEPS, unit="steps"), "steps between checkpoints (default: 500)")
    _value(
        group, "--keep", "N", whole("--keep", 1, 10**6, unit="checkpoints"), "newest checkpoints that stay, beside the best (default: 2)"
    )
    _value(group, "--eval-every", "N", whole("--eval-every", 0, _STEPS, unit="steps"), "steps between evaluations (default: at the end)")
    _value(
        group,
        "--patience",
        "N",
        whole("--patience", 0, 10**6, unit="evaluations"),
        "stop after N evaluations without improvement; the best weights are exported",
    )
    _value(group, "--num-generations", "N", whole("--num-generations", 0, 1000, unit="prompts"), "held-out prompts that are continued")
    exports = ("auto", "model", "adapter", "merged", "none")
    _value(group, "--export", "|".join(exports), choice("--export", exports), "what is written at the end (default: model or adapter)")
    _value(group, "--trackers", "NAMES", str, "experiment trackers that accelerate knows, with commas: tensorboard, wandb, mlflow, ...")


def run(args: argparse.Namespace) -> int:
    """Run the launcher; returns from --dry-run, and where the data cannot be prepared. Raises UserError for what would fail later."""
    _require(args)
    allowed = preflight.allowances(args.allow)
    sets = [train_data.given("--data", args.data, args.output)]
    if args.eval_data:
        sets.append(train_data.given("--eval-data", args.eval_data, args.output))
    train_data.check_options(args, sets)
    settings = settings_of(args, sets, allowed)
    if not args.dry_run:  # which is made anywhere
        train_data.check_weights(args.weights)
        _make_output(settings.output)
    path, plan_file = plan_of(args)
    check(plan_file, path, allowed)
    plan_file.check_export(settings.export)
    _check_resume(settings)
    argv, env = launcher.command(plan_file, path, settings, args)
    held = None
    if not args.dry_run:
        _check_packages(argv[0])
        # Kept by the process that this one becomes. With torchrun on several nodes each has one like it.
        if argv[0] == "deepspeed" or plan_file.plan.cluster.num_nodes == 1:
            held = lock.hold(os.path.join(settings.output, lock.RUN), inherited=True)
    try:
        _examine(args, path, plan_file, sets, allowed)
        code = _make_ready(args, plan_file, sets, allowed)
        if code:
            return code
        path = _keep(path, settings.output, allowed, force=args.force, dry=args.dry_run)
        argv, env = launcher.command(plan_file, path, settings, args)
        if args.dry_run:
            _show(argv, env, plan_file)
            return 0
        _become(argv, env)
    finally:
        if held is not None:
            os.close(held)


def _become(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by the one that runs the launcher: no shell is wanted, and the exit code is the launcher's own."""
    os.environ.update(env)
    own = _own_folder(argv[0])
    if own is not None:  # as where the environment was activated: the launcher, and what it calls by name, are of these packages
        os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", launcher.SUPERVISOR, *argv])  # noqa: S606
    except OSError as reason:
        raise _no_launcher(sys.executable) from reason


def _make_output(output: str) -> None:
    try:
        os.makedirs(output, exist_ok=True)
        why = "" if os.access(output, os.W_OK | os.X_OK) else "Permission denied"
    except FileExistsError:
        why = "it is a file"
    except OSError as reason:
        why = reason.strerror or str(reason)
    if why:
        raise UserError(
            f"cannot write to {output}", code="output", where=f"--output {output}", why=why, hint="name a folder that can be written to"
        )


def _examine(args: argparse.Namespace, path: str, plan_file: PlanFile, sets: list[train_data.Given], allowed: tuple[Allowed, ...]) -> None:
    """The doctor's part. A dry run is made anywhere: it does not judge this machine."""
    weights = train_data.weights_folder(args, plan_file.plan)
    tokenizer = train_data.tokenizer_of(args, plan_file.plan) if args.tokenizer or any(each.files for each in sets) else weights
    preflight.examine(
        preflight.Run(
            plan=path,
            weights=weights if weights is not None and os.path.isfile(os.path.join(weights, "config.json")) else None,
            tokenizer=tokenizer if tokenizer is not None and train_data.has_tokenizer(tokenizer) else None,
            files=[file for each in sets for file in each.files],
            hostfile=args.hostfile if plan_file.plan.cluster.num_nodes > 1 else None,
            machine=not args.dry_run,
            bad_rows_allowed=args.max_bad is not None,
        ),
        (*plan_file.allowed, *allowed),
    )


def _make_ready(args: argparse.Namespace, plan_file: PlanFile, sets: list[train_data.Given], allowed: tuple[Allowed, ...]) -> int:
    codes = {*plan_file.allowed_codes(), *(each.code for each in allowed)}
    request = train_data.request(args, plan_file.plan, sets, codes, dry=args.dry_run)
    if args.dry_run and not any(each.files for each in sets) and packages.missing(("llmcheck_trainer", "tokenizers", "numpy")):
        from llmcheck.console import complain

        complain(["note: the data was not compared with the plan: that needs numpy and tokenizers"])
        return 0
    return train_data.make_ready(request, args.output)


def _keep(path: str, output: str, allowed: tuple[Allowed, ...], *, force: bool, dry: bool) -> str:
    """The plan to run: a copy in the output folder where there are reasons to keep in it."""
    from llmcheck import planfile

    reasoned = [each for each in allowed if each.reason]
    if not reasoned:
        return path
    target = os.path.join(output, "plan.json")
    if dry and not os.path.isdir(output):
        return path
    planfile.keep_allowed(path, target, reasoned, force=force)
    return target


def settings_of(args: argparse.Namespace, sets: list[train_data.Given], allowed: tuple[Allowed, ...]) -> TrainSettings:
    """The settings in the options; `sets` say where the data is, or will be. Raises UserError for what contradicts itself."""
    values: dict[str, Any] = {each.flag[2:].replace("-", "_"): each.folder for each in sets}
    values["output"] = os.path.abspath(args.output)
    values["allow"] = ",".join(each.code for each in allowed if each.code in preflight.TRAINER_CODES)
    for name in TrainSettings._fields:
        given = getattr(args, name, None)
        if name in values or not given or name == "eval_data":
            continue
        values[name] = os.path.abspath(given) if name == "weights" and os.path.exists(given) else given
    if values.get("resume", "auto") not in ("auto", "never"):
        values["resume"] = os.path.abspath(values["resume"])
    strange = [name for name, value in values.items() if isinstance(value, str) and not value.isprintable()]
    if strange:
        flag = "--" + strange[0].replace("_", "-")
        told, hint = f"{flag} has characters that cannot be printed", "write it in plain text"
        raise UserError(told, code="usage", where=flag, why="job files could not hold it", hint=hint)
    for name in ("patience", "eval_every", "num_generations"):
        if values.get(name) and not values.get("eval_data"):
            flag = "--" + name.replace("_", "-")
            why, hint = "nothing is evaluated without held-out data", f"add --eval-data, or leave {flag} out"
            raise UserError(f"{flag} needs --eval-data", code="conflict", where=flag, why=why, hint=hint)
    return TrainSettings(**values)


def prepared_settings(args: argparse.Namespace) -> TrainSettings:
    """Likewise for a job that runs later and elsewhere: data must be prepared, and may be a folder that is not here."""
    _require(args, "llmcheck launch")
    sets = []
    for flag, paths in (("--data", args.data), ("--eval-data", args.eval_data)):
        if not paths:
            continue
        if len(paths) > 1 or os.path.isfile(paths[0]):
            raise UserError(
                "the data is not prepared yet",
                code="data",
                where=flag,
                why="a job's ranks start together: those that wait for tokens run into the time limit of NCCL",
                hint="`llmcheck data prepare FILE... --tokenizer DIR --seq-len N --out FOLDER`, then name that folder",
            )
        sets.append(train_data.Given(flag=flag, folder=os.path.abspath(paths[0])))
    allowed = preflight.allowances(args.allow)
    strange = next((each for each in allowed if each.reason), None)
    if strange is not None:
        raise UserError(
            f"--allow {strange.code}={strange.reason[:60]}: a job file keeps no reasons",
            code="usage",
            where="--allow",
            why="`llmcheck train --allow CODE=REASON` keeps them in the plan, and a job runs the plan",
            hint=f"--allow {strange.code}" if strange.code in preflight.TRAINER_CODES else "leave it out: a job is not examined here",
        )
    return settings_of(args, sets, allowed)


def _require(args: argparse.Namespace, command: str = "llmcheck train") -> None:
    for flag in ("data", "output"):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is missing", code="usage", where=command, hint=f"`{command} --help` lists the options")


def plan_of(args: argparse.Namespace, command: str = "llmcheck train") -> tuple[str, PlanFile]:
    """The plan file, made first where --model is given instead. Raises UserError for both, neither, or one that cannot be read."""
    from llmcheck import planfile

    asked = sorted(name for name in planning.request_options() if getattr(args, name, None) is not None)
    if args.plan is not None:
        if asked:
            flag = "--" + asked[0].replace("_", "-")
            raise UserError(
                f"{flag} has no meaning with --plan",
                code="conflict",
                where=f"--plan, {flag}",
                why="a plan says everything",
                hint="give one",
            )
        path = os.path.abspath(args.plan)
        return path, planfile.read(path)
    if getattr(args, "model", None) is None:
        raise UserError("which plan? --plan is missing", code="usage", where=command, hint="`llmcheck plan --out plan.json` writes one")
    request, assumed = planning.request_of(args)
    plan, solved = planning.solve_request(request)
    plan = replace(plan, findings=(*plan.findings, *assumed))
    _tell_plan(plan, solved)
    _make_output(os.path.abspath(args.output))
    path = os.path.join(os.path.abspath(args.output), "plan.json")
    planfile.write(path, planfile.document(plan, solve=solved, out=path), force=args.force)
    return path, planfile.read(path)


def _tell_plan(plan: Plan, solved: SolveResult | None) -> None:
    """The plan, on stderr: stdout is the run's, or a dry run's command."""
    import sys

    from llmcheck.console import tell, terminal
    from llmcheck.render import text

    tell(
        text.render(
            plan, solve=solved, next_steps=("all of it: `llmcheck plan --verbose` with these options",), terminal=terminal(sys.stderr)
        )
    )


def check(plan_file: PlanFile, path: str, allowed: tuple[Allowed, ...]) -> None:
    """Raises UserError for an edited plan, StoppedError for one that does not fit, unless that is allowed."""
    codes = {*plan_file.allowed_codes(), *(each.code for each in allowed)}
    if plan_file.edited and not preflight.covers(codes, "plan-edited"):
        raise UserError(
            "the plan was edited since it was made: its estimate no longer applies",
            code="plan-edited",
            where=path,
            why="the digest over model, cluster, recipe and deepspeed differs",
            hint="plan again with `llmcheck plan`, or say --allow plan-edited",
        )
    if plan_file.plan.verdict == "does-not-fit" and not preflight.covers(codes, "does-not-fit"):
        raise preflight.StoppedError(
            "the plan says that this run does not fit",
            code="does-not-fit",
            where=path,
            why="; ".join(plan_file.plan.reasons)[:300],
            hint="plan again with one of its levers, or say --allow does-not-fit",
        )


def _check_resume(settings: TrainSettings) -> None:
    if settings.resume not in ("auto", "never") and not os.path.isdir(settings.resume):
        raise UserError(
            f"there is no checkpoint {settings.resume}",
            code="checkpoint",
            where=f"--resume {settings.resume}",
            why="it is no folder here",
            hint="checkpoints/step-N of an output folder; --resume auto takes the newest whole one of --output",
        )


def _show(argv: list[str], env: dict[str, str], plan_file: PlanFile) -> None:
    import shlex

    from llmcheck.console import complain, emit

    emit("".join(f"export {shlex.quote(f'{name}={value}')}\n" for name, value in env.items()) + shlex.join(argv) + "\n")
    if plan_file.plan.cluster.num_nodes > 1:
        complain(["every node must have the plan, the data, the weights and the output folder under these paths"])


def _check_packages(program: str) -> None:
    import shutil

    packages.require(NEEDED, what="training", where="llmcheck train", hint='pip install "llmcheck[train]"')
    if _own_folder(program) is None and shutil.which(program) is None:
        raise _no_launcher(program)


def _own_folder(program: str) -> str | None:
    """The folder of this interpreter's programs where `program` is one of them."""
    folder = os.path.dirname(os.path.abspath(sys.executable))
    return folder if os.access(os.path.join(folder, program), os.X_OK) else None


def _no_launcher(program: str) -> UserError:
    return UserError(
        f"there is no command {program}",
        code="missing-package",
        where="--launcher",
        why="it is not in PATH",
        hint="activate the environment that DeepSpeed is installed in",
    )


def _files(group: Any, flag: str, raw: bool, text: str) -> None:
    group.add_argument(flag, metavar="FILE|FOLDER" if raw else "FOLDER", nargs="+", action="extend", help=text)


def _value(group: Any, flag: str, metavar: str, kind: Any, text: str) -> None:
    group.add_argument(flag, metavar=metavar, type=kind, help=text)
