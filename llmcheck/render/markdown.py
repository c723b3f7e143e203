"""A plan as Markdown for a pull-request comment: the verdict in one line, tables, the rest folded away."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llmcheck.planner.plan import Plan, SolveResult
from llmcheck.render import categories
from llmcheck.render.draw import clean
from llmcheck.render.phrases import (
    evidence_words,
    model_words,
    recipe_phrases,
    signed_gib,
    solve_words,
    speed_words,
    time_phrases,
    verdict_words,
)
from llmcheck.render.text import memory_parts, used_bytes
from llmcheck.units import GIB, human_bytes

_SIGNS = {"fits": "✅", "tight": "⚠️", "does-not-fit": "❌"}
# What Markdown or GitHub would act on, mentions and references included.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~@&$])")


def render(plan: Plan, *, solve: SolveResult | None = None, next_steps: Sequence[str] = ()) -> str:
    """`plan` as GitHub-flavoured Markdown. Text from models and configurations is escaped."""
    word, rest = verdict_words(plan)
    rank = categories.deciding_rank(plan.memory)
    lines = [f"### {_SIGNS[plan.verdict]} {word}: {escape(model_words(plan))}", "", escape(rest[0].upper() + rest[1:]) + ".", ""]
    if solve is not None:
        answer, more = solve_words(solve)
        lines += [f"**{escape(answer)}**" + (f" ({escape(more)})" if more else ""), ""]
    lines += [escape(", ".join(recipe_phrases(plan.recipe, plan.cluster))) + ".", ""]
    lines += [f"- {escape(reason)}" for reason in plan.reasons] + [""] * bool(plan.reasons)
    lines += _findings(plan)
    lines += _table(
        (f"rank {rank.rank}, peak in {rank.peak_phase}", "GiB"),
        [(part.label, f"{part.size / GIB:.2f}") for part in memory_parts(rank, plan.cluster.gpu.memory_bytes) if part.size > 0]
        + [
            (
                "**process with NCCL**" if rank.nccl_bytes else "**process**",
                f"**{used_bytes(rank, plan.cluster.gpu.memory_bytes) / GIB:.2f}**",
            )
        ],
        bold=True,
    )
    lines += [escape(" · ".join(time_phrases(plan))) + "  "]
    host = plan.memory.host
    lines += [escape(f"Host: {human_bytes(host.host_bytes_per_node)} of RAM per node; disk: {human_bytes(host.disk_bytes)}."), ""]
    if plan.what_if:
        rows = [
            (
                lever.title,
                " ".join(lever.flags),
                signed_gib(lever.delta_bytes),
                speed_words(lever.speed_ratio),
                lever.verdict.replace("-", " "),
                lever.quality,
            )
            for lever in plan.what_if
        ]
        lines += _folded("What would change it", _table(("change", "option", "ΔGiB", "speed", "then", "costs in quality"), rows))
    if plan.alternatives:
        rows5 = [
            (other.title, f"{other.required_bytes / GIB:.2f}", f"{other.tokens_per_s:,.0f}", other.verdict.replace("-", " "), other.note)
            for other in plan.alternatives
        ]
        lines += _folded("Alternatives", _table(("recipe", "needs GiB", "tokens/s", "verdict", "note"), rows5))
    notes = [f"- {escape(evidence_words(plan.memory.evidence))}; error band ±{100 * plan.memory.error_fraction:.1f} %"]
    notes += [f"- assumed: {escape(note)}" for note in (*plan.memory.assumptions, *plan.time.assumptions)]
    notes += [f"- **not checked**: {escape(note)}" for note in plan.memory.not_checked]
    lines += _folded("What this rests on, and what was not checked", [*notes, ""])
    config = json.dumps(plan.recipe.deepspeed, indent=2, allow_nan=False)
    lines += _folded("DeepSpeed configuration", [*_fenced(config, "json"), ""])
    for step in next_steps:
        lines += [*_fenced(clean(step), "sh"), ""] if step.startswith("llmcheck ") else [escape(step), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def escape(text: str) -> str:
    """`text` as literal Markdown on one line: nothing in it is formatting, a link, HTML, a mention or a table border."""
    return _SPECIAL.sub(r"\\\1", clean(text)).replace("\\@", "&#64;").replace("\\&", "&amp;").replace("\\<", "&lt;")


def _findings(plan: Plan) -> list[str]:
    lines = []
    for finding in plan.findings:
        fix = f" → {escape(finding.fix)}" if finding.fix else ""
        lines.append(f"- **{finding.severity} {escape(finding.code)}** {escape(finding.message)}{fix}")
    return [*lines, ""] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: bool = False) -> list[str]:
    def cell(text: str) -> str:
        if bold and text.startswith("**") and text.endswith("**"):
            return f"**{escape(text[2:-2])}**"
        return escape(text)

    lines = ["| " + " | ".join(map(escape, head)) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def _fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, text, fence]


def _folded(title: str, body: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *body, "</details>", ""]
