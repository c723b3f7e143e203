"""Compare the simulation with published memory figures: ``python -m benchmarks.published.run``.

Prints a summary, writes ``benchmarks/results/published-memory-DATE.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.published.readings import Metric, Reading, read, rows
from benchmarks.report import errors_words, header, table, write
from llmcheck import __version__
from llmcheck.errors import UserError
from llmcheck.shadow.run import simulate_rank
from llmcheck.types import RankEstimate
from llmcheck.units import GIB

# Mean error of other tools on rows of the same sources, each with its default settings, all run on a CPU in one comparison of
# November 2026 (fitscout 0.1.1, ftuneai 0.4.1, fitcheck 0.3.1; accelerate's and LLaMA-Factory's rules from their formulas). Its selection
# of rows is not ours row by row: T4 calibration = 22 process figures, ms-swift = 69 rows, LLaMA-Factory = 6 rows. fitcheck's and
# ftuneai's own published rows are in the T4 group: fitcheck was calibrated on them.
PEER_GROUPS = ("fitcheck's T4 runs (22)", "ms-swift benchmark (69)", "LLaMA-Factory QLoRA (6)")
PEERS = {
    "fitcheck": ("2.5 % (calibrated on them)", "25.4 %, -61 ... +63", "11.6 %"),
    "fitscout": ("15.1 %", "25.3 %, -61 ... +66", "8.1 %"),
    "ftuneai": ("47.5 %", "31.4 %", "15.8 %"),
    "accelerate (full only)": ("", "36.3 %", ""),
    "LLaMA-Factory's rule": ("79.6 %", "45.7 %", "69.3 %"),
}


@dataclass(frozen=True)
class Result:
    """One reading and its estimate; `why` where it could not be simulated."""

    reading: Reading
    estimate: RankEstimate | None
    why: str = ""

    @property
    def metric(self) -> Metric:
        """The memory that the figure is compared with; process memory where the source does not say which it is."""
        return self.reading.metric or "process"

    def error(self, metric: Metric) -> float | None:
        """Relative error of `metric` against the figure; None where there is none to compare."""
        if self.estimate is None or self.reading.measured_bytes is None:
            return None
        return bytes_of(self.estimate, metric) / self.reading.measured_bytes - 1


def bytes_of(estimate: RankEstimate, metric: Metric) -> int:
    """The estimate of `metric`."""
    return {"allocated": estimate.peak_allocated_bytes, "reserved": estimate.peak_reserved_bytes, "process": estimate.process_bytes}[metric]


def measure() -> tuple[list[Result], list[tuple[Mapping[str, str], str]]]:
    """(every row that is a recipe, with its estimate), (every other row, and why it is none)."""
    results: list[Result] = []
    others: list[tuple[Mapping[str, str], str]] = []
    done: dict[str, RankEstimate | str] = {}
    for row in rows():
        reading = read(row)
        if isinstance(reading, str):
            others.append((row, reading))
            continue
        key = repr((reading.model, reading.recipe, reading.cluster))
        if key not in done:
            try:
                done[key] = simulate_rank(reading.model, reading.recipe, reading.cluster)
            except UserError as error:
                done[key] = error.what
        found = done[key]
        results.append(Result(reading, None, found) if isinstance(found, str) else Result(reading, found))
    return results, others


def summary(results: list[Result]) -> list[str]:
    """Errors by group and by what was measured."""
    lines = []
    groups: dict[tuple[bool, str, str], list[Result]] = {}
    for result in results:
        reading = result.reading
        groups.setdefault((not reading.known, reading.group, reading.metric or "not stated"), []).append(result)
    titles = ("Runs that a recipe expresses", "Nearest recipe only: what differs moves memory, or is not stated")
    for unknown, title in zip((False, True), titles, strict=True):
        body = []
        for (is_unknown, group, metric), members in sorted(groups.items()):
            if is_unknown != unknown:
                continue
            errors = [e for r in members if (e := r.error(r.metric)) is not None]
            compared = metric if metric != "not stated" else "not stated; against process"
            if errors:
                body.append((group, compared, len(errors), *errors_words(errors)))
            if metric == "not stated" and errors:
                for other in ("reserved", "allocated"):
                    more = [e for r in members if (e := r.error(other)) is not None]
                    body.append((group, f"not stated; against {other}", len(more), *errors_words(more)))
        lines += [f"### {title}", ""]
        lines += table(("rows", "figure", "n", "mean", "median", "worst", "too low"), body)
    return lines


def report(results: list[Result], others: list[tuple[Mapping[str, str], str]]) -> list[str]:
    """The lines of the results file."""
    measured = [r for r in results if r.reading.measured_bytes is not None]
    lines = header("Published memory figures", "python -m benchmarks.published.run", [f"llmcheck {__version__}"])
    lines += [
        f"{len(results) + len(others)} rows of `benchmarks/published/data/memory.csv`: {len(results)} are a recipe or near one,",
        f"{len(others)} are not (listed last, each with the reason). No constant was fitted to any of them.",
        "",
        "Error: estimate / figure - 1. `mean` and `median` are of its size. Where a source does not say which memory it gives, the",
        "estimate of the process (reserved + CUDA context + loaded kernels) is compared; reserved and allocated are given too.",
        "",
        "## Summary",
        "",
        *summary(results),
        "## Other tools on rows of the same sources",
        "",
        "Mean error, worst in percent, each with its defaults; from a comparison on a CPU in November 2026, whose rows are not quite ours.",
        "",
        *table(("tool", *PEER_GROUPS), ((name, *cells) for name, cells in PEERS.items())),
        "## Rows",
        "",
        "GiB. A: allocated, R: reserved, P: process.",
        "",
    ]
    body: list[tuple[object, ...]] = []
    for r in results:
        reading, e = r.reading, r.estimate
        if e is None:
            body.append((reading.label, reading.row["mem_value"], reading.metric or "?", "", "", "", f"not simulated: {r.why}"))
            continue
        gib = [f"{bytes_of(e, m) / GIB:.2f}" for m in ("allocated", "reserved", "process")]
        if reading.measured_bytes is None:
            verdict = "out of memory" if e.out_of_memory is not None else "fits: wrong"
            body.append((reading.label, "out of memory", "verdict", *gib, verdict))
            continue
        error = r.error(r.metric)
        late = ", but out of memory on this GPU" if e.out_of_memory is not None else ""
        body.append((reading.label, f"{reading.measured_bytes / GIB:.2f}", reading.metric or "not stated", *gib, f"{error:+.1%}{late}"))
    lines += table(("run", "figure", "of", "A", "R", "P", "error"), body)
    lines += ["## What differs between the run and its recipe", ""]
    differences: dict[str, dict[str, int]] = {}
    for r in measured:
        for text in r.reading.differences:
            of_group = differences.setdefault(r.reading.group, {})
            of_group[text] = of_group.get(text, 0) + 1
    lines += [f"- {group}: " + "; ".join(f"{text} ({n})" for text, n in texts.items()) for group, texts in sorted(differences.items())]
    lines += ["", "## Rows that are no recipe", ""]
    reasons: dict[str, list[Mapping[str, str]]] = {}
    for row, why in others:
        reasons.setdefault(why, []).append(row)
    reasons_body: list[tuple[object, ...]] = []
    for why, members in sorted(reasons.items(), key=lambda kv: -len(kv[1])):
        said = [f"{m['id']}: {m['notes']}" for m in members if any(w in m["notes"] for w in ("said", "estimate"))]
        reasons_body.append((why, len(members), ", ".join(sorted({m["source"] for m in members})), ", ".join(m["id"] for m in members)))
        if said and len(said) <= 5:
            reasons_body.append(("&nbsp;&nbsp;a peer's figure there", "", "", "; ".join(said)))
    lines += table(("why", "n", "sources", "rows"), reasons_body)
    return lines


def main() -> int:
    """Print the summary, write the results file."""
    results, others = measure()
    print("\n".join(summary(results)))
    print(f"{len(others)} rows are no recipe")
    print(f"wrote {write('published-memory', report(results, others)).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
