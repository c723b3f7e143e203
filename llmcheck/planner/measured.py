"""What was measured beside what a plan predicted: rows with the band that the plan promises, for a run or for its rehearsed first steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmcheck.types import PhaseStats, RankEstimate
from llmcheck.units import MIB

# The allocator's smallest segment: phases of tiny models may differ by one without a cause.
SLACK_BYTES = 2 * MIB
QUANTITIES = ("allocated", "peak_allocated", "reserved")  # of a phase, in the order in which they are shown


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `low` and `high` bound what the plan allows; None where it makes no promise."""

    name: str
    unit: str  # "bytes" or "s"
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def error_fraction(self) -> float:
        """How far the prediction is from the measurement, as a part of the measurement; negative: too low."""
        return self.predicted / self.measured - 1.0 if self.measured else 0.0

    @property
    def within(self) -> bool | None:
        """Whether the measurement is within the plan's band."""
        return None if self.low is None or self.high is None else self.low <= self.measured <= self.high


class Rehearsal(NamedTuple):
    """The first steps of a rank beside its estimate. `phases`: per phase a row for each of QUANTITIES; `totals`: of the whole run."""

    phases: tuple[tuple[str, tuple[Row, ...]], ...]
    totals: tuple[Row, ...]

    @property
    def within(self) -> bool:
        """Whether every figure with a band is within it."""
        return all(row.within is not False for row in (*self.totals, *(row for _, rows in self.phases for row in rows)))


def compare(
    estimate: RankEstimate, measured: Mapping[str, Any], *, band: float, step_s: float | None = None, time_band: float = 0.0
) -> Rehearsal:
    """`measured`: what the trainer's rehearsal wrote. `step_s`: the predicted seconds of a step without communication; None: not compared.

    Allocated memory is held to `band` in every phase, reserved memory over the whole run, as that of single phases depends on how far the
    CPU is ahead; the process without NCCL, which a rank alone does not load. DeepSpeed resets the peak while it initialises, so that phase
    has no band for it. Raises KeyError for a damaged record.
    """
    found = {phase["name"]: phase for phase in measured["phases"]}
    pairs = [(phase, found[phase.name]) for phase in estimate.phases if phase.name in found]
    phases = tuple((phase.name, tuple(_of_phase(phase, seen, quantity, band) for quantity in QUANTITIES)) for phase, seen in pairs)
    totals = [
        _row("peak allocated", estimate.peak_allocated_bytes, measured["peak_allocated_bytes"], band),
        _row(
            "peak reserved",
            estimate.peak_reserved_bytes,
            measured["peak_reserved_bytes"],
            band,
            (estimate.peak_reserved_low_bytes, estimate.peak_reserved_high_bytes),
        ),
    ]
    if measured["process_bytes"] is not None:
        beyond = estimate.process_bytes - estimate.peak_reserved_bytes
        span = estimate.peak_reserved_low_bytes + beyond, estimate.peak_reserved_high_bytes + beyond
        totals.append(_row("process (driver)", estimate.process_bytes, measured["process_bytes"], band, span))
    if step_s is not None and measured["step_s"]:
        low, high = step_s * (1 - time_band), step_s * (1 + time_band)
        totals.append(Row(name="step without communication", unit="s", predicted=step_s, measured=measured["step_s"], low=low, high=high))
    return Rehearsal(phases, tuple(totals))


def _of_phase(phase: PhaseStats, seen: Mapping[str, Any], quantity: str, band: float) -> Row:
    name = f"{quantity}_bytes"
    predicted, measured = getattr(phase, name), seen[name]
    if quantity == "reserved" or (quantity == "peak_allocated" and phase.name == "init"):
        return Row(name=quantity, unit="bytes", predicted=predicted, measured=measured)
    return _row(quantity, predicted, measured, band)


def _row(name: str, predicted: int, measured: int, band: float, span: Sequence[int] = ()) -> Row:
    low, high = span or (predicted, predicted)
    return Row(
        name=name,
        unit="bytes",
        predicted=predicted,
        measured=measured,
        low=low * (1 - band) - SLACK_BYTES,
        high=high * (1 + band) + SLACK_BYTES,
    )
