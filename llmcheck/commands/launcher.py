"""The launcher's command line for a plan: deepspeed or torchrun, its nodes, and the trainer's own options."""

from __future__ import annotations

import argparse
import os
import re

from llmcheck.errors import UserError
from llmcheck.paths import trouble_with
from llmcheck.planfile import PlanFile
from llmcheck.types import TrainSettings

MODULE = "llmcheck_trainer.train"
SUPERVISOR = "llmcheck_trainer.launcher"  # hands requests to stop on to the ranks
PORT = 29500  # torchrun's own default


def command(plan_file: PlanFile, path: str, settings: TrainSettings, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The launcher's argument list and the environment to start it in."""
    cluster = plan_file.plan.cluster
    if args.rendezvous is not None and (args.launcher != "torchrun" or cluster.num_nodes == 1):
        why = "only torchrun's nodes meet" if args.launcher != "torchrun" else "the plan has one node, which meets nobody"
        raise UserError("--rendezvous has no meaning here", code="conflict", where="--rendezvous", why=why, hint="leave it out")
    if args.hostfile is not None and cluster.num_nodes == 1:
        why = "the plan has one node: it would run here, whatever the file names"
        hint = "leave it out, and start it on the host itself; or plan with --nodes"
        raise UserError("--hostfile has no meaning here", code="conflict", where="--hostfile", why=why, hint=hint)
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
    if re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][\w.-]*):\d{1,5}", place, re.ASCII) is None:
        hint = f"first-node:{PORT}; IPv6 in brackets"
        raise UserError(f"--rendezvous needs HOST:PORT, not {place[:60]!r}", code="usage", where="--rendezvous", hint=hint)
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


_HOSTFILE_HINT = "one line a node: `worker-0 slots=8`"


def _hosts(path: str | None, num_nodes: int, gpus_per_node: int) -> list[str]:
    """The hosts of the hostfile. Raises UserError for what the launcher would only warn of, or stop at after minutes."""
    if path is None:
        return []
    from llmcheck.jsonfile import read_bytes
    from llmcheck.probe.hostfile import MAX_BYTES, is_host_name, parse

    where = f"--hostfile {path}"
    if not os.path.exists(path):
        _, hint = trouble_with(path, otherwise=_HOSTFILE_HINT) or ("", _HOSTFILE_HINT)
        raise UserError(
            f"there is no hostfile {path}",
            code="hostfile",
            where=where,
            why="DeepSpeed only warns of that, and then trains on this node alone",
            hint=hint,
        )
    found = parse(read_bytes(path, what="hostfile", where=where, max_bytes=MAX_BYTES).decode("utf-8", "replace"))
    if found.bad:
        raise UserError(
            f"line {found.bad[0][0]} of {path} is not `host slots=N`",
            code="hostfile",
            where=where,
            why=found.bad[0][1],
            hint=_HOSTFILE_HINT,
        )
    if found.duplicates:
        hint = "give each host one line, with all of its slots"
        raise UserError(f"{path} names {found.duplicates[0]} twice", code="hostfile", where=where, why="DeepSpeed stops at that", hint=hint)
    strange = next((host for host in found.slots if not is_host_name(host)), None)
    if strange is not None:
        why = "shells and ssh are handed it as it is, and could take it for something else"
        where = f"{where}, line {found.lines[strange]}"
        hint = "a name or an address: letters, digits, dots, hyphens"
        raise UserError(f"{strange[:60]!r} cannot be the name of a host", code="hostfile", where=where, why=why, hint=hint)
    if len(found.slots) < num_nodes:
        number = len(found.slots)
        raise UserError(
            f"{path} has {number} host{'s' if number != 1 else ''}, the plan has {num_nodes} nodes",
            code="hostfile",
            where=where,
            why="every node needs its line",
            hint=f"add {num_nodes - number} more, `worker-{number} slots={gpus_per_node}`"
            + (f"; or plan with --nodes {number}" if number else ""),
        )
    hosts = list(found.slots)[:num_nodes]
    small = [host for host in hosts if found.slots[host] < gpus_per_node]
    if small:
        raise UserError(
            f"{small[0]} has {found.slots[small[0]]} slots, the plan wants {gpus_per_node} GPUs on each node",
            code="hostfile",
            where=f"{where}, line {found.lines[small[0]]}",
            hint=f"say slots={gpus_per_node} where it has as many GPUs; or plan with other --gpus and --nodes",
        )
    return hosts


def _needs_hostfile(num_nodes: int) -> UserError:
    return UserError(
        f"the plan has {num_nodes} nodes, and there is no --hostfile",
        code="hostfile",
        where="--hostfile",
        hint=f"{_HOSTFILE_HINT}; or --launcher torchrun on each node",
    )
