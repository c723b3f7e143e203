"""Facts of a plan file."""

from __future__ import annotations

from llmcheck import __version__, planfile
from llmcheck.planfile import PlanFile
from llmcheck.rules.facts import Facts, Location


def facts(path: str) -> tuple[Facts, PlanFile]:
    """What the plan file at `path` says, and the file itself. Raises UserError where it cannot be read."""
    read = planfile.read(path)
    return of(read, path), read


def of(read: PlanFile, path: str) -> Facts:
    """The facts of a plan file that was read."""
    result, here = Facts(), Location(uri=path)
    result.examined("plan")
    plan = read.plan
    worst, host, gpu, recipe, time = plan.memory.worst, plan.memory.host, plan.cluster.gpu, plan.recipe, plan.time
    values = {
        "verdict": plan.verdict,
        "edited": read.edited,
        "llmcheck_version": read.llmcheck_version,
        "written_by_other_release": read.llmcheck_version != __version__,
        "model": plan.model.name,
        "family": plan.model.family,
        "vocab_size": plan.model.config.get("vocab_size"),
        "method": recipe.method,
        "zero_stage": recipe.zero_stage,
        "offload": recipe.offload,
        "optimizer": recipe.optimizer,
        "precision": recipe.precision,
        "attention": recipe.attention,
        "loss": recipe.loss,
        "seq_len": recipe.seq_len,
        "num_gpus": plan.cluster.num_gpus,
        "num_nodes": plan.cluster.num_nodes,
        "gpus_per_node": plan.cluster.gpus_per_node,
        "gpu": gpu.name,
        "gpu_memory_bytes": gpu.memory_bytes,
        "gpu_compute_capability": ".".join(map(str, gpu.compute_capability)) if gpu.vendor == "nvidia" else None,
        "process_bytes": worst.process_bytes,
        "required_bytes": worst.required_bytes,
        "required_high_bytes": round(worst.required_bytes * (1 + plan.memory.error_fraction)),
        "error_fraction": plan.memory.error_fraction,
        "evidence": plan.memory.evidence,
        "host_bytes_per_node": max(host.host_bytes_per_node, host.load_peak_bytes_per_node),
        "disk_bytes": host.disk_bytes,
        "total_s": time.total_s,
        "mfu": time.mfu,
        "communication_fraction": time.communication_exposed_s / time.step_s if time.step_s else 0.0,
        "offload_fraction": time.offload_s / time.step_s if time.step_s else 0.0,
        "findings": [finding.code for finding in plan.findings if finding.severity == "error"] or None,
    }
    for name, value in values.items():
        result.put(f"plan.{name}", value, here)
    return result
