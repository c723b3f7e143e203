"""What the user can say next: the command that runs a plan, saves it, or makes it fit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmcheck.planner.plan import Plan
from llmcheck.shellwords import quoted


def next_steps(plan: Plan, args: argparse.Namespace, *, explicit: bool) -> tuple[str, ...]:
    """What to do now: how to run a plan that was saved, the command that saves it, or the one that makes it fit.

    The command that saves it is the user's own again, or, when `explicit`, one that spells every choice out.
    """
    if plan.verdict == "does-not-fit":
        ways = sorted((lever for lever in plan.what_if if lever.verdict != "does-not-fit" and lever.flags), key=lambda way: way.verdict)
        return tuple(" ".join(map(quoted, ["llmcheck", "plan", *_given(args, instead=way.flags), *way.flags])) for way in ways[:1]) or (
            "no single change tried makes it fit: more --gpus, a larger --gpu, more --host-memory, or a smaller model (--solve model)",
        )
    if args.out is None:
        own = " ".join(map(quoted, ["llmcheck", "plan", *_given(args)]))
        return ((explicit_command(plan, args) if explicit else own) + " --out plan.json",)
    setting = "True" if plan.recipe.allocator == "expandable" else "False"
    return (
        " ".join(map(quoted, ["llmcheck", "train", "--plan", args.out, "--data"])) + " FILE... --output run",
        f"saved {args.out}: for another trainer its deepspeed section is a complete DeepSpeed configuration",
        f"such a run needs PYTORCH_CUDA_ALLOC_CONF=expandable_segments:{setting}, which the estimate assumes",
    )


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
    return " ".join(map(quoted, words))


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
