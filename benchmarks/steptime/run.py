"""Errors of the time model, per row and in sum: ``python -m benchmarks.steptime.run [--rows]``.

Prints the sums (and each row), and writes ``benchmarks/results/step-time-DATE.md``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.report import header, table, write
from benchmarks.steptime import cases
from llmcheck import __version__
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates
from llmcheck.steptime.model import estimate
from llmcheck.types import StepTime

SAME_KIND = ("llm-foundry", "ms-swift DeepSpeed", "torchtune eager")
"""Full fine-tuning or pre-training steps of dense transformers in bf16 on A100, data-parallel only (no tensor, pipeline or context
parallelism, no float8, no offload, no torch.compile), real lengths known: the rows of the 20 % bar."""


def is_fitted(case: cases.Case) -> bool:
    """Whether the row was used to fit the constants."""
    if case.without_network:
        return bool(case.row["file"] == "peaks") and case.recipe.offload == "none"
    return case.model.name in ("MPT-1b", "MPT-7b") and case.recipe.seq_len <= 4096


def estimate_case(case: cases.Case, *, rates: GpuRates | None = None, host: HostRates | None = None) -> StepTime:
    """The estimate of a case, without network where none was there, and without DeepSpeed's host side for Composer's FSDP."""
    rates = rates or GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
    if case.without_network:
        rates = replace(rates, link_bytes_per_s=1e18)
    if case.row.get("group") == "llm-foundry":
        # FSDP wraps whole blocks: no hook per module or parameter; its batches are far from host-bound
        host = HostRates(**dict.fromkeys(HostRates.__dataclass_fields__, 0.0))
    return estimate(case.model, case.recipe, case.cluster, rates=rates, host=host)


class Group(NamedTuple):
    """A set of rows and the relative errors of their estimates."""

    title: str
    errors: tuple[float, ...]

    def words(self) -> tuple[str, ...]:
        """Title, number of rows; median, mean, 90th percentile and worst of the errors' sizes; their mean with its sign."""
        if not self.errors:
            return (self.title, "0", "", "", "", "", "")
        sizes = sorted(map(abs, self.errors))
        p90 = sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]
        shown = (f"{x:.1%}" for x in (statistics.median(sizes), statistics.mean(sizes), p90, sizes[-1]))
        return (self.title, str(len(sizes)), *shown, f"{statistics.mean(self.errors):+.1%}")


class Scored(NamedTuple):
    """A measured step, the estimate of it, and the estimate's relative error."""

    case: cases.Case
    estimate: StepTime
    error: float


def measure() -> list[Scored]:
    """All rows with their estimates."""
    rows = [(c, estimate_case(c)) for c in [*cases.groundtruth(), *cases.published()]]
    return [Scored(c, e, e.step_s / c.measured_s - 1) for c, e in rows]


def groups(rows: Sequence[Scored]) -> list[Group]:
    """The sets of rows that are summed up, in order."""

    def of(title: str, keep: Callable[[cases.Case], bool]) -> Group:
        return Group(title, tuple(r.error for r in rows if keep(r.case)))

    bound_by_host = {r.case.name for r in rows if r.estimate.host_bound}
    out = [
        of("ground truth, peaks.jsonl, all", lambda c: c.row.get("file") == "peaks"),
        of("  fitted (families left out: see fit.py --folds)", lambda c: c.row.get("file") == "peaks" and is_fitted(c)),
        of("  held out (offload)", lambda c: c.row.get("file") == "peaks" and not is_fitted(c)),
        of("ground truth, boundary.jsonl (held out)", lambda c: c.row.get("file") == "boundary"),
        of("ground truth, both, bound by the host", lambda c: c.without_network and c.name in bound_by_host),
        of("ground truth, both, bound by the GPU", lambda c: c.without_network and c.name not in bound_by_host),
        of("published, same kind of work", lambda c: c.row.get("group") in SAME_KIND),
        of("  held out", lambda c: c.row.get("group") in SAME_KIND and not is_fitted(c)),
        of(
            "  held out, up to 8192 tokens",
            lambda c: c.row.get("group") in SAME_KIND and not is_fitted(c) and c.recipe.seq_len <= 8192,
        ),
    ]
    for group in sorted({r.case.row["group"] for r in rows if "group" in r.case.row}, key=lambda g: (g not in SAME_KIND, g)):
        title = f"  {group}" + ("" if group in SAME_KIND else " (other kind, not in the bar)")
        out.append(Group(title, tuple(r.error for r in rows if r.case.row.get("group") == group)))
    return out


HEAD = ("step time, error of the estimate", "rows", "median", "mean", "p90", "worst", "bias")


def report(rows: Sequence[Scored]) -> list[str]:
    """The results file."""
    return [
        *header("Step time", "python -m benchmarks.steptime.run", [f"llmcheck {__version__}"]),
        "Error: estimate / measured - 1; median, mean, p90 and worst are of its size. Ground truth: our own runs on an H100",
        "(`benchmarks/accuracy/data`); published: `benchmarks/steptime/data`. Fitted rows decided the constants, held out ones did not.",
        "",
        "## Summary",
        "",
        *table(HEAD, (tuple(cell.replace("  ", "&nbsp;&nbsp;") for cell in group.words()) for group in groups(rows))),
        "## Rows",
        "",
        *table(
            ("run", "measured, s", "estimate, s", "error", "bound by", "MFU", "fitted"),
            (
                (
                    r.case.name,
                    f"{r.case.measured_s:.3f}",
                    f"{r.estimate.step_s:.3f}",
                    f"{r.error:+.1%}",
                    "host" if r.estimate.host_bound else "GPU",
                    f"{r.estimate.mfu:.2f}",
                    "yes" if is_fitted(r.case) else "",
                )
                for r in rows
            ),
        ),
    ]


def main(argv: list[str]) -> int:
    """Print the summary (and with ``--rows`` each row), write the results file."""
    rows = measure()
    if "--rows" in argv:
        for c, e, err in rows:
            fitted, bound = "fit" if is_fitted(c) else "   ", "host" if e.host_bound else "gpu"
            print(f"{fitted} {c.name:72.72} {c.measured_s:9.3f} {e.step_s:9.3f} {err:+8.1%} {bound:4} mfu {e.mfu:.2f}")
    for title, number, *figures in [HEAD, *(group.words() for group in groups(rows))]:
        print(f"{title:62} {number:>4} " + " ".join(f"{figure:>8}" for figure in figures))
    print(f"wrote {write('step-time', report(rows)).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
