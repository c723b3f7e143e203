"""Draw runs that nobody has measured: ``python -m benchmarks.holdout.draw SEED OUT.jsonl``; the same seed gives the same runs.

Every family that is modelled and that transformers can build appears once, and some twice; shapes and settings are random. A run that the
planner refuses, or that would need more than `LIMIT_BYTES`, is drawn anew, and how often and why is printed.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rows import to_row
from benchmarks.holdout import shapes
from llmcheck.catalog.familydata import family_data
from llmcheck.errors import UserError
from llmcheck.shadow import families
from llmcheck.shadow.run import Rank
from llmcheck.units import GIB

ON_THE_HUB = ("baichuan", "chatglm", "internlm", "internlm2", "qwen")  # their code is not in transformers
NUM_TWICE = 12
LIMIT_BYTES = 62 * GIB  # of the process, as predicted: on a GPU of 79 GiB no run is squeezed
PARAMS = (100e6, 2.5e9)
SEQ_LENS = (333, 512, 777, 1000, 1024, 1250, 1536, 2048, 2500, 3000)
BUCKETS = (5_000_000, 12_345_678, 50_000_000, 100_000_000, 200_000_000)


def settings(rng: random.Random, family: str) -> dict[str, Any]:
    """Everything of a run but the model's shape, as a line of benchmarks/accuracy/data has it."""
    known = families.get(family)
    assert known is not None, family
    method = rng.choices(("full", "lora", "qlora"), (54, 32, 14))[0]
    zero = rng.choices((0, 1, 2, 3), (14, 14, 36, 36))[0] if method != "qlora" else rng.choice((0, 1, 2))
    row: dict[str, Any] = {
        "method": method, "zero": zero, "world": rng.choices((1, 2, 4, 7, 8, 64), (25, 15, 20, 10, 20, 10))[0], "mbs": rng.randint(1, 5),
        "seq": rng.choice(SEQ_LENS), "accum": rng.choices((1, 2, 3), (65, 20, 15))[0], "ckpt": rng.random() < 0.6,
        "attn": "sdpa" if known.supports_sdpa and rng.random() < 0.75 else "eager",
        "dtype": rng.choices(("bf16", "fp16", "fp32"), (70, 17, 13))[0] if method != "qlora" else rng.choice(("bf16", "bf16", "fp16")),
        "optimizer": rng.choices(("fused", "torch", "adam8bit"), (55, 20, 25))[0], "clip": rng.choice((1.0, 1.0, 1.0, 0.0)),
    }  # fmt: skip
    if rng.random() < 0.35:
        row["alloc_conf"] = "expandable_segments:True"
    if method != "full":
        row["lora_r"] = rng.choice((4, 8, 12, 16, 32, 64, 100, 128))
        row["lora_dropout"] = rng.choice((0.0, 0.05, 0.1))
        row["lora_targets"] = _targets(rng, family)
    row["ds"] = _deepspeed(rng, zero)
    if row["dtype"] == "fp16":
        row["ds"]["fp16"] = {"initial_scale_power": 2}  # no step may be skipped, or Adam's state never appears
    return row


def _targets(rng: random.Random, family: str) -> list[str] | None:
    """Names of layers; None: every linear layer of the blocks."""
    data = family_data(family)
    assert data is not None
    kind = rng.random()
    if kind < 0.5:
        return None
    names = data.attention_targets if kind < 0.75 else data.linear_targets
    return sorted(rng.sample(names, rng.randint(1, len(names))))


def _deepspeed(rng: random.Random, zero: int) -> dict[str, Any]:
    """DeepSpeed values beyond its defaults, of this stage."""
    values: dict[str, Any] = {}
    if zero >= 1:
        if rng.random() < 0.5:
            values["reduce_bucket_size"] = rng.choice(BUCKETS)
        if rng.random() < 0.4:
            values["overlap_comm"] = rng.random() < 0.5
        if rng.random() < 0.25:
            values["contiguous_gradients"] = False
        if zero < 3 and rng.random() < 0.25:
            values["allgather_bucket_size"] = rng.choice(BUCKETS)
    if zero == 3:
        for name, choices in (
            ("stage3_prefetch_bucket_size", (0, 1_000_000, 20_000_000, 100_000_000)),
            ("stage3_param_persistence_threshold", (0, 10_000, 1_000_000)),
            ("stage3_max_live_parameters", (10_000_000, 100_000_000)),
            ("stage3_max_reuse_distance", (0, 10_000_000)),
            ("sub_group_size", (20_000_000, 100_000_000)),
        ):
            if rng.random() < 0.3:
                values[name] = rng.choice(choices)
    return {"zero_optimization": values} if values else {}


def draw(rng: random.Random, family: str, number: int, refused: Counter[str]) -> dict[str, Any]:
    """A run of `family` that the planner takes and that fits."""
    while True:
        row = settings(rng, family)
        row["config"] = shapes.draw(rng, family, row["seq"])
        row = {"id": f"h{number:02}-{family}", "model": family, **row}
        try:
            planned = to_row(row, "holdout")
            if not PARAMS[0] <= planned.model.num_params <= PARAMS[1]:
                continue
            rank = Rank(planned.model, planned.recipe, planned.cluster)
            if rank.process_bytes > LIMIT_BYTES:
                refused[f"above {LIMIT_BYTES // GIB} GiB"] += 1
                continue
        except UserError as error:
            refused[f"{family}: {error.what}; {error.why}"] += 1
            continue
        return row


def draw_all(seed: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """All runs of a seed, and what was drawn anew."""
    rng = random.Random(seed)
    names = [name for name in families.names() if name not in ON_THE_HUB]
    wanted = names + rng.sample(names, NUM_TWICE)
    rng.shuffle(wanted)
    refused: Counter[str] = Counter()
    return [draw(rng, family, number, refused) for number, family in enumerate(wanted)], refused


def main(argv: list[str]) -> int:
    """Write the runs, print what was refused."""
    rows, refused = draw_all(int(argv[0]))
    Path(argv[1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} runs")
    for why, count in refused.most_common():
        print(f"{count:4} drawn anew: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
