"""A plan as one screen of text: the verdict first, the next command last."""

from __future__ import annotations

from collections.abc import Sequence

from llmcheck.console import MAX_COLUMNS, Terminal
from llmcheck.planner.plan import DataPrep, Finding, Plan, SolveResult
from llmcheck.render import categories
from llmcheck.render.draw import CACHED, CONTEXT, NCCL, PALETTE, Part, Pen, bar, clean, cut, mark_of, pad, table_rows, width_of, wrap
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
_SMALL = 0.002  # of the process: a part below it has no cell in a bar of 100 and reads 0.0x
_SCREEN = 44  # lines of the short report at 100 columns: what a terminal of 45 shows above its prompt
_MAX_REASON_LINES = 3
_MAX_NOTE_LINES = 2  # of assumptions, of what is not checked
_ASSUMED_MACHINE = "LCM09"  # notes of the command line: another GPU or other nodes make another plan
_KERNELS_NOT_MEASURED = "LCM009"  # says what the evidence line says


class _Short:
    """What the short report leaves out, for its last line; a verbose one leaves nothing out."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.left: list[str] = []

    def leave(self, number: int, one: str, many: str) -> None:
        """Remember that `number` of something are left out."""
        if number:
            self.left.append(f"{number} {one if number == 1 else many}")


def render(
    plan: Plan,
    *,
    solve: SolveResult | None = None,
    next_steps: Sequence[str] = (),
    terminal: Terminal | None = None,
    verbose: bool = False,
) -> str:
    """`plan` for people, at the width and with the colours of `terminal`. `next_steps` are commands or sentences to end on.

    One screen; with `verbose` all that is known, however long.
    """
    pen, short = Pen(terminal or Terminal()), _Short(verbose)
    head = [_verdict(plan, solve, pen, short), _memory(plan, pen)]
    tail = [_facts(plan, pen, short) + _notes(plan, pen, short), _next(next_steps, pen)]
    urgent, notes = _findings(plan, pen, short)
    lists = [
        _List("note", "notes", [], notes),
        _List("change", "changes", *_levers(plan, pen)),
        _List("alternative", "alternatives", *_alternatives(plan, pen)),
    ]
    if not verbose:
        fixed = sum(len(block) + 1 for block in (*head, *tail, urgent) if block)
        _fill(lists, _SCREEN * MAX_COLUMNS // pen.terminal.columns - fixed)
    for each in lists:
        short.leave(len(each.items) - each.shown, each.one, each.many)
    listed = [each.lines() for each in lists]
    blocks = [*head, urgent + listed[0], *listed[1:], tail[0], _left(short, pen) + tail[1]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


class _List:
    """Items of one kind, best first, of which the first `shown` are printed under `heading`."""

    def __init__(self, one: str, many: str, heading: list[str], items: list[list[str]]) -> None:
        self.one, self.many, self.heading, self.items = one, many, heading, items
        self.shown = len(items)

    def lines(self) -> list[str]:
        """What is shown of it."""
        return self.heading + [line for item in self.items[: self.shown] for line in item] if self.shown else []


def _fill(lists: Sequence[_List], room: int) -> None:
    """Share `room` lines: each list gets its first item, and then by turns what still has room."""
    for each in lists:
        each.shown = 0
    open_lists = [each for each in lists if each.items]
    while open_lists:
        for each in list(open_lists):
            cost = len(each.items[each.shown]) + (len(each.heading) + 1 if not each.shown else 0)
            if each.shown and cost > room:
                open_lists.remove(each)
                continue
            room -= cost
            each.shown += 1
            if each.shown == len(each.items):
                open_lists.remove(each)


def _left(short: _Short, pen: Pen) -> list[str]:
    """One line that names what the short report has not."""
    if short.verbose or not short.left:
        return []
    return _labelled(
        "left out", [pen.dim(line) for line in wrap((", ".join(short.left) + ": --verbose, --format json").split(), _room(pen))], pen
    )


def _room(pen: Pen) -> int:
    """Columns right of the labels."""
    return pen.terminal.columns - _GUTTER - 1


def _verdict(plan: Plan, solve: SolveResult | None, pen: Pen, short: _Short) -> list[str]:
    columns = pen.terminal.columns
    word, rest = verdict_words(plan)
    lines = []
    if solve is not None:
        answer, more = solve_words(solve)
        lines += [" " + pen.bold(clean(answer)), *(" " + line for line in wrap(clean(more).split(), columns - 2)), ""]
    head, *tail = wrap(clean(rest).split(), columns - 3 - len(word))
    lines.append(f" {pen.verdict(plan.verdict, word)}  {pen.bold(head)}")
    lines += [" " * (len(word) + 3) + line for line in tail]
    lines += _labelled("model", wrap([clean(word) for word in model_words(plan).split()], _room(pen)), pen)
    phrases = [clean(phrase) for phrase in recipe_phrases(plan.recipe, plan.cluster)]
    lines += _labelled("recipe", wrap(_separated(phrases, pen), _room(pen)), pen)
    lines += _labelled("why", _reasons(plan, pen, short), pen)
    evidence = f"{evidence_words(plan.memory.evidence)}; error band ±{100 * plan.memory.error_fraction:.1f} %"
    return lines + _labelled("evidence", wrap(_spelt(evidence, pen).split(), _room(pen)), pen)


def _reasons(plan: Plan, pen: Pen, short: _Short) -> list[str]:
    """The reasons that no finding repeats, as many as have room."""
    if short.verbose:
        return wrap(clean("; ".join(plan.reasons)).split(), _room(pen))
    reasons = [reason for reason in plan.reasons if not any(reason in f.message for f in plan.findings if f.severity != "note")]
    kept = len(reasons)
    while kept > 1 and len(wrap(clean("; ".join(reasons[:kept])).split(), _room(pen))) > _MAX_REASON_LINES:
        kept -= 1
    short.leave(len(reasons) - kept, "reason", "reasons")
    return wrap(clean("; ".join(reasons[:kept])).split(), _room(pen))


def _separated(phrases: Sequence[str], pen: Pen) -> list[str]:
    """`phrases` with what stands between them, unbreakable."""
    separator = pen.glyph(" ·", ",")
    return [phrase + separator for phrase in phrases[:-1]] + list(phrases[-1:])


def _memory(plan: Plan, pen: Pen) -> list[str]:
    rank = categories.deciding_rank(plan.memory)
    limit = plan.cluster.gpu.memory_bytes
    parts = memory_parts(rank, limit)
    columns = pen.terminal.columns - 2
    left = f"Memory of rank {rank.rank} at its peak ({clean(rank.peak_phase)}), GiB"
    right = f"{clean(plan.cluster.gpu.name)}: {limit / GIB:.2f}"
    head = pen.bold(cut(left, columns - width_of(right) - 2, pen))
    gap = " " * max(2, columns - width_of(cut(left, columns - width_of(right) - 2, pen)) - width_of(right))
    lines = [" " + head + gap + right, " " + bar(parts, limit, columns, pen)]
    lines += [" " + line for line in _legend(parts, columns, pen)]
    lines += [" " + line for line in wrap(_peaks(plan, rank, pen), columns)]
    return lines


def used_bytes(rank: RankEstimate, limit: int) -> int:
    """What nvidia-smi shows of the process on a GPU of `limit` bytes. Where NCCL finds no room, the allocator gives cache back."""
    wanted = rank.process_bytes + rank.nccl_bytes
    return min(wanted, limit) if rank.required_bytes + rank.nccl_bytes <= limit else wanted


def memory_parts(rank: RankEstimate, limit: int) -> list[Part]:
    """What fills the GPU when the run's memory is fullest: tensors by category, the allocator's cache, the process itself, NCCL."""
    breakdown = categories.folded(rank.breakdown, _SMALL * rank.process_bytes)
    names = categories.ordered(breakdown)
    parts = [Part(categories.words(name), breakdown[name], PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]
    process = max(0, rank.process_bytes - rank.peak_reserved_bytes)
    held = max(0, used_bytes(rank, limit) - rank.nccl_bytes - process - rank.peak_allocated_bytes)
    return [*parts, Part("cached, unused", held, CACHED), Part("CUDA context", process, CONTEXT), Part("NCCL", rank.nccl_bytes, NCCL)]


def _legend(parts: Sequence[Part], columns: int, pen: Pen) -> list[str]:
    """Entries read across, in as many columns as have room."""
    entries = [(mark_of(i, pen), part.colour, clean(part.label), f"{part.size / GIB:.2f}") for i, part in enumerate(parts) if part.size > 0]
    for per_line in range(len(entries), 0, -1):
        grid = [entries[i::per_line] for i in range(per_line)]
        labels = [max(width_of(label) for _, _, label, _ in column) for column in grid]
        numbers = [max(len(number) for *_, number in column) for column in grid]
        if per_line == 1 or sum(labels) + sum(numbers) + 3 * per_line + 3 * (per_line - 1) <= columns:
            break
    else:
        return []
    cells = [
        f"{pen.tint(colour, mark)} {pad(label, labels[i % per_line])} {pad(number, numbers[i % per_line], right=True)}"
        for i, (mark, colour, label, number) in enumerate(entries)
    ]
    return ["   ".join(cells[start : start + per_line]) for start in range(0, len(cells), per_line)]


def _peaks(plan: Plan, rank: RankEstimate, pen: Pen) -> list[str]:
    used = used_bytes(rank, plan.cluster.gpu.memory_bytes)
    phrases = [
        f"allocated {rank.peak_allocated_bytes / GIB:.2f}",
        _reserved(rank),
        f"process {rank.process_bytes / GIB:.2f}" + (f", in nvidia-smi about {used / GIB:.2f} with NCCL" if rank.nccl_bytes else ""),
        f"loading {rank.init_peak_allocated_bytes / GIB:.2f}",
    ]
    if plan.memory.worst != plan.memory.rank0:
        other = plan.memory.rank0 if rank is not plan.memory.rank0 else plan.memory.worst
        phrases.append(f"rank {other.rank} allocates {other.peak_allocated_bytes / GIB:.2f}")
    if rank.num_alloc_retries:
        phrases.append(f"the allocator flushes its cache {rank.num_alloc_retries} x")
    return _separated(phrases, pen)


def _reserved(rank: RankEstimate) -> str:
    likely, low, high = (f"{n / GIB:.2f}" for n in (rank.peak_reserved_bytes, rank.peak_reserved_low_bytes, rank.peak_reserved_high_bytes))
    return f"reserved {likely}" if low == high else f"reserved {likely} ({low} to {high}: how far is the CPU ahead?)"


def _findings(plan: Plan, pen: Pen, short: _Short) -> tuple[list[str], list[list[str]]]:
    """The lines of errors, warnings and of what was assumed about the machine, which are never left out, and those of each other note."""
    urgent: list[str] = []
    notes = []
    for finding in plan.findings:
        if finding.severity != "note" or finding.code.startswith(_ASSUMED_MACHINE):
            urgent += _finding(finding, pen)
        elif short.verbose or finding.code != _KERNELS_NOT_MEASURED:
            notes.append(_finding(finding, pen))
    return urgent, notes


def _finding(finding: Finding, pen: Pen) -> list[str]:
    styles = {"error": "1;31", "warning": "1;33", "note": "1;36"}
    head = f"{finding.severity} {finding.code}"
    text = clean(finding.message) + (f" {pen.glyph('→', '->')} {clean(finding.fix)}" if finding.fix else "")
    first, *rest = wrap(text.split(), pen.terminal.columns - len(head) - 4)
    return [f" {pen.style(styles[finding.severity], head)}  {first}", *(" " * (len(head) + 3) + line for line in rest)]


def _levers(plan: Plan, pen: Pen) -> tuple[list[str], list[list[str]]]:
    """The heading, and the lines of each change."""
    rows = [("What would change it", pen.glyph("ΔGiB", "dGiB"), "speed", "then", "what it is, and its price in quality")]
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
    return _headed(rows, (False, True, True, False, False), pen)


def _alternatives(plan: Plan, pen: Pen) -> tuple[list[str], list[list[str]]]:
    """The heading, and the lines of each alternative."""
    rows = [("Alternatives", "needs GiB", "tokens/s", "verdict", "")]
    for other in plan.alternatives:
        rows.append(
            (
                clean(other.title),
                f"{other.required_bytes / GIB:.2f}",
                f"{other.tokens_per_s:,.0f}",
                other.verdict.replace("-", " "),
                clean(other.note),
            )
        )
    return _headed(rows, (False, True, True, False, False), pen)


def _headed(rows: Sequence[Sequence[str]], right: Sequence[bool], pen: Pen) -> tuple[list[str], list[list[str]]]:
    (heading, *_), *items = table_rows(rows, right, pen.terminal.columns - 2, pen, fold=True)
    return [" " + pen.bold(heading)], [[" " + line for line in item] for item in items]


def _facts(plan: Plan, pen: Pen, short: _Short) -> list[str]:
    def block(label: str, phrases: Sequence[str]) -> list[str]:
        return _labelled(label, wrap(_separated(phrases, pen), _room(pen)), pen)

    host, cluster = plan.memory.host, plan.cluster
    have = f" of {human_bytes(cluster.host_memory_bytes)}" if cluster.host_memory_bytes else ""
    ram = [f"{human_bytes(host.host_bytes_per_node)}{have} of RAM per node"]
    ram += [f"{human_bytes(host.pinned_bytes_per_node)} of it pinned"] if host.pinned_bytes_per_node else []
    ram += [f"{human_bytes(host.load_peak_bytes_per_node)} while the weights load"]
    have = f" of {human_bytes(cluster.disk_bytes)}" if cluster.disk_bytes else ""
    disk = [f"{human_bytes(host.disk_bytes)}{have} for checkpoints and offload"]
    if host.nvme_bytes_per_node:
        disk.append(f"{human_bytes(host.nvme_bytes_per_node)} of NVMe per node")
    lines = block("time", time_phrases(plan, pen.terminal.unicode))
    together = block("host", [*ram, f"disk: {disk[0]}", *disk[1:]])
    lines += together if len(together) == 1 else block("host", ram) + block("disk", disk)
    if plan.data is not None:
        for i, way in enumerate(_data(plan.data, short)):
            lines += _labelled("" if i else "data", wrap(clean(way).split(), _room(pen)), pen)
    return lines


def _data(data: DataPrep, short: _Short) -> list[str]:
    """The two ways of preparing the data, ours first."""
    ours, naive = (data.ours.name, data.naive.name) if short.verbose else ("prepared once per node", "prepared by every rank")
    ways = ((ours, data.ours), (naive, data.naive))
    return [
        f"{name}: {human_bytes(way.host_bytes)} of RAM, {human_seconds(way.time_s)}, {human_bytes(way.disk_bytes)} of disk"
        for name, way in ways
    ]


def _notes(plan: Plan, pen: Pen, short: _Short) -> list[str]:
    """What was assumed and what was not checked; what is left out of it is named with the rest."""
    data = plan.data.assumptions if plan.data else ()
    lines: list[str] = []
    for label, notes, one, many in (
        ("assumed", (*plan.memory.assumptions, *plan.time.assumptions, *data), "assumption", "assumptions"),
        ("unchecked", plan.memory.not_checked, "of what is unchecked", "of what is unchecked"),
    ):
        kept = len(notes)
        while not short.verbose and kept > 1 and len(wrap(clean("; ".join(notes[:kept])).split(), _room(pen))) > _MAX_NOTE_LINES:
            kept -= 1
        short.leave(len(notes) - kept, one, many)
        lines += _labelled(label, [pen.dim(line) for line in wrap(clean("; ".join(notes[:kept])).split(), _room(pen))], pen)
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


def _spelt(text: str, pen: Pen) -> str:
    return text if pen.terminal.unicode else text.replace("±", "+-")
