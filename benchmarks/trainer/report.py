"""``python -m benchmarks.trainer.report FILE.jsonl ...``: the results of run.py as ``benchmarks/results/trainer-DATE.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import header, table, write
from benchmarks.trainer.cases import CASES, WARM

GIB = 1 << 30


class Bar(NamedTuple):
    """What a group has to reach: by `ours`, beside `other` where it is a ratio."""

    what: str
    ours: tuple[str, ...]  # the best of these
    other: str = ""
    mfu: float = 0.0
    tokens_per_s: float = 0.0
    speed_ratio: float = 0.0
    memory_ratio: float = 0.0


BARS = (
    Bar("1.2B full, 4096 tokens: at least 40 % MFU", ("llama1b-liger", "llama1b-chunked"), mfu=0.40),
    Bar("1.5B full, 2048 tokens: at least 40 % MFU", ("qwen1.5b-liger", "qwen1.5b-chunked"), mfu=0.40),
    Bar("8B LoRA r16, 4096 tokens: at least 12,000 tokens/s", ("lora8b-liger", "lora8b-chunked"), tokens_per_s=12_000),
    Bar("BLOOM 1b1: 1.5 times the stock forward, at most 60 % of its peak", ("bloom1b1",), "bloom1b1-stock", 0, 0, 1.5, 0.6),
    Bar("BLOOM 3b: 1.5 times the stock forward, at most 60 % of its peak", ("bloom3b-bf16",), "bloom3b-bf16-stock", 0, 0, 1.5, 0.6),
    Bar("1.2B full beside TRL's defaults", ("llama1b-bf16-checkpointing",), "trl-llama1b-default", 0, 0, 1.0, 1.0),
    Bar("1.2B full beside TRL at its best", ("llama1b-bf16",), "trl-llama1b-best", 0, 0, 1.0, 1.0),
    Bar("1.2B full beside TRL at its best, fp32 weights", ("llama1b-liger",), "trl-llama1b-fp32", 0, 0, 1.0, 1.0),
    Bar("8B LoRA beside TRL at its best", ("lora8b-liger",), "trl-lora8b-best", 0, 0, 1.0, 1.0),
    # In sequences of 2 x 4: with 8 in one line, TRL's mask and the attention over it ran out of memory.
    Bar("short rows, packed, beside TRL at its best, 2 x 4", ("short-llama1b-bf16-small",), "short-trl-llama1b", 0, 0, 1.0, 1.0),
)


def _verdict(bar: Bar, found: dict[str, dict[str, Any]]) -> list[str] | None:
    ours = max((found[name] for name in bar.ours if name in found), key=lambda r: r["tokens_per_s"], default=None)
    if ours is None or (bar.other and bar.other not in found):
        return None
    checks = []
    words = []
    if bar.mfu:
        checks.append(ours["mfu"] >= bar.mfu)
        words.append(f"{ours['mfu']:.1%}")
    if bar.tokens_per_s:
        checks.append(ours["tokens_per_s"] >= bar.tokens_per_s)
        words.append(f"{ours['tokens_per_s']:,.0f} tokens/s")
    if bar.other:
        other = found[bar.other]
        speed = ours["tokens_per_s"] / other["tokens_per_s"]
        memory = ours["peak_allocated_bytes"] / other["peak_allocated_bytes"]
        checks += [speed >= bar.speed_ratio, not bar.memory_ratio or memory <= bar.memory_ratio]
        words.append(f"{speed:.2f} times the tokens/s" + (f", {memory:.0%} of the peak" if bar.memory_ratio else ""))
    return [bar.what, ours["case"], "; ".join(words), "yes" if all(checks) else "no"]


def _row(result: dict[str, Any]) -> list[str]:
    case = next((c for c in CASES if c.name == result["case"]), None)
    planned = result.get("planned_step_s")
    drift = "" if planned is None else f"{planned / result['step_s'] - 1:+.1%}"
    memory = result.get("planned_peak_allocated_bytes")
    error = "" if memory is None else f"{memory / result['peak_allocated_bytes'] - 1:+.2%}"
    return [
        result["case"],
        str(result["run"]),
        f"{case.micro_batch} x {case.grad_accum} x {case.seq_len}" if case else "",
        f"{result['tokens_per_s']:,.0f}",
        f"{result['step_s'] * 1000:.0f}",
        f"{result['mfu']:.1%}",
        f"{result['peak_allocated_bytes'] / GIB:.2f}",
        f"{result['peak_reserved_bytes'] / GIB:.2f}",
        drift,
        error,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--revisions", nargs="*", default=[], metavar="COMMIT", help="what each file was measured at")
    parser.add_argument("--notes", nargs="*", default=[], metavar="TEXT", help="lines to add to the introduction")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for run, name in enumerate(args.files, 1):
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            result = {**json.loads(line), "run": run}
            if "failed" in result:
                failed[result["case"]] = result["failed"].strip().splitlines()[-1][:160]
            else:
                found[result["case"]] = result
                failed.pop(result["case"], None)
    devices = sorted({result["device"] for result in found.values()})
    versions = next((r["versions"] for r in found.values() if "versions" in r), {})
    lines = header(
        "Throughput of the trainer on one GPU",
        "python -m benchmarks.trainer.run --out FILE && python -m benchmarks.trainer.report FILE",
        [],
    )
    if args.revisions:
        lines[5] = "- revision: " + ", ".join(f"run {run}: {commit}" for run, commit in enumerate(args.revisions, 1))
    lines[4] = "- versions: " + ", ".join(f"{key} {value}" for key, value in versions.items() if value)
    lines[3] = f"- machine: {', '.join(devices)}"
    lines += [
        f"Random weights and tokens; each case a process of its own, {WARM} steps to warm up, then at least 20 measured in one window.",
        "Tokens without padding. MFU counts 6 FLOPs a matrix parameter (4 where it is frozen) and 12·heads·head size·keys a layer, no",
        "recomputation, of 989 TFLOP/s. Peaks are torch's `max_memory_allocated` over the training steps. The last two columns say how far",
        "the plan's step time and peak were from the measured ones. `liger` and `chunked` are --loss of the plan, `bf16` is --optimizer",
        "adam-bf16: no fp32 copies, as TRL has none unless the case says fp32; ours without it has fp32 weights and states, too.",
        "TRL's defaults: checkpointing and its chunked loss; its best: no checkpointing, Liger's kernels, the same micro-batch. Each run",
        "was on a machine of its own; a case is shown from the last run that had it.",
        *args.notes,
        "",
        "## Bars",
        "",
    ]
    lines += table(["bar", "by", "measured", "met"], [row for bar in BARS if (row := _verdict(bar, found))])
    lines += ["## All cases", ""]
    head = ["case", "run", "sequences x tokens", "tokens/s", "ms a step", "MFU", "peak GiB", "reserved GiB", "plan's time", "plan's peak"]
    order = {case.name: i for i, case in enumerate(CASES)}
    lines += table(head, [_row(found[name]) for name in sorted(found, key=lambda n: order.get(n, 99))])
    for name, why in failed.items():
        lines.append(f"- {name} failed: `{why}`")
    print(write("trainer", lines))


if __name__ == "__main__":
    main()
