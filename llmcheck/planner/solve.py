"""Backwards: the largest sequence length, micro-batch, LoRA rank or model that fits, and the fewest GPUs.

The values of a target are put in the order in which memory grows, so its border can be bracketed: each simulation corrects the closed
form, whose border is simulated next. Both sides of the border end up simulated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llmcheck.collector import without_collector
from llmcheck.errors import UserError
from llmcheck.planner import bounds
from llmcheck.planner.candidates import finish
from llmcheck.planner.evaluate import Checked, Evaluator, Tools
from llmcheck.planner.findings import by_severity
from llmcheck.planner.plan import PlanRequest, SolveResult, SolveTarget
from llmcheck.planner.space import METHODS, space_of
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ClusterSpec, Method, ModelSpec, TrainingRecipe

SEQ_STEP = 64  # tokens
MAX_SEQ_LEN = 1 << 20  # where the model says nothing of its positions
MAX_MICRO_BATCH = 4096
MAX_LORA_RANK = 4096
GPUS_PER_NODE = 8
MAX_NODES = 128

Value = int | str


class Range(NamedTuple):
    """The values of a target, memory growing with the index, and why they end where they do."""

    values: Sequence[Value]
    end: str


class Border(NamedTuple):
    """The last index that fits, the first that does not (None: there is none), and what was simulated."""

    best: int | None
    failing: int | None
    tried: dict[int, Checked]


@without_collector()
def solve(request: PlanRequest, *, tools: Tools | None = None) -> SolveResult:
    """The border of `request.solve`: both sides simulated. Raises UserError when the target contradicts the rest of the request."""
    if request.solve is None:
        raise UserError("nothing to solve for", code="usage", where="--solve", hint="seq-len, micro-batch, gpus, lora-rank or model")
    target = request.solve
    values = _range(target, request)
    tools = tools or Tools.real()
    last: tuple[_Line, Border] | None = None
    for method in _methods(target, request):
        line = _Line(target, request, method, values.values, tools)
        last = line, line.border()
        if last[1].best is not None:
            break
    assert last is not None
    return _result(target, values, *last)


def _result(target: SolveTarget, values: Range, line: _Line, border: Border) -> SolveResult:
    shown = border.best if border.best is not None else min(border.tried)
    failing = None if border.failing is None else values.values[border.failing]
    evaluator = line.evaluator(shown)
    plan = evaluator.plan(border.tried[shown].recipe)
    notes = space_of(line.request_at(shown), evaluator.shape).findings
    return SolveResult(
        target=target,
        value=None if border.best is None else values.values[border.best],
        plan=replace(plan, findings=by_severity([*plan.findings, *notes])),
        next_value=failing,
        limited_by=values.end if border.failing is None else border.tried[border.failing].why,
        tried=tuple((values.values[i], c.worst.required_bytes, c.verdict) for i, c in sorted(border.tried.items())),
    )


def _methods(target: SolveTarget, request: PlanRequest) -> tuple[Method, ...]:
    """Methods in order of quality; the first under which anything fits is taken."""
    if request.method is not None:
        return (request.method,)
    adapters = request.lora_rank is not None or request.lora_targets is not None or request.train_embeddings
    return ("lora", "qlora") if adapters or target == "lora-rank" else METHODS


# --- values ------------------------------------------------------------------------------------------------------------------


def _range(target: SolveTarget, request: PlanRequest) -> Range:
    if target == "seq-len":
        shape = read_shape(request.model)
        limit = shape.max_positions or MAX_SEQ_LEN
        if shape.alibi and request.model.family == "bloom":
            limit = MAX_SEQ_LEN  # ALiBi has no last position
        values = tuple(range(SEQ_STEP, limit + 1, SEQ_STEP)) or (limit,)
        why = f"{request.model.name} has {limit} positions" if limit < MAX_SEQ_LEN else "longer sequences are not searched"
        return Range(values, why)
    if target == "micro-batch":
        return Range(tuple(range(1, MAX_MICRO_BATCH + 1)), "larger micro-batches are not searched")
    if target == "lora-rank":
        if request.method == "full":
            raise UserError(
                "--solve lora-rank needs adapters", code="conflict", where="--solve lora-rank, --method full", hint="--method lora"
            )
        limit = min(MAX_LORA_RANK, read_shape(request.model).hidden)
        ranks = (*range(1, min(8, limit) + 1), *range(16, limit + 1, 8))
        return Range(ranks, f"a rank above the model's width of {limit} has no use")
    if target == "gpus":
        counts = (*range(1, GPUS_PER_NODE + 1), *(GPUS_PER_NODE * n for n in range(2, MAX_NODES + 1)))
        return Range(tuple(reversed(counts)), "one GPU is enough")
    return _family(request.model)


_SIZE = re.compile(r"\d+(?:\.\d+)?[bm]\d*(?:-a\d+(?:\.\d+)?b)?(?=$|[-_.])", re.IGNORECASE)


def series(name: str) -> str:
    """A model's name without its size: models of one series differ in the size only."""
    return _SIZE.sub("#", name.lower(), count=1)


def _family(model: ModelSpec) -> Range:
    from llmcheck.catalog.models import all_models

    wanted = series(model.name)
    entries = [e for e in all_models() if e.family == model.family and series(e.name) == wanted]
    if len(entries) < 2:
        raise UserError(
            f"the catalogue has no other sizes of {model.name}",
            code="solve-model",
            where="--solve model",
            hint="`llmcheck models` lists what there is",
        )
    entries.sort(key=lambda e: e.num_params)
    return Range(tuple(e.name for e in entries), f"{entries[-1].name} is the largest of its series in the catalogue")


# --- one line of values ------------------------------------------------------------------------------------------------------


class _Line:
    """The values of a target under one method: at each, the recipe that needs least memory of those that the request allows."""

    def __init__(self, target: SolveTarget, request: PlanRequest, method: Method, values: Sequence[Value], tools: Tools) -> None:
        self.target, self.request, self.method, self.values, self.tools = target, request, method, values, tools
        self._evaluators: dict[Value, Evaluator] = {}
        self._guesses: dict[int, tuple[float, TrainingRecipe]] = {}

    def request_at(self, index: int) -> PlanRequest:
        """The request with the value of `index` put in."""
        value = self.values[index]
        request = replace(self.request, solve=None, method=self.method)
        if request.micro_batch_size is None and request.global_batch_size is None:
            request = replace(request, micro_batch_size=1)
        if request.offload is None and request.ds_config is None:
            request = replace(request, offload="none")
        if self.target == "seq-len":
            return replace(request, seq_len=int(value))
        if self.target == "micro-batch":
            return replace(request, micro_batch_size=int(value), global_batch_size=None)
        if self.target == "lora-rank":
            return replace(request, lora_rank=int(value))
        if self.target == "gpus":
            return replace(request, cluster=_cluster_of(request.cluster, int(value)))
        from llmcheck.catalog.models import find_model

        return replace(request, model=find_model(str(value), allow_network=False))

    def evaluator(self, index: int) -> Evaluator:
        """The evaluator for the model and the cluster of `index`."""
        key: Value = self.values[index] if self.target in ("gpus", "model") else ""
        if key not in self._evaluators:
            request = self.request_at(index)
            self._evaluators[key] = Evaluator(
                request.model,
                request.cluster,
                tools=self.tools,
                num_samples=request.num_samples,
                num_tokens=request.num_tokens,
                profile=request.profile,
            )
        return self._evaluators[key]

    def guess(self, index: int) -> tuple[float, TrainingRecipe]:
        """Bytes of the most frugal recipe by closed forms, and the recipe."""
        if index not in self._guesses:
            evaluator, request = self.evaluator(index), self.request_at(index)
            recipes = space_of(request, evaluator.shape).recipes(self.method)
            sized = [(bounds.guess_bytes(evaluator.model, evaluator.shape, r, evaluator.cluster), r) for r in recipes]
            if not sized:
                raise UserError(
                    f"no recipe of {self.method} is left by these options",
                    code="conflict",
                    where="--method, --zero, --offload",
                    hint="leave one of them out",
                )
            self._guesses[index] = min(sized, key=lambda pair: pair[0])
        return self._guesses[index]

    def check(self, index: int) -> Checked:
        """Simulate the recipe of `index`."""
        evaluator = self.evaluator(index)
        return evaluator.check(finish(self.guess(index)[1], self.request_at(index), evaluator.cluster.num_gpus))

    def border(self) -> Border:
        """Bracket the border: by the corrected closed form while that helps, then by halving."""
        tried: dict[int, Checked] = {}
        low, high = -1, len(self.values)  # all indices up to `low` fit, all from `high` on do not
        while high - low > 1:
            probe = (low + high) // 2 if len(tried) > 8 else self._likely_border(tried, low, high)
            tried[probe] = self.check(probe)
            if tried[probe].verdict == "does-not-fit":
                high = probe
            else:
                low = probe
        return Border(low if low >= 0 else None, high if high < len(self.values) else None, tried)

    def _likely_border(self, tried: dict[int, Checked], low: int, high: int) -> int:
        """The last index in (low, high) that should fit, or its neighbour where that is known already."""
        points = sorted((self.guess(i)[0], float(c.worst.required_bytes)) for i, c in tried.items())
        left, right = low + 1, high - 1
        while left < right:  # the last index whose corrected guess fits
            middle = (left + right + 1) // 2
            if _corrected(self.guess(middle)[0], points) <= self.evaluator(middle).cluster.gpu.memory_bytes:
                left = middle
            else:
                right = middle - 1
        return left


def _corrected(guess: float, points: list[tuple[float, float]]) -> float:
    """The closed form's bytes, corrected by what was simulated: in proportion to one point, on the line through the nearest two."""
    if not points:
        return guess
    nearest = sorted(points, key=lambda point: abs(point[0] - guess))[:2]
    if len(nearest) == 1 or nearest[0][0] == nearest[1][0]:
        return guess * nearest[0][1] / nearest[0][0]
    (x0, y0), (x1, y1) = nearest
    return y0 + (guess - x0) * (y1 - y0) / (x1 - x0)


def _cluster_of(cluster: ClusterSpec, num_gpus: int) -> ClusterSpec:
    per_node = min(num_gpus, GPUS_PER_NODE)
    return replace(cluster, num_nodes=num_gpus // per_node, gpus_per_node=per_node)
