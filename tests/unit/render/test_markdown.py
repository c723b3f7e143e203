"""The Markdown report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmcheck.planner.plan import Plan
from llmcheck.render.markdown import escape, render


def test_the_heading_is_the_verdict(synthetic_plan: Plan) -> None:
    assert render(synthetic_plan).splitlines()[0] == "### ✅ FITS: example-7b (7B parameters) on 8 x Example-40G"


def test_every_table_row_has_as_many_cells_as_its_head(synthetic_plan: Plan) -> None:
    widths: list[set[int]] = []
    inside = False
    for line in render(synthetic_plan).splitlines():
        row = line.startswith("|")
        if row and not inside:
            widths.append(set())
        if row:
            widths[-1].add(line.replace("\\|", "").count("|"))
        inside = row
    assert [len(w) for w in widths] == [1] * len(widths)
    assert len(widths) == 3


@pytest.mark.parametrize(
    "hostile", ["</details>", "<script>", "a|b", "`x`", "@everyone", "[x](http://y)", "![i](x)", "**bold**", "a\n# b", "&lt;", "#1", "$x$"]
)
def test_text_is_literal(hostile: str) -> None:
    shown = escape(hostile)
    assert "\n" not in shown
    for special in ("</", "<s", "](", "@e"):
        assert special not in shown.replace("\\]", "")
    assert "|" not in shown.replace("\\|", "")
    assert "`" not in shown.replace("\\`", "")


def test_a_hostile_model_name_cannot_close_the_fold(synthetic_plan: Plan) -> None:
    plan = replace(synthetic_plan, model=replace(synthetic_plan.model, name="</details><img src=x>"))
    text = render(plan)
    assert "<img" not in text
    assert text.count("</details>") == text.count("<details>")


def test_a_fence_in_the_configuration_cannot_close_the_code_block(synthetic_plan: Plan) -> None:
    plan = replace(synthetic_plan, recipe=replace(synthetic_plan.recipe, deepspeed={"note": "```\n# free"}))
    assert "````json" in render(plan)


def test_what_was_not_checked_is_printed(synthetic_plan: Plan) -> None:
    assert "**not checked**: NCCL buffers" in render(synthetic_plan)
