"""Errors of the time model, per row and in sum: ``python -m benchmarks.steptime.run [--rows]``.

Prints the sums (and each row), and writes ``benchmarks/results/step-time-DATE.md``.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.report import header, table, write
from benchmarks.steptime import cases
from llmcheck import __version__
from llmcheck.shadow.pace import constants
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
        return bool(case.row["file"] == "peaks" or case.row.get("source") in ("b", "c", "d")) and case.recipe.offload == "none"
    return case.model.name in ("MPT-1b", "MPT-7b") and case.recipe.seq_len <= 4096


def host_of_case(case: cases.Case, host: HostRates) -> HostRates:
    """`host` as fast as the row's machine was with one operator, where that was measured."""
    factor = (case.row.get("op_s") or constants()["calibration"]["op_s"]) / constants()["calibration"]["op_s"]
    return scaled(host, factor)


def scaled(host: HostRates, factor: float) -> HostRates:
    """`host`, slower by `factor`."""
    return HostRates(**{name: getattr(host, name) * factor for name in HostRates.__dataclass_fields__})


def estimate_case(case: cases.Case, *, rates: GpuRates | None = None, host: HostRates | None = None) -> StepTime:
    """The estimate of a case, without network where none was there, and without DeepSpeed's host side for Composer's FSDP."""
    rates = rates or GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
    host = host or host_of_case(case, HostRates.reference())
    if case.row.get("group") == "llm-foundry":
        # FSDP wraps whole blocks: no hook per module or parameter; its batches are far from host-bound
        host = HostRates(**dict.fromkeys(HostRates.__dataclass_fields__, 0.0))
    return estimate(case.model, case.recipe, case.cluster, rates=rates, host=host, alone=case.without_network)


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
    rows = [(c, estimate_case(c)) for c in [*cases.groundtruth(), *cases.trainer(), *cases.training(), *cases.drawn(), *cases.published()]]
    return [Scored(c, e, e.step_s / c.measured_s - 1) for c, e in rows]


def kind_of(case: cases.Case, bound_by_host: Collection[str]) -> str | None:
    """What decides the time of one of our rows; None for a drawn or a published one."""
    if not case.without_network or case.row["file"] == "drawn":
        return None
    if case.recipe.offload != "none":
        return "offload"
    if case.name not in bound_by_host:
        return "gpu"
    if case.recipe.method != "full":
        return "adapters"
    return "host z3" if case.recipe.zero_stage == 3 else "host z012"


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
        of("bundled trainer, trainer.jsonl", lambda c: c.row.get("file") == "trainer"),
        of("  held out (machine a, offload)", lambda c: c.row.get("file") == "trainer" and not is_fitted(c)),
        of("training runs of benchmarks/trainer (held out)", lambda c: c.row.get("file") == "training"),
        of("drawn at random, benchmarks/holdout (held out)", lambda c: c.row.get("file") == "drawn"),
        of("all of ours but the drawn ones", lambda c: c.without_network and c.row["file"] != "drawn"),
        *(
            of(f"  {title}", lambda c, kind=kind: kind_of(c, bound_by_host) == kind)
            for kind, title in (
                ("gpu", "bound by the GPU"),
                ("host z012", "bound by the host, ZeRO-0 to 2"),
                ("host z3", "bound by the host, ZeRO-3"),
                ("adapters", "bound by the host, adapters"),
                ("offload", "CPU offload"),
            )
        ),
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


def repeated(rows: Sequence[Scored]) -> str:
    """How near a measurement is to those of the same recipe on other machines, beside the estimate's error on the same rows."""
    same: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        if row.case.without_network:
            recipe = replace(row.case.recipe, allocator="native", packing=False)
            same[repr((row.case.model.config, recipe, row.case.cluster.num_gpus))].append(row)
    sets = [found for found in same.values() if len(found) > 1]
    own, ours = [], []
    for found in sets:
        middle = statistics.geometric_mean([row.case.measured_s for row in found])
        own += [abs(middle / row.case.measured_s - 1) for row in found]
        ours += [abs(row.error) for row in found]
    if not own:
        return "No run was repeated."
    return (
        f"{len(own)} runs of {len(sets)} recipes were repeated on several machines: they are {statistics.mean(own):.1%} (mean) from "
        f"their own mean, the estimates {statistics.mean(ours):.1%} from them."
    )


HEAD = ("step time, error of the estimate", "rows", "median", "mean", "p90", "worst", "bias")


def report(rows: Sequence[Scored]) -> list[str]:
    """The results file."""
    return [
        *header("Step time", "python -m benchmarks.steptime.run", [f"llmcheck {__version__}"]),
        "Error: estimate / measured - 1; median, mean, p90 and worst are of its size. Ground truth: our own runs on an H100",
        "(`benchmarks/accuracy/data`); the others: `benchmarks/steptime/data`. Fitted rows decided the constants,",
        "held out ones did not. Rank 0 alone; a row's host is taken as fast as it was measured to be with one operator, else as the",
        "reference.",
        "",
        repeated(rows),
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
