"""What must agree before anything is loaded: plan, ranks, batch, data, tokenizer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmcheck.errors import UserError, first_line
from llmcheck.planfile import PlanFile
from llmcheck_trainer.data import Prepared
from llmcheck_trainer.dataprep import agree

# Checks that `--allow` turns into warnings: the run is possible without them, its outcome or the plan's estimate is then not what was said.
ALLOWABLE = ("plan-edited", "pad-is-eos", "other-run", "does-not-fit", "tokenizer", "seq-len")


class Checks:
    """Fails or, for the codes in `allow` and those that the plan keeps as allowed, warns."""

    def __init__(self, allow: str, *, kept: Iterable[str] = (), speak: bool = True) -> None:
        asked = {code.strip() for code in allow.split(",") if code.strip()}
        self.allowed = asked | set(kept)
        self.speak = speak
        unknown = sorted(asked - set(ALLOWABLE))
        if unknown:
            raise UserError(f"--allow does not know {unknown[0]!r}", code="usage", where="--allow", hint="it knows " + ", ".join(ALLOWABLE))

    def fail(self, error: UserError) -> None:
        """Raise `error` unless it is allowed."""
        if error.code not in self.allowed:
            raise error
        if self.speak:
            sys.stderr.write(f"warning[{error.code}]: {error.what}\n")


def check_plan(plan_file: PlanFile, path: str, world_size: int, checks: Checks) -> None:
    """The plan is unedited and for this number of ranks, and its DeepSpeed section has its batch sizes."""
    plan, config = plan_file.plan, plan_file.plan.recipe.deepspeed
    if plan_file.edited:
        checks.fail(
            UserError(
                "the plan was edited since it was made: its estimate no longer applies",
                code="plan-edited",
                where=path,
                why="the digest over model, cluster, recipe and deepspeed differs",
                hint="plan again with `llmcheck plan`, or say --allow plan-edited",
            )
        )
    if plan.verdict == "does-not-fit":
        checks.fail(
            UserError(
                "the plan says that this run does not fit",
                code="does-not-fit",
                where=path,
                why="; ".join(plan.reasons)[:300],
                hint="plan again with one of its levers, or say --allow does-not-fit",
            )
        )
    if world_size != plan.cluster.num_gpus:
        raise UserError(
            f"{world_size} ranks were started, the plan is for {plan.cluster.num_gpus}",
            code="world-size",
            where=path,
            why=f"{plan.cluster.num_nodes} x {plan.cluster.gpus_per_node} GPUs; another number needs other memory and another batch",
            hint=f"start {plan.cluster.num_gpus} ranks, or plan with --gpus {world_size}",
        )
    recipe = plan.recipe
    total = recipe.micro_batch_size * recipe.grad_accum_steps * world_size
    for key, value in (
        ("train_batch_size", total),
        ("train_micro_batch_size_per_gpu", recipe.micro_batch_size),
        ("gradient_accumulation_steps", recipe.grad_accum_steps),
    ):
        if config.get(key) != value:
            raise UserError(
                f"the plan's deepspeed.{key} is {config.get(key)!r}, its recipe gives {value}",
                code="batch",
                where=path,
                hint="plan again: hand-edited sizes must agree",
            )


def check_tokenizer(plan_file: PlanFile, data: Prepared, config: Any, checks: Checks) -> None:
    """The data's tokenizer is one that the model has rows for, with the model's special ids, and padding is not the end of a text."""
    plan, tokenizer = plan_file.plan, data.tokenizer
    where = f"{data.flag} {data.folder}"
    rows = plan.model.config["vocab_size"]
    beyond = agree.beyond_vocabulary(data.manifest, rows, where)
    if beyond is not None:
        raise beyond
    for name in ("eos", "bos"):
        wanted, found = getattr(config, f"{name}_token_id", None), tokenizer.get(f"{name}_id")
        accepted = wanted if isinstance(wanted, list) else [wanted]
        if wanted is not None and found is not None and found not in accepted:
            raise UserError(
                f"the data's {name} id is {found}, the model's is {wanted}",
                code="special-ids",
                where=where,
                why="the model would learn to stop at a token that nobody stops at" if name == "eos" else "texts would begin otherwise",
                hint="prepare the data with the model's own tokenizer",
            )
    if tokenizer["pad_id"] is not None and tokenizer["pad_id"] == tokenizer["eos_id"]:
        checks.fail(
            UserError(
                f"padding and end of text are the same token ({tokenizer['eos_id']})",
                code="pad-is-eos",
                where=where,
                why="whoever masks padding by its id also masks the end, and the model never learns to stop",
                hint="give the tokenizer a pad token of its own; --allow pad-is-eos goes on, since the trainer masks by position",
            )
        )


def check_same_tokenizer(folder: str, data: Prepared, load: Callable[[str], Any], checks: Checks) -> None:
    """The tokenizer in the weights' folder, where there is one, is the one that made the data.

    Told by digest; size and special ids where it is of files that only transformers reads.
    """
    where = f"{data.flag} {data.folder}"
    if any(os.path.isfile(os.path.join(folder, name)) for name in agree.READABLE):
        differs = agree.other_tokenizer(data.manifest, folder, where)
        if differs is not None:
            checks.fail(differs)
        return
    if not os.path.isfile(os.path.join(folder, "tokenizer_config.json")):
        return
    try:
        tokenizer = load(folder)
    except Exception as reason:  # a stranger's files, and several libraries that read them
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded",
            code="tokenizer",
            where=folder,
            why=first_line(reason),
            hint="`llmcheck doctor --tokenizer DIR` says more",
        ) from reason
    found = {"vocab_size": len(tokenizer), "eos_id": tokenizer.eos_token_id, "bos_id": tokenizer.bos_token_id}
    differing = {
        key: (data.tokenizer[key], value)
        for key, value in found.items()
        if value is not None and data.tokenizer.get(key) is not None and data.tokenizer[key] != value
    }
    if differing:
        key, (theirs, ours) = next(iter(differing.items()))
        checks.fail(
            UserError(
                f"the data was made with another tokenizer than the one beside the weights: {key} {theirs}, not {ours}",
                code="tokenizer",
                where=where,
                hint=f"prepare the data with --tokenizer {folder}",
            )
        )


def run_identity(data: Prepared, seq_len: int, *, packing: bool, seed: int) -> str:
    """What a position in the run means, as text: a checkpoint of another one cannot be resumed from."""
    files: Mapping[str, Any] = data.manifest["files"]
    sums = {name: entry.get("sha256") for name, entry in files.items()}
    return json.dumps({"data": sums, "seq_len": seq_len, "packing": packing, "seed": seed}, sort_keys=True)
