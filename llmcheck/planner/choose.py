"""Which of the recipes that fit is proposed, and why."""

from __future__ import annotations

from llmcheck.planner import describe
from llmcheck.planner.candidates import Candidate, Searcher
from llmcheck.planner.evaluate import Checked
from llmcheck.types import Method
from llmcheck.units import gib

# Full fine-tuning is kept although it needs offload, unless adapters are this many times as fast: then it is not worth the wait.
SANE_SLOWDOWN = 4.0
# Simulations in the units of `candidates.cost`.
SEARCH_BUDGET = 9.5


def choose(searcher: Searcher) -> tuple[Checked, list[str]]:
    """The recipe to propose, and why."""
    reasons: list[str] = []
    found: dict[Method, Checked] = {}
    automatic = len(searcher.space.methods) > 1
    per_method: dict[Method, list[Candidate]] = {}
    budget = SEARCH_BUDGET
    for method in searcher.space.methods:
        per_method[method] = searcher.candidates(method)
        before = searcher.spent
        # an offloaded recipe that nobody can take yet is only mentioned where another method needs no offload
        checked = _best(searcher, per_method[method], budget, tight_will_do=method != searcher.space.methods[-1])
        budget = max(2.0, budget - (searcher.spent - before))
        if checked is None:
            if automatic and any(True for _ in searcher.space.recipes(method)):
                reasons.append(f"{describe.METHOD[method]} does not fit" + _nearest_words(searcher, method))
            continue
        found[method] = checked
        if checked.recipe.offload == "none":
            break  # the first method that fits is the one with the best quality
    if not found:
        return _nearest(searcher, per_method), reasons
    if all(c.recipe.offload != "none" for c in found.values()):
        for method, checked in found.items():
            if checked.verdict == "tight":
                found[method] = _best(searcher, per_method[method], SEARCH_BUDGET) or checked
    methods = list(found)
    chosen = found[methods[0]]
    plain = min(found.values(), key=lambda c: c.host.host_bytes_per_node)
    if chosen.recipe.offload != "none" and plain is not chosen:
        # the better method needs host memory and time: is it worth both?
        # of the optimizers that are tried unasked: adam-bf16 is an alternative, which may need no offload
        name, other = f"{describe.METHOD[methods[0]]} with states in fp32", describe.METHOD[plain.recipe.method]
        ratio = plain.time.tokens_per_s / chosen.time.tokens_per_s
        if ratio > SANE_SLOWDOWN:
            reasons.append(f"{name} fits only with offload, and {other} is {ratio:.0f} times as fast")
            return plain, reasons + _reasons(searcher, plain, automatic=False)
        if searcher.evaluator.cluster.host_memory_bytes is None:
            need = gib(chosen.host.host_bytes_per_node, 0)
            reasons.append(f"{name} fits only with {need} of host memory per node: {other} until --host-memory says that it is there")
            return plain, reasons + _reasons(searcher, plain, automatic=False)
    reasons += _reasons(searcher, chosen, automatic)
    return chosen, reasons


def _best(searcher: Searcher, candidates: list[Candidate], budget: float, *, tight_will_do: bool = False) -> Checked | None:
    """The fastest that fits. Where the host's memory is not known, what needs none of it goes first.

    `tight_will_do`: of what needs some, one that is tight is enough.
    """
    if searcher.evaluator.cluster.host_memory_bytes is not None:
        return searcher.best(candidates, budget)
    before = searcher.spent
    plain = [c for c in candidates if c.recipe.offload == "none"]
    checked = searcher.best(plain, budget) if plain else None
    if checked is not None or len(plain) == len(candidates):
        return checked
    offloaded = [c for c in candidates if c.recipe.offload != "none"]
    return searcher.best(offloaded, max(1.0, budget - (searcher.spent - before)), tight_will_do=tight_will_do)


def _nearest_words(searcher: Searcher, method: Method) -> str:
    checked = [c for c in searcher.evaluator.checked if c.recipe.method == method]
    if not checked:
        return ": its weights and optimizer states alone are more than the GPU has"
    least = min(checked, key=lambda c: c.worst.required_bytes)
    return f": {searcher.evaluator.why(least)}"


def _nearest(searcher: Searcher, per_method: dict[Method, list[Candidate]]) -> Checked:
    """Nothing fits: the recipe that lacks least, of those simulated, else the one with the smallest guess."""
    checked = searcher.evaluator.checked
    if checked:
        return min(checked, key=lambda c: c.worst.required_bytes)
    method = searcher.space.methods[-1]
    candidates = per_method.get(method) or []
    if candidates:
        return searcher.check(min(candidates, key=lambda c: c.guess_bytes))
    recipes = [r for m in searcher.space.methods for r in searcher.space.recipes(m)]
    recipe = min(recipes, key=searcher.guess)
    return searcher.check(Candidate(recipe, 0.0, 0.0, searcher.guess(recipe)))


def _reasons(searcher: Searcher, chosen: Checked, automatic: bool) -> list[str]:
    """Why this recipe: one sentence per decision that the planner took."""
    recipe, space, out = chosen.recipe, searcher.space, []
    if automatic and recipe.method == "full":
        out.append("full fine-tuning fits, " + ("if barely, " if chosen.verdict == "tight" else "") + "and trains every weight")
    elif automatic:
        out.append(f"{describe.METHOD[recipe.method]} is the method of the best quality that fits")
    if space.zero_stages is None and searcher.evaluator.cluster.num_gpus > 1:
        out.append(describe.stage_reason(recipe))
    if len(space.checkpointing) > 1:
        out.append(_checkpointing_reason(searcher, chosen))
    if len(space.batches) > 1 and searcher.request.global_batch_size is None:
        total = recipe.micro_batch_size * recipe.grad_accum_steps * searcher.evaluator.cluster.num_gpus
        out.append(
            f"micro-batch {recipe.micro_batch_size} is the fastest that fits; {total} sequences a step (--global-batch fixes that number)"
        )
    if len(space.losses) > 1 and recipe.loss != "hf":
        out.append("the chunked loss gives the same result without copies of the logits")
    return out


def _checkpointing_reason(searcher: Searcher, chosen: Checked) -> str:
    method = chosen.recipe.method
    if not chosen.recipe.checkpointing:
        return "it fits without checkpointing, so nothing is computed twice"
    others = [c for c in searcher.evaluator.checked if not c.recipe.checkpointing and c.recipe.method == method]
    if any(c.verdict == "fits" for c in others):
        return "checkpointing: without it only smaller micro-batches fit, and they are slower"
    if others or all(c.recipe.checkpointing for c in searcher.candidates(method)):
        return "checkpointing: without it the activations do not fit"
    return "checkpointing leaves the memory to a larger micro-batch, which is faster"
