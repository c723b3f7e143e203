"""Lines above and below a candidate that tell causes apart. Looked for only once there is a candidate: most logs never ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmcheck.logs.page import Line, Page
from llmcheck.rules.rule import MAX_WITHIN_LINES, Context
from llmcheck.units import MIB

MAX_HISTORY_BYTES = 16 * MIB  # of chunks kept to look back into; 1,000 lines of usual length are a tenth of one

_MANY_ASKED = 16  # times in one page: from here on it pays to know where the literal stands next
_FEW_BYTES = 100  # of a line: searching so many costs less than stepping over the line

# Is the context's pattern in this text, a line that has its literal?
Confirm = Callable[[str], bool]


class History:
    """The present page and those before it, as far back as a context may look."""

    def __init__(self) -> None:
        self._pages: deque[Page] = deque()

    def add(self, page: Page) -> None:
        """`page` is the present one from now on."""
        self._pages.append(page)
        num_bytes = sum(len(old.data) for old in self._pages)
        while len(self._pages) > 1 and (
            page.first_line - self._pages[1].first_line >= MAX_WITHIN_LINES or num_bytes > MAX_HISTORY_BYTES + len(page.data)
        ):
            num_bytes -= len(self._pages.popleft().data)

    def before(self) -> Iterator[Page]:
        """The pages before the present one, latest first."""
        pages = reversed(self._pages)
        next(pages, None)
        return pages


@dataclass(kw_only=True, eq=False)
class Above:
    """The last line before the present candidate that has a context."""

    context: Context
    confirm: Confirm
    last: int | None = None  # its number
    _page: Page | None = None  # searched up to `_upto`
    _upto: int = 0
    _num_asked: int = 0  # times, in this page
    _next: int = -1  # where the literal stands next in this page, from `_upto` on; -1: not looked for

    def holds(self, line: Line, page: Page, history: History) -> bool:
        """True when the context stands where the rule wants it, seen from `line`. To be asked for lines in their order only."""
        if self._page is not page:
            found = None
            left = self.context.within - (line.number - page.first_line)
            for old in history.before():
                start = max(self._upto if old is self._page else 0, _back(old, len(old.data), left))
                found = _last(self.context.literal.encode("utf-8"), old, start, len(old.data), self.confirm)
                left = self.context.within - (line.number - old.first_line)
                if found is not None or old is self._page or left < 0:
                    break
            self.last = found if found is not None else self.last
            self._page, self._upto = page, 0
            self._num_asked, self._next = 0, -1
        self._num_asked += 1
        if self._next < line.start:
            self._look(line, page)
        self._upto = line.start
        near = self.last is not None and line.number - self.last <= self.context.within
        return near != self.context.absent

    def is_over(self, page: Page) -> bool:
        """True when a context that did not hold cannot hold for a later line of `page`."""
        return not self.context.absent and self._page is page and self._next >= len(page.data)

    def _look(self, line: Line, page: Page) -> None:
        """Search what lies between the line asked for last and `line`, and further on where many lines ask."""
        literal = self.context.literal.encode("utf-8")
        start = self._upto
        if line.start - start > self.context.within * _FEW_BYTES:
            start = max(start, _back(page, line.start, self.context.within))
        found = _last(literal, page, start, line.start, self.confirm)
        self.last = found if found is not None else self.last
        if self._num_asked >= _MANY_ASKED:
            at = page.data.find(literal, line.start)
            self._next = at if at >= 0 else len(page.data)


@dataclass(kw_only=True, eq=False)
class Below:
    """The next line after a place in the present page that has a context."""

    context: Context
    confirm: Confirm
    _page: Page | None = None
    _from: int = 0
    _at: int = -1
    _number: int | None = None

    def next(self, page: Page, position: int) -> int | None:
        """Number of the first line after `position`, a line's end or 0, that has the context; None when the page has none."""
        known = self._page is page and self._from <= position and (self._number is None or self._at >= position)
        if not known:
            self._page, self._from = page, position
            self._at, self._number = _first(self.context.literal.encode("utf-8"), page, position, self.confirm)
        return self._number


def _back(page: Page, position: int, num_lines: int) -> int:
    """The beginning of the line that is `num_lines` before the one that begins at `position`; 0 when the page begins before it."""
    for _ in range(num_lines + 1):
        position = page.data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1


def _last(literal: bytes, page: Page, start: int, end: int, confirm: Confirm) -> int | None:
    """Number of the last line of `page` between two beginnings of lines that has `literal` and is confirmed."""
    at = page.data.rfind(literal, start, end)
    while at >= 0:
        line = page.around(at)
        if confirm(page.strip(line).text):
            return page.number_at(line.start)
        at = page.data.rfind(literal, start, line.start)
    return None


def _first(literal: bytes, page: Page, start: int, confirm: Confirm) -> tuple[int, int | None]:
    """(position, number) of the first line of `page` after `start` that has `literal` and is confirmed."""
    at = page.data.find(literal, start)
    while at >= 0:
        line = page.around(at)
        if confirm(page.strip(line).text):
            return at, page.number_at(line.start)
        at = page.data.find(literal, line.end)
    return -1, None
