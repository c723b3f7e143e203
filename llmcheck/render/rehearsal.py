"""A rehearsal of a plan's first steps beside the plan, as text and as JSON (``llmcheck.probe/1``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmcheck.planner.measured import QUANTITIES, Rehearsal, Row
from llmcheck.render.draw import Pen, clean, table
from llmcheck.units import gib

SCHEMA = "llmcheck.probe/1"


def text(rehearsal: Rehearsal, title: str, notes: Sequence[str], pen: Pen) -> str:
    """A table of the phases (measured, and how far the plan is off) and one of the totals."""
    heads = [("phase", *(word for quantity in QUANTITIES for word in (quantity.replace("_", " "), "plan")))]
    body = [(clean(name), *(word for row in rows for word in _short(row))) for name, rows in rehearsal.phases]
    right = (False, *(True,) * (len(heads[0]) - 1))
    out = [clean(title), ""]
    if body:
        head, *rest = table([*heads, *body], right, pen.terminal.columns, pen)
        out += [pen.bold(head), *rest, ""]
    lines = [("", "predicted", "measured", "error", "within the plan's band")]
    for row in rehearsal.totals:
        shown = [gib(value) if row.unit == "bytes" else f"{value:.3f} s" for value in (row.predicted, row.measured)]
        verdict = {None: "", True: "yes", False: "NO"}[row.within]
        lines.append((row.name, shown[0], shown[1], f"{100 * row.error_fraction:+.2f} %", verdict))
    head, *rest = table(lines, (False, True, True, True, False), pen.terminal.columns, pen)
    return "\n".join([*out, pen.bold(head), *rest, "", *[f"note: {clean(note)}" for note in notes], ending(rehearsal), ""])


def ending(rehearsal: Rehearsal) -> str:
    """The verdict in a sentence."""
    if rehearsal.within:
        return "every measurement is within the plan's band"
    outside = [row.name for row in rehearsal.totals if row.within is False]
    outside += [f"{row.name.replace('_', ' ')} in {name}" for name, rows in rehearsal.phases for row in rows if row.within is False]
    return "outside the plan's band: " + ", ".join(outside)


def _short(row: Row) -> tuple[str, str]:
    return gib(int(row.measured)), f"{100 * row.error_fraction:+.2f} %" + ("!" if row.within is False else "")


def document(rehearsal: Rehearsal, measured: Mapping[str, Any], notes: Sequence[str], *, digest: str, band: float) -> str:
    """The same as JSON. Bytes and seconds; `error_fraction` is predicted / measured - 1."""

    def plain(row: Row) -> dict[str, Any]:
        return {**asdict(row), "error_fraction": row.error_fraction, "within": row.within}

    known = ("rank", "world_size", "device", "device_memory_bytes", "steps", "num_steps_timed", "num_skipped", "versions")
    return (
        json.dumps(
            {
                "schema": SCHEMA,
                "plan_digest": digest,
                "within": rehearsal.within,
                "band_fraction": band,
                **{name: measured[name] for name in known},
                "num_alloc_retries": measured["num_alloc_retries"],
                "host_peak_bytes": measured["host_peak_bytes"],
                "totals": [plain(row) for row in rehearsal.totals],
                "phases": [{"phase": name, **{row.name: plain(row) for row in rows}} for name, rows in rehearsal.phases],
                "notes": list(notes),
            },
            indent=2,
            allow_nan=False,
        )
        + "\n"
    )
