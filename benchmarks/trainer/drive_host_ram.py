"""One rank of host_ram.py: loads, builds the engine and exports by the trainer's own functions; before each, it waits to be told."""

from __future__ import annotations

import json
import sys
from typing import Any


def phase(name: str) -> None:
    """Say on stdout what comes next, and wait for the word on stdin: all ranks are then at the same place, and the watcher looks."""
    sys.stdout.write(f"PHASE {name}\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        raise SystemExit("the watcher is gone")


def main() -> None:
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    import torch

    from llmcheck import planfile
    from llmcheck.types import TrainSettings
    from llmcheck_trainer import export, loop, model, receipt
    from llmcheck_trainer.engine import build_engine, start_process_group

    plan = planfile.read(job["plan"]).plan
    device = start_process_group()
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context's own host memory is there before the first phase
    phase("loading")
    net = model.build_model(plan.model, plan.recipe, device, folder=job["weights"])
    phase("engine")
    engine = build_engine(net, plan.recipe, device, lr=1e-4)
    phase("export")
    settings = TrainSettings(data="", output=job["output"], export="model" if plan.recipe.lora is None else "merged")
    export.export(engine, plan.recipe, settings, job["weights"])
    phase("end")
    found = {
        "num_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in net.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": receipt.versions(),
    }
    sys.stdout.write("RESULT " + json.dumps(found) + "\n")
    sys.stdout.flush()
    loop.leave()


if __name__ == "__main__":
    main()
