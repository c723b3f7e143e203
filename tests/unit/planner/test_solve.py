"""Solving backwards: both sides of the border are simulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmcheck.errors import UserError
from llmcheck.planner.evaluate import Tools
from llmcheck.planner.plan import PlanRequest, SolveResult
from llmcheck.planner.solve import series, solve

Make = Callable[..., PlanRequest]


def border(result: SolveResult) -> tuple[str, str]:
    """The verdicts of the value and of the next one."""
    verdicts = {value: verdict for value, _, verdict in result.tried}
    return verdicts[result.value], verdicts[result.next_value]  # type: ignore[index]


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("seq-len", {"model": "qwen3-4b", "gpus": 8, "loss": "hf"}),
        ("seq-len", {"model": "bloomz-1b1", "gpus": 1, "method": "full", "loss": "hf"}),
        ("micro-batch", {"model": "bloomz-1b1", "gpus": 1, "method": "full"}),
        ("micro-batch", {"model": "llama-7b", "gpus": 8, "zero_stage": 2, "method": "full"}),
        ("gpus", {"model": "llama-7b", "method": "full", "gpus": 1}),
        ("lora-rank", {"model": "llama-7b", "gpus": 1}),
        ("model", {"model": "bloomz-560m", "gpus": 1, "method": "full"}),
    ],
)
def test_the_value_fits_and_the_next_does_not(request_of: Make, tools: Tools, simulation, target: str, fields: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    result = solve(request_of(**fields, solve=target), tools=tools)
    assert border(result)[0] != "does-not-fit"
    assert border(result)[1] == "does-not-fit"
    assert "more than there is" in result.limited_by
    assert len(result.tried) <= 8


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.7])
def test_few_simulations_whatever_the_closed_form_is_off(request_of: Make, tools: Tools, simulation, factor: float) -> None:  # type: ignore[no-untyped-def]
    simulation.factor = factor
    result = solve(request_of("qwen3-4b", gpus=8, loss="hf", solve="seq-len"), tools=tools)
    assert len(result.tried) <= 6


def test_sequences_come_in_steps_of_64(request_of: Make, tools: Tools) -> None:
    value = solve(request_of("qwen3-4b", solve="seq-len"), tools=tools).value
    assert isinstance(value, int)
    assert value % 64 == 0


def test_the_positions_of_the_model_end_the_search(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("llama-7b", gpus=8, solve="seq-len"), tools=tools)
    assert (result.value, result.next_value) == (2048, None)
    assert "2048 positions" in result.limited_by


def test_neighbours_differ_by_one_step(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("bloomz-1b1", gpus=1, solve="micro-batch", method="full"), tools=tools)
    assert isinstance(result.value, int)
    assert result.next_value == result.value + 1


def test_the_plan_is_at_the_value(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("bloomz-1b1", gpus=1, solve="micro-batch", method="full"), tools=tools)
    assert result.plan.recipe.micro_batch_size == result.value


def test_nothing_fits_is_said(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("llama-2-70b", gpus=1, method="full", solve="seq-len"), tools=tools)
    assert result.value is None
    assert result.plan.verdict == "does-not-fit"


def test_the_next_method_is_taken_when_the_first_cannot(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("llama-7b", gpus=1, solve="seq-len"), tools=tools)
    assert result.plan.recipe.method == "lora"


def test_fewer_gpus_than_one_are_not_asked_for(request_of: Make, tools: Tools) -> None:
    result = solve(request_of("llama-3.2-1b", gpus=1, method="full", solve="gpus"), tools=tools)
    assert (result.value, result.next_value, result.limited_by) == (1, None, "one GPU is enough")


def test_a_rank_needs_adapters(request_of: Make, tools: Tools) -> None:
    with pytest.raises(UserError):
        solve(request_of(method="full", solve="lora-rank"), tools=tools)


def test_a_model_without_siblings_is_an_error(request_of: Make, tools: Tools) -> None:
    request = request_of()
    from dataclasses import replace

    with pytest.raises(UserError):
        solve(replace(request, model=replace(request.model, name="alone-7b"), solve="model"), tools=tools)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bloomz-7b1", "bloomz-#"),
        ("llama-2-13b", "llama-2-#"),
        ("qwen2.5-0.5b", "qwen2.5-#"),
        ("qwen3-30b-a3b", "qwen3-#"),
        ("pythia-160m", "pythia-#"),
        ("granite-3.1-8b-instruct", "granite-3.1-#-instruct"),
    ],
)
def test_series(name: str, expected: str) -> None:
    assert series(name) == expected
