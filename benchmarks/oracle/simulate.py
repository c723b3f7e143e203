"""The simulated side of a golden case: the events of llmcheck's shadow model for the micro-step that record.py recorded.

    python simulate.py tests/golden/oracle/NAME.json.gz CASE [-o SIM.json]

From Python: `events(case)` with a case of record.py ({"family", "config", "batch", ...}) or what `compare.load(path, case)` returns.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Mapping
from typing import Any

from llmcheck.catalog.config import complete
from llmcheck.catalog.familydata import family_data
from llmcheck.shadow import families, lora
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.families.base import CausalLM, Config, Run
from llmcheck.shadow.module import Build
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.types import LoraSpec

ITEM = {"bf16": 2, "fp16": 2, "fp32": 4}


def flat(golden: Mapping[str, Any]) -> dict[str, Any]:
    """One level: family and config beside the case's own keys."""
    return {**golden.get("case", {}), **{k: v for k, v in golden.items() if k != "case"}}


def completed(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with everything that transformers' configuration class adds."""
    data = family_data(family)
    if data is None:
        raise KeyError(family)
    return complete(data, config, "case")


def make(case: Mapping[str, Any]) -> CausalLM:
    """The shadow model of a case on the current tape."""
    family = families.get(case["family"])
    if family is None:
        raise KeyError(case["family"])
    build = Build(ITEM[case.get("dtype", "bf16")])
    run = Run(attention=case["attention"], checkpointing=case["checkpointing"])
    cur.category = "weights"
    model = family.build(build, Config(completed(case["family"], case["config"])), run)
    if case["method"] == "lora":
        lora.inject(model, LoraSpec(rank=case.get("lora_r", 5), train_embeddings=case.get("train_embeddings")), family, build)
        model.require_input_grads = case["checkpointing"]
    return model


def params(case: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter of a case's model."""
    cur.reset(Tape())
    try:
        return [(name, p.shape) for name, p in make(flat(case)).named_parameters()]
    finally:
        cur.reset(Tape())


def num_trainable(case: Mapping[str, Any]) -> int:
    """Elements of all parameters with a gradient of a case's model."""
    cur.reset(Tape())
    try:
        return sum(p.numel for p in make(flat(case)).parameters() if p.req)
    finally:
        cur.reset(Tape())


def events(case: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """[phase, +-bytes, ""] as record.py lists them, without the buffers of CUDA kernels."""
    case = flat(case)
    tape = Tape()
    cur.reset(tape)
    enabled = gc.isenabled()
    gc.disable()
    try:
        model = make(case)
        ends = [len(tape.events)]

        def drop(p: Param) -> None:
            p.grad = None

        if case["grads"] == "drop":
            for p in model.parameters():
                p.hook = drop
            del p
        cur.category = "activations"
        ids = Tensor((case["batch"], case["seq"]), 8)
        mask = Tensor((case["batch"], case["seq"]), 8)
        loss, logits = model(ids, mask, ids)
        ends.append(len(tape.events))
        backward(loss)
        ends.append(len(tape.events))
        del logits, loss
        ends.append(len(tape.events))
        found = list(tape.events)
    finally:
        cur.reset(Tape())
        if enabled:
            gc.enable()
    out = []
    phase = 0
    for i, e in enumerate(found):
        while i >= ends[phase]:
            phase += 1
        out.append((phase, tape.sizes[e] if e >= 0 else -tape.sizes[~e], ""))
    return out


def main() -> None:
    import compare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden")
    parser.add_argument("case")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    found = events(compare.load(args.golden, args.case))
    if args.output:
        with open(args.output, "w") as f:
            json.dump(found, f)
    else:
        for phase, num_bytes, _ in found:
            print(f"{phase} {num_bytes:+d}")


if __name__ == "__main__":
    main()
