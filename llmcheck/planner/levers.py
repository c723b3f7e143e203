"""What would change a plan: single changes, each simulated, with its bytes, its speed and its price in quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from llmcheck.planner import bounds, describe
from llmcheck.planner.candidates import cost
from llmcheck.planner.evaluate import Checked, Evaluator
from llmcheck.planner.plan import Lever, PlanRequest
from llmcheck.planner.space import supports_liger
from llmcheck.types import ClusterSpec, LoraSpec, TrainingRecipe
from llmcheck.units import gib

MAX_LEVERS = 5


class Change(NamedTuple):
    """One change, not yet simulated."""

    title: str
    flags: tuple[str, ...]
    recipe: TrainingRecipe
    cluster: ClusterSpec
    quality: str
    rank: float  # lower is tried first


def levers(evaluator: Evaluator, request: PlanRequest, chosen: Checked, *, budget: float) -> tuple[Lever, ...]:
    """At most five changes to `chosen`, those that help most first; new simulations cost at most about `budget` units."""
    failing = chosen.verdict != "fits"
    found: list[Lever] = []
    spent = 0.0
    for change in sorted(_changes(evaluator, request, chosen), key=lambda c: c.rank):
        other = (
            evaluator
            if change.cluster == evaluator.cluster
            else Evaluator(evaluator.model, change.cluster, tools=evaluator.tools, profile=evaluator.profile)
        )
        recipe = _completed(change, request, evaluator)
        if other.known(recipe) is None:
            if spent >= budget:
                continue
            spent += cost(recipe, evaluator.shape)
        checked = other.check(recipe)
        delta = checked.worst.required_bytes - chosen.worst.required_bytes
        speed = checked.time.tokens_per_s / chosen.time.tokens_per_s
        if checked.verdict == "does-not-fit" and (not failing or delta >= 0):
            continue  # no use: it does not fit, and frees nothing that is needed
        found.append(
            Lever(
                title=change.title,
                flags=change.flags,
                delta_bytes=delta,
                speed_ratio=speed,
                quality=change.quality,
                verdict=checked.verdict,
            )
        )
    # What is tight since the allocator has to give memory back would fill a larger GPU, too: smaller batches are its lever.
    if failing and (chosen.verdict == "does-not-fit" or chosen.worst.is_calm):
        found += _bigger_gpu(evaluator, chosen)
    order = {"fits": 0, "tight": 1, "does-not-fit": 2}
    return tuple(sorted(found, key=lambda lv: (order[lv.verdict], -lv.speed_ratio, lv.delta_bytes))[:MAX_LEVERS])


def _completed(change: Change, request: PlanRequest, evaluator: Evaluator) -> TrainingRecipe:
    """The changed recipe with its DeepSpeed configuration, the user's file merged in where it allows the change."""
    if request.ds_config is None:
        return evaluator.tools.complete(evaluator.model, replace(change.recipe, deepspeed={}), change.cluster)
    from llmcheck.dsconfig import complete, hidden_size_of
    from llmcheck.errors import UserError

    hidden = hidden_size_of(evaluator.model)
    try:
        config = complete(change.recipe, request.ds_config, world_size=change.cluster.num_gpus, hidden_size=hidden)
    except UserError:  # the file fixes what the lever changes: the lever stands for a changed file
        config = complete(change.recipe, None, world_size=change.cluster.num_gpus, hidden_size=hidden)
    return replace(change.recipe, deepspeed=config)


def _changes(evaluator: Evaluator, request: PlanRequest, chosen: Checked) -> Iterator[Change]:
    """Every single change that could matter. Changes that closed forms show to be useless are left out."""
    recipe, cluster = replace(chosen.recipe, deepspeed={}), evaluator.cluster
    memory, need = cluster.gpu.memory_bytes, chosen.worst.required_bytes
    now = bounds.guess_bytes(evaluator.model, evaluator.shape, recipe, cluster)
    for change in _all_changes(evaluator, request, recipe):
        if change.recipe == recipe and change.cluster == cluster:
            continue
        after = bounds.guess_bytes(evaluator.model, evaluator.shape, change.recipe, change.cluster) * need / now
        if chosen.verdict == "fits":
            if after <= 1.1 * memory:
                yield change
        elif after < need:
            # those that free enough come first, then by their own order
            yield change._replace(rank=change.rank + (0 if after <= memory else 10))


def _best_of(evaluator: Evaluator, method: str, stage: int | None = None) -> TrainingRecipe | None:
    """The fastest recipe of another kind that the search has already found to fit."""
    fitting = [c for c in evaluator.checked if c.verdict == "fits" and c.recipe.method == method and stage in (None, c.recipe.zero_stage)]
    best = max(fitting, key=lambda c: c.time.tokens_per_s, default=None)
    return None if best is None else replace(best.recipe, deepspeed={})


def _all_changes(evaluator: Evaluator, request: PlanRequest, recipe: TrainingRecipe) -> Iterator[Change]:
    cluster, shape = evaluator.cluster, evaluator.shape
    free_stage = request.zero_stage is None and request.ds_config is None  # a change may bring another stage, as planning it would

    def change(title: str, flags: tuple[str, ...], new: TrainingRecipe, quality: str, rank: float, on: ClusterSpec = cluster) -> Change:
        return Change(title, flags, replace(new, deepspeed={}), on, describe.QUALITY.get(quality, quality), rank)

    if recipe.checkpointing:
        new = replace(recipe, checkpointing=False)
        yield change("keep activations (no checkpointing)", ("--checkpointing", "off"), new, "none", 2)
    else:
        yield change("recompute activations (checkpointing)", ("--checkpointing", "on"), replace(recipe, checkpointing=True), "none", 1)
    if recipe.loss == "hf":
        yield change("loss in chunks of tokens", ("--loss", "chunked"), replace(recipe, loss="chunked"), "none", 1.5)
        if supports_liger(evaluator.model):
            new = replace(recipe, loss="liger")
            yield change("Liger kernels (needs the package)", ("--loss", "liger"), new, "none", 3.5)
    if recipe.attention == "eager" and (shape.has_sdpa or shape.trainer_sdpa):
        yield change("fused attention", ("--attention", "sdpa"), replace(recipe, attention="sdpa"), "none", 1)
    if recipe.micro_batch_size > 1:
        half = recipe.micro_batch_size // 2
        fixed = request.global_batch_size is not None
        new = replace(recipe, micro_batch_size=half, grad_accum_steps=recipe.grad_accum_steps * (2 if fixed else 1))
        yield change(f"micro-batch {half} instead of {recipe.micro_batch_size}", ("--micro-batch", str(half)), new, "none", 2.5)
    if recipe.method == "full" and recipe.offload == "none" and recipe.optimizer != "adam-bf16":
        if recipe.precision == "bf16":
            stage = 0 if cluster.num_gpus == 1 and free_stage else recipe.zero_stage
            new = replace(recipe, optimizer="adam-bf16", zero_stage=stage)
            # before 8-bit states, which free less
            yield change("Adam in bf16", ("--optimizer", "adam-bf16"), new, "adam-bf16", 3.9)
        if recipe.optimizer != "adam-8bit":
            new = replace(recipe, optimizer="adam-8bit")
            yield change("8-bit Adam (needs bitsandbytes)", ("--optimizer", "adam-8bit"), new, "adam-8bit", 4)
    if recipe.method == "full":
        lora = LoraSpec(rank=request.lora_rank or 16)
        new = replace(
            recipe,
            method="lora",
            lora=lora,
            offload="none",
            optimizer="fused-adam",
            zero_stage=min(recipe.zero_stage, 2) or 2,
            fused_adapters=True,
        )
        new = _best_of(evaluator, "lora") or new
        flags = ("--method", "lora", *_optimizer_flags(request, new))
        yield change(f"LoRA r{lora.rank} instead of full fine-tuning", flags, new, "lora", 3)
    elif recipe.method == "lora" and recipe.zero_stage < 3:
        yield change("QLoRA: 4-bit base weights", ("--method", "qlora"), replace(recipe, method="qlora"), "qlora", 3)
    if recipe.method != "full" and recipe.lora is not None and recipe.lora.train_embeddings:
        if recipe.lora.train_embeddings == "modules-to-save":
            new = replace(recipe, lora=replace(recipe.lora, train_embeddings="in-place"))
            yield change(
                "train the embeddings in place, not copies",
                ("--train-embeddings", "in-place"),
                new,
                "both stay tied" if shape.tied else "none",
                1.1,
            )
        new = replace(recipe, lora=replace(recipe.lora, train_embeddings=None))
        yield change("freeze the embeddings (leave --train-embeddings out)", (), new, "new tokens are not learnt", 1.2)
    if cluster.num_gpus > 1 and recipe.method != "qlora" and recipe.zero_stage < 3:
        new = _best_of(evaluator, recipe.method, 3) or replace(recipe, zero_stage=3)
        yield change("ZeRO-3: weights sharded too", ("--zero", "3"), new, "none", 3)
    if recipe.method == "full" and recipe.offload == "none" and (recipe.zero_stage >= 1 or free_stage):
        new = replace(recipe, offload="optimizer", optimizer="cpu-adam", zero_stage=recipe.zero_stage or 2)
        yield change("optimizer in host memory", ("--offload", "optimizer", *_optimizer_flags(request, new)), new, "none", 4)
    if recipe.seq_len >= 512:
        half = recipe.seq_len // 2
        yield change(f"{half} tokens instead of {recipe.seq_len}", ("--seq-len", str(half)), replace(recipe, seq_len=half), "shorter", 5)
    per_node = cluster.gpus_per_node * 2
    wider = replace(cluster, gpus_per_node=per_node) if per_node <= 8 else replace(cluster, num_nodes=cluster.num_nodes * 2)
    if recipe.method == "full" and (recipe.zero_stage >= 1 or free_stage):
        new = replace(recipe, zero_stage=recipe.zero_stage or 2)
        if not recipe.zero_stage and bounds.guess_bytes(evaluator.model, shape, new, wider) > wider.gpu.memory_bytes:
            new = replace(recipe, zero_stage=3)
        yield change(f"{wider.num_gpus} GPUs", ("--gpus", str(wider.num_gpus)), new, "none", 4.5, wider)


def _optimizer_flags(request: PlanRequest, recipe: TrainingRecipe) -> tuple[str, ...]:
    """What a command that names another optimizer must say, too."""
    return () if request.optimizer in (None, recipe.optimizer) else ("--optimizer", recipe.optimizer)


def _bigger_gpu(evaluator: Evaluator, chosen: Checked) -> list[Lever]:
    """The smallest GPU of the catalogue on which `chosen` runs, when more memory of the GPU is what lacks."""
    from llmcheck.catalog.gpus import all_gpus

    here = evaluator.cluster.gpu
    need = max(chosen.worst.required_bytes * (1 + evaluator.error_fraction), here.memory_bytes * 1.1)
    specs = [entry.spec for entry in all_gpus()]
    larger = [g for g in specs if g.vendor == here.vendor and g.memory_bytes >= need and g.bf16_flops_per_s > 0]
    if not larger:
        return []
    gpu = min(larger, key=lambda g: (g.memory_bytes, -g.bf16_flops_per_s))
    checked = Evaluator(evaluator.model, replace(evaluator.cluster, gpu=gpu), tools=evaluator.tools).check(chosen.recipe)
    if checked.verdict == "does-not-fit":  # the host's memory lacks too
        return []
    delta = checked.worst.least_bytes - chosen.worst.least_bytes  # the other GPU's context and kernels: fragmentation is the same
    speed = checked.time.tokens_per_s / chosen.time.tokens_per_s
    title = f"a GPU of {gib(gpu.memory_bytes)}: {gpu.title}"
    return [Lever(title=title, flags=("--gpu", gpu.name), delta_bytes=delta, speed_ratio=speed, quality="none", verdict=checked.verdict)]
