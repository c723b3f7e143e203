"""Rules made ready to be searched for: one table of literals, the engine that finds them, patterns compiled at their first use."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmcheck.logs.prefilter import Engine, Hits, make_prefilter
from llmcheck.logs.screen import thin_out
from llmcheck.logs.tracebacks import HEADER
from llmcheck.rules.patterns import is_searchable
from llmcheck.rules.rule import Rule, log_of

_MAX_KEPT_SETS = 10_000  # of literals that stood on one line, with their rules


class Signatures:
    """Rules made ready: one table of literals and the engine that finds them. Serves any number of logs."""

    def __init__(self, rules: Iterable[Rule], engine: Engine | None = None) -> None:
        wanted = [rule for rule in rules if rule.log is not None and rule.status != "removed"]
        self.rules = tuple(rule for rule in wanted if not log_of(rule).raised_in)
        self.places = tuple(rule for rule in wanted if log_of(rule).raised_in)  # asked about tracebacks only, at the end
        table: dict[str, list[int]] = {HEADER: []}  # literal -> rules
        for index, rule in enumerate(self.rules):
            for literal in dict.fromkeys(log_of(rule).literal):
                table.setdefault(literal, []).append(index)
        self.uses = list(table.values())
        self.header = list(table).index(HEADER)
        self.literals = [literal.encode("utf-8") for literal in table]
        self.prefilter = make_prefilter(self.literals, engine)
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._paused: dict[int, int] = {}
        self._rules_of: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._screens: dict[int, tuple[re.Pattern[str], ...] | None] = {}

    def hits(self, data: bytes) -> Hits:
        """Where literals are in a chunk, less the lines that cannot match where there are many."""
        return thin_out(self.prefilter.hits(data), data, self.literals, self._screen, self._paused)

    def _screen(self, literal: int) -> tuple[re.Pattern[str], ...] | None:
        """Patterns that decide together whether a line with the literal can be left out, or None: no line can."""
        if literal not in self._screens:
            self._screens[literal] = None
            logs = [log_of(self.rules[rule]) for rule in self.uses[literal]]
            try:
                if literal != self.header and all(log.lines == 1 and is_searchable(log.pattern) for log in logs):
                    self._screens[literal] = tuple(self.pattern(log.pattern) for log in logs)
            except (re.error, RecursionError, OverflowError):
                pass  # told when the rule has its turn
        return self._screens[literal]

    def rules_of(self, literals: tuple[int, ...]) -> tuple[int, ...]:
        """The rules that have one of `literals`, each once, in order."""
        found = self._rules_of.get(literals)
        if found is None:
            if len(self._rules_of) >= _MAX_KEPT_SETS:
                self._rules_of.clear()
            found = self._rules_of[literals] = tuple(dict.fromkeys(rule for literal in literals for rule in self.uses[literal]))
        return found

    def pattern(self, text: str) -> re.Pattern[str]:
        """`text` compiled, once. Most rules of a pack never come this far."""
        found = self._patterns.get(text)
        if found is None:
            found = self._patterns[text] = re.compile(text)
        return found
