"""Scores a corpus of failures: is the right cause first, and is what is healthy left alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcheck.logs.diagnose import Cause, diagnose
from llmcheck.logs.scan import scan_text
from llmcheck.logs.signatures import Signatures
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_shipped

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a corpus that has a log; see tests/corpus/README.md. `cause` is empty where nothing failed."""

    id: str
    family: str
    cause: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one row. `first` is None where no signature of severity error or warning fired."""

    row: Row
    causes: tuple[Cause, ...]

    @property
    def first(self) -> Cause | None:
        return self.causes[0] if self.causes else None

    @property
    def is_right(self) -> bool:
        """True when the first cause is of the row's family and the row's cause is among its candidates."""
        return self.first is not None and _names(self.first, self.row)

    @property
    def is_exact(self) -> bool:
        """True when the row's cause is the likeliest of the first."""
        return self.is_right and self.first is not None and self.first.candidates[0] == self.row.cause

    @property
    def is_found(self) -> bool:
        """True when any of the causes is right."""
        return any(_names(cause, self.row) for cause in self.causes)

    @property
    def errors(self) -> tuple[str, ...]:
        """Names of the signatures of severity error that fired as causes."""
        return tuple(cause.group.rule.name for cause in self.causes if cause.group.rule.severity == "error")


def load_rows(path: Path) -> list[Row]:
    """The rows of a corpus that have a log."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Row(id=entry["id"], family=entry["family"], cause=entry["cause"] or "", log=entry["log"]) for entry in entries if entry["log"]]


def load_signatures() -> Signatures:
    """The shipped signatures."""
    return Signatures(rule for pack in load_shipped(load_registry(), ["signatures"]) for rule in pack.rules)


def judge(row: Row, signatures: Signatures) -> Verdict:
    """The causes that the signatures find in a row's log, likeliest first; notes (severity info) left out."""
    causes = diagnose([scan_text(row.log, signatures)]).causes
    return Verdict(row=row, causes=tuple(cause for cause in causes if cause.group.rule.severity != "info"))


def summary(verdicts: Iterable[Verdict]) -> list[Sequence[object]]:
    """Rows of a table: what was counted, of how many, and the share."""
    judged = list(verdicts)
    failures = [verdict for verdict in judged if verdict.row.cause]
    healthy = [verdict for verdict in judged if not verdict.row.cause]
    counts = (
        ("right cause first", sum(v.is_right for v in failures), len(failures)),
        ("right cause first and named as the likeliest", sum(v.is_exact for v in failures), len(failures)),
        ("right cause among those found", sum(v.is_found for v in failures), len(failures)),
        ("right family first", sum(v.first is not None and _family(v.first) == v.row.family for v in failures), len(failures)),
        ("nothing found", sum(v.first is None for v in failures), len(failures)),
        ("no failure: an error reported", sum(bool(v.errors) for v in healthy), len(healthy)),
    )
    return [(what, number, of, f"{number / of:.1%}" if of else "") for what, number, of in counts]


def _names(cause: Cause, row: Row) -> bool:
    return _family(cause) == row.family and row.cause in cause.candidates


def _family(cause: Cause) -> str:
    log = cause.group.rule.log
    return log.family if log is not None else ""
