"""Memory over one training step by category, as stacked areas: SVG by hand, PNG through matplotlib where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmcheck.console import Terminal
from llmcheck.errors import CouldNotCheckError
from llmcheck.planner.plan import Plan
from llmcheck.render import categories
from llmcheck.render.draw import Pen, clean, cut
from llmcheck.render.phrases import model_words, recipe_phrases
from llmcheck.types import RankEstimate
from llmcheck.units import GIB

MARK = "llmcheck timeline"  # in every file that we write, so that we know our own when asked to replace one

# The bar's colours (render/draw.py) as RGB, softened for areas.
_FILLS = ("#3b82c4", "#e8893c", "#8d6fd1", "#3f9e63", "#d9b23a", "#37a9b5", "#cf6a96", "#97a83c", "#5b73b5", "#b0793f")
_INK, _FAINT, _CAP = "#1f2933", "#d5dbe1", "#c0392b"
_WIDTH, _HEIGHT = 960, 500  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 218, 64, 52  # margins; the legend stands on the right
_SMALL = 0.002  # of the peak: less than one pixel
_MAX_POINTS = 800  # more than one per pixel column draws nothing new


@dataclass(frozen=True)
class Stack:
    """The timeline in drawing form: instants in 0..1 and, per category, GiB at each; `names` from the bottom up."""

    at: tuple[float, ...]
    names: tuple[str, ...]
    gib: tuple[tuple[float, ...], ...]

    def total(self, i: int) -> float:
        """GiB of all categories at instant `i`."""
        return sum(column[i] for column in self.gib)


def stack_of(rank: RankEstimate, max_points: int = _MAX_POINTS) -> Stack:
    """`rank`'s timeline with at most `max_points` instants, each slice standing by its fullest one, so that no peak is lost."""
    rows = list(rank.timeline)
    if len(rows) > max_points:
        bounds = [len(rows) * i // max_points for i in range(max_points + 1)]
        rows = [max(rows[a:b], key=lambda row: sum(row[1].values())) for a, b in pairwise(bounds)]
    most: dict[str, int] = {}
    for _, sizes in rows:
        for name, size in sizes.items():
            most[name] = max(most.get(name, 0), size)
    least = _SMALL * max((sum(sizes.values()) for _, sizes in rows), default=0)
    rows = [(at, _folded(sizes, {name for name, size in most.items() if size < least})) for at, sizes in rows]
    names = categories.ordered({name: max(sizes.get(name, 0) for _, sizes in rows) for name in [*most, "other"]} if rows else {})
    columns = tuple(tuple(sizes.get(name, 0) / GIB for _, sizes in rows) for name in names)
    return Stack(at=tuple(at for at, _ in rows), names=names, gib=columns)


def _folded(sizes: Mapping[str, int], small: set[str]) -> dict[str, int]:
    """`sizes` with the categories of `small` summed up as "other": an area that nobody could see needs no place in the legend."""
    kept = {name: size for name, size in sizes.items() if name not in small and name != "other"}
    return {**kept, "other": sum(sizes.values()) - sum(kept.values())}


def svg(plan: Plan) -> bytes:
    """One steady step of the deciding rank as a stand-alone SVG file. Raises CouldNotCheckError when the plan has no timeline."""
    rank, stack = _stack(plan)
    cap = plan.cluster.gpu.memory_bytes / GIB
    peak_at = max(range(len(stack.at)), key=stack.total)
    peak = stack.total(peak_at)
    # The cap is part of the picture unless it is so far up that the areas would be flat.
    top = _nice_ceiling(max(peak, cap) * 1.04 if cap <= 4 * peak else peak * 1.15)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + at * (right - _LEFT)

    def y(gib: float) -> float:
        return bottom - gib / top * (bottom - _TOP)

    title = cut(f"Memory over one step: {model_words(plan)}, rank {rank.rank}", 96, Pen(Terminal()))
    body = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
            f'role="img" aria-label="{_xml(title)}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{_INK}">'
        ),
        f"<desc>{MARK}</desc>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 26, title, size=16, bold=True),
        _text(_LEFT, 46, ", ".join(recipe_phrases(plan.recipe, plan.cluster)[:6]), colour="#5b6770"),
    ]
    step = _tick_step(top)
    for i in range(round(top / step) + 1):
        level = i * step
        body.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="{_FAINT}"/>')
        body.append(_text(_LEFT - 8, y(level) + 4, f"{level:g}", anchor="end"))
    below = [0.0] * len(stack.at)
    for index, column in enumerate(stack.gib):
        above = [base + size for base, size in zip(below, column, strict=True)]
        body.append(_area([x(at) for at in stack.at], [y(v) for v in above], [y(v) for v in below], _FILLS[index % len(_FILLS)]))
        below = above
    body += _axes(right, bottom)
    body += _cap_line(plan, cap, top, y, right)
    body.append(f'<circle cx="{x(stack.at[peak_at]):.1f}" cy="{y(peak):.1f}" r="3.5" fill="{_INK}"/>')
    near_right = stack.at[peak_at] > 0.7
    dx, anchor = (-8, "end") if near_right else (8, "start")
    body.append(_text(x(stack.at[peak_at]) + dx, y(peak) - 7, f"peak {peak:.2f} GiB", anchor=anchor, bold=True))
    body += _legend(stack, peak_at, right)
    return ("\n".join([*body, "</svg>"]) + "\n").encode("utf-8")


def png(plan: Plan) -> bytes:
    """The same as PNG. Raises CouldNotCheckError when matplotlib is not installed or the plan has no timeline."""
    rank, stack = _stack(plan)
    try:
        # Half a second and 60 modules: only for those who ask for a PNG.
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as reason:
        raise CouldNotCheckError(
            "a PNG timeline needs matplotlib",
            code="missing-extra",
            where="--timeline",
            hint="name a .svg file, which needs nothing, or `pip install 'llmcheck[plot]'`",
        ) from reason
    import io

    figure, axes = pyplot.subplots(figsize=(_WIDTH / 100, _HEIGHT / 100), dpi=150, layout="constrained")
    labels = [clean(categories.words(name)).replace("$", r"\$") for name in stack.names]
    axes.stackplot(stack.at, stack.gib, labels=labels, colors=[_FILLS[i % len(_FILLS)] for i in range(len(labels))])
    axes.axhline(plan.cluster.gpu.memory_bytes / GIB, color=_CAP, linestyle="--", label=clean(plan.cluster.gpu.name).replace("$", r"\$"))
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="one step, by allocator events", ylabel="GiB allocated")
    axes.set_title(clean(f"{model_words(plan)}, rank {rank.rank}").replace("$", r"\$"), loc="left")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": MARK})
    pyplot.close(figure)
    return buffer.getvalue()


def is_ours(data: bytes) -> bool:
    """True for a file that :func:`svg` or :func:`png` wrote."""
    return MARK.encode("ascii") in data[:4096]


def _stack(plan: Plan) -> tuple[RankEstimate, Stack]:
    rank = categories.deciding_rank(plan.memory)
    stack = stack_of(rank)
    if not stack.names:
        why = "the run dies before its first whole step" if rank.out_of_memory else "the estimate holds none"
        hint = "leave --timeline out, or plan with settings that fit"
        raise CouldNotCheckError("there is no timeline to draw", code="no-timeline", where="--timeline", why=why, hint=hint)
    return rank, stack


def _area(xs: Sequence[float], upper: Sequence[float], lower: Sequence[float], fill: str) -> str:
    points = [f"{x:.1f},{y:.1f}" for x, y in zip(xs, upper, strict=True)]
    points += [f"{x:.1f},{y:.1f}" for x, y in zip(reversed(xs), reversed(lower), strict=True)]
    return f'<polygon points="{" ".join(points)}" fill="{fill}" fill-opacity="0.9" stroke="{fill}" stroke-width="0.5"/>'


def _axes(right: float, bottom: float) -> list[str]:
    middle = (_TOP + bottom) / 2
    return [
        f'<path d="M{_LEFT} {_TOP} V{bottom} H{right}" fill="none" stroke="{_INK}"/>',
        f'<text transform="translate(20 {middle:.0f}) rotate(-90)" text-anchor="middle">GiB allocated</text>',
        *[_text(_LEFT + at * (right - _LEFT), bottom + 18, f"{at:.0%}", anchor="middle") for at in (0, 0.25, 0.5, 0.75, 1)],
        _text((_LEFT + right) / 2, bottom + 38, "one training step, by allocator events", anchor="middle"),
    ]


def _cap_line(plan: Plan, cap: float, top: float, y: Callable[[float], float], right: float) -> list[str]:
    label = f"{plan.cluster.gpu.name}: {cap:.2f} GiB"
    if cap > top:
        return [_text(right, _TOP - 6, label + ", above", anchor="end", colour=_CAP)]
    level = y(cap)
    return [
        f'<line x1="{_LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}" stroke="{_CAP}" stroke-width="1.5" stroke-dasharray="6 4"/>',
        _text(right, level - 6, label, anchor="end", colour=_CAP),
    ]


def _legend(stack: Stack, peak_at: int, right: float) -> list[str]:
    lines = [_text(right + 20, _TOP + 8, "GiB at the peak", colour="#5b6770")]
    for row, index in enumerate(reversed(range(len(stack.names)))):  # from the top down, as in the picture
        top = _TOP + 22 + 22 * row
        lines.append(f'<rect x="{right + 20}" y="{top}" width="12" height="12" rx="2" fill="{_FILLS[index % len(_FILLS)]}"/>')
        lines.append(_text(right + 38, top + 10, categories.words(stack.names[index])))
        lines.append(_text(_WIDTH - 14, top + 10, f"{stack.gib[index][peak_at]:.2f}", anchor="end"))
    return lines


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, bold: bool = False, colour: str = _INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>{_xml(text)}</text>'


def _xml(text: str) -> str:
    return clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _tick_step(top: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives four to nine ticks."""
    power: float = 10.0 ** math.floor(math.log10(top))
    return next(step for step in (power / 5, power / 2, power, 2 * power) if top / step <= 9)


def _nice_ceiling(value: float) -> float:
    step = _tick_step(value)
    return math.ceil(value / step) * step
