"""Fit the host's rates of the time model, once: python -m benchmarks.steptime.fit [--folds]

The GPU's part is not fitted here: its kernels were measured one by one (phases.jsonl), and the estimate of them is within 8 %.
What the CPU takes is fitted to the issue times of phases.jsonl (forward, backward and step apart) and to the step times of peaks.jsonl
without its offload rows and of sources "b" to "d" of trainer.jsonl. Held out: boundary.jsonl, offload, source "a", and the drawn runs.
The A100's matrix efficiency is fitted to the MPT-1B and MPT-7B rows of llm-foundry up to 4096 tokens (all other published rows are held
out), with its memory efficiency given at 0.80.
The loss is the mean absolute log error plus a weak pull towards the starting values, minimised by coordinate descent.
`--folds` repeats the fit without one family at a time and prints the errors on the rows left out.
The results, rounded to two digits, are in llmcheck/data/steptime.toml.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.steptime import cases
from benchmarks.steptime.run import estimate_case, host_of_case, is_fitted, scaled
from llmcheck.shadow.pace import constants
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates
from llmcheck.steptime.model import phases

PULL = 0.004  # weight of log(value / start)²
Values = dict[str, float]

START = {
    "op_s": 26e-6,
    "backward_op_s": 40e-6,
    "checkpoint_s": 300e-6,
    "micro_s": 6e-3,
    "zero3_visit_s": 400e-6,
    "zero3_gather_s": 60e-6,
    "gradient_s": 100e-6,
    "step_tensor_s": 30e-6,
    "step_s": 4e-3,
}
MACHINES = {"peaks": 1.0, "c": 1.0}
"""Sets whose hosts' speed was not measured: a factor each is fitted beside, so that it does not go into the rates; it is not shipped."""
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


def host_of(values: Values, machine: str = "") -> HostRates:
    """Views cost a quarter of an operator and a module's call as much as one, so that few values are free."""
    slices: float = constants()["host"]["zero3_slice_s"]
    host = HostRates(view_s=values["op_s"] / 4, visit_s=values["op_s"], zero3_slice_s=slices, **{n: values[n] for n in START})
    return scaled(host, values.get(machine, 1.0))


def error(case: cases.Case, values: Values) -> float:
    """Relative error of the step time."""
    host = host_of(values, str(case.row.get("source", case.row["file"])))
    return estimate_case(case, host=host_of_case(case, host)).step_s / case.measured_s - 1


def span_errors(case: cases.Case, found: dict[str, Any], host: HostRates) -> list[float]:
    """Logarithms of estimate over measurement for the CPU's time in forward, backward and step, where the CPU does not wait for a copy."""
    rates = GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
    p = phases(case.model, case.recipe, case.cluster, rates, host_of_case(case, host), alone=True)
    pairs = [(max(p.forward_host_s, p.forward_gpu_s), found["phases_s"]["fwd"])]
    if case.recipe.offload == "none":
        pairs.append((max(p.backward_host_s, p.backward_gpu_s), found["phases_s"]["bwd"]))
        pairs.append((max(p.optimizer_host_s, p.optimizer_gpu_s) + p.optimizer_wait_s, found["phases_s"]["step"]))
    return [math.log(mine / seen) for mine, seen in pairs]


def fit(rows: list[cases.Case], spans: list[tuple[cases.Case, dict[str, Any]]], start: Values) -> Values:
    def loss(values: Values) -> float:
        pull = sum(PULL * math.log(values[n] / start[n]) ** 2 for n in start)  # a machine's factor is pulled to 1
        host = host_of(values)
        terms = [abs(math.log1p(error(c, values))) for c in rows]
        terms += [abs(x) for case, found in spans for x in span_errors(case, found, host)]
        return sum(terms) / len(terms) + pull

    return descend(start, loss)


def show(title: str, values: Values, rows: list[cases.Case]) -> list[float]:
    errors = [abs(error(c, {n: values[n] for n in START})) for c in rows]  # as shipped: without the machines' factors
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    print(f"{title:28} {len(rows):3d} rows, median {statistics.median(errors):6.1%} mean {statistics.mean(errors):6.1%}   {numbers}")
    return errors


def folds(rows: list[cases.Case], spans: list[tuple[cases.Case, dict[str, Any]]]) -> None:
    """Errors on families that the fit has not seen."""
    pooled: list[float] = []
    for family in sorted({c.model.family for c in rows}):
        values = fit([c for c in rows if c.model.family != family], [s for s in spans if s[0].model.family != family], START | MACHINES)
        pooled += show(f"without {family}", values, [c for c in rows if c.model.family == family])
    print(f"families left out, pooled: median error {statistics.median(pooled):.1%}, mean {statistics.mean(pooled):.1%}")


def a100() -> float:
    """The A100's share of the data sheet in matrix products."""
    rows = [c for c in cases.published() if is_fitted(c)]

    def loss(values: Values) -> float:
        total = 0.0
        for case in rows:
            rates = GpuRates.from_spec(case.cluster.gpu, case.recipe.precision)
            rates = replace(rates, matmul_flops_per_s=rates.peak_flops_per_s * values["matmul"])
            total += abs(math.log(estimate_case(case, rates=rates, host=NO_HOST).step_s / case.measured_s))
        return total / len(rows)

    return descend({"matmul": 0.80}, loss)["matmul"]


def main(argv: list[str]) -> None:
    known = [*cases.groundtruth(), *cases.trainer(), *cases.training(), *cases.drawn()]
    rows, spans = [c for c in known if is_fitted(c)], list(cases.phases())
    values = fit(rows, spans, START | MACHINES)
    show("host, fitted", values, rows)
    show("  held out", values, [c for c in known if not is_fitted(c) and c.recipe.offload == "none"])
    if "--folds" in argv:
        folds(rows, spans)
    print(f"A100: matmul {a100():.3g}")


if __name__ == "__main__":
    main(sys.argv[1:])
