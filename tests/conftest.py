"""Fixtures shared by all tests. `synthetic_plan` is invented: round numbers that nobody measured or simulated."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmcheck.planner.plan import Alternative, DataPrep, DataPrepWay, Finding, Lever, Plan
from llmcheck.types import (
    ClusterSpec,
    GpuSpec,
    HostEstimate,
    MemoryEstimate,
    ModelSpec,
    PhaseStats,
    RankEstimate,
    StepTime,
    TrainingRecipe,
)
from llmcheck.units import GIB

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background: programs under test would inherit that they ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, whose wish the tests themselves keep
    signal.signal(signal.SIGHUP, lambda *_: None)
# The same examples each time, so that a change is refused for what it changed; `HYPOTHESIS_PROFILE=explore` looks for new ones.
# Machines that run the tests are shared: time is benchmarks' to measure.
settings.register_profile("llmcheck", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", derandomize=False, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "llmcheck"))
os.environ["LLMCHECK_CACHE_DIR"] = ""  # tests leave no files behind, and read none

_BREAKDOWN = {"weights": 3 * GIB, "gradients": 2 * GIB, "optimizer": 6 * GIB, "activations": 4 * GIB, "logits": 5 * GIB}


def _timeline() -> tuple[tuple[float, dict[str, int]], ...]:
    rows = []
    for i in range(101):
        at = i / 100
        swell = math.sin(math.pi * at)
        rows.append(
            (
                at,
                {
                    "weights": 3 * GIB,
                    "gradients": int(2 * GIB * at),
                    "optimizer": 6 * GIB,
                    "activations": int(4 * GIB * swell),
                    "logits": 5 * GIB if 45 <= i <= 55 else 0,
                },
            )
        )
    return tuple(rows)


def make_rank(rank: int = 0) -> RankEstimate:
    """A rank that peaks at 20 GiB allocated, 24 reserved, 25 in the process."""
    return RankEstimate(
        rank=rank,
        peak_allocated_bytes=20 * GIB,
        init_peak_allocated_bytes=12 * GIB,
        peak_reserved_bytes=24 * GIB,
        peak_reserved_low_bytes=24 * GIB,
        peak_reserved_high_bytes=24 * GIB,
        process_bytes=25 * GIB,
        required_bytes=26 * GIB,
        breakdown=dict(_BREAKDOWN),
        peak_phase="bwd1",
        phases=(
            PhaseStats(
                name="init",
                allocated_bytes=9 * GIB,
                peak_allocated_bytes=12 * GIB,
                reserved_bytes=12 * GIB,
                peak_reserved_bytes=12 * GIB,
            ),
            PhaseStats(
                name="bwd1",
                allocated_bytes=11 * GIB,
                peak_allocated_bytes=20 * GIB,
                reserved_bytes=24 * GIB,
                peak_reserved_bytes=24 * GIB,
            ),
        ),
        timeline=_timeline(),
    )


def make_plan() -> Plan:
    """A plan with every part filled in."""
    gpu = GpuSpec(
        name="Example-40G",
        title="Example GPU 40 GB",
        source="invented for the tests",
        memory_bytes=40 * GIB,
        compute_capability=(8, 0),
        num_sms=100,
        bf16_flops_per_s=3e14,
        fp16_flops_per_s=3e14,
        fp32_flops_per_s=2e13,
        memory_bytes_per_s=1.5e12,
        link_bytes_per_s=3e11,
        pcie_bytes_per_s=2.5e10,
        context_bytes=GIB // 2,
        usd_per_hour=2.0,
    )
    recipe = TrainingRecipe(
        zero_stage=3,
        micro_batch_size=2,
        grad_accum_steps=4,
        seq_len=1024,
        deepspeed={"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
    )
    other = replace(recipe, zero_stage=2, micro_batch_size=1, deepspeed={})
    return Plan(
        model=ModelSpec(
            name="example-7b",
            family="llama",
            config={"hidden_size": 4096, "num_hidden_layers": 32, "rope_scaling": None, "tie_word_embeddings": False},
            source="invented for the tests",
            num_params=7_000_000_000,
            hub_id="example/example-7b",
        ),
        cluster=ClusterSpec(gpu=gpu, num_nodes=1, gpus_per_node=8, host_memory_bytes=512 * GIB),
        recipe=recipe,
        memory=MemoryEstimate(
            rank0=make_rank(),
            worst=make_rank(),
            host=HostEstimate(
                host_bytes_per_node=60 * GIB,
                pinned_bytes_per_node=8 * GIB,
                load_peak_bytes_per_node=110 * GIB,
                disk_bytes=98 * GIB,
                nvme_bytes_per_node=0,
                checkpoint_bytes=14_000,
                terms={"processes": 40 * GIB, "pinned": 8 * GIB, "data": 12 * GIB},
            ),
            evidence="simulated-unmeasured-kernels",
            error_fraction=0.02,
            assumptions=("DeepSpeed 0.19.8 defaults", "gradient clipping 1.0"),
            not_checked=("NCCL buffers of other communicators", "memory that other processes hold on the GPU"),
        ),
        time=StepTime(
            step_s=1.5,
            compute_s=1.1,
            communication_exposed_s=0.3,
            optimizer_s=0.1,
            offload_s=0.0,
            host_s=0.9,
            host_bound=False,
            tokens_per_s=43690.7,
            tokens_per_s_per_gpu=5461.3,
            mfu=0.41,
            error_fraction=0.15,
            assumptions=("collectives in a ring",),
            total_s=46_000.0,
            cost=204.5,
        ),
        verdict="fits",
        reasons=("the fastest of 48 recipes that fit", "ZeRO-2 would need 3.1 GiB more than there is"),
        alternatives=(
            Alternative(
                title="ZeRO-2, micro-batch 1",
                flags=("--zero", "2", "--micro-batch", "1"),
                recipe=other,
                verdict="tight",
                peak_allocated_bytes=33 * GIB,
                process_bytes=38 * GIB,
                required_bytes=39 * GIB,
                host_bytes_per_node=60 * GIB,
                step_s=1.8,
                tokens_per_s=36408.9,
                note="17 % slower",
            ),
        ),
        what_if=(
            Lever(
                title="keep activations",
                flags=("--checkpointing", "off"),
                delta_bytes=11 * GIB,
                speed_ratio=1.28,
                quality="none",
                verdict="fits",
            ),
            Lever(
                title="train adapters only",
                flags=("--method", "lora"),
                delta_bytes=-9 * GIB,
                speed_ratio=1.4,
                quality="fewer trained parameters",
                verdict="fits",
            ),
        ),
        findings=(Finding(code="LCM099", severity="note", message="this plan is invented", fix="use a real one"),),
        data=DataPrep(
            num_samples=2_000_000,
            naive=DataPrepWay(name="every rank tokenizes everything", host_bytes=350 * GIB, time_s=1500.0, disk_bytes=0),
            ours=DataPrepWay(name="packed once, mapped by every rank", host_bytes=2 * GIB, time_s=240.0, disk_bytes=8 * GIB),
            assumptions=("350 tokens per sample",),
        ),
    )


@pytest.fixture(scope="session")
def synthetic_plan() -> Plan:
    """An invented plan with every part filled in; frozen, so one serves all tests."""
    return make_plan()


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def llmcheck() -> Callable[..., Outcome]:
    """Runs the command line as a process of its own, on no terminal, away from the user's settings and GPUs.

    A command that writes no file gives the same answer each time (a test of its own), so it is run once for all tests.
    """
    answers: dict[tuple[str, ...], Outcome] = {}

    def run(*args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, encoding: str = "utf-8") -> Outcome:
        if cwd or env or encoding != "utf-8" or "--out" in args or "--timeline" in args:
            return fresh(*args, cwd=cwd, env=env, encoding=encoding)
        if args not in answers:
            answers[args] = fresh(*args)
        return answers[args]

    def fresh(*args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, encoding: str = "utf-8") -> Outcome:
        clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LLMCHECK_TRACEBACK")}
        clean |= {"PYTHONIOENCODING": encoding, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        done = subprocess.run([sys.executable, "-m", "llmcheck", *args], capture_output=True, check=False, cwd=cwd, env=clean, timeout=120)
        return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    return run
