"""Errors of the time model, per row and in sum: python -m benchmarks.steptime.run [--rows]"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks.steptime import cases
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


def summary(title: str, errors: list[float]) -> str:
    if not errors:
        return f"{title:62} no rows"
    sizes = sorted(map(abs, errors))
    p90 = sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]
    median, mean, bias = statistics.median(sizes), statistics.mean(sizes), statistics.mean(errors)
    return f"{title:62} {len(errors):4d} {median:8.1%} {mean:8.1%} {p90:8.1%} {sizes[-1]:8.1%} {bias:+8.1%}"


def main(argv: list[str]) -> None:
    rows = [(c, estimate_case(c)) for c in [*cases.groundtruth(), *cases.published()]]
    errors = [(c, e, e.step_s / c.measured_s - 1) for c, e in rows]
    if "--rows" in argv:
        for c, e, err in errors:
            fitted, bound = "fit" if is_fitted(c) else "   ", "host" if e.host_bound else "gpu"
            print(f"{fitted} {c.name:72.72} {c.measured_s:9.3f} {e.step_s:9.3f} {err:+8.1%} {bound:4} mfu {e.mfu:.2f}")
    print(f"{'step time, error of the estimate':62} {'rows':>4} {'median':>8} {'mean':>8} {'p90':>8} {'worst':>8} {'bias':>8}")

    def line(title: str, keep: Callable[[cases.Case], bool]) -> None:
        print(summary(title, [err for c, _, err in errors if keep(c)]))

    bound_by_host = {c.name for c, e, _ in errors if e.host_bound}
    line("ground truth, peaks.jsonl, all", lambda c: c.row.get("file") == "peaks")
    line("  fitted (families left out: see fit.py --folds)", lambda c: c.row.get("file") == "peaks" and is_fitted(c))
    line("  held out (offload)", lambda c: c.row.get("file") == "peaks" and not is_fitted(c))
    line("ground truth, boundary.jsonl (held out)", lambda c: c.row.get("file") == "boundary")
    line("ground truth, both, bound by the host", lambda c: c.without_network and c.name in bound_by_host)
    line("ground truth, both, bound by the GPU", lambda c: c.without_network and c.name not in bound_by_host)
    line("published, same kind of work", lambda c: c.row.get("group") in SAME_KIND)
    line("  held out", lambda c: c.row.get("group") in SAME_KIND and not is_fitted(c))
    line("  held out, up to 8192 tokens", lambda c: c.row.get("group") in SAME_KIND and not is_fitted(c) and c.recipe.seq_len <= 8192)
    groups = {c.row["group"] for c, _, _ in errors if "group" in c.row}
    for group in sorted(groups, key=lambda g: (g not in SAME_KIND, g)):
        title = f"  {group}" + ("" if group in SAME_KIND else " (other kind, not in the bar)")
        print(summary(title, [err for c, _, err in errors if c.row.get("group") == group]))


if __name__ == "__main__":
    main(sys.argv[1:])
