"""A simulation that is a formula: fast, monotone, and counted. The numbers are those of the closed forms, not measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmcheck.catalog.gpus import find_gpu
from llmcheck.catalog.models import find_model
from llmcheck.planner import bounds
from llmcheck.planner.evaluate import Tools, complete
from llmcheck.planner.plan import PlanRequest
from llmcheck.steptime.reading import read_shape
from llmcheck.types import ClusterSpec, HostEstimate, ModelSpec, OutOfMemory, RankEstimate, TrainingRecipe
from llmcheck.units import GIB


class FakeSimulation:
    """`factor` times the closed form; `extra` bytes on top for each rank."""

    def __init__(self, factor: float = 1.0, extra: dict[int, int] | None = None) -> None:
        self.factor, self.extra = factor, extra or {}
        self.calls: list[tuple[TrainingRecipe, int]] = []

    def __call__(self, model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, rank: int = 0) -> RankEstimate:
        self.calls.append((recipe, rank))
        need = int(self.factor * bounds.guess_bytes(model, read_shape(model), recipe, cluster)) + self.extra.get(rank, 0)
        over = need > cluster.gpu.memory_bytes
        return RankEstimate(
            rank=rank,
            peak_allocated_bytes=need - GIB,
            init_peak_allocated_bytes=need - 2 * GIB,
            peak_reserved_bytes=need - GIB // 2,
            peak_reserved_low_bytes=need - GIB // 2,
            peak_reserved_high_bytes=need - GIB // 2,
            process_bytes=need,
            required_bytes=need,
            breakdown={"all": need - GIB},
            peak_phase="bwd1",
            phases=(),
            timeline=(),
            out_of_memory=OutOfMemory(
                phase="bwd1", requested_bytes=GIB, allocated_bytes=need - GIB, reserved_bytes=need - GIB, category="activations"
            )
            if over
            else None,
        )


def fake_host(_model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec) -> HostEstimate:
    """100 GiB per node with offload, 10 without."""
    need = 100 * GIB if recipe.offload != "none" else 10 * GIB
    return HostEstimate(
        host_bytes_per_node=need,
        pinned_bytes_per_node=0,
        load_peak_bytes_per_node=need // 2,
        disk_bytes=50 * GIB,
        nvme_bytes_per_node=0,
        checkpoint_bytes=14_000,
        terms={"all": need},
    )


@pytest.fixture
def simulation() -> FakeSimulation:
    return FakeSimulation()


@pytest.fixture
def tools(simulation: FakeSimulation) -> Tools:
    return Tools(simulation, fake_host, complete, lambda *_: 0, lambda *_: ())


@pytest.fixture
def request_of() -> Callable[..., PlanRequest]:
    """A request by names: ``request_of("llama-7b", gpus=8, gpu="A100-40G", seq_len=2048)``."""

    def make(
        model: str = "llama-7b", *, gpus: int = 8, gpu: str = "A100-40G", cluster: dict[str, object] | None = None, **fields: object
    ) -> PlanRequest:
        machine = ClusterSpec(gpu=find_gpu(gpu), gpus_per_node=gpus)
        machine = replace(machine, **(cluster or {}))  # type: ignore[arg-type]
        return PlanRequest(model=find_model(model, allow_network=False), cluster=machine, **fields)  # type: ignore[arg-type]

    return make
