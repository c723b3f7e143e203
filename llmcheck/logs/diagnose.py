"""From matches to a diagnosis: causes first, effects under the cause that explains them, and the last exception where no signature knew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmcheck.logs.match import Group, ScanResult, TracebackGroup, Undecided
from llmcheck.logs.tracebacks import choose, is_messenger
from llmcheck.rules.rule import CONFIDENCES, ROLES, SEVERITIES, log_of


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What went wrong: a root, or a cascade that no root explains. `effects` and `context` came with it."""

    group: Group
    effects: tuple[Group, ...] = ()
    context: tuple[Group, ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Slugs of what may be behind it, likeliest first."""
        log = log_of(self.group.rule)
        return (log.cause, *log.candidates)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The likeliest cause first. `exception` is given where no root of severity error was found: it is all that is known then."""

    causes: tuple[Cause, ...] = ()
    context: tuple[Group, ...] = ()  # notes that belong to no cause
    exception: TracebackGroup | None = None
    undecided: tuple[Undecided, ...] = ()
    notes: tuple[str, ...] = ()  # what was not read
    num_lines: int = 0
    num_bytes: int = 0

    @property
    def groups(self) -> tuple[Group, ...]:
        """Every group, in the order of the report."""
        return (*(group for cause in self.causes for group in (cause.group, *cause.effects, *cause.context)), *self.context)


def diagnose(results: Sequence[ScanResult]) -> Diagnosis:
    """The diagnosis of one run from its logs: one file, or one for each rank."""
    order = {result.source: place for place, result in reversed(list(enumerate(results)))}
    exception = choose(traceback for result in results for traceback in result.tracebacks)
    found = [group for group in _merge(results) if not is_placed(group) or _is_of(group, exception)]
    groups = sorted(without_echoes(found), key=lambda group: _rank_of(group, order))
    roots = [group for group in groups if log_of(group.rule).role == "root"]
    effects: dict[int, list[Group]] = {id(root): [] for root in roots}
    heads = list(roots)
    for group in groups:
        if log_of(group.rule).role != "cascade":
            continue
        root = _explanation(group, roots)
        if root is None and group.rule.confidence == "low":  # "a worker failed" says nothing that a surer effect has not said
            root = next((head for head in heads if log_of(head.rule).role == "cascade" and _severity(head) <= _severity(group)), None)
        if root is None:
            heads.append(group)
            effects[id(group)] = []
        else:
            effects[id(root)].append(group)
    context: dict[int, list[Group]] = {id(head): [] for head in heads}
    loose: list[Group] = []
    for group in groups:
        if log_of(group.rule).role == "context":
            head = next((head for head in heads if _related(group, head)), None)
            (loose if head is None else context[id(head)]).append(group)
    # Effects in the order in which they happened: that is how a run falls apart.
    in_time = {key: tuple(sorted(found, key=lambda g: (order[g.first.source], g.first.offset))) for key, found in effects.items()}
    if any(root.rule.severity == "error" and not is_placed(root) for root in roots):
        exception = None
    if exception is not None and heads and is_messenger(exception.last.cause):
        exception = None  # it says that another process failed, which a signature has told already
    return Diagnosis(
        causes=tuple(Cause(group=head, effects=in_time[id(head)], context=tuple(context[id(head)])) for head in heads),
        context=tuple(loose),
        exception=exception,
        undecided=tuple({entry.rule.code: entry for result in results for entry in result.undecided}.values()),
        notes=tuple(note for result in results for note in result.notes),
        num_lines=sum(result.num_lines for result in results),
        num_bytes=sum(result.num_bytes for result in results),
    )


def without_echoes(groups: Sequence[Group]) -> list[Group]:
    """`groups` without the causes of low confidence that say of a line in general what a surer signature says of it exactly, and without
    guesses from where an exception was raised if anything else is known of it, or of why the run ended.
    """
    exact = {
        place for group in groups if group.rule.confidence != "low" and log_of(group.rule).role != "context" for place in _places(group)
    }
    kept = [group for group in groups if not _is_general(group) or not exact.issuperset(_places(group))]
    sure = [group for group in kept if not is_placed(group)]
    if any(log_of(group.rule).role == "root" and group.rule.severity == "error" for group in sure):
        return sure
    told = {place for group in sure if log_of(group.rule).role != "context" for place in _places(group)}
    return [group for group in kept if not is_placed(group) or told.isdisjoint(_places(group))]


def is_placed(group: Group) -> bool:
    """True for a guess from where an exception was raised."""
    return bool(log_of(group.rule).raised_in)


def _is_of(group: Group, exception: TracebackGroup | None) -> bool:
    if exception is None:
        return False
    raised = {(traceback.source, traceback.cause.offset) for traceback in (exception.first, exception.last)}
    return not raised.isdisjoint(_places(group))


def _is_general(group: Group) -> bool:
    return group.rule.confidence == "low" and log_of(group.rule).role == "root"


def _places(group: Group) -> set[tuple[str, int]]:
    return {(match.source, match.offset) for match in (group.first, group.last)}


def spans(numbers: Iterable[int | None]) -> str:
    """Ranks as people write them: ``0-3, 6``; empty when no line named one."""
    ordered = sorted({number for number in numbers if number is not None})
    parts: list[str] = []
    index = 0
    while index < len(ordered):
        end = index
        while end + 1 < len(ordered) and ordered[end + 1] == ordered[end] + 1:
            end += 1
        parts.append(str(ordered[index]) if end == index else f"{ordered[index]}-{ordered[end]}")
        index = end + 1
    return ", ".join(parts)


def _merge(results: Sequence[ScanResult]) -> list[Group]:
    """Groups of all logs; what several logs say is one group."""
    merged: dict[tuple[str, tuple[tuple[str, str], ...]], Group] = {}
    for result in results:
        for group in result.groups:
            key = (group.rule.code, group.key)
            known = merged.get(key)
            if known is None:
                merged[key] = Group(
                    rule=group.rule,
                    key=group.key,
                    first=group.first,
                    last=group.last,
                    count=group.count,
                    ranks=dict(group.ranks),
                    exact=group.exact,
                )
                continue
            known.last = group.last
            known.count += group.count
            known.exact &= group.exact
            for rank, count in group.ranks.items():
                known.ranks[rank] = known.ranks.get(rank, 0) + count
    return list(merged.values())


def _rank_of(group: Group, order: dict[str, int]) -> tuple[int, int, bool, int, int, int, int, int, str]:
    """Causes before effects, errors before notes, guesses last; else what came first caused the rest. On one line the more specific
    signature knows more: the one that asks for lines around it, then the one with the longer pattern.
    """
    rule, log = group.rule, log_of(group.rule)
    return (
        ROLES.index(log.role),
        SEVERITIES.index(rule.severity),
        rule.confidence == "low",
        order[group.first.source],
        group.first.offset,
        -len(log.above) - len(log.below),
        CONFIDENCES.index(rule.confidence),
        -len(log.pattern),
        rule.code,
    )


def _explanation(effect: Group, roots: Sequence[Group]) -> Group | None:
    """The root that explains `effect`: one that it names among its causes, one of its family, else the last one before it.

    A root that is no error explains an error only when the effect names it.
    """
    able = [root for root in roots if _names(effect, root) or _severity(root) <= _severity(effect)]
    if not able:
        return None

    def fitness(root: Group) -> tuple[bool, bool, bool, bool, int]:
        same = root.first.source == effect.first.source
        before = same and root.first.offset <= effect.first.offset
        distance = abs(root.first.offset - effect.first.offset) if same else 0
        return (_names(effect, root), log_of(root.rule).family == log_of(effect.rule).family, before, same, -distance)

    return max(able, key=fitness)


def _names(effect: Group, root: Group) -> bool:
    return log_of(root.rule).cause in (log_of(effect.rule).cause, *log_of(effect.rule).candidates)


def _related(note: Group, head: Group) -> bool:
    return log_of(note.rule).family == log_of(head.rule).family or _names(head, note) or _names(note, head)


def _severity(group: Group) -> int:
    return SEVERITIES.index(group.rule.severity)
