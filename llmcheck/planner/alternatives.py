"""Recipes of another kind than the chosen one, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmcheck.planner import describe
from llmcheck.planner.candidates import Searcher
from llmcheck.planner.evaluate import Checked
from llmcheck.planner.plan import Alternative
from llmcheck.types import Method, TrainingRecipe

MAX_ALTERNATIVES = 4
BF16_BUDGET = 1.5  # in the units of `candidates.cost`, of the alternatives' own: what others ask about shall be looked for, too


def alternatives(searcher: Searcher, chosen: Checked, *, budget: float) -> tuple[Alternative, ...]:
    """Recipes of another kind, the fastest of each that was found to fit; one more of each kind that people ask about is simulated."""
    limit = searcher.spent + budget
    _try_full_in_bf16(searcher, chosen, budget=min(budget, BF16_BUDGET))
    for pick in _other_kinds(chosen.recipe):
        if searcher.spent >= limit:
            break
        pool = [c for m in _methods_for(searcher, chosen) for c in searcher.candidates(m) if pick(c.recipe)]
        known = [c for c in searcher.evaluator.checked if c.verdict == "fits" and pick(c.recipe)]
        plausible = [c for c in pool if searcher.plausible(c)]
        if plausible and not known:
            searcher.check(plausible[0])
    best: dict[tuple[object, ...], Checked] = {}
    for checked in searcher.evaluator.checked:
        kind = _kind(checked.recipe)
        if kind == _kind(chosen.recipe) or checked.verdict == "does-not-fit":
            continue
        if kind not in best or checked.time.tokens_per_s > best[kind].time.tokens_per_s:
            best[kind] = checked
    # what trains more than the chosen recipe comes first: it is slower, and what people hope for
    ranked = sorted(best.values(), key=lambda c: (c.verdict != "fits", not _trains_more(c, chosen), -c.time.tokens_per_s))
    return tuple(_alternative(checked, chosen) for checked in ranked[:MAX_ALTERNATIVES])


def _trains_more(checked: Checked, chosen: Checked) -> bool:
    return checked.recipe.method == "full" and chosen.recipe.method != "full" and checked.recipe.offload == "none"


def _try_full_in_bf16(searcher: Searcher, chosen: Checked, *, budget: float) -> None:
    """Where full fine-tuning does not fit the GPUs with fp32 masters, look for it with the optimizer that has none."""
    space, recipe = searcher.space, chosen.recipe
    wanted = "full" in space.methods and (recipe.method != "full" or recipe.offload != "none")
    if not wanted or space.optimizer is not None or space.base.precision != "bf16" or searcher.request.ds_config is not None:
        return
    lean = Searcher(searcher.request, searcher.evaluator, space._replace(methods=("full",), optimizer="adam-bf16", offloads=("none",)))
    plausible = [c for c in lean.candidates("full") if lean.plausible(c)]
    if plausible:
        lean.best(plausible, budget)
    searcher.spent += lean.spent


def _methods_for(searcher: Searcher, chosen: Checked) -> Iterable[Method]:
    return searcher.space.methods if len(searcher.space.methods) > 1 else (chosen.recipe.method,)


def _kind(recipe: TrainingRecipe) -> tuple[object, ...]:
    return (recipe.method, recipe.zero_stage, recipe.offload, recipe.checkpointing, recipe.loss, recipe.optimizer)


def _other_kinds(recipe: TrainingRecipe) -> tuple[Callable[[TrainingRecipe], bool], ...]:
    """What to look for beside the chosen recipe: other checkpointing, other stage, other method."""
    return (
        lambda r: r.method == recipe.method and r.checkpointing != recipe.checkpointing and r.offload == recipe.offload,
        lambda r: r.method == recipe.method and r.zero_stage != recipe.zero_stage and r.offload == recipe.offload,
        lambda r: r.method != recipe.method,
    )


def _alternative(checked: Checked, chosen: Checked) -> Alternative:
    recipe, worst = checked.recipe, checked.worst
    return Alternative(
        title=describe.title(recipe),
        flags=describe.flags(recipe),
        recipe=recipe,
        verdict=checked.verdict,
        peak_allocated_bytes=worst.peak_allocated_bytes,
        process_bytes=worst.process_bytes,
        required_bytes=worst.required_bytes,
        host_bytes_per_node=checked.host.host_bytes_per_node,
        step_s=checked.time.step_s,
        tokens_per_s=checked.time.tokens_per_s,
        note=describe.compare(checked.time.tokens_per_s, chosen.time.tokens_per_s, recipe, chosen.recipe),
    )
