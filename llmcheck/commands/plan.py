"""``llmcheck plan``: will it fit, with which settings, and how long will it take."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmcheck.commands.values import choice, count, names, number, whole
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


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    configure_request(parser)
    _choice(
        parser.add_argument_group("data"),
        "--packing",
        ("on", "off"),
        "several rows in a sequence, none seeing another (default: off)",  # `llmcheck train` has an option of that name, too
    )
    _add_output(parser)


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
    _option(group, "--model", "NAME", str, "catalogue name, Hub id, or a folder or config.json (`llmcheck models` lists the names)")
    _option(
        group,
        "--gpus",
        "N",
        whole("--gpus", 1, MAX_GPUS, unit="GPUs"),
        "GPUs in all (default: the GPUs found here, else 1)",
    )
    _option(
        group,
        "--nodes",
        "N",
        whole("--nodes", 1, MAX_GPUS, unit="nodes"),
        f"equal nodes that the GPUs are in (default: nodes of at most {USUAL_GPUS_PER_NODE})",
    )
    _option(group, "--gpu", "NAME", str, f"GPU model (default: the one found here, else {FALLBACK_GPU}; `llmcheck gpus` lists them)")
    _option(
        group,
        "--gpu-memory",
        "GIB",
        number("--gpu-memory", 1, 4096, unit="GiB"),
        "memory of one GPU as torch reports it (default: the GPU's); the CUDA context comes out of it",
    )
    _option(
        group,
        "--host-memory",
        "GIB",
        number("--host-memory", 1, 1 << 20, unit="GiB"),
        "RAM of one node (default: not checked)",
    )
    _option(group, "--disk", "GIB", number("--disk", 1, 1 << 30, unit="GiB"), "disk space for checkpoints (default: not checked)")
    _option(
        group,
        "--inter-node",
        "GBIT",
        number("--inter-node", 0.1, 1e6, unit="Gbit/s"),
        "network of one node, Gbit/s per direction (default: 200)",
    )
    _option(
        group,
        "--price",
        "USD",
        number("--price", 0, 1e4, unit="USD per GPU hour"),
        "price of a GPU hour (default: the catalogue's, where it has one)",
    )
    _option(
        group, "--profile", "FILE", str, "what this GPU reaches, as `llmcheck probe --calibrate` measured it (default: the catalogue's)"
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch and amount of training")
    _option(
        group,
        "--seq-len",
        "TOKENS",
        whole("--seq-len", 1, 1 << 24, unit="tokens"),
        f"tokens per sequence (default: {DEFAULT_SEQ_LEN})",
    )
    _option(
        group,
        "--micro-batch",
        "N",
        whole("--micro-batch", 1, 1 << 20, unit="sequences"),
        "sequences per GPU per forward (default: the planner's choice)",
    )
    _option(
        group,
        "--global-batch",
        "N",
        whole("--global-batch", 1, 1 << 30, unit="sequences"),
        "sequences per optimizer step over all GPUs (default: micro-batch x accumulation x GPUs)",
    )
    _option(
        group,
        "--grad-accum",
        "N",
        whole("--grad-accum", 1, 1 << 20, unit="steps"),
        "micro-steps per optimizer step (default: what the global batch asks for, else 1)",
    )
    _option(group, "--samples", "N", count("--samples", 10**12, unit="samples"), "train on N sequences (2M is 2000000): hours, cost, data")
    _option(group, "--tokens", "N", count("--tokens", 10**16, unit="tokens"), "train on N tokens (1.5B): hours, cost")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe; what is not given, or auto, is the planner's choice")
    _choice(group, "--method", ("auto", "full", "lora", "qlora"), "what is trained: every weight, adapters, adapters on a 4-bit model")
    _option(group, "--lora-rank", "N", whole("--lora-rank", 1, 1 << 16, unit="dimensions"), "rank of the adapters (default: 16)")
    _option(group, "--lora-targets", "all-linear|attention|NAMES", names("--lora-targets"), "modules with adapters (default: all-linear)")
    _option(
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
    _choice(group, "--zero", ("auto", "0", "1", "2", "3"), "ZeRO stage of DeepSpeed")
    _choice(group, "--offload", ("auto", "none", "optimizer", "params"), "what lives in host memory instead")
    _choice(group, "--checkpointing", ("auto", "on", "off"), "recompute activations in the backward pass")
    _choice(group, "--attention", ("auto", "eager", "sdpa", "flash"), "attention implementation")
    _choice(group, "--precision", ("bf16", "fp16", "fp32"), "number format of weights and activations (default: bf16 where the GPU has it)")
    _choice(group, "--loss", ("auto", "hf", "chunked", "liger"), "Hugging Face's loss with its copies of the logits, or one without")
    _choice(
        group,
        "--optimizer",
        ("fused-adam", "adamw", "cpu-adam", "adam-8bit", "adam-bf16"),
        "optimizer (default: fused-adam; cpu-adam when offloaded); adam-bf16 keeps no fp32 copies and is the bundled trainer's",
    )
    _choice(
        group, "--allocator", ("expandable", "native"), "PyTorch's CUDA allocator: expandable segments or not (default: the one that fits)"
    )
    _option(group, "--ds-config", "FILE", str, 'DeepSpeed configuration to plan with; its "auto" values are free')
    _choice(group, "--solve", SOLVE_TARGETS, "the largest of it that fits; of gpus, the fewest")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    _choice(group, "--format", ("text", "json", "markdown"), "form of the answer on stdout (default: text)")
    group.add_argument(
        "--verbose", action="store_true", help="text: everything, however long, and the next command with every choice spelt out"
    )
    _option(group, "--out", "FILE", str, "write the plan file (JSON) too")
    _option(group, "--timeline", "FILE", _timeline_path, "draw memory over one step, by category: FILE.svg, or FILE.png with matplotlib")
    group.add_argument("--force", action="store_true", help="let --out and --timeline replace files that are not llmcheck's own")
    _choice(
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


def explicit_command(plan: Plan, args: argparse.Namespace) -> str:
    """The command that plans exactly this recipe again, every choice spelt out."""
    recipe, cluster = plan.recipe, plan.cluster
    words = ["llmcheck", "plan", "--model", args.model, "--gpus", str(cluster.num_gpus)]
    if cluster.num_nodes > 1:
        words += ["--nodes", str(cluster.num_nodes)]
    words += ["--gpu", cluster.gpu.name]
    for flag, value in (
        ("--gpu-memory", args.gpu_memory),
        ("--host-memory", args.host_memory),
        ("--disk", args.disk),
        ("--inter-node", args.inter_node),
        ("--price", args.price),
        ("--samples", args.samples),
        ("--tokens", args.tokens),
        ("--profile", args.profile),
    ):
        if value is not None:
            words += [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
    words += ["--seq-len", str(recipe.seq_len), "--method", recipe.method]
    if recipe.lora is not None:
        lora = recipe.lora
        words += ["--lora-rank", str(lora.rank), "--lora-targets", lora.targets, "--lora-dropout", f"{lora.dropout:g}"]
        words += ["--train-embeddings", lora.train_embeddings] if lora.train_embeddings else []
    words += ["--zero", str(recipe.zero_stage), "--offload", recipe.offload]
    words += ["--micro-batch", str(recipe.micro_batch_size), "--grad-accum", str(recipe.grad_accum_steps)]
    words += ["--checkpointing", "on" if recipe.checkpointing else "off", "--attention", recipe.attention, "--loss", recipe.loss]
    words += ["--precision", recipe.precision, "--optimizer", recipe.optimizer, "--allocator", recipe.allocator]
    words += ["--packing", "on"] if recipe.packing else []
    if args.ds_config is not None:
        words += ["--ds-config", args.ds_config]
    return " ".join(map(_quoted, words))


def _option(group: Any, flag: str, metavar: str, kind: Any, text: str) -> None:
    group.add_argument(flag, metavar=metavar, type=kind, help=text)


def _choice(group: Any, flag: str, options: Sequence[str], text: str) -> None:
    # Not argparse's own `choices`: its message cannot say what was probably meant.
    group.add_argument(flag, metavar="|".join(options), type=choice(flag, options), help=text)


def _timeline_path(text: str) -> str:
    if text.lower().endswith((".svg", ".png")):
        return text
    why, hint = "the name must end in .svg or .png", "such as --timeline step.svg"
    raise UserError(f"--timeline cannot write {text!r}", code="usage", where="--timeline", why=why, hint=hint)


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


def next_steps(plan: Plan, args: argparse.Namespace, *, explicit: bool) -> tuple[str, ...]:
    """What to do now: how to run a plan that was saved, the command that saves it, or the one that makes it fit.

    The command that saves it is the user's own again, or, when `explicit`, one that spells every choice out.
    """
    if plan.verdict == "does-not-fit":
        ways = sorted((lever for lever in plan.what_if if lever.verdict != "does-not-fit" and lever.flags), key=lambda way: way.verdict)
        return tuple(" ".join(map(_quoted, ["llmcheck", "plan", *_given(args, instead=way.flags), *way.flags])) for way in ways[:1]) or (
            "no single change tried makes it fit: more --gpus, a larger --gpu, more --host-memory, or a smaller model (--solve model)",
        )
    if args.out is None:
        own = " ".join(map(_quoted, ["llmcheck", "plan", *_given(args)]))
        return ((explicit_command(plan, args) if explicit else own) + " --out plan.json",)
    setting = "True" if plan.recipe.allocator == "expandable" else "False"
    return (
        " ".join(map(_quoted, ["llmcheck", "train", "--plan", args.out, "--data"])) + " FILE... --output run",
        f"saved {args.out}: for another trainer its deepspeed section is a complete DeepSpeed configuration",
        f"such a run needs PYTORCH_CUDA_ALLOC_CONF=expandable_segments:{setting}, which the estimate assumes",
    )


def _given(args: argparse.Namespace, instead: Sequence[str] = ()) -> list[str]:
    """The options as the user gave them, without the output's and those that `instead` gives anew."""
    words: list[str] = []
    for name, value in vars(args).items():
        if value is None or value is False or name in ("out", "timeline", "force", "format", "verbose", "fail_on"):
            continue
        flag = "--" + name.replace("_", "-")
        if flag in instead:
            continue
        words += [flag] if value is True else [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
    return words


def _quoted(word: str) -> str:
    """`word` for a POSIX shell (shlex.quote, whose import costs more than this command line)."""
    if word and all(c.isascii() and (c.isalnum() or c in "@%+=:,./-_") for c in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
