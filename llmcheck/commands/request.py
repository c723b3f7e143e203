"""The options that say what is to be planned, and the request that they make."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from llmcheck.commands.values import add_choice, add_option, choice, count, names, number, whole
from llmcheck.errors import UserError
from llmcheck.planner.plan import DEFAULT_SEQ_LEN, SOLVE_TARGETS, Finding, Plan, PlanRequest, SolveResult
from llmcheck.types import ClusterSpec, GpuSpec
from llmcheck.units import GIB

FALLBACK_GPU = "A100-40G"  # the FAQ's machine
MAX_GPUS = 1_000_000
USUAL_GPUS_PER_NODE = 8  # DGX and HGX boards, and every cloud's largest machine

NO_GPU_FOUND = "LCM090"
NODES_ASSUMED = "LCM091"
GPU_FOUND = "LCM092"


def configure_request(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`request_of` reads."""
    _add_machine(parser)
    _add_batch(parser)
    _add_recipe(parser)


def request_options() -> tuple[str, ...]:
    """The names under which :func:`configure_request` keeps its options; each is None where it was not given."""
    parser = argparse.ArgumentParser(add_help=False)
    configure_request(parser)
    return tuple(action.dest for action in parser._actions)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and machine")
    add_option(group, "--model", "NAME", str, "catalogue name, Hub id, or a folder or config.json (`llmcheck models` lists the names)")
    add_option(
        group,
        "--gpus",
        "N",
        whole("--gpus", 1, MAX_GPUS, unit="GPUs"),
        "GPUs in all (default: the GPUs found here, else 1)",
    )
    add_option(
        group,
        "--nodes",
        "N",
        whole("--nodes", 1, MAX_GPUS, unit="nodes"),
        f"equal nodes that the GPUs are in (default: nodes of at most {USUAL_GPUS_PER_NODE})",
    )
    add_option(group, "--gpu", "NAME", str, f"GPU model (default: the one found here, else {FALLBACK_GPU}; `llmcheck gpus` lists them)")
    add_option(
        group,
        "--gpu-memory",
        "GIB",
        number("--gpu-memory", 1, 4096, unit="GiB"),
        "memory of one GPU as torch reports it (default: the GPU's); the CUDA context comes out of it",
    )
    add_option(
        group,
        "--host-memory",
        "GIB",
        number("--host-memory", 1, 1 << 20, unit="GiB"),
        "RAM of one node (default: not checked)",
    )
    add_option(group, "--disk", "GIB", number("--disk", 1, 1 << 30, unit="GiB"), "disk space for checkpoints (default: not checked)")
    add_option(
        group,
        "--inter-node",
        "GBIT",
        number("--inter-node", 0.1, 1e6, unit="Gbit/s"),
        "network of one node, Gbit/s per direction (default: 200)",
    )
    add_option(
        group,
        "--price",
        "USD",
        number("--price", 0, 1e4, unit="USD per GPU hour"),
        "price of a GPU hour (default: the catalogue's, where it has one)",
    )
    add_option(
        group, "--profile", "FILE", str, "what this GPU reaches, as `llmcheck probe --calibrate` measured it (default: the catalogue's)"
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch and amount of training")
    add_option(
        group,
        "--seq-len",
        "TOKENS",
        whole("--seq-len", 1, 1 << 24, unit="tokens"),
        f"tokens per sequence (default: {DEFAULT_SEQ_LEN})",
    )
    add_option(
        group,
        "--micro-batch",
        "N",
        whole("--micro-batch", 1, 1 << 20, unit="sequences"),
        "sequences per GPU per forward (default: the planner's choice)",
    )
    add_option(
        group,
        "--global-batch",
        "N",
        whole("--global-batch", 1, 1 << 30, unit="sequences"),
        "sequences per optimizer step over all GPUs (default: micro-batch x accumulation x GPUs)",
    )
    add_option(
        group,
        "--grad-accum",
        "N",
        whole("--grad-accum", 1, 1 << 20, unit="steps"),
        "micro-steps per optimizer step (default: what the global batch asks for, else 1)",
    )
    add_option(
        group, "--samples", "N", count("--samples", 10**12, unit="samples"), "train on N sequences (2M is 2000000): hours, cost, data"
    )
    add_option(group, "--tokens", "N", count("--tokens", 10**16, unit="tokens"), "train on N tokens (1.5B): hours, cost")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe; what is not given, or auto, is the planner's choice")
    add_choice(group, "--method", ("auto", "full", "lora", "qlora"), "what is trained: every weight, adapters, adapters on a 4-bit model")
    add_option(group, "--lora-rank", "N", whole("--lora-rank", 1, 1 << 16, unit="dimensions"), "rank of the adapters (default: 16)")
    add_option(
        group, "--lora-targets", "all-linear|attention|NAMES", names("--lora-targets"), "modules with adapters (default: all-linear)"
    )
    add_option(
        group, "--lora-dropout", "P", number("--lora-dropout", 0, 0.99, unit="probability"), "dropout before the adapters (default: 0.05)"
    )
    group.add_argument(
        "--train-embeddings",
        nargs="?",
        const="in-place",
        metavar="in-place|modules-to-save",
        type=choice("--train-embeddings", ("in-place", "modules-to-save")),
        help="with adapters: train token embedding and head too, the model's own (in-place, what the bare flag means) "
        "or the copies that peft's modules_to_save makes beside the frozen ones",
    )
    add_choice(group, "--zero", ("auto", "0", "1", "2", "3"), "ZeRO stage of DeepSpeed")
    add_choice(group, "--offload", ("auto", "none", "optimizer", "params"), "what lives in host memory instead")
    add_choice(group, "--checkpointing", ("auto", "on", "off"), "recompute activations in the backward pass")
    add_choice(group, "--attention", ("auto", "eager", "sdpa", "flash"), "attention implementation")
    add_choice(
        group, "--precision", ("bf16", "fp16", "fp32"), "number format of weights and activations (default: bf16 where the GPU has it)"
    )
    add_choice(group, "--loss", ("auto", "hf", "chunked", "liger"), "Hugging Face's loss with its copies of the logits, or one without")
    add_choice(
        group,
        "--optimizer",
        ("fused-adam", "adamw", "cpu-adam", "adam-8bit", "adam-bf16"),
        "optimizer (default: fused-adam; cpu-adam when offloaded); adam-bf16 keeps no fp32 copies and is the bundled trainer's",
    )
    add_choice(
        group, "--allocator", ("expandable", "native"), "PyTorch's CUDA allocator: expandable segments or not (default: the one that fits)"
    )
    add_option(group, "--ds-config", "FILE", str, 'DeepSpeed configuration to plan with; its "auto" values are free')
    add_choice(group, "--solve", SOLVE_TARGETS, "the largest of it that fits; of gpus, the fewest")


def request_of(args: argparse.Namespace) -> tuple[PlanRequest, tuple[Finding, ...]]:
    """What the options ask for, and what was assumed where they are silent. Raises UserError for options that contradict each other."""
    _check_conflicts(args)
    # The catalogues are read only now: `--help` and bad options do not pay for them.
    from llmcheck.catalog.models import find_model

    gpu, found, notes = _gpu(args)
    cluster, more = _cluster(args, gpu, found)
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    ds_config = None
    if args.ds_config is not None:
        from llmcheck.dsconfig.reading import read

        ds_config = read(args.ds_config, where=f"--ds-config {args.ds_config}")
    return (
        PlanRequest(
            model=find_model(args.model, allow_network=not offline),
            cluster=cluster,
            seq_len=args.seq_len or DEFAULT_SEQ_LEN,
            micro_batch_size=args.micro_batch,
            grad_accum_steps=args.grad_accum,
            global_batch_size=args.global_batch,
            method=_free(args.method),
            lora_rank=args.lora_rank,
            lora_targets=args.lora_targets,
            lora_dropout=args.lora_dropout,
            train_embeddings=args.train_embeddings,
            precision=args.precision,
            optimizer=args.optimizer,
            zero_stage=None if _free(args.zero) is None else int(args.zero),
            offload=_free(args.offload),
            checkpointing=None if _free(args.checkpointing) is None else args.checkpointing == "on",
            attention=_free(args.attention),
            loss=_free(args.loss),
            allocator=args.allocator,
            ds_config=ds_config,
            num_samples=args.samples,
            num_tokens=args.tokens,
            solve=args.solve,
            packing=getattr(args, "packing", None) == "on",
            profile=_profile(args, cluster.gpu),
        ),
        (*notes, *more),
    )


def _profile(args: argparse.Namespace, gpu: GpuSpec) -> Any:
    """The measured profile of --profile; None without one."""
    if args.profile is None:
        return None
    from llmcheck.jsonfile import load_object
    from llmcheck.steptime.profile import check_gpu, profile_of

    where = f"--profile {args.profile}"
    found = profile_of(load_object(args.profile, what="profile", where=where), args.profile)
    check_gpu(found, gpu, where)
    return found


def _free(value: Any) -> Any:
    """None where the user leaves the choice to the planner."""
    return None if value == "auto" else value


def _check_conflicts(args: argparse.Namespace) -> None:
    if not args.model:
        raise UserError(
            "which model? --model is missing",
            code="usage",
            where="llmcheck plan",
            hint="for example `llmcheck plan --model bloomz-7b1 --gpus 8`; `llmcheck models` lists the names",
        )
    if args.samples is not None and args.tokens is not None:
        raise UserError(
            "--samples and --tokens both say how much is trained", code="conflict", where="--samples, --tokens", hint="give one"
        )
    adapters = [
        flag
        for flag, value in (
            ("--lora-rank", args.lora_rank),
            ("--lora-targets", args.lora_targets),
            ("--lora-dropout", args.lora_dropout),
            ("--train-embeddings", args.train_embeddings),
        )
        if value is not None
    ]
    if args.method == "full" and adapters:
        raise UserError(
            f"{adapters[0]} has no meaning with --method full",
            code="conflict",
            where=f"--method full, {', '.join(adapters)}",
            why="full fine-tuning has no adapters, and trains the embeddings anyway",
            hint="use --method lora or qlora, or leave " + " and ".join(adapters) + " out",
        )
    if args.solve == "gpus" and args.gpus is not None:
        raise UserError(
            "--solve gpus looks for the number that --gpus gives", code="conflict", where="--solve gpus, --gpus", hint="give one"
        )
    for target, flag, value in (
        ("seq-len", "--seq-len", args.seq_len),
        ("micro-batch", "--micro-batch", args.micro_batch),
        ("lora-rank", "--lora-rank", args.lora_rank),
    ):
        if args.solve == target and value is not None:
            raise UserError(
                f"--solve {target} looks for the number that {flag} gives",
                code="conflict",
                where=f"--solve {target}, {flag}",
                hint="give one",
            )
    if args.solve == "lora-rank" and args.method == "full":
        raise UserError("--solve lora-rank needs adapters", code="conflict", where="--solve lora-rank, --method full", hint="--method lora")


def _gpu(args: argparse.Namespace) -> tuple[GpuSpec, int, tuple[Finding, ...]]:
    """The GPU, how many of it are here (0: the user named it, or none was found), and what was assumed."""
    from llmcheck.catalog.gpus import find_gpu

    no_notes: tuple[Finding, ...] = ()
    gpu, found, notes = _local_gpu() if args.gpu is None else (find_gpu(args.gpu), 0, no_notes)
    if args.gpu_memory is not None:
        gpu = replace(gpu, memory_bytes=int(args.gpu_memory * GIB))
    if args.price is not None:
        gpu = replace(gpu, usd_per_hour=args.price)
    return gpu, found, notes


def _local_gpu() -> tuple[GpuSpec, int, tuple[Finding, ...]]:
    """The GPU of this machine and how many there are of it; the fallback and 0 where there is none that the catalogue knows."""
    from llmcheck.catalog.gpus import find_gpu
    from llmcheck.probe.nvml import local_gpus

    here = local_gpus()
    known = [gpu.spec for gpu in here if gpu.spec is not None]
    if known:
        gpu = max(known, key=known.count)  # of several kinds the most numerous, then the first
        number = known.count(gpu)
        message = f"planned for the {number} {gpu.name} of this machine"
        if number < len(here):
            message += f"; its other {len(here) - number} GPUs are left out, as DeepSpeed wants equal ones"
        return gpu, number, (Finding(code=GPU_FOUND, severity="note", message=message, fix="name another with --gpu", where="--gpu"),)
    gpu = find_gpu(FALLBACK_GPU)
    message = f"no GPU was named and none was found here: planned for {gpu.name}"
    if here:
        message = f"{here[0].name}, which was found here, is not in the catalogue: planned for {gpu.name}"
    return gpu, 0, (Finding(code=NO_GPU_FOUND, severity="note", message=message, fix="name yours with --gpu", where="--gpu"),)


def _cluster(args: argparse.Namespace, gpu: GpuSpec, found: int) -> tuple[ClusterSpec, tuple[Finding, ...]]:
    num_gpus = args.gpus or (found if args.nodes is None else found * args.nodes) or args.nodes or 1
    notes: tuple[Finding, ...] = ()
    if args.nodes is None:
        per_node = num_gpus if num_gpus == found else max(n for n in range(1, USUAL_GPUS_PER_NODE + 1) if num_gpus % n == 0)
        nodes = num_gpus // per_node
        if nodes > 1:
            notes = (
                Finding(
                    code=NODES_ASSUMED,
                    severity="note",
                    message=f"--nodes was not given: planned for {nodes} nodes of {per_node} GPU" + ("s" if per_node > 1 else ""),
                    fix="say --nodes",
                    where="--nodes",
                ),
            )
    else:
        nodes = args.nodes
        if num_gpus % nodes:
            raise UserError(
                f"{nodes} nodes do not divide {num_gpus} GPUs",
                code="conflict",
                where=f"--gpus {num_gpus} --nodes {nodes}",
                why="--gpus counts the GPUs of all nodes, and DeepSpeed wants equal nodes",
                hint=f"for {num_gpus} GPUs on each node say --gpus {num_gpus * nodes}",
            )
    cluster = ClusterSpec(
        gpu=gpu,
        num_nodes=nodes,
        gpus_per_node=num_gpus // nodes,
        host_memory_bytes=None if args.host_memory is None else int(args.host_memory * GIB),
        disk_bytes=None if args.disk is None else int(args.disk * GIB),
    )
    if args.inter_node is not None:
        cluster = replace(cluster, inter_node_bytes_per_s=args.inter_node * 1e9 / 8)
    return cluster, notes


def solve_request(request: PlanRequest) -> tuple[Plan, SolveResult | None]:
    """The plan, and the answer of `--solve` where it was asked for."""
    if request.solve is None:
        from llmcheck.planner.search import search

        return search(request), None
    from llmcheck.planner.solve import solve

    result = solve(request)
    return result.plan, result
