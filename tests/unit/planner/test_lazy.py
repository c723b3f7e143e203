"""A search asks a rank only for what decides: its answers are those of a search that knows everything of every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmcheck.planner.evaluate import Outlook, Tools
from llmcheck.planner.plan import PlanRequest
from llmcheck.planner.search import search
from llmcheck.planner.solve import solve
from llmcheck.shadow.run import Rank
from llmcheck.types import ClusterSpec, ModelSpec, RankEstimate, TrainingRecipe
from llmcheck.units import GIB

Make = Callable[..., PlanRequest]

# model, GPUs, GiB of each: from what fits with room to what runs only with flushes, or not at all
CASES = [
    ("llama-3.2-1b", 4, 80),
    ("llama-3.2-1b", 4, 11),
    ("qwen2.5-1.5b", 4, 9),
    ("qwen3-0.6b", 8, 6),
    ("gemma-3-1b", 2, 12),
    ("gpt2-large", 8, 5),
    ("bloomz-1b1", 4, 8),
    ("opt-1.3b", 4, 10),
    ("pythia-1b", 8, 3),
    ("phi-1.5", 2, 16),
]


def small(request: PlanRequest, memory_gib: float) -> PlanRequest:
    gpu = replace(request.cluster.gpu, memory_bytes=int(memory_gib * GIB))
    return replace(request, cluster=replace(request.cluster, gpu=gpu))


def in_full(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, rank: int = 0) -> RankEstimate:
    return Rank(model, recipe, cluster, rank=rank).estimate()


@pytest.mark.parametrize(("model", "gpus", "memory_gib"), CASES)
def test_the_answer_is_that_of_a_search_that_knows_everything(request_of: Make, model: str, gpus: int, memory_gib: float) -> None:
    request = small(request_of(model, gpus=gpus, zero_stage=3), memory_gib)

    assert search(request) == search(request, tools=Tools.real()._replace(simulate=in_full))


def test_so_is_the_border_of_what_fits(request_of: Make) -> None:
    request = small(request_of("qwen3-0.6b", gpus=4, zero_stage=3, method="full", solve="micro-batch"), 8)

    assert solve(request) == solve(request, tools=Tools.real()._replace(simulate=in_full))


def test_a_rank_is_calm_where_its_estimate_is(request_of: Make) -> None:
    ranks: list[Outlook] = []

    def remember(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, rank: int = 0) -> Outlook:
        ranks.append(Rank(model, recipe, cluster, rank=rank))
        return ranks[-1]

    for memory_gib in (4, 80):
        search(small(request_of("qwen3-0.6b", gpus=8, zero_stage=3), memory_gib), tools=Tools.real()._replace(simulate=remember))

    assert {rank.is_calm for rank in ranks} == {True, False}
    assert [rank.is_calm for rank in ranks] == [rank.estimate().is_calm for rank in ranks]
    assert [rank.process_bytes for rank in ranks] == [rank.estimate().process_bytes for rank in ranks]
