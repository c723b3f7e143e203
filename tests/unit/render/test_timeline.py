"""The timeline as a picture."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.errors import CouldNotCheckError
from llmcheck.planner.plan import Plan
from llmcheck.render import timeline
from llmcheck.types import RankEstimate
from llmcheck.units import GIB

SVG = "{http://www.w3.org/2000/svg}"


def with_rank(plan: Plan, rank: RankEstimate) -> Plan:
    return replace(plan, memory=replace(plan.memory, rank0=rank, worst=rank))


def texts(picture: bytes) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_picture_is_well_formed_svg(synthetic_plan: Plan) -> None:
    assert ElementTree.fromstring(timeline.svg(synthetic_plan)).tag == f"{SVG}svg"


def test_there_is_one_area_per_category(synthetic_plan: Plan) -> None:
    root = ElementTree.fromstring(timeline.svg(synthetic_plan))
    assert len(list(root.iter(f"{SVG}polygon"))) == 5


def test_axes_cap_peak_and_legend_are_labelled(synthetic_plan: Plan) -> None:
    found = texts(timeline.svg(synthetic_plan))
    for label in ("GiB allocated", "one training step, by allocator events", "Example-40G: 40.00 GiB", "peak 19.05 GiB", "logits"):
        assert label in found


def test_every_point_is_inside_the_picture(synthetic_plan: Plan) -> None:
    for area in ElementTree.fromstring(timeline.svg(synthetic_plan)).iter(f"{SVG}polygon"):
        for point in area.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 960
            assert 0 <= y <= 500


def test_a_cap_far_above_the_run_is_named_and_not_drawn(synthetic_plan: Plan) -> None:
    gpu = replace(synthetic_plan.cluster.gpu, memory_bytes=1000 * GIB)
    plan = replace(synthetic_plan, cluster=replace(synthetic_plan.cluster, gpu=gpu))
    assert "Example-40G: 1000.00 GiB, above" in texts(timeline.svg(plan))


def test_a_name_is_text_and_not_markup(synthetic_plan: Plan) -> None:
    plan = replace(synthetic_plan, model=replace(synthetic_plan.model, name='<script x="1">&\x1b'))
    root = ElementTree.fromstring(timeline.svg(plan))
    assert list(root.iter(f"{SVG}script")) == []


@given(st.lists(st.integers(0, 100 * GIB), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_peak(sizes: list[int], max_points: int) -> None:
    rank = RankEstimate(
        rank=0,
        peak_allocated_bytes=0,
        init_peak_allocated_bytes=0,
        peak_reserved_bytes=0,
        peak_reserved_low_bytes=0,
        peak_reserved_high_bytes=0,
        process_bytes=0,
        required_bytes=0,
        breakdown={},
        peak_phase="",
        phases=(),
        timeline=tuple((i / len(sizes), {"weights": size}) for i, size in enumerate(sizes)),
    )
    stack = timeline.stack_of(rank, max_points)
    assert len(stack.at) <= max_points
    assert max((stack.total(i) for i in range(len(stack.at))), default=0.0) == max(sizes) / GIB


def test_a_run_that_dies_before_a_whole_step_has_no_timeline(synthetic_plan: Plan) -> None:
    plan = with_rank(synthetic_plan, replace(synthetic_plan.memory.rank0, timeline=()))
    with pytest.raises(CouldNotCheckError, match="no timeline") as error:
        timeline.svg(plan)
    assert error.value.exit_code == 3


def test_without_matplotlib_a_png_says_the_way_out(synthetic_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CouldNotCheckError, match="needs matplotlib") as error:
        timeline.png(synthetic_plan)
    assert ".svg" in error.value.hint


def test_our_own_pictures_are_known(synthetic_plan: Plan) -> None:
    assert timeline.is_ours(timeline.svg(synthetic_plan))


def test_other_pictures_are_not_ours() -> None:
    assert not timeline.is_ours(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
