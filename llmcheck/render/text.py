"""A plan as one screen of text: the verdict first, the next command last."""

from __future__ import annotations

from collections.abc import Sequence

from llmcheck.console import Terminal
from llmcheck.planner.plan import Finding, Plan, SolveResult
from llmcheck.render import categories
from llmcheck.render.draw import CACHED, CONTEXT, NCCL, PALETTE, Part, Pen, bar, clean, cut, mark_of, pad, table, width_of, wrap
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
from llmcheck.types import RankEstimate
from llmcheck.units import GIB, human_bytes, human_seconds

_GUTTER = 11  # columns of the labels on the left
_MAX_ALTERNATIVES = 5
_SMALL = 0.002  # of the process: a part below it has no cell in a bar of 100 and reads 0.0x
_MAX_NOTE_LINES = 3  # of assumptions, of what is not checked: the rest is in the JSON


def render(plan: Plan, *, solve: SolveResult | None = None, next_steps: Sequence[str] = (), terminal: Terminal | None = None) -> str:
    """`plan` for people, at the width and with the colours of `terminal`. `next_steps` are commands or sentences to end on."""
    pen = Pen(terminal or Terminal())
    blocks = [
        _verdict(plan, solve, pen),
        _memory(plan, pen),
        _findings(plan.findings, pen),
        _levers(plan, pen),
        _alternatives(plan, pen),
        _facts(plan, pen),
        _notes(plan, pen),
        _next(next_steps, pen),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _verdict(plan: Plan, solve: SolveResult | None, pen: Pen) -> list[str]:
    columns = pen.terminal.columns
    word, rest = verdict_words(plan)
    lines = []
    if solve is not None:
        answer, more = solve_words(solve)
        lines += [" " + pen.bold(clean(answer)), *(" " + line for line in wrap(clean(more).split(), columns - 2)), ""]
    head, *tail = wrap(clean(rest).split(), columns - 3 - len(word))
    lines.append(f" {pen.verdict(plan.verdict, word)}  {pen.bold(head)}")
    lines += [" " * (len(word) + 3) + line for line in tail]
    lines += _labelled("model", wrap([clean(word) for word in model_words(plan).split()], columns - _GUTTER - 1), pen)
    separator = pen.glyph(" ·", ",")
    phrases = [clean(phrase) for phrase in recipe_phrases(plan.recipe, plan.cluster)]
    joined = [p + separator for p in phrases[:-1]] + phrases[-1:]
    lines += _labelled("recipe", wrap(joined, columns - _GUTTER - 1), pen)
    return lines + _labelled("why", wrap(clean("; ".join(plan.reasons)).split(), columns - _GUTTER - 1), pen)


def _memory(plan: Plan, pen: Pen) -> list[str]:
    rank = categories.deciding_rank(plan.memory)
    limit = plan.cluster.gpu.memory_bytes
    parts = memory_parts(rank)
    columns = pen.terminal.columns - 2
    left = f"Memory of rank {rank.rank} at its peak ({clean(rank.peak_phase)}), GiB"
    right = f"{clean(plan.cluster.gpu.name)}: {limit / GIB:.2f}"
    head = pen.bold(cut(left, columns - width_of(right) - 2, pen))
    gap = " " * max(2, columns - width_of(cut(left, columns - width_of(right) - 2, pen)) - width_of(right))
    lines = [" " + head + gap + right, " " + bar(parts, limit, columns, pen)]
    lines += [" " + line for line in _legend(parts, columns, pen)]
    lines += [" " + line for line in wrap(_peaks(plan, rank, pen), columns)]
    return lines


def memory_parts(rank: RankEstimate) -> list[Part]:
    """What fills the GPU when the run's memory is fullest: tensors by category, the allocator's cache, the process itself."""
    breakdown = categories.folded(rank.breakdown, _SMALL * rank.process_bytes)
    names = categories.ordered(breakdown)
    parts = [Part(categories.words(name), breakdown[name], PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]
    held = max(0, rank.peak_reserved_bytes - rank.peak_allocated_bytes)
    process = max(0, rank.process_bytes - rank.nccl_bytes - rank.peak_reserved_bytes)
    return [*parts, Part("cached, unused", held, CACHED), Part("NCCL", rank.nccl_bytes, NCCL), Part("CUDA context", process, CONTEXT)]


def _legend(parts: Sequence[Part], columns: int, pen: Pen) -> list[str]:
    """Entries of one width in as many columns as fit, read across."""
    entries = [(i, part, f"{part.size / GIB:.2f}") for i, part in enumerate(parts) if part.size > 0]
    if not entries:
        return []
    label_width = max(width_of(clean(part.label)) for _, part, _ in entries)
    number_width = max(len(number) for _, _, number in entries)
    entry_width = 2 + label_width + 1 + number_width
    per_line = max(1, (columns + 3) // (entry_width + 3))
    lines = []
    for start in range(0, len(entries), per_line):
        cells = [
            f"{pen.tint(part.colour, mark_of(i, pen))} {pad(clean(part.label), label_width)} {pad(number, number_width, right=True)}"
            for i, part, number in entries[start : start + per_line]
        ]
        lines.append("   ".join(cells))
    return lines


def _peaks(plan: Plan, rank: RankEstimate, pen: Pen) -> list[str]:
    separator = pen.glyph(" ·", ",")
    phrases = [
        f"allocated {rank.peak_allocated_bytes / GIB:.2f}",
        _reserved(rank),
        f"process {rank.process_bytes / GIB:.2f} (what nvidia-smi shows)",
        f"while loading {rank.init_peak_allocated_bytes / GIB:.2f}",
    ]
    if plan.memory.worst != plan.memory.rank0:
        other = plan.memory.rank0 if rank is not plan.memory.rank0 else plan.memory.worst
        phrases.append(f"rank {other.rank} allocates {other.peak_allocated_bytes / GIB:.2f}")
    if rank.num_alloc_retries:
        phrases.append(f"the allocator flushes its cache {rank.num_alloc_retries} x")
    return [phrase + separator for phrase in phrases[:-1]] + phrases[-1:]


def _reserved(rank: RankEstimate) -> str:
    likely, low, high = (f"{n / GIB:.2f}" for n in (rank.peak_reserved_bytes, rank.peak_reserved_low_bytes, rank.peak_reserved_high_bytes))
    return f"reserved {likely}" if low == high else f"reserved {likely} ({low} to {high}: how far is the CPU ahead?)"


def _findings(findings: Sequence[Finding], pen: Pen) -> list[str]:
    lines = []
    styles = {"error": "1;31", "warning": "1;33", "note": "1;36"}
    for finding in findings:
        head = f"{finding.severity} {finding.code}"
        text = clean(finding.message) + (f" {pen.glyph('→', '->')} {clean(finding.fix)}" if finding.fix else "")
        first, *rest = wrap(text.split(), pen.terminal.columns - len(head) - 4)
        lines.append(f" {pen.style(styles[finding.severity], head)}  {first}")
        lines += [" " * (len(head) + 3) + line for line in rest]
    return lines


def _levers(plan: Plan, pen: Pen) -> list[str]:
    if not plan.what_if:
        return []
    delta = pen.glyph("ΔGiB", "dGiB")
    rows = [("What would change it", delta, "speed", "then", "what it is, and its price in quality")]
    for lever in plan.what_if:
        price = "same result" if lever.quality == "none" else lever.quality
        rows.append(
            (
                clean(" ".join(lever.flags)),
                signed_gib(lever.delta_bytes, pen.terminal.unicode),
                speed_words(lever.speed_ratio, pen.terminal.unicode),
                lever.verdict.replace("-", " "),
                clean(f"{lever.title}; {price}"),
            )
        )
    return _headed(table(rows, (False, True, True, False, False), pen.terminal.columns - 2, pen, fold=True), pen)


def _alternatives(plan: Plan, pen: Pen) -> list[str]:
    if not plan.alternatives:
        return []
    rows = [("Alternatives", "needs GiB", "tokens/s", "verdict", "")]
    for other in plan.alternatives[:_MAX_ALTERNATIVES]:
        rows.append(
            (
                clean(other.title),
                f"{other.required_bytes / GIB:.2f}",
                f"{other.tokens_per_s:,.0f}",
                other.verdict.replace("-", " "),
                clean(other.note),
            )
        )
    lines = _headed(table(rows, (False, True, True, False, False), pen.terminal.columns - 2, pen, fold=True), pen)
    hidden = len(plan.alternatives) - _MAX_ALTERNATIVES
    return [*lines, pen.dim(f" and {hidden} more in --format json")] if hidden > 0 else lines


def _facts(plan: Plan, pen: Pen) -> list[str]:
    columns = pen.terminal.columns - _GUTTER - 1
    separator = pen.glyph(" ·", ",")

    def block(label: str, phrases: Sequence[str]) -> list[str]:
        joined = [phrase + separator for phrase in phrases[:-1]] + list(phrases[-1:])
        return _labelled(label, wrap(joined, columns), pen)

    host, cluster = plan.memory.host, plan.cluster
    lines = block("time", time_phrases(plan, pen.terminal.unicode))
    have = f" of {human_bytes(cluster.host_memory_bytes)}" if cluster.host_memory_bytes else ""
    ram = [f"{human_bytes(host.host_bytes_per_node)}{have} of RAM per node"]
    ram += [f"{human_bytes(host.pinned_bytes_per_node)} of it pinned"] if host.pinned_bytes_per_node else []
    lines += block("host", [*ram, f"{human_bytes(host.load_peak_bytes_per_node)} while the weights load"])
    have = f" of {human_bytes(cluster.disk_bytes)}" if cluster.disk_bytes else ""
    disk = [f"{human_bytes(host.disk_bytes)}{have} for checkpoints and offload"]
    if host.nvme_bytes_per_node:
        disk.append(f"{human_bytes(host.nvme_bytes_per_node)} of NVMe per node")
    lines += block("disk", disk)
    if plan.data is not None:
        ways = [
            f"{clean(way.name)}: {human_bytes(way.host_bytes)} of RAM, {human_seconds(way.time_s)}, {human_bytes(way.disk_bytes)} of disk"
            for way in (plan.data.ours, plan.data.naive)
        ]
        for i, way in enumerate(ways):
            lines += _labelled("data" if i == 0 else "", wrap(way.split(), columns), pen)
    return lines


def _notes(plan: Plan, pen: Pen) -> list[str]:
    columns = pen.terminal.columns - _GUTTER - 1
    evidence = f"{evidence_words(plan.memory.evidence)}, error band ±{100 * plan.memory.error_fraction:.1f} %"
    lines = _labelled("evidence", wrap(_spelt(evidence, pen).split(), columns), pen)
    data = plan.data.assumptions if plan.data else ()
    for label, notes in (
        ("assumed", (*plan.memory.assumptions, *plan.time.assumptions, *data)),
        ("unchecked", plan.memory.not_checked),
    ):
        if not notes:
            continue
        text = wrap(clean("; ".join(notes)).split(), columns)
        if len(text) > _MAX_NOTE_LINES:
            tail = f"{pen.glyph('…', '...')} all {len(notes)} in --format json"
            last = cut(
                text[_MAX_NOTE_LINES - 1] + " " * columns, columns - len(tail) - 1, pen
            )  # always cut: its own mark goes, the tail has one
            text = [*text[: _MAX_NOTE_LINES - 1], last.rstrip("….").rstrip() + " " + tail]
        lines += _labelled(label, [pen.dim(line) for line in text], pen)
    return lines


def _next(steps: Sequence[str], pen: Pen) -> list[str]:
    lines: list[str] = []
    for i, step in enumerate(steps):
        columns = pen.terminal.columns - _GUTTER - 3
        if step.startswith("llmcheck "):  # a command over several lines stays one that can be pasted, an option beside its value
            wrapped = wrap([("--" if i else "") + piece for i, piece in enumerate(clean(step).split(" --"))], columns)
            text = [line + " \\" for line in wrapped[:-1]] + wrapped[-1:]
        else:
            text = wrap(clean(step).split(" "), columns)
        lines += _labelled("next" if i == 0 else "", text, pen)
    return lines


def _labelled(label: str, text: Sequence[str], pen: Pen) -> list[str]:
    blank = " " * (_GUTTER - 1)
    return [f" {pen.dim(label) + blank[len(label) :] if i == 0 else blank}{line}".rstrip() for i, line in enumerate(text)]


def _headed(lines: Sequence[str], pen: Pen) -> list[str]:
    return [" " + pen.bold(lines[0]), *(" " + line for line in lines[1:])]


def _spelt(text: str, pen: Pen) -> str:
    return text if pen.terminal.unicode else text.replace("±", "+-")
