"""``llmcheck train``: run a plan with the bundled trainer. Checks what can be checked without torch, then runs the launcher."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

from llmcheck.commands import plan as planning
from llmcheck.commands.values import choice, number, whole
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.planfile import PlanFile
from llmcheck.types import TrainSettings

MODULE = "llmcheck_trainer.train"
SUPERVISOR = "llmcheck_trainer.launcher"  # hands requests to stop on to the ranks
PORT = 29500  # torchrun's own default
NEEDED = ("torch", "transformers", "deepspeed")
ALLOWABLE = ("plan-edited", "pad-is-eos", "other-run", "does-not-fit")  # the trainer's identity.ALLOWABLE
_STEPS = 10**9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add_run(parser)
    group = parser.add_argument_group("how it is started")
    group.add_argument("--dry-run", action="store_true", help="print the command and its environment, start nothing")
    group.add_argument("--force", action="store_true", help="let the plan made from --model replace a plan.json that was edited")
    planning.configure_request(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is run: the plan, and all of TrainSettings."""
    group = parser.add_argument_group("what is run")
    _value(group, "--plan", "FILE", str, "plan file to run; without it, --model and the other options of `llmcheck plan` make one first")
    # nargs: prepared folders come one at a time; more than one name are raw files, which get an error that says what to do.
    group.add_argument("--data", metavar="FOLDER", nargs="+", help="data that `llmcheck data prepare` wrote")
    _value(group, "--output", "FOLDER", str, "checkpoints, log, run.json and the trained model; every node must see it")
    _value(group, "--eval-data", "FOLDER", str, "held-out data, prepared like --data")
    _value(group, "--weights", "FOLDER|NAME", str, "weights to start from (default: the plan's folder or Hub name)")
    _value(group, "--launcher", "deepspeed|torchrun", choice("--launcher", ("deepspeed", "torchrun")), "what starts the ranks")
    _value(group, "--hostfile", "FILE", str, "DeepSpeed hostfile of a plan with several nodes; checked first")
    _value(group, "--rendezvous", "HOST:PORT", str, "with torchrun on several nodes: where they meet (default: the hostfile's first)")
    _value(
        group,
        "--allow",
        "CODES",
        str,
        "go on in spite of these, with commas: " + ", ".join(ALLOWABLE),
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
    _value(group, "--patience", "N", whole("--patience", 0, 10**6, unit="evaluations"), "stop after N evaluations without improvement")
    _value(group, "--num-generations", "N", whole("--num-generations", 0, 1000, unit="prompts"), "held-out prompts that are continued")
    exports = ("auto", "model", "adapter", "merged", "none")
    _value(group, "--export", "|".join(exports), choice("--export", exports), "what is written at the end (default: model or adapter)")
    _value(group, "--trackers", "NAMES", str, "experiment trackers that accelerate knows, with commas: tensorboard, wandb, mlflow, ...")


def run(args: argparse.Namespace) -> int:
    """Run the launcher; only --dry-run returns. Raises UserError for what would fail on the nodes."""
    settings = settings_of(args)
    path, plan_file = plan_of(args)
    check(plan_file, path, settings)
    argv, env = command(plan_file, path, settings, args)
    if not args.dry_run:
        _check_packages(argv[0])
        _become(argv, env)
    _show(argv, env, plan_file)
    return 0


def _become(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by the one that runs the launcher: no shell is wanted, and the exit code is the launcher's own."""
    os.environ.update(env)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", SUPERVISOR, *argv])  # noqa: S606


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings in the options. Raises UserError where --data or --output is missing, or data is not prepared."""
    for flag in ("data", "output"):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is missing", code="usage", where="llmcheck train", hint="`llmcheck train --help` lists the options")
    if len(args.data) > 1 or os.path.isfile(args.data[0]):
        raise UserError(
            "the data is not prepared yet",
            code="data",
            where="--data",
            why="text is turned into tokens once, before any GPU is held: ranks that wait for it run into the time limit of NCCL",
            hint="`llmcheck data prepare`, then name the folder that it wrote",
        )
    values: dict[str, Any] = {"data": os.path.abspath(args.data[0]), "output": os.path.abspath(args.output)}
    for name in TrainSettings._fields:
        given = getattr(args, name, None)
        if name in values or given is None or given is False:
            continue
        values[name] = os.path.abspath(given) if name in ("eval_data", "weights") and os.path.exists(given) else given
    if values.get("resume", "auto") not in ("auto", "never"):
        values["resume"] = os.path.abspath(values["resume"])
    unknown = [code for code in values.get("allow", "").split(",") if code.strip() and code.strip() not in ALLOWABLE]
    if unknown:
        raise UserError(f"--allow does not know {unknown[0]!r}", code="usage", where="--allow", hint="it knows " + ", ".join(ALLOWABLE))
    strange = [name for name, value in values.items() if isinstance(value, str) and not value.isprintable()]
    if strange:
        flag = "--" + strange[0].replace("_", "-")
        raise UserError(f"{flag} has characters that cannot be printed", code="usage", where=flag, why="job files could not hold it")
    if values.get("patience") and not values.get("eval_data"):
        raise UserError(
            "--patience needs --eval-data", code="conflict", where="--patience", why="nothing is evaluated without held-out data"
        )
    return TrainSettings(**values)


def plan_of(args: argparse.Namespace) -> tuple[str, PlanFile]:
    """The plan file, made first where --model is given instead. Raises UserError for both, neither, or one that cannot be read."""
    from llmcheck import planfile

    asked = sorted(flag for flag in ("model", "gpus", "nodes", "gpu", "seq_len", "method", "zero") if getattr(args, flag, None) is not None)
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
        raise UserError(
            "which plan? --plan is missing", code="usage", where="llmcheck train", hint="`llmcheck plan --out plan.json` writes one"
        )
    request, _ = planning.request_of(args)
    plan, solved = planning.solve_request(request)
    os.makedirs(args.output, exist_ok=True)
    path = os.path.join(os.path.abspath(args.output), "plan.json")
    planfile.write(path, planfile.document(plan, solve=solved, out=path), force=args.force)
    return path, planfile.read(path)


def check(plan_file: PlanFile, path: str, settings: TrainSettings) -> None:
    """Raises UserError for an edited plan, or one that does not fit, unless that is allowed."""
    allowed = {code.strip() for code in settings.allow.split(",")}
    if plan_file.edited and "plan-edited" not in allowed:
        raise UserError(
            "the plan was edited since it was made: its estimate no longer applies",
            code="plan-edited",
            where=path,
            why="the digest over model, cluster, recipe and deepspeed differs",
            hint="plan again with `llmcheck plan`, or say --allow plan-edited",
        )
    if plan_file.plan.verdict == "does-not-fit" and "does-not-fit" not in allowed:
        raise UserError(
            "the plan says that this run does not fit",
            code="does-not-fit",
            where=path,
            why="; ".join(plan_file.plan.reasons)[:300],
            hint="plan again with one of its levers, or say --allow does-not-fit",
        )


def command(plan_file: PlanFile, path: str, settings: TrainSettings, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The launcher's argument list and the environment to start it in."""
    cluster = plan_file.plan.cluster
    hosts = _hosts(args.hostfile, cluster.num_nodes, cluster.gpus_per_node)
    words = ["--plan", path, *words_of(settings)]
    env = dict(plan_file.launch.env)
    if (args.launcher or "deepspeed") == "torchrun":
        return [*torchrun(cluster.num_nodes, cluster.gpus_per_node, args.rendezvous, hosts), "-m", MODULE, *words], env
    place = ["--num_gpus", str(cluster.gpus_per_node)]
    if cluster.num_nodes > 1 and args.hostfile is None:
        raise _needs_hostfile(cluster.num_nodes)
    if cluster.num_nodes > 1:
        place = ["--hostfile", os.path.abspath(args.hostfile), "--num_nodes", str(cluster.num_nodes), *place]
    # Options of the launcher come before the module; without --no_local_rank it adds one to the module's own.
    return ["deepspeed", *place, "--no_local_rank", "--module", MODULE, *words], env


def torchrun(num_nodes: int, gpus_per_node: int, rendezvous: str | None, hosts: list[str]) -> list[str]:
    """The head of torchrun's argument list; the same on every node. Raises UserError where the nodes have no place to meet."""
    if num_nodes == 1:
        return ["torchrun", "--standalone", "--nproc-per-node", str(gpus_per_node)]
    place = rendezvous or (f"{hosts[0]}:{PORT}" if hosts else None)
    if place is None:
        raise UserError(
            "where do the nodes meet?",
            code="usage",
            where="--launcher torchrun",
            why=f"the plan has {num_nodes} nodes, and torchrun is started on each",
            hint=f"say --rendezvous HOST:{PORT} with the first node's name, the same on all",
        )
    head = ["torchrun", "--nnodes", str(num_nodes), "--nproc-per-node", str(gpus_per_node)]
    return [*head, "--rdzv-backend", "c10d", "--rdzv-endpoint", place]


def words_of(settings: TrainSettings) -> list[str]:
    """The settings as the trainer's options; what is at its default is left out."""
    words: list[str] = []
    for name, value in settings._asdict().items():
        if value == settings._field_defaults.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
    return words


def _hosts(path: str | None, num_nodes: int, gpus_per_node: int) -> list[str]:
    """The hosts of the hostfile. Raises UserError for what the launcher would only warn of, or stop at after minutes."""
    if path is None:
        return []
    from llmcheck.jsonfile import read_bytes
    from llmcheck.probe.hostfile import MAX_BYTES, parse

    where = f"--hostfile {path}"
    if not os.path.isfile(path):
        raise UserError(
            f"there is no hostfile {path}",
            code="hostfile",
            where=where,
            why="DeepSpeed only warns of that, and then trains on this node alone",
            hint="one line a node: `worker-0 slots=8`",
        )
    found = parse(read_bytes(path, what="hostfile", where=where, max_bytes=MAX_BYTES).decode("utf-8", "replace"))
    if found.bad:
        raise UserError(f"line {found.bad[0][0]} of {path} is not `host slots=N`", code="hostfile", where=where, why=found.bad[0][1])
    if found.duplicates:
        raise UserError(f"{path} names {found.duplicates[0]} twice", code="hostfile", where=where, why="DeepSpeed stops at that")
    if len(found.slots) < num_nodes:
        raise UserError(
            f"{path} has {len(found.slots)} hosts, the plan has {num_nodes} nodes", code="hostfile", where=where, hint="plan with --nodes"
        )
    hosts = list(found.slots)[:num_nodes]
    small = [host for host in hosts if found.slots[host] < gpus_per_node]
    if small:
        raise UserError(
            f"{small[0]} has {found.slots[small[0]]} slots, the plan wants {gpus_per_node} GPUs on each node", code="hostfile", where=where
        )
    return hosts


def _needs_hostfile(num_nodes: int) -> UserError:
    return UserError(
        f"the plan has {num_nodes} nodes, and there is no --hostfile",
        code="hostfile",
        where="--hostfile",
        hint="one line a node: `worker-0 slots=8`; or --launcher torchrun on each node",
    )


def _show(argv: list[str], env: dict[str, str], plan_file: PlanFile) -> None:
    import shlex

    from llmcheck.console import complain, emit

    emit("".join(f"export {shlex.quote(f'{name}={value}')}\n" for name, value in env.items()) + shlex.join(argv) + "\n")
    if plan_file.plan.cluster.num_nodes > 1:
        complain(["every node must have the plan, the data, the weights and the output folder under these paths"])


def _check_packages(launcher: str) -> None:
    import shutil
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CouldNotCheckError(
            "training needs packages that are not installed",
            code="missing-package",
            where="llmcheck train",
            why="no " + ", ".join(missing),
            hint='pip install "llmcheck[train]"',
        )
    if shutil.which(launcher) is None:
        raise _no_launcher(launcher)


def _no_launcher(launcher: str) -> UserError:
    return UserError(
        f"there is no command {launcher}",
        code="missing-package",
        where="--launcher",
        why="it is not in PATH",
        hint="activate the environment that DeepSpeed is installed in",
    )


def _value(group: Any, flag: str, metavar: str, kind: Any, text: str) -> None:
    group.add_argument(flag, metavar=metavar, type=kind, help=text)
