"""Compare two event lists: the first divergence with its source lines, then the rest after resynchronising.

Events are triples [phase, bytes, tag] (or pairs [phase, bytes]): bytes > 0 allocates, bytes < 0 frees. Only sign and size are compared.

    python compare.py GOLDEN.json.gz SIMULATED.json [--min-bytes N] [--phase forward|backward|...] [--swaps] [--max-reports K]

SIMULATED is a JSON list of events, or an object with "events". From Python: `compare(golden_events, simulated_events, min_bytes=...)`
returns a `Result`; `load(path, variant)` reads a golden file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = {"model": 0, "forward": 1, "backward": 2, "end": 3, "gc": 4}
Event = tuple[int, int, str]


@dataclass
class Hunk:
    """A stretch where the lists differ: `expected[i0:i1]` against `actual[j0:j1]`."""

    i0: int
    i1: int
    j0: int
    j1: int
    swap: bool = False  # the same events in another order


@dataclass
class Result:
    expected: list[Event]
    actual: list[Event]
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def num_differences(self) -> int:
        return sum(max(h.i1 - h.i0, h.j1 - h.j0) for h in self.hunks)

    @property
    def num_swaps(self) -> int:
        return sum(h.swap for h in self.hunks)

    @property
    def equal(self) -> bool:
        return not self.hunks

    def summary(self) -> str:
        return (
            f"{len(self.expected)} expected, {len(self.actual)} simulated events; {len(self.hunks)} differing stretches "
            f"({self.num_swaps} of them reorderings), {self.num_differences} events"
        )

    def report(self, max_reports: int = 5, context: int = 4) -> str:
        out = [self.summary()]
        for h in self.hunks[:max_reports]:
            kind = "same events in another order" if h.swap else "differs"
            out.append(f"--- expected #{h.i0} / simulated #{h.j0}: {kind}")
            out += [f"    {_line(e)}" for e in self.expected[max(0, h.i0 - context) : h.i0]]
            out += [f"  - {_line(e)}" for e in self.expected[h.i0 : h.i1]]
            out += [f"  + {_line(e)}" for e in self.actual[h.j0 : h.j1]]
            out += [f"    {_line(e)}" for e in self.expected[h.i1 : h.i1 + context]]
        if len(self.hunks) > max_reports:
            out.append(f"... {len(self.hunks) - max_reports} more")
        return "\n".join(out)


def _line(e: Event) -> str:
    return f"[{e[0]}] {'alloc' if e[1] > 0 else 'free '} {abs(e[1]):>12,d}  {e[2]}"


def normalise(events: Sequence[Sequence[Any]], min_bytes: int, phases: set[int] | None) -> list[Event]:
    """Events of at least `min_bytes` in the wanted phases, as (phase, bytes, tag)."""
    out = []
    for e in events:
        phase = PHASES[e[0]] if isinstance(e[0], str) else int(e[0])
        if abs(e[1]) >= min_bytes and (phases is None or phase in phases):
            out.append((phase, int(e[1]), str(e[2]) if len(e) > 2 else ""))
    return out


def without_transients(events: list[Event]) -> list[Event]:
    """Without the pairs allocation, free of the same size that stand next to each other."""
    out: list[Event] = []
    for e in events:
        if out and e[1] < 0 and out[-1][1] == -e[1]:
            out.pop()
        else:
            out.append(e)
    return out


def compare(
    expected: Sequence[Sequence[Any]],
    actual: Sequence[Sequence[Any]],
    *,
    min_bytes: int = 0,
    phases: set[int] | None = None,
    ignore_swaps: bool = False,
    ignore_transients: bool = False,
    window: int = 400,
    run: int = 6,
) -> Result:
    """Align two event lists by position; at a difference look for the nearest point from which `run` events agree.

    `window`: how far to look, in events on either side. `ignore_swaps`: leave out hunks that hold the same events in another order.
    `ignore_transients`: drop, on both sides, an allocation whose free is the very next event (scratch of one kernel).
    """
    a = normalise(expected, min_bytes, phases)
    b = normalise(actual, min_bytes, phases)
    if ignore_transients:
        a, b = without_transients(a), without_transients(b)
    x, y = [e[1] for e in a], [e[1] for e in b]
    result = Result(a, b)
    i = j = 0
    while i < len(x) or j < len(y):
        if i < len(x) and j < len(y) and x[i] == y[j]:
            i, j = i + 1, j + 1
            continue
        di, dj = _resync(x, y, i, j, window, run)
        hunk = Hunk(i, i + di, j, j + dj)
        hunk.swap = sorted(x[i : i + di]) == sorted(y[j : j + dj])
        if not (ignore_swaps and hunk.swap):
            result.hunks.append(hunk)
        i, j = i + di, j + dj
    return result


def _resync(x: list[int], y: list[int], i: int, j: int, window: int, run: int) -> tuple[int, int]:
    rest_x, rest_y = len(x) - i, len(y) - j
    for total in range(1, 2 * window):
        # a reordering has equal lengths on both sides: try that shape first
        for di in sorted(range(max(0, total - rest_y), min(total, rest_x) + 1), key=lambda d: abs(2 * d - total)):
            dj = total - di
            n = min(run, rest_x - di, rest_y - dj)
            if n == 0 and (rest_x - di or rest_y - dj):
                continue
            if x[i + di : i + di + n] == y[j + dj : j + dj + n]:
                return di, dj
    return rest_x, rest_y


def load(path: str | Path, case: str | None = None) -> dict[str, Any]:
    """A golden file's content; with `case` that case alone: family, config, params, case, events as [phase, bytes, tag]."""
    data: dict[str, Any] = json.loads(gzip.decompress(Path(path).read_bytes()))
    if case is None or "cases" not in data:
        return data
    found: dict[str, Any] = {k: data[k] for k in ("family", "config", "versions", "params")} | data["cases"][case]
    found["events"] = unpack(found["events"], data["tags"])
    return found


def unpack(events: dict[str, list[int]], tags: list[str]) -> list[list[Any]]:
    """[phase, bytes, tag] triples of a packed list: counts per phase, then the columns."""
    phases = [phase for phase, n in enumerate(events["phases"]) for _ in range(n)]
    return [[p, b, tags[t]] for p, b, t in zip(phases, events["bytes"], events["tags"], strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden")
    parser.add_argument("simulated")
    parser.add_argument("--case")
    parser.add_argument("--min-bytes", type=int, default=0)
    parser.add_argument("--phase", action="append", choices=list(PHASES))
    parser.add_argument("--swaps", action="store_true", help="do not report reorderings")
    parser.add_argument("--transients", action="store_true", help="drop allocations that are freed at once, on both sides")
    parser.add_argument("--max-reports", type=int, default=5)
    args = parser.parse_args()
    golden = load(args.golden, args.case)
    text = gzip.decompress(Path(args.simulated).read_bytes()) if args.simulated.endswith(".gz") else Path(args.simulated).read_bytes()
    simulated = json.loads(text)
    if isinstance(simulated, dict):
        simulated = simulated["events"]
    result = compare(
        golden["events"],
        simulated,
        min_bytes=args.min_bytes,
        ignore_swaps=args.swaps,
        ignore_transients=args.transients,
        phases={PHASES[p] for p in args.phase} if args.phase else None,
    )
    print(result.report(args.max_reports))
    return 0 if result.equal else 1


if __name__ == "__main__":
    sys.exit(main())
