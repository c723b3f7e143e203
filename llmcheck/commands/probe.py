"""``llmcheck probe``: the trainer's first steps as one rank of the plan, on one GPU, beside the plan; or what this GPU reaches."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmcheck import planfile
from llmcheck.commands import packages
from llmcheck.commands.values import choice, whole
from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.planner.plan import Plan
from llmcheck.types import RankEstimate

NEEDED = ("torch", "transformers", "deepspeed", "llmcheck_trainer")
DEFAULT_STEPS = 6  # three with the memory of each phase, one in between, two that are timed
MAX_STEPS = 1000
PROFILE = "profile.json"
_LOG_BYTES = 1 << 16  # of the trainer's own words that are looked at when it fails
_LOG_LINES = 6
_SAME_MEMORY_FRACTION = 0.02  # two figures of one GPU's memory, torch's and a maker's, differ by less; two GPUs' by more


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `probe`."""
    group = parser.add_argument_group("rehearse a plan: one GPU stands for one of its ranks, weights and tokens are random")
    group.add_argument("--plan", metavar="FILE", help="plan file, as `llmcheck plan --out FILE` writes it")
    group.add_argument("--rank", metavar="N", type=whole("--rank", 0, 1 << 20, unit=""), help="the rank to be (default: 0)")
    group.add_argument(
        "--steps",
        metavar="N",
        type=whole("--steps", 1, MAX_STEPS, unit="steps"),
        help=f"optimizer steps (default: {DEFAULT_STEPS}); memory is read by phase in the first three, time in those after the fourth",
    )
    group = parser.add_argument_group("or calibrate")
    group.add_argument(
        "--calibrate", action="store_true", help="measure this GPU in less than a minute; `llmcheck plan --profile FILE` uses what is found"
    )
    group.add_argument("--out", metavar="FILE", help=f"where --calibrate writes (default: {PROFILE})")
    group.add_argument("--force", action="store_true", help="let --out replace a file that is not llmcheck's")
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print. Returns 1 where a measurement is outside the plan's band, or memory ran out."""
    _check(args)
    if args.calibrate:
        return _calibrate(args)
    plan_file = planfile.read(args.plan)
    rank = args.rank or 0
    world = plan_file.plan.cluster.num_gpus
    if rank >= world:
        raise UserError(
            f"there is no rank {rank}", code="usage", where="--rank", why=f"the plan has ranks 0 to {world - 1}", hint="give one of them"
        )
    words = ["--plan", os.path.abspath(args.plan), "--rank", str(rank), "--steps", str(args.steps or DEFAULT_STEPS)]
    measured = measure("probe", words)
    return show(plan_file, measured, rank, args.format)


def _check(args: argparse.Namespace) -> None:
    if args.calibrate and args.plan is not None:
        raise UserError("--calibrate measures the GPU, --plan a plan", code="conflict", where="--calibrate, --plan", hint="give one")
    if not args.calibrate and args.plan is None:
        raise UserError(
            "which plan? --plan is missing",
            code="usage",
            where="llmcheck probe",
            hint="`llmcheck plan --out plan.json` writes one; --calibrate measures the GPU without one",
        )
    given = [flag for flag in ("rank", "steps") if args.calibrate and getattr(args, flag) is not None]
    given += [flag for flag in ("out",) if not args.calibrate and args.out is not None]
    if given:
        other = "--calibrate" if args.calibrate else "--plan"
        raise UserError(f"--{given[0]} has no meaning with {other}", code="conflict", where=f"{other}, --{given[0]}", hint="leave it out")


def measure(module: str, words: Sequence[str]) -> dict[str, Any]:
    """What ``llmcheck_trainer.<module>`` measures in a process of its own. Raises its error, or CouldNotCheckError where it left none."""
    import subprocess
    import tempfile

    hint = 'pip install "llmcheck[train]"; `llmcheck plan` needs none of them'
    packages.require(NEEDED, what="measuring", where="llmcheck probe", hint=hint)
    with tempfile.TemporaryDirectory(prefix="llmcheck-probe-") as folder:
        out, log = os.path.join(folder, "out.json"), os.path.join(folder, "log")
        with open(log, "wb") as file:
            argv = [sys.executable, "-m", f"llmcheck_trainer.{module}", *words, "--out", out]
            code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if os.path.isfile(out):
            with open(out, encoding="utf-8") as text:
                found: dict[str, Any] = json.load(text)
            if found.get("outcome") != "error":
                return found
            raise _as_error(found["error"])
        raise CouldNotCheckError(
            "the measurement did not come to its end",
            code="probe-failed",
            where=f"llmcheck_trainer.{module}",
            why=f"exit code {code}; its last words: " + " | ".join(_last_lines(log)),
            hint="`llmcheck doctor` looks at the installation",
        )


def _as_error(fields: Mapping[str, Any]) -> UserError:
    kind = CouldNotCheckError if fields["exit_code"] == CouldNotCheckError.exit_code else UserError
    return kind(*[fields["what"]], **{name: fields[name] for name in ("code", "where", "why", "hint")})


def _last_lines(path: str) -> list[str]:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _LOG_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line.strip()[:200] for line in lines if line.strip()][-_LOG_LINES:]


def show(plan_file: planfile.PlanFile, measured: Mapping[str, Any], rank: int, form: str) -> int:
    """Print the comparison; returns 0 within the plan's band, else 1. Raises UserError where memory ran out (exit code 1)."""
    from llmcheck.console import emit, terminal
    from llmcheck.planner.measured import compare
    from llmcheck.render import rehearsal as render
    from llmcheck.render.draw import Pen

    plan = plan_file.plan
    if measured["outcome"] == "out-of-memory":
        raise _out_of_memory(plan_file, measured)
    estimate, notes, same_gpu = _estimate(plan_file, measured, rank)
    step_s = _alone_s(plan) if same_gpu and not plan_file.edited else None
    if step_s is not None and measured["steps"] <= DEFAULT_STEPS - 2:
        step_s = None
        notes.append(f"no step was timed: the first {DEFAULT_STEPS - 2} wait for the memory readings (--steps {DEFAULT_STEPS})")
    if measured["num_skipped"]:
        notes.append(f"fp16's loss scaling skipped {measured['num_skipped']} steps")
    band = plan.memory.error_fraction
    found = compare(estimate, measured, band=band, step_s=step_s, time_band=plan.time.error_fraction)
    if form == "json":
        emit(render.document(found, measured, notes, digest=plan_file.digest, band=band))
    else:
        title = f"{plan.model.name}, {plan.recipe.method}, ZeRO-{plan.recipe.zero_stage}: rank {rank} of {plan.cluster.num_gpus}"
        emit(render.text(found, f"{title}, alone on {measured['device']}", notes, Pen(terminal(sys.stdout))))
    return 0 if found.within else 1


def _alone_s(plan: Plan) -> float:
    """Seconds of a step of a rank by itself: no communication, and with offload the host's memory for itself."""
    step_s = plan.time.step_s - plan.time.communication_exposed_s
    if plan.time.offload_s == 0:
        return step_s
    from llmcheck.steptime.model import estimate

    shared, alone = (estimate(plan.model, plan.recipe, plan.cluster, alone=alone) for alone in (False, True))
    return step_s - (shared.offload_s - alone.offload_s)


def _estimate(plan_file: planfile.PlanFile, measured: Mapping[str, Any], rank: int) -> tuple[RankEstimate, list[str], bool]:
    """The rank's estimate for the GPU that it was measured on, what there is to say of that, and whether it is the plan's GPU."""
    plan = plan_file.plan
    notes = ["collectives were left out: NCCL's buffers and the time of communication are not in the measurement"]
    cluster, memory, planned = plan.cluster, measured["device_memory_bytes"], plan.cluster.gpu.memory_bytes
    same_gpu = abs(memory - planned) <= _SAME_MEMORY_FRACTION * planned
    if not same_gpu:
        from llmcheck.catalog.gpus import find_device

        here = find_device(measured["device"], memory)
        notes.append(f"measured on {measured['device']}, planned for {cluster.gpu.name}: step times are not compared")
        if here is not None:
            cluster = replace(cluster, gpu=here)
            notes.append(f"the prediction was made anew for {here.name}")
    if plan_file.edited:
        notes.append("the plan was edited after planning: the prediction was made anew")
    for known in (plan.memory.rank0, plan.memory.worst):
        if known.rank == rank and cluster == plan.cluster and not plan_file.edited:
            return known, notes, same_gpu
    from llmcheck.shadow.run import simulate_rank

    return simulate_rank(plan.model, plan.recipe, cluster, rank=rank), notes, same_gpu


class OutOfMemoryError(UserError):
    """The GPU's memory ran out: a finding, not a mistake."""

    exit_code = 1


def _out_of_memory(plan_file: planfile.PlanFile, measured: Mapping[str, Any]) -> UserError:
    from llmcheck.units import gib

    estimate = plan_file.plan.memory.worst
    return OutOfMemoryError(
        f"out of memory in {measured['phase']}",
        code="out-of-memory",
        where=f"rank {measured['rank']} on {measured['device']}",
        why=f"reserved {gib(measured['peak_reserved_bytes'])} of {gib(measured['device_memory_bytes'])}; the plan says that the worst rank "
        f"needs {gib(estimate.required_bytes)}",
        hint="is another process on the GPU? else plan again for this GPU",
    )


def _calibrate(args: argparse.Namespace) -> int:
    from llmcheck.console import emit, escape
    from llmcheck.files import find_place, write_atomically
    from llmcheck.steptime.profile import is_profile, profile_of

    path = args.out or PROFILE
    find_place(path, flag="--out", replaceable=is_profile, force=args.force)
    document = measure("calibrate", [])
    profile = profile_of(document, path)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8"), flag="--out", replaceable=is_profile, force=args.force)
    if args.format == "json":
        emit(text)
        return 0
    best: dict[str, float] = {}
    for product in profile.products:
        rate = 2.0 * product.m * product.n * product.k / product.time_s
        best[product.precision] = max(rate, best.get(product.precision, 0.0))
    lines = [f"{profile.device}: profile in {path}", ""]
    lines += [f"matrix products, {precision}  {rate / 1e12:.0f} TFLOP/s" for precision, rate in best.items()]
    lines += [
        f"memory                 {profile.memory_bytes_per_s / 1e9:.0f} GB/s",
        f"host and device        {profile.copy_bytes_per_s / 1e9:.1f} GB/s",
        f"an operator on the CPU {profile.op_s * 1e6:.1f} us",
        "",
        f"plan with it: llmcheck plan --profile {path}",
    ]
    emit("".join(escape(line) + "\n" for line in lines))
    return 0
