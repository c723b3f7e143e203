"""Candidates of a search: ordered by predicted speed, simulated only where closed forms cannot decide."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from llmcheck.planner import bounds
from llmcheck.planner.evaluate import Checked, Evaluator
from llmcheck.planner.plan import PlanRequest
from llmcheck.planner.space import Space
from llmcheck.steptime.shape import Shape
from llmcheck.types import Method, TrainingRecipe

# Of recipes that are equally fast within these shares, the plainer one: a preference, not a prediction.
_DISCOUNTS = {"loss": 0.015, "zero3": 0.02, "doubling": 0.015, "offload": 0.02}
# Speed, of that of a recipe whose allocator has to give memory back, below which one that need not is no longer looked for: giving it back
# costs less. Judgement.
WORTH_CALM = 0.7


class Candidate(NamedTuple):
    """A recipe that closed forms do not exclude."""

    recipe: TrainingRecipe
    tokens_per_s: float
    score: float  # tokens per second less the discounts
    guess_bytes: float

    @property
    def group(self) -> tuple[object, ...]:
        """Recipes that differ in the batch only: memory grows with the micro-batch within a group."""
        r = self.recipe
        return (r.method, r.zero_stage, r.offload, r.checkpointing, r.attention, r.loss)


class Searcher:
    """Searches the space of one request."""

    def __init__(self, request: PlanRequest, evaluator: Evaluator, space: Space) -> None:
        self.request, self.evaluator, self.space = request, evaluator, space
        self.spent = 0.0
        self._ratios: dict[tuple[object, ...], float] = {}
        self._too_large: dict[tuple[object, ...], int] = {}
        self._restless: dict[tuple[object, ...], int] = {}  # smallest micro-batch whose allocator has to give memory back
        self._candidates: dict[Method, list[Candidate]] = {}

    # --- candidates ---------------------------------------------------------------------------------------------------------

    def candidates(self, method: Method) -> list[Candidate]:
        """The recipes of `method` that can be simulated at all, fastest first."""
        if method not in self._candidates:
            self._candidates[method] = self._enumerate(method)
        return self._candidates[method]

    def _enumerate(self, method: Method) -> list[Candidate]:
        model, cluster, shape = self.evaluator.model, self.evaluator.cluster, self.evaluator.shape
        found = []
        for bare in self.space.recipes(method):
            recipe = self._with_user_sections(bare)
            if bounds.lower_bound_bytes(model, shape, recipe, cluster) > cluster.gpu.memory_bytes:
                continue
            tokens_per_s = self.evaluator.time(recipe).tokens_per_s
            found.append(Candidate(recipe, tokens_per_s, tokens_per_s * _discount(recipe), self.guess(recipe)))
        return sorted(found, key=lambda c: -c.score)

    def guess(self, recipe: TrainingRecipe) -> float:
        """Bytes of the process, from closed forms."""
        return bounds.guess_bytes(self.evaluator.model, self.evaluator.shape, recipe, self.evaluator.cluster)

    def _with_user_sections(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """The user's ZeRO section, for the time model: completing the whole configuration waits until the recipe is simulated."""
        section = (self.request.ds_config or {}).get("zero_optimization")
        return replace(recipe, deepspeed={"zero_optimization": section}) if isinstance(section, dict) else recipe

    # --- simulation -----------------------------------------------------------------------------------------------------------

    def check(self, candidate: Candidate) -> Checked:
        """Simulate a candidate, and learn from it for its group."""
        before = self.evaluator.num_simulations
        checked = self.evaluator.check(finish(candidate.recipe, self.request, self.evaluator.cluster.num_gpus))
        if self.evaluator.num_simulations > before:
            self.spent += cost(candidate.recipe, self.evaluator.shape)
        self._ratios[candidate.group] = max(checked.worst.least_bytes, 1) / candidate.guess_bytes
        micro = candidate.recipe.micro_batch_size
        if checked.verdict == "tight" and not checked.worst.is_calm:
            sharding = _sharding(candidate.recipe)
            self._restless[sharding] = min(micro, self._restless.get(sharding, micro))
        if checked.verdict == "does-not-fit":
            self._too_large[candidate.group] = min(micro, self._too_large.get(candidate.group, micro))
        return checked

    def plausible(self, candidate: Candidate) -> bool:
        """Whether the candidate may fit, by what its group or all groups have shown so far."""
        micro = candidate.recipe.micro_batch_size
        if micro >= min(self._too_large.get(candidate.group, 1 << 62), self._restless.get(_sharding(candidate.recipe), 1 << 62)):
            return False
        ratio = self._ratios.get(candidate.group)
        if ratio is None:
            known = list(self._ratios.values())
            ratio = sum(known) / len(known) if known else 1.0
        return candidate.guess_bytes * ratio * (1 + self.evaluator.error_fraction) <= self.evaluator.cluster.gpu.memory_bytes

    def best(self, candidates: list[Candidate], budget: float, *, tight_will_do: bool = False) -> Checked | None:
        """The fastest candidate that fits (a tight one if none does, or none nearly as fast); None: none was found within `budget`.

        `tight_will_do`: once one is tight, only faster ones are looked for.
        """
        limit = self.spent + budget
        best: tuple[Candidate, Checked] | None = None
        tight: tuple[Candidate, Checked] | None = None
        seen: set[int] = set()
        while self.spent < limit:
            enough = best or (tight if tight_will_do else None)
            floor = enough[0].score * 1.005 if enough else 0.0
            pool = [c for c in candidates if id(c) not in seen and c.score > floor and self.plausible(c)]
            if best is None and tight is not None:  # its like with a smaller batch is the nearest that may fit
                least = 0.0 if tight[1].worst.is_calm else WORTH_CALM * tight[0].score
                pool = [c for c in pool if c.score > least]
                pool = [c for c in pool if c.group == tight[0].group] or pool
            if not pool and best is None and tight is None:
                # nothing looks as if it fits: try what comes nearest
                rest = [c for c in candidates if id(c) not in seen and c.recipe.micro_batch_size < self._too_large.get(c.group, 1 << 62)]
                pool = sorted(rest, key=lambda c: c.guess_bytes * self._ratios.get(c.group, 1.0))[:1]
            if not pool:
                break
            candidate = pool[0]
            seen.add(id(candidate))
            checked = self.check(candidate)
            if checked.verdict == "fits":
                best = (candidate, checked)
            elif checked.verdict == "tight" and (tight is None or candidate.score > tight[0].score):
                tight = (candidate, checked)
        chosen = best or tight
        return chosen[1] if chosen else None


def finish(recipe: TrainingRecipe, request: PlanRequest, num_gpus: int) -> TrainingRecipe:
    """`recipe` with the user's DeepSpeed file merged in and completed; without a file the evaluator completes it."""
    if request.ds_config is None:
        return replace(recipe, deepspeed={})
    from llmcheck.dsconfig import complete, hidden_size_of

    return replace(recipe, deepspeed=complete(recipe, request.ds_config, world_size=num_gpus, hidden_size=hidden_size_of(request.model)))


def cost(recipe: TrainingRecipe, shape: Shape) -> float:
    """What a simulation counts in a search's budget; 1: a 7B model under ZeRO-2 with checkpointing. Under ZeRO-3 the time is 5 times
    as long, not 1.5: by that measure too little would be tried there.
    """
    units = (1.0 if recipe.checkpointing else 0.6) * (1.5 if recipe.zero_stage == 3 else 1.0)
    return units * (1.0 if recipe.method == "full" else 1.7) * min(recipe.grad_accum_steps, 3) * shape.num_layers / 32


def _sharding(recipe: TrainingRecipe) -> tuple[object, ...]:
    """What decides how far the CPU gets ahead of the GPU, and so whether what is freed late fills the memory."""
    return recipe.method, recipe.zero_stage, recipe.offload


def _discount(recipe: TrainingRecipe) -> float:
    share = 0.0
    share += _DISCOUNTS["loss"] * (recipe.loss != "hf")
    share += _DISCOUNTS["zero3"] * (recipe.zero_stage == 3)
    share += _DISCOUNTS["offload"] * (recipe.offload != "none")
    share += _DISCOUNTS["doubling"] * (recipe.micro_batch_size.bit_length() - 1)
    return 1 - share
