"""Runs in the interpreter that has DeepSpeed: its estimators.

    python drive_deepspeed.py run STAGE PARAMS LARGEST GPUS    `estimate_zeroSTAGE_model_states_mem_needs_all_cold`, as documented
    python drive_deepspeed.py ask REQUESTS                     a JSON list of requests -> a JSON list of {"bytes", "host_bytes", ...}

A request: {"folder", "stage", "gpus", "nodes", "optimizer_offload", "param_offload"}. The largest layer is found as the estimator's
`model_to_params` finds it, on a model without memory; parameters are counted once, as it does where they have addresses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def sizes(folder: str) -> tuple[int, int]:
    """(parameters, those of the largest module) of a model folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.tie_weights()
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
    return sum(p.numel() for p in model.parameters()), largest


def ask(requests: list[dict[str, Any]]) -> list[dict[str, int]]:
    """The estimator's answer to each request."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    known: dict[str, tuple[int, int]] = {}
    out = []
    for request in requests:
        folder = request["folder"]
        if folder not in known:
            known[folder] = sizes(folder)
        params, largest = known[folder]
        gpus, nodes, offload = request["gpus"], request["nodes"], request["optimizer_offload"]
        if request["stage"] == 3:
            host, device, _ = estimate_zero3_model_states_mem_needs(params, largest, gpus, nodes, offload, request["param_offload"])
        else:
            host, device = estimate_zero2_model_states_mem_needs(params, gpus, nodes, offload)
        out.append({"bytes": device, "host_bytes": host, "params": params, "largest": largest})
    return out


if __name__ == "__main__":
    if sys.argv[1] == "run":
        stage, params, largest, gpus = map(int, sys.argv[2:6])
        if stage == 3:
            from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs_all_cold

            estimate_zero3_model_states_mem_needs_all_cold(total_params=params, largest_layer_params=largest, num_gpus_per_node=gpus)
        else:
            from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs_all_cold

            estimate_zero2_model_states_mem_needs_all_cold(total_params=params, num_gpus_per_node=gpus)
    else:
        answers = ask(json.loads(Path(sys.argv[2]).read_text()))
        print("\nANSWERS " + json.dumps(answers))  # its imports write to stdout too
