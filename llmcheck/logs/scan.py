"""Matching signatures against a log, chunk by chunk: literals find candidate lines, patterns decide on the cleaned line.

Work is bounded whatever the log holds: patterns see at most 8 KiB, a rule that has matched often is sampled and counted, and one that
takes too long is given up and reported as undecided.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from llmcheck.logs.clean import MAX_RAW_BYTES, Clean
from llmcheck.logs.contexts import Above, Below, Confirm, History
from llmcheck.logs.match import Group, Match, ScanResult, TracebackGroup, Undecided
from llmcheck.logs.page import Line, Page
from llmcheck.logs.places import MAX_TAIL_BYTES, Ending, placed
from llmcheck.logs.prefilter import Hits
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import Chunk, Source
from llmcheck.logs.tracebacks import Collector, Fold, begins
from llmcheck.rules.patterns import WINDOW_CHARS
from llmcheck.rules.rule import Context, LogPattern, log_of

MAX_TEXT_CHARS = 500  # of a line that is kept to be shown
MAX_CAPTURE_CHARS = 200
CONTEXTS_FIRST = 100  # candidates ruled out by their contexts: from then on contexts are looked at before the pattern, for less


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much work one rule may cause in one log."""

    num_matches: int = 500  # matched one by one; of what comes after, every 64th line is, and all are counted
    sample_every: int = 64
    num_groups: int = 100  # that `group_by` may make; the others are folded into one
    num_ranks: int = 65_536  # told apart
    num_pending: int = 200  # matches that wait for lines below them
    rule_seconds: float = 5.0  # spent in a rule's patterns before it is given up
    num_tracebacks: int = 1_000  # read in full; of those after, the last of each chunk
    foreign_lines_per_line: int = 32  # of other ranks, that a window of several lines may reach over


IGNORED = b"Exception ignored in"  # before a traceback that Python prints and does not raise, as destructors and exits leave behind
OTHERS = (("", "others"),)  # key of the group that takes what `Limits.num_groups` leaves over


@dataclass(kw_only=True, eq=False)
class _Candidate:
    """A line with a literal, until it is known whether it is a match: its window and what stands below may be missing."""

    rule: int
    line: Line
    first: Clean
    texts: list[str]
    num_foreign: int = 0
    found: re.Match[str] | None = None
    match: Match | None = None
    judged: bool = False
    dead: bool = False
    below: set[int] = field(default_factory=set)  # places of contexts still to be seen


@dataclass(kw_only=True, eq=False)
class _State:
    """What one rule has come to in one log."""

    groups: dict[tuple[tuple[str, str], ...], Group] = field(default_factory=dict)
    num_matches: int = 0
    num_out_of_context: int = 0  # candidates that what stands above ruled out
    over: Page | None = None  # no later line of this page can have what the rule wants above it
    num_after: int = 0  # candidate lines after the first `Limits.num_matches` matches
    num_unmatched: int = 0  # those that were only counted
    last_unmatched: tuple[bytes, Line] | None = None
    last_uncut: Line | None = None  # the same, in the page that is being read
    seconds: float = 0.0
    gave_up: str = ""
    pending: list[_Candidate] = field(default_factory=list)
    above: list[Above] = field(default_factory=list)
    below: list[Below] = field(default_factory=list)


class Scanner:
    """Scans one log. Feed it chunks in order, then call :meth:`finish`."""

    def __init__(
        self, signatures: Signatures, source: str = "-", *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._signatures = signatures
        self._source = source
        self._limits = limits or Limits()
        self._clock = clock
        self._states = [
            _State(
                above=[Above(context=context, confirm=self._confirm(index, context)) for context in log_of(rule).above],
                below=[Below(context=context, confirm=self._confirm(index, context)) for context in log_of(rule).below],
            )
            for index, rule in enumerate(signatures.rules)
        ]
        self._live: dict[tuple[int, ...], tuple[int, ...]] = {}  # literals of a line -> rules that can still match in this page
        self._history = History()
        self._windows: list[_Candidate] = []
        self._collectors: list[Collector] = []
        self._headers: set[int] = set()
        self._fold = Fold()
        self._num_tracebacks = 0
        self._number = 1
        self._num_bytes = 0
        self._open_line = False  # the last chunk did not end its last line
        self._tail = b""

    def feed(self, chunk: Chunk) -> None:
        """Scan the lines of `chunk`."""
        if chunk.gap_lines:
            self.settle()
            self._number += chunk.gap_lines
        page = Page(chunk, self._number)
        self._live.clear()
        self._num_bytes += len(chunk.data)
        self._history.add(page)
        self._resume(page)
        headers = self._lines(page, self._signatures.hits(page.data))
        for line in headers[-2:]:  # beyond the limit: the last ones, since the last exception is the one that ended the run
            self._traceback(page, line)
        for state in self._states:
            if (last := state.last_uncut) is not None:
                # Offsets and numbers stay true, but the data must not keep the whole chunk alive.
                state.last_unmatched = (page.data[last.start : min(last.end, last.start + MAX_RAW_BYTES)], last)
                state.last_uncut = None
        self._number += page.num_lines()
        self._open_line = bool(chunk.data) and not chunk.data.endswith(b"\n")
        self._tail = (self._tail + page.data)[-MAX_TAIL_BYTES:]
        self._expire(self._number)

    def settle(self) -> None:
        """Judge what waits for more lines as if there were none. For a log that has stopped growing for now."""
        for candidate in self._windows:
            self._judge(candidate)
        self._windows.clear()
        for collector in self._collectors:
            self._close(collector)
        self._collectors.clear()

    def fired(self) -> list[Group]:
        """Groups that fired so far, in order of their first line."""
        groups = [group for state in self._states for group in state.groups.values() if group.fired]
        return sorted(groups, key=lambda group: (group.first.offset, group.rule.code))

    def tracebacks(self) -> tuple[TracebackGroup, ...]:
        """Tracebacks so far, in order of their first line."""
        return self._fold.groups()

    def finish(self, notes: Iterable[str] = ()) -> ScanResult:
        """The outcome; `notes` say what was not read."""
        self.settle()
        self._expire(None)
        for index, state in enumerate(self._states):
            self._settle_counts(index, state)
        undecided = [
            Undecided(rule=rule, reason=state.gave_up)
            for rule, state in zip(self._signatures.rules, self._states, strict=True)
            if state.gave_up
        ]
        tracebacks, ending = self._fold.groups(), Ending(self._number - 1 + self._open_line, self._tail)
        return ScanResult(
            source=self._source,
            groups=(*self.fired(), *placed(self._signatures.places, tracebacks, self._source, ending, self._signatures.pattern)),
            tracebacks=tracebacks,
            undecided=tuple(undecided),
            notes=tuple(notes),
            num_lines=ending.num_lines,
            num_bytes=self._num_bytes,
            engine=self._signatures.prefilter.name,
        )

    def _lines(self, page: Page, hits: Hits) -> list[Line]:
        """Go through the lines that have literals; returns headers of tracebacks that were left out."""
        header, left = self._signatures.header, []
        index, num_hits = 0, len(hits)
        while index < num_hits:
            line = page.line_at(hits[index][0])
            limit = min(line.end, line.start + MAX_RAW_BYTES)
            found: dict[int, None] = {}
            while index < num_hits and hits[index][0] < line.end:
                if hits[index][0] < limit:
                    found[hits[index][1]] = None
                index += 1
            self._line(page, line, found)
            if header in found and line.offset not in self._headers:
                if self._num_tracebacks < self._limits.num_tracebacks:
                    self._traceback(page, line)
                else:
                    left.append(line)
        return left

    def _line(self, page: Page, line: Line, found: Iterable[int]) -> None:
        literals = tuple(found)
        rules = self._live.get(literals)
        if rules is None:
            rules = self._live[literals] = tuple(
                rule
                for rule in self._signatures.rules_of(literals)
                if self._states[rule].over is not page and not self._states[rule].gave_up
            )
        for rule in rules:
            self._consider(page, line, rule)

    def _consider(self, page: Page, line: Line, rule: int) -> None:
        """A line has a literal of `rule`."""
        state = self._states[rule]
        if state.gave_up:
            return
        if state.num_matches >= self._limits.num_matches:
            state.num_after += 1
            if state.num_after % self._limits.sample_every:
                state.num_unmatched += 1
                state.last_uncut = line
                return
            state.last_unmatched = state.last_uncut = None
        contexts_first = state.num_out_of_context >= CONTEXTS_FIRST
        if contexts_first and not self._in_context(state, line, page):
            return
        log = log_of(self._signatures.rules[rule])
        text = page.strip(line).text
        if not any(literal in text for literal in log.literal):
            return
        found = None
        if log.lines == 1:  # most candidates end here, without their level
            found = self._search(rule, log.pattern, text, line.number)
            if found is None:
                return
        clean = page.clean(line)
        if not _level_counts(log, clean):
            return
        if not contexts_first and not self._in_context(state, line, page):
            return
        candidate = _Candidate(rule=rule, line=line, first=clean, texts=[text], found=found)
        if log.below:
            if len(state.pending) >= self._limits.num_pending:
                state.num_unmatched += 1
                return
            candidate.below = {place for place, context in enumerate(log.below) if not context.absent}
            state.pending.append(candidate)
            self._look_below(rule, page, line.end, (candidate,))
        if log.lines == 1 or self._extend(candidate, page, line):
            self._judge(candidate)
        else:
            self._windows.append(candidate)

    def _in_context(self, state: _State, line: Line, page: Page) -> bool:
        for above in state.above:
            if not above.holds(line, page, self._history):
                state.num_out_of_context += 1
                if state.num_out_of_context > CONTEXTS_FIRST and above.is_over(page):
                    state.over = page
                    self._live.clear()
                return False
        return True

    def _extend(self, candidate: _Candidate, page: Page, after: Line | None) -> bool:
        """Give a window the lines that it lacks; False when it wants more than the page has."""
        wanted = log_of(self._signatures.rules[candidate.rule]).lines
        most = wanted * self._limits.foreign_lines_per_line
        for line in page.lines_after(after):
            other = page.strip(line)
            if other.stream == candidate.first.stream:
                candidate.texts.append(other.text)
            else:
                candidate.num_foreign += 1
            if len(candidate.texts) >= wanted or candidate.num_foreign >= most or sum(map(len, candidate.texts)) > WINDOW_CHARS:
                return True
        return False

    def _judge(self, candidate: _Candidate) -> None:
        """Search the pattern, the window being whole."""
        candidate.judged = True
        rule = self._signatures.rules[candidate.rule]
        log = log_of(rule)
        found = candidate.found
        if found is None:
            found = self._search(candidate.rule, log.pattern, "\n".join(candidate.texts)[:WINDOW_CHARS], candidate.line.number)
        if found is None or found.start() > len(candidate.texts[0]):  # a match below the first line belongs to a later candidate
            candidate.dead = True
            return
        captures = {name: value[:MAX_CAPTURE_CHARS] for name, value in found.groupdict().items() if value is not None}
        rank = candidate.first.rank
        if rank is None and (digits := captures.get("rank", "")).isascii() and digits.isdigit() and len(digits) < 7:
            rank = int(digits)
        candidate.match = Match(
            source=self._source,
            line=candidate.line.number,
            offset=candidate.line.offset,
            text=candidate.first.text[:MAX_TEXT_CHARS],
            captures=captures,
            rank=rank,
            level=candidate.first.level,
        )
        if not log.below and not candidate.dead:
            self._accept(candidate.rule, candidate.match)

    def _search(self, rule: int, pattern: str, text: str, number: int) -> re.Match[str] | None:
        """Search with the clock running; gives the rule up when its time is spent."""
        state = self._states[rule]
        if state.gave_up:
            return None
        begin = self._clock()
        try:
            found = self._signatures.pattern(pattern).search(text)
        except (re.error, RecursionError, OverflowError) as reason:  # lint refuses these; a pack may come without
            state.gave_up = f"its pattern cannot be used: {reason}"
            return None
        state.seconds += self._clock() - begin
        if state.seconds > self._limits.rule_seconds:
            state.gave_up = f"its pattern took more than {self._limits.rule_seconds:g} s: not looked for after line {number:,}"
        return found

    def _accept(self, rule: int, match: Match) -> None:
        state, limits = self._states[rule], self._limits
        state.num_matches += 1
        log = log_of(self._signatures.rules[rule])
        key = tuple((name, match.captures.get(name, "")) for name in log.group_by)
        if key not in state.groups and len(state.groups) >= limits.num_groups:
            key = OTHERS
        group = state.groups.get(key)
        if group is None:
            group = state.groups[key] = Group(rule=self._signatures.rules[rule], key=key, first=match, last=match)
        group.count += 1
        if match.rank in group.ranks or len(group.ranks) < limits.num_ranks:
            group.ranks[match.rank] = group.ranks.get(match.rank, 0) + 1
        # Windows and contexts may finish out of order.
        group.first = min(group.first, match, key=lambda m: m.offset)
        group.last = max(group.last, match, key=lambda m: m.offset)

    def _confirm(self, rule: int, context: Context) -> Confirm:
        def confirm(text: str) -> bool:
            if context.literal not in text:
                return False
            return not context.pattern or self._search(rule, context.pattern, text, self._number) is not None

        return confirm

    def _look_below(self, rule: int, page: Page, position: int, candidates: Sequence[_Candidate]) -> None:
        """See which contexts of `candidates` come after `position` in the page."""
        for place, below in enumerate(self._states[rule].below):
            number = below.next(page, position)
            if number is None:
                continue
            for candidate in candidates:
                if number - candidate.line.number <= below.context.within:
                    if below.context.absent:
                        candidate.dead = True
                    else:
                        candidate.below.discard(place)

    def _expire(self, number: int | None) -> None:
        """Decide on candidates whose contexts below would have come before line `number`; None: the log is over."""
        for index, state in enumerate(self._states):
            if not state.pending:
                continue
            log = log_of(self._signatures.rules[index])
            furthest = max(context.within for context in log.below)
            waiting = []
            for candidate in state.pending:
                if candidate.dead:
                    continue
                sure = not candidate.below and not any(context.absent for context in log.below)
                if not candidate.judged or (number is not None and not sure and number - candidate.line.number <= furthest):
                    waiting.append(candidate)
                elif not candidate.below and candidate.match is not None:
                    self._accept(index, candidate.match)
            state.pending = waiting

    def _resume(self, page: Page) -> None:
        """Go on with what the last chunk left unfinished."""
        for rule, state in enumerate(self._states):
            if state.pending:
                self._look_below(rule, page, 0, state.pending)
        still = []
        for candidate in self._windows:
            if self._extend(candidate, page, None):
                self._judge(candidate)
            else:
                still.append(candidate)
        self._windows = still
        self._collectors = [collector for collector in self._collectors if not self._collect(collector, page, None)]

    def _traceback(self, page: Page, line: Line) -> None:
        clean = page.clean(line)
        if begins(clean.text) is None:  # a mention
            return
        if IGNORED in page.data[page.data.rfind(b"\n", 0, max(line.start - 1, 0)) + 1 : line.start]:
            clean = clean._replace(level="warning")
        self._num_tracebacks += 1
        collector = Collector(self._source, line.number, line.offset, clean)
        if not self._collect(collector, page, line):
            self._collectors.append(collector)

    def _collect(self, collector: Collector, page: Page, after: Line | None) -> bool:
        for line in page.lines_after(after):
            if collector.feed(line.number, line.offset, page.strip(line)):
                self._close(collector)
                return True
        self._headers |= collector.headers
        return False

    def _close(self, collector: Collector) -> None:
        self._headers |= collector.headers
        if (traceback := collector.result()) is not None:
            self._fold.add(traceback)

    def _settle_counts(self, rule: int, state: _State) -> None:
        """Add the lines that were only counted, and match the last of them, so that a group's last line is its last."""
        if not state.num_unmatched:
            return
        if state.last_unmatched is not None:
            data, line = state.last_unmatched
            state.num_unmatched -= 1
            page = Page(Chunk(data, line.offset), line.number)
            log, matches = log_of(self._signatures.rules[rule]), self._limits.num_matches
            if log.lines == 1 and not log.below:
                clean = page.clean(Line(0, len(data), line.number, line.offset))
                if _level_counts(log, clean) and any(literal in clean.text for literal in log.literal) and state.num_matches >= matches:
                    self._judge(_Candidate(rule=rule, line=line, first=clean, texts=[clean.text]))
        if not state.groups:
            return
        for group in state.groups.values():
            group.exact = False
        largest = max(state.groups.values(), key=lambda group: group.count)
        largest.count += state.num_unmatched
        state.num_unmatched, state.last_unmatched = 0, None


def scan(source: Source, signatures: Signatures, *, limits: Limits | None = None, watch: Callable[[int], None] | None = None) -> ScanResult:
    """Scan an opened log to its end; `watch` is told how many bytes each step took. Raises UserError when it cannot be read."""
    scanner = Scanner(signatures, source.name, limits=limits)
    for chunk in source.chunks():
        scanner.feed(chunk)
        if watch is not None:
            watch(len(chunk.data))
    return replace(scanner.finish(source.notes), unread=source.unread)


def scan_text(text: str, signatures: Signatures, name: str = "-") -> ScanResult:
    """Scan a log that is at hand as text, as the examples of rules are."""
    scanner = Scanner(signatures, name)
    scanner.feed(Chunk(text.encode("utf-8", "replace"), 0))
    return scanner.finish()


def _level_counts(log: LogPattern, line: Clean) -> bool:
    return line.level is None or line.level == "error" or line.level in log.levels
