"""Drawing with characters: colour, width, wrapping, tables and bars, by hand because rich costs 75 ms of CPU to import."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmcheck.console import Terminal, escape

# 256-colour numbers that can be told apart on dark and on light backgrounds, and by people who do not see red and green apart.
PALETTE = (33, 208, 99, 35, 178, 44, 168, 142, 67, 130)
_PATTERNS = "█▓▒░▞▤▦▥▧▩▨"  # without colour: neighbours must differ in density
_ASCII_PATTERNS = "#=+*%o&@:~x"
_LEAST_LAST_COLUMN = 12  # columns of a table's last column that are left when it is cut
_MAX_FOLDS = 3  # lines of a table's row
_FIRST_COLUMN_SHARE = 0.55  # of the room of both free-text columns of a table
CACHED, NCCL, CONTEXT, FREE = 246, 243, 240, 238  # greys: not the run's own tensors


@dataclass(frozen=True)
class Pen:
    """Styles text for one terminal; without colour every method returns the text as it is."""

    terminal: Terminal

    def style(self, code: str, text: str) -> str:
        """`text` in the ANSI style `code`."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.terminal.colour and text else text

    def bold(self, text: str) -> str:
        """`text` in bold."""
        return self.style("1", text)

    def dim(self, text: str) -> str:
        """`text` faint: units, notes, what is not the answer."""
        return self.style("2", text)

    def tint(self, number: int, text: str) -> str:
        """`text` in one of the 256 colours."""
        return self.style(f"38;5;{number}", text)

    def verdict(self, verdict: str, text: str) -> str:
        """`text` in the colour of the verdict: green, yellow or red."""
        return self.style({"fits": "1;32", "tight": "1;33"}.get(verdict, "1;31"), text)

    def glyph(self, unicode: str, ascii: str) -> str:  # noqa: A002 - the two ways to draw one thing
        """`unicode` where the terminal has it, else `ascii`."""
        return unicode if self.terminal.unicode else ascii


@dataclass(frozen=True)
class Part:
    """One part of a bar: its label, size (any unit) and colour."""

    label: str
    size: float
    colour: int


def clean(text: str) -> str:
    """Text from a model, a configuration or a path, safe to print on one line."""
    return escape(text)


def width_of(text: str) -> int:
    """Columns that `text` takes on a terminal (no ANSI codes in it): wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, columns: int, pen: Pen) -> str:
    """`text`, shortened with an ellipsis to at most `columns`."""
    if width_of(text) <= columns:
        return text
    mark = pen.glyph("…", "...")
    kept, used = "", width_of(mark)
    for c in text:
        used += width_of(c)
        if used > columns:
            break
        kept += c
    return kept.rstrip() + mark


def pad(text: str, columns: int, right: bool = False) -> str:
    """`text` filled with spaces to `columns`."""
    blank = " " * max(0, columns - width_of(text))
    return blank + text if right else text + blank


def wrap(words: Iterable[str], columns: int) -> list[str]:
    """Lines of at most `columns` out of unbreakable pieces; a piece longer than a line stands alone."""
    lines: list[str] = []
    line = ""
    for word in words:
        joined = f"{line} {word}" if line else word
        if line and width_of(joined) > columns:
            lines.append(line)
            line = word
        else:
            line = joined
    return [*lines, line] if line else lines


def table(rows: Sequence[Sequence[str]], right: Sequence[bool], columns: int, pen: Pen) -> list[str]:
    """`rows` (the first is the heading) as lines of at most `columns`; see :func:`table_rows`."""
    return [line for lines in table_rows(rows, right, columns, pen) for line in lines]


def table_rows(rows: Sequence[Sequence[str]], right: Sequence[bool], columns: int, pen: Pen, *, fold: bool = False) -> list[list[str]]:
    """The lines of each of `rows` (the first is the heading), of at most `columns`.

    The first and the last column hold the free text: where there is no room, the last one is cut, or with `fold` both take up to three
    lines.
    `right[i]` aligns column i to the right. Cells are plain text.
    """
    widths = [max(width_of(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = max(2, columns - sum(widths[1:-1]) - 2 * (len(widths) - 1))
    if widths[0] + widths[-1] > room:
        least = widths[-1] if fold else min(widths[-1], _LEAST_LAST_COLUMN)
        widths[0] = min(widths[0], max(room - least, round(room * _FIRST_COLUMN_SHARE)))
        widths[-1] = room - widths[0]
    drawn = []
    for row in rows:
        lines = []
        first, last = (_few_lines(row[0], widths[0]), _few_lines(row[-1], widths[-1])) if fold else ([row[0]], [row[-1]])
        middle = row[1:-1]
        for i in range(max(len(first), len(last))):
            texts = [first[i] if i < len(first) else "", *(middle if i == 0 else [""] * len(middle)), last[i] if i < len(last) else ""]
            padded = [pad(cut(text, w, pen), w, right=r) for text, w, r in zip(texts, widths, right, strict=True)]
            lines.append("  ".join(padded).rstrip())
        drawn.append(lines)
    return drawn


def _few_lines(text: str, columns: int) -> list[str]:
    """`text` in at most three lines; what the last cannot hold is for the caller to cut."""
    lines = wrap(text.split(), columns)
    return [*lines[: _MAX_FOLDS - 1], " ".join(lines[_MAX_FOLDS - 1 :])] if len(lines) > _MAX_FOLDS else lines


def cells(sizes: Sequence[float], width: int) -> list[int]:
    """`width` cells shared in proportion to `sizes`, by largest remainder: they sum to `width` exactly (0 where all sizes are)."""
    total = sum(sizes)
    if total <= 0 or width <= 0:
        return [0] * len(sizes)
    exact = [size * width / total for size in sizes]
    floors = [int(share) for share in exact]
    spare = width - sum(floors)
    order = sorted(range(len(sizes)), key=lambda i: exact[i] - floors[i], reverse=True)
    for i in order[:spare]:
        floors[i] += 1
    return floors


def mark_of(index: int, pen: Pen) -> str:
    """The character that fills part `index` of a bar and stands beside its label."""
    if pen.terminal.colour:
        return pen.glyph("█", _ASCII_PATTERNS[index % len(_ASCII_PATTERNS)])
    return pen.glyph(_PATTERNS[index % len(_PATTERNS)], _ASCII_PATTERNS[index % len(_ASCII_PATTERNS)])


def bar(parts: Sequence[Part], limit: float, columns: int, pen: Pen) -> str:
    """`parts` stacked in one line of `columns`, against `limit`: dots up to it, or a mark at it when the parts go beyond."""
    used = sum(part.size for part in parts)
    free = max(0.0, limit - used)
    width = columns - 1  # one column for the limit's mark
    shares = cells([*(part.size for part in parts), free], width)
    line = [(mark_of(i, pen), part.colour) for i, part in enumerate(parts) for _ in range(shares[i])]
    line += [(pen.glyph("·", "."), FREE)] * shares[-1]
    at = round(width * limit / max(used, limit)) if max(used, limit) > 0 else width
    drawn = [pen.tint(colour, run) for run, colour in _runs(line[:at])]
    beyond = [pen.tint(colour, run) for run, colour in _runs(line[at:])]
    return "".join([*drawn, pen.style("1;31" if beyond else "1", pen.glyph("│", "|")), *beyond])


def _runs(line: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Neighbours of one colour and character joined, so that a colour code is written once per run."""
    runs: list[tuple[str, int]] = []
    for mark, colour in line:
        if runs and runs[-1][1] == colour and runs[-1][0][-1] == mark:
            runs[-1] = (runs[-1][0] + mark, colour)
        else:
            runs.append((mark, colour))
    return runs
