"""What the trainer measured: run.json as values, read strictly where it is used and not at all elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llmcheck.codec import from_plain
from llmcheck.errors import UserError

SCHEMA = "llmcheck.run/1"
OUT_OF_MEMORY = "out-of-memory"
_LARGEST = 1 << 60  # bytes or seconds: a larger figure is no measurement
_MAX_NAMED = 3  # problems named of a damaged receipt


@dataclass(frozen=True, kw_only=True)
class PhaseMeasured:
    """Memory of one phase of a rank."""

    name: str
    peak_allocated_bytes: int


@dataclass(frozen=True, kw_only=True)
class RankMeasured:
    """One rank. Memory is None where there was no GPU, `process_bytes` where the driver does not tell, `step_s` where no step ended."""

    rank: int
    device: str
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    process_bytes: int | None
    step_s: float | None
    phases: tuple[PhaseMeasured, ...]
    device_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One run. `ranks` in order: all of them, or after an out-of-memory error the one that wrote it."""

    plan_digest: str
    plan_edited: bool
    ranks: tuple[RankMeasured, ...]
    outcome: str = "finished"


def of(document: Mapping[str, Any], *, where: str) -> Receipt:
    """The receipt in `document`. Raises UserError for one of another version, for what is none, and for a damaged one."""
    schema = document.get("schema")
    if schema != SCHEMA:
        raise _other(schema, document.get("llmcheck_version"), where)
    problems: list[str] = []
    found = from_plain(Receipt, _known(Receipt, document, ranks=_ranks(document.get("ranks"))), "run", problems)
    if found is not None:
        problems = _impossible(found)
    if found is None or problems:
        more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise UserError(
            "the run receipt is damaged",
            code="run-invalid",
            where=where,
            why="; ".join(problems[:_MAX_NAMED]) + more,
            hint="was it edited? the trainer writes it at the end of a run, as run.json in --output",
        )
    return found


def _known(kind: Any, document: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """What `kind` is made of: a receipt says more than is compared, and a later one may say more still."""
    return {field.name: document[field.name] for field in fields(kind) if field.name in document} | {
        name: value for name, value in changes.items() if name in document
    }


def _ranks(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_known(RankMeasured, rank, phases=_phases(rank.get("phases"))) if isinstance(rank, dict) else rank for rank in value]


def _phases(value: Any) -> Any:
    return [_known(PhaseMeasured, phase) if isinstance(phase, dict) else phase for phase in value] if isinstance(value, list) else value


def _impossible(receipt: Receipt) -> list[str]:
    """What no trainer measures."""
    problems = []
    numbers = [rank.rank for rank in receipt.ranks]
    if not numbers:
        problems.append("run.ranks: there is none")
    if len(set(numbers)) < len(numbers):
        problems.append("run.ranks: a rank is there twice")
    if numbers and 0 not in numbers and receipt.outcome != OUT_OF_MEMORY:
        problems.append("run.ranks: rank 0 is missing")
    gpus = {rank.peak_allocated_bytes is None for rank in receipt.ranks} | {rank.peak_reserved_bytes is None for rank in receipt.ranks}
    if len(gpus) > 1:
        problems.append("run.ranks: memory was measured on some ranks and not on others")
    for at, rank in enumerate(receipt.ranks):
        figures: dict[str, float | None] = {name: getattr(rank, name) for name in _FIGURES}
        figures.update({f"phases[{i}].peak_allocated_bytes": phase.peak_allocated_bytes for i, phase in enumerate(rank.phases)})
        for name, value in figures.items():
            if value is not None and not (0 <= value <= _LARGEST and math.isfinite(value)):
                problems.append(f"run.ranks[{at}].{name}: {'less than nothing' if value < 0 else 'too large to be measured'}")
    return problems


_FIGURES = ("rank", "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes", "step_s", "device_memory_bytes")


def _other(schema: Any, version: Any, where: str) -> UserError:
    said = repr(schema if schema is None or isinstance(schema, (int, float, bool)) else str(schema)[:60])
    why = f"its schema is {said}, this llmcheck reads {SCHEMA!r}"
    if isinstance(schema, str) and schema.startswith(SCHEMA.partition("/")[0] + "/"):
        by = f" ({version[:40]})" if isinstance(version, str) else ""
        return UserError(
            "the run receipt is of another version of llmcheck",
            code="run-schema",
            where=where,
            why=why,
            hint=f"compare it with the llmcheck that wrote it{by}, or run the plan again",
        )
    plan = isinstance(schema, str) and schema.startswith("llmcheck.plan/")
    hint = "that is a plan: the plan comes first, then" if plan else "give"
    return UserError("that is not a run receipt", code="run-schema", where=where, why=why, hint=f"{hint} run.json of the run's --output")
