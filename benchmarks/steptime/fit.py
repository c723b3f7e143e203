"""Fit the constants of the time model, once: python -m benchmarks.steptime.fit [--folds]

Host rates and the H100's memory efficiency come from the ground truth (peaks.jsonl without the offload rows; boundary.jsonl is never
used); the A100's matrix efficiency from the MPT-1B and MPT-7B rows of llm-foundry up to 4096 tokens (all other published rows are
held out). Matrix and memory efficiency cannot be told apart by these rows, so one of the two is given: H100 matrix products 0.74 of
the data sheet (8192 x 8192 x 8192 alone reaches 0.81; less in training, under the power limit), A100 memory 0.80.
The loss is the mean absolute log error plus a weak pull towards the starting values, minimised by coordinate descent.
`--folds` repeats the fit without one family at a time, and with LLaMA alone, and prints the errors on the rows left out.
The results, rounded to two digits, are in llmcheck/data/steptime.toml.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks.steptime import cases
from benchmarks.steptime.run import estimate_case, is_fitted
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates

PULL = 0.004  # weight of log(value / start)²
Values = dict[str, float]

START = {
    "memory": 0.80,
    "op_s": 30e-6,
    "backward_op_s": 8e-6,
    "zero3_visit_s": 500e-6,
    "zero3_gather_s": 60e-6,
    "gradient_s": 150e-6,
    "step_tensor_s": 100e-6,
    "step_s": 2e-3,
}
GIVEN = {"matmul": 0.74}
NO_HOST = HostRates(**dict.fromkeys(HostRates.__dataclass_fields__, 0.0))


def descend(start: Values, loss: Callable[[Values], float]) -> Values:
    """Coordinate descent in the logarithm of each value, with shrinking steps."""
    best, step = dict(start), dict.fromkeys(start, 0.5)
    lowest = loss(best)
    while max(step.values()) > 0.02:
        for name in start:
            for sign in (1, -1):
                trial = best | {name: best[name] * math.exp(sign * step[name])}
                value = loss(trial)
                if value < lowest - 1e-7:
                    best, lowest = trial, value
                    break
            else:
                step[name] *= 0.6
    return best


def error(case: cases.Case, values: Values, host: HostRates) -> float:
    """Relative error of the step time with `values` in place of the shipped constants."""
    rates = GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
    rates = replace(
        rates,
        matmul_flops_per_s=rates.peak_flops_per_s * values["matmul"],
        memory_bytes_per_s=case.cluster.gpu.memory_bytes_per_s * values["memory"],
    )
    return estimate_case(case, rates=rates, host=host).step_s / case.measured_s - 1


def host_of(values: Values) -> HostRates:
    """Views cost a quarter of an operator and a module's call as much as one, so that few values are free."""
    names = {n: values[n] for n in ("op_s", "backward_op_s", "zero3_visit_s", "zero3_gather_s", "gradient_s", "step_tensor_s", "step_s")}
    return HostRates(view_s=values["op_s"] / 4, visit_s=values["op_s"], **names)


def fit(rows: list[cases.Case], start: Values, given: Values, host: Callable[[Values], HostRates]) -> Values:
    def loss(values: Values) -> float:
        pull = sum(PULL * math.log(values[n] / start[n]) ** 2 for n in start)
        rates = host(values)
        return sum(abs(math.log1p(error(c, values | given, rates))) for c in rows) / len(rows) + pull

    return descend(start, loss)


def show(title: str, values: Values, rows: list[cases.Case]) -> list[float]:
    errors = [abs(error(c, values | GIVEN, host_of(values))) for c in rows]
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    print(f"{title:24} {len(rows):3d} rows, median error {statistics.median(errors):6.1%}   {numbers}")
    return errors


def folds(rows: list[cases.Case]) -> None:
    """Errors on families that the fit has not seen."""
    pooled: list[float] = []
    for family in sorted({c.model.family for c in rows}):
        values = fit([c for c in rows if c.model.family != family], START, GIVEN, host_of)
        pooled += show(f"without {family}", values, [c for c in rows if c.model.family == family])
    print(f"families left out, pooled: median error {statistics.median(pooled):.1%}, mean {statistics.mean(pooled):.1%}")
    values = fit([c for c in rows if c.model.family == "llama"], START, GIVEN, host_of)
    show("fitted on llama alone", values, [c for c in rows if c.model.family != "llama"])


def main(argv: list[str]) -> None:
    rows = [c for c in cases.groundtruth() if is_fitted(c)]
    values = fit(rows, START, GIVEN, host_of)
    show("H100 and host, fitted", values, rows)
    show("  boundary, held out", values, [c for c in cases.groundtruth() if c.row["file"] == "boundary"])
    if "--folds" in argv:
        folds(rows)
    fitted = fit([c for c in cases.published() if is_fitted(c)], {"matmul": 0.80}, {"memory": 0.80}, lambda _: NO_HOST)
    print(f"A100: matmul {fitted['matmul']:.3g}")


if __name__ == "__main__":
    main(sys.argv[1:])
