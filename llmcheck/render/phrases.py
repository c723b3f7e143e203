"""A plan's facts in words, shared by the text and the Markdown renderers."""

from __future__ import annotations

from llmcheck.planner.plan import Plan, SolveResult
from llmcheck.render import categories
from llmcheck.types import ClusterSpec, TrainEmbeddings, TrainingRecipe
from llmcheck.units import GIB, human_count, human_seconds

_VERDICTS = {"fits": "FITS", "tight": "TIGHT", "does-not-fit": "DOES NOT FIT"}
_EVIDENCE = {
    "simulated-measured-kernels": "simulated; this GPU's kernels were measured",
    "simulated-unmeasured-kernels": "simulated; this GPU's kernels were not measured, so the band is wider",
    "conservative-stand-in": "conservative stand-in: this model's layer is not modelled, so this is an upper estimate",
}
_EMBEDDINGS: dict[TrainEmbeddings | None, str] = {
    None: "",
    "in-place": ", embeddings and head in place",
    "modules-to-save": ", copies of embeddings and head",
}
_SOLVED = {
    "seq-len": "Longest sequence that fits: {} tokens",
    "micro-batch": "Largest micro-batch that fits: {} sequences per GPU",
    "gpus": "Fewest GPUs that fit: {}",
    "lora-rank": "Largest LoRA rank that fits: {}",
    "model": "Largest model of the family that fits: {}",
}
_UNSOLVED = {
    "seq-len": "No sequence length fits",
    "micro-batch": "No micro-batch fits",
    "gpus": "No number of GPUs fits",
    "lora-rank": "No LoRA rank fits",
    "model": "No model of the family fits",
}


def verdict_words(plan: Plan) -> tuple[str, str]:
    """The verdict and the sentence that follows it: what is needed, what there is, what is left."""
    need, have = categories.required_bytes(plan.memory) / GIB, plan.cluster.gpu.memory_bytes / GIB
    gpu = plan.cluster.gpu.name
    spare = have - need
    if plan.verdict == "does-not-fit":
        if spare < 0:
            return _VERDICTS[plan.verdict], f"needs {need:.2f} GiB per GPU, {gpu} has {have:.2f}: {-spare:.2f} GiB too little"
        return _VERDICTS[plan.verdict], f"although {need:.2f} of {gpu}'s {have:.2f} GiB would do on the GPU"
    sentence = f"needs {need:.2f} of {gpu}'s {have:.2f} GiB: {spare:.2f} GiB ({100 * spare / have:.0f} %) to spare"
    if plan.verdict == "tight":
        in_band = spare < plan.memory.error_fraction * need
        sentence += ", which is within the error band" if in_band else ", but only while the allocator gives memory back"
    return _VERDICTS[plan.verdict], sentence


def solve_words(solve: SolveResult) -> tuple[str, str]:
    """The answer of `--solve`, and what bounds it."""
    if solve.value is None:
        return _UNSOLVED[solve.target], solve.limited_by
    value = f"{solve.value:,}" if isinstance(solve.value, int) else solve.value
    after = "" if solve.next_value is None else f"{solve.next_value:,}" if isinstance(solve.next_value, int) else solve.next_value
    bound = f"{after} does not fit" if after else ""
    return _SOLVED[solve.target].format(value), "; ".join(part for part in (bound, solve.limited_by) if part)


def model_words(plan: Plan) -> str:
    """The model and the machine in one line."""
    cluster = plan.cluster
    where = f"{cluster.gpus_per_node} x {cluster.gpu.name}"
    if cluster.num_nodes > 1:
        where = f"{cluster.num_nodes} nodes of {where}"
    return f"{plan.model.name} ({human_count(plan.model.num_params)} parameters) on {where}"


def recipe_phrases(recipe: TrainingRecipe, cluster: ClusterSpec) -> list[str]:
    """The recipe, one decision per phrase, in the order in which people ask."""
    lora = recipe.lora
    method = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[recipe.method]
    if lora is not None:
        method += f" r{lora.rank} on {lora.targets}" + _EMBEDDINGS[lora.train_embeddings]
    batch = f"micro-batch {recipe.micro_batch_size} x {cluster.num_gpus} GPU" + ("s" if cluster.num_gpus > 1 else "")
    if recipe.grad_accum_steps > 1:
        batch += f" x {recipe.grad_accum_steps} steps"
    batch += f" = {recipe.micro_batch_size * recipe.grad_accum_steps * cluster.num_gpus}"
    offload = {"none": "no offload", "optimizer": "optimizer", "params": "parameters and optimizer"}[recipe.offload]
    if recipe.offload != "none":
        offload += " on the CPU" if recipe.offload_device == "cpu" else " on NVMe"
    return [
        method,
        f"{recipe.precision}, {recipe.optimizer}",
        f"ZeRO-{recipe.zero_stage}, {offload}",
        batch,
        f"{recipe.seq_len} tokens",
        "checkpointing" if recipe.checkpointing else "no checkpointing",
        f"{recipe.attention} attention",
        f"{recipe.loss} loss",
        f"{recipe.allocator} allocator",
    ]


def time_phrases(plan: Plan, unicode: bool = True) -> list[str]:
    """Step time, rate and total, with the error band and what the step consists of."""
    time = plan.time
    about = "±" if unicode else "+-"
    phrases = [
        f"{human_seconds(time.step_s)} a step ({about}{100 * time.error_fraction:.0f} %)",
        f"{time.tokens_per_s:,.0f} tokens/s",
        f"{time.tokens_per_s_per_gpu:,.0f} per GPU",
        f"MFU {100 * time.mfu:.0f} %",
    ]
    shares = (("communication", time.communication_exposed_s), ("optimizer", time.optimizer_s), ("offload", time.offload_s))
    phrases += [f"{name} {human_seconds(s)}" for name, s in shares if s >= 0.01 * time.step_s]
    if time.host_bound:
        phrases.append(f"bound by the host: Python and launches take {human_seconds(time.host_s)}")
    if time.total_s is not None:
        phrases.append(f"{human_seconds(time.total_s)} in all")
    if time.cost is not None:
        phrases.append(f"{time.cost:,.2f} USD")
    return phrases


def signed_gib(num_bytes: int, unicode: bool = True) -> str:
    """A change of memory in GiB with its sign."""
    return f"{num_bytes / GIB:+.2f}".replace("-", "−" if unicode else "-")


def speed_words(ratio: float, unicode: bool = True) -> str:
    """A speed ratio as ``1.28×``."""
    return f"{ratio:.2f}" + ("×" if unicode else "x")


def evidence_words(evidence: str) -> str:
    """What the estimate rests on."""
    return _EVIDENCE[evidence]
