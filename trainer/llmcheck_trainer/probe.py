"""Measure a plan's first steps: ``python -m llmcheck_trainer.probe --plan plan.json --out FILE``. `llmcheck probe` starts it.

The result is JSON in FILE: what was measured, or the error as its fields, so that the caller shows it as its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from llmcheck import planfile
from llmcheck.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 0, also where memory ran out, which is a result; else the error's exit code, the error in the file."""
    parser = argparse.ArgumentParser(prog="python -m llmcheck_trainer.probe", allow_abbrev=False)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args(argv)
    try:
        plan_file = planfile.read(args.plan)
        prepare(plan_file)
        from llmcheck_trainer import rehearsal  # torch is imported here, after the environment is set

        write(args.out, rehearsal.measure(plan_file, rank=args.rank, steps=args.steps))
        return 0
    except UserError as error:
        write(args.out, failure(error))
        return error.exit_code


def failure(error: UserError) -> dict[str, Any]:
    """The error as a result."""
    fields = {"what": error.what, "code": error.code, "where": error.where, "why": error.why, "hint": error.hint}
    return {"outcome": "error", "error": {**fields, "exit_code": error.exit_code}}


def prepare(plan_file: planfile.PlanFile) -> None:
    """The environment that the plan assumes, and no CUDA context before the device's memory was read. Before torch is imported."""
    os.environ.update(plan_file.launch.env)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def write(path: str, document: dict[str, Any]) -> None:
    """Write `document` to `path`, whole or not at all."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(document, file, allow_nan=False)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    sys.exit(main())
