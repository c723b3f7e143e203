"""``llmcheck launch``: the command or job file that runs a plan on a cluster."""

from __future__ import annotations

import argparse

from llmcheck.commands import launcher, preflight, train
from llmcheck.commands.values import choice
from llmcheck.console import emit
from llmcheck.errors import UserError
from llmcheck.render import jobs

TARGETS = ("deepspeed", "torchrun", "slurm", "kubernetes", "skypilot")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `launch`."""
    parser.add_argument("--for", dest="target", metavar="|".join(TARGETS), type=choice("--for", TARGETS), help="what it is written for")
    parser.add_argument("--name", metavar="NAME", type=_name, help="name of the job (default: llmcheck-train)")
    parser.add_argument("--image", metavar="IMAGE", help="container image of a Kubernetes or SkyPilot job, llmcheck[train] installed")
    train.add_run(parser, raw=False)


def _name(text: str) -> str:
    """A name that all of them take: a Service of Kubernetes is the strictest (RFC 1035)."""
    import re

    if re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", text) is None:
        hint = "lower-case letters, digits and hyphens, a letter first"
        raise UserError(f"--name cannot be {text[:60]!r}", code="usage", where="--name", hint=hint)
    return text


def run(args: argparse.Namespace) -> int:
    """Print it; returns 0. Raises UserError when the plan or an option is missing."""
    if args.target is None:
        raise UserError("--for is missing", code="usage", where="llmcheck launch", hint="one of " + ", ".join(TARGETS))
    _check_target(args)
    settings = train.prepared_settings(args)
    path, plan_file = train.plan_of(args, "llmcheck launch")
    _check_text(args, path)
    train.check(plan_file, path, preflight.allowances(args.allow))
    plan_file.check_export(settings.export)
    if args.target in ("deepspeed", "torchrun"):
        args.launcher = args.target
        argv, env = launcher.command(plan_file, path, settings, args)
        emit(jobs.shell(argv, env))
        return 0
    cluster = plan_file.plan.cluster
    job = jobs.Job(
        name=args.name or "llmcheck-train",
        image=args.image,
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        gpu=_accelerator(cluster.gpu.name) if args.target == "skypilot" else cluster.gpu.name,
        host_bytes_per_node=plan_file.plan.memory.host.host_bytes_per_node,
        cpus_per_gpu=jobs.CPUS_PER_GPU if plan_file.plan.recipe.offload == "none" else jobs.CPUS_PER_GPU_OFFLOADED,
        env=plan_file.launch.env,
        words=("-m", launcher.MODULE, "--plan", path, *launcher.words_of(settings)),
    )
    emit({"slurm": jobs.slurm, "kubernetes": jobs.kubernetes, "skypilot": jobs.skypilot}[args.target](job))
    return 0


def _check_text(args: argparse.Namespace, path: str) -> None:
    """Raises UserError for what would end a line of a job file in the middle. What else is in it was looked at before."""
    for flag, value in (("--plan", path), ("--image", args.image or "")):
        if not value.isprintable():
            why = "job files could not hold it"
            hint = "rename it" if flag == "--plan" else "give the image's name"
            raise UserError(f"{flag} has characters that cannot be printed", code="usage", where=flag, why=why, hint=hint)


def _accelerator(gpu: str) -> str:
    """SkyPilot's name of a GPU of the catalogue; an unknown one as it is."""
    import os

    import llmcheck
    from llmcheck import toml

    names = toml.load(os.path.join(os.path.dirname(llmcheck.__file__), "data", "skypilot.toml"))["accelerators"]
    return str(names.get(gpu, gpu))


def _check_target(args: argparse.Namespace) -> None:
    """Raises UserError for options that what is written would not have in it."""
    command = args.target in ("deepspeed", "torchrun")
    without = {
        "launcher": "--for says it",
        "hostfile": "" if command else "the cluster's own system says which nodes there are",
        "rendezvous": "" if args.target == "torchrun" else "the nodes meet where that system puts the first one",
        "name": "a command has none" if command else "",
        "image": "" if args.target in ("kubernetes", "skypilot") else "it runs in no container",
    }
    for name, why in without.items():
        if why and getattr(args, name) is not None:
            where = f"--for {args.target}, --{name}"
            raise UserError(f"--{name} has no meaning with --for {args.target}", code="conflict", where=where, why=why, hint="leave it out")
