"""The fastest recipe that fits: the whole answer to `llmcheck plan`."""

from __future__ import annotations

from dataclasses import replace

from llmcheck.collector import without_collector
from llmcheck.errors import UserError
from llmcheck.planner.alternatives import alternatives
from llmcheck.planner.candidates import Candidate, Searcher, cost
from llmcheck.planner.choose import choose
from llmcheck.planner.evaluate import Checked, Evaluator, Tools
from llmcheck.planner.findings import by_severity, zero3_slower
from llmcheck.planner.levers import levers
from llmcheck.planner.plan import Alternative, Finding, Plan, PlanRequest
from llmcheck.planner.space import Space, space_of

# Simulations in the units of `candidates.cost`. They bound how many are begun, not the time: one of 80 layers under ZeRO-3 takes 0.2 CPU s
# or, with adapters, 0.5, and one is begun as long as anything is left.
TOTAL_BUDGET = 10.5
ALTERNATIVES_BUDGET = 2.0
FAILING_LEVERS_BUDGET = 4.0  # nothing fits: what would make it fit is the answer


@without_collector()
def search(request: PlanRequest, *, tools: Tools | None = None) -> Plan:
    """The fastest recipe that fits what `request` fixes, with reasons, alternatives, levers and findings.

    When nothing fits, the plan is the recipe that comes nearest, and its levers say what would make it fit. A recipe that the request
    spells out is answered without alternatives, and where it fits without levers: they would cost several times the answer.
    """
    evaluator = Evaluator(
        request.model, request.cluster, tools=tools, num_samples=request.num_samples, num_tokens=request.num_tokens, profile=request.profile
    )
    space = space_of(request, evaluator.shape)
    if not any(True for method in space.methods for _ in space.recipes(method)):
        raise UserError(
            "these options leave no recipe",
            code="conflict",
            where="--method, --zero, --offload, --optimizer",
            why="QLoRA runs without ZeRO-3 and without offload; offloaded parameters need ZeRO-3, an offloaded optimizer cpu-adam",
            hint="leave one of them out",
        )
    searcher = Searcher(request, evaluator, space)
    for _ in range(3):
        chosen, reasons = choose(searcher)
        simulated = evaluator.num_simulations
        plan = evaluator.plan(chosen.recipe)
        searcher.spent += (evaluator.num_simulations - simulated) * cost(chosen.recipe, evaluator.shape)  # its other ranks
        if plan.verdict != "does-not-fit" or chosen.verdict == "does-not-fit":
            break
        evaluator.reject(chosen, plan)  # a rank that the search did not look at fails
    explicit = _is_explicit(request, space)
    found = [*plan.findings, *space.findings, *_slower_stage(searcher, chosen, explicit)]
    others: tuple[Alternative, ...] = ()
    if not explicit:
        others = alternatives(searcher, chosen, budget=min(ALTERNATIVES_BUDGET, TOTAL_BUDGET - 1.0 - searcher.spent))
    budget = FAILING_LEVERS_BUDGET
    if plan.verdict == "fits":
        budget = 0.0 if explicit else TOTAL_BUDGET - searcher.spent
    return replace(
        plan,
        reasons=(*reasons, *plan.reasons),
        alternatives=others,
        what_if=levers(evaluator, request, chosen, budget=budget),
        findings=by_severity(found),
    )


def _is_explicit(request: PlanRequest, space: Space) -> bool:
    """Whether the request spells out what matters: method, stage, batch and checkpointing."""
    one_stage = space.zero_stages is not None or request.cluster.num_gpus == 1
    return len(space.methods) == 1 and one_stage and len(space.batches) == 1 and len(space.checkpointing) == 1


def _slower_stage(searcher: Searcher, chosen: Checked, explicit: bool) -> list[Finding]:
    """A warning where the user asked for ZeRO-3 and ZeRO-2 would fit and be faster."""
    evaluator, recipe = searcher.evaluator, chosen.recipe
    if (
        searcher.space.zero_stages != (3,)
        or recipe.offload != "none"
        or not chosen.time.host_bound
        or searcher.request.ds_config is not None
    ):
        return []
    other = replace(recipe, zero_stage=2, deepspeed={})
    ratio = evaluator.time(other).tokens_per_s / chosen.time.tokens_per_s
    candidate = Candidate(other, 0.0, 0.0, searcher.guess(other))
    if ratio < 1.2 or not searcher.plausible(candidate):
        return []
    if explicit:  # answered at once: the closed form, with room for its error, stands for the simulation
        return [zero3_slower(ratio, simulated=False)] if 1.15 * candidate.guess_bytes < evaluator.cluster.gpu.memory_bytes else []
    return [zero3_slower(ratio, simulated=True)] if searcher.check(candidate).verdict == "fits" else []
