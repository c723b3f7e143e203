"""``llmcheck gpus``: list the GPUs of the catalogue and of this machine, or show one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from llmcheck.catalog.gpus import CatalogGpu, all_gpus, find_gpu, squeezed
from llmcheck.commands.values import choice
from llmcheck.console import emit, terminal
from llmcheck.errors import UserError
from llmcheck.probe.nvml import LocalGpu, local_gpus
from llmcheck.render.draw import Pen, clean, table, wrap
from llmcheck.units import gib

SCHEMA = "llmcheck.gpus/1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gpus`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this GPU, or list those with NAME in a name")
    # Not argparse's own `choices`: its message cannot say what was probably meant.
    parser.add_argument(
        "--format", metavar="text|json", type=choice("--format", ("text", "json")), default="text", help="form of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or the GPU; returns 0. Raises UserError when nothing matches."""
    pen = Pen(terminal(sys.stdout))
    gpus, here = all_gpus(), local_gpus()
    if args.name is not None:
        gpus = _named(args.name, gpus)
        if len(gpus) == 1 and args.format == "text":
            emit(_page(gpus[0], pen))
            return 0
    emit(_json(gpus, here) if args.format == "json" else _list(gpus, here, pen))
    return 0


def _named(name: str, gpus: tuple[CatalogGpu, ...]) -> tuple[CatalogGpu, ...]:
    """The GPU that `name` names, else those that have it in a name."""
    try:
        spec = find_gpu(name)
    except UserError:
        wanted = squeezed(name)
        found = tuple(
            g for g in gpus if wanted and any(wanted in squeezed(text) for text in (g.spec.name, g.spec.title, *g.aliases, *g.devices))
        )
        if found:
            return found
        raise
    return tuple(g for g in gpus if g.spec.name == spec.name)


def _list(gpus: tuple[CatalogGpu, ...], here: tuple[LocalGpu, ...], pen: Pen) -> str:
    rows = [("GPU", "memory", "bf16 TFLOP/s", "memory GB/s", "link GB/s", "title")]
    for gpu in gpus:
        spec = gpu.spec
        rate = f"{spec.bf16_flops_per_s / 1e12:.0f}" if spec.bf16_flops_per_s else "none"
        link = f"{spec.link_bytes_per_s / 1e9:.0f}" if spec.link_bytes_per_s else "PCIe"
        mark = "" if gpu.memory_evidence != "assumed" else "~"
        rows.append((spec.name, mark + gib(spec.memory_bytes), rate, f"{spec.memory_bytes_per_s / 1e9:.0f}", link, spec.title))
    head, *lines = table(rows, (False, True, True, True, True, False), pen.terminal.columns, pen)
    foot = f"{len(gpus)} GPU" + ("" if len(gpus) == 1 else "s") + "; memory as torch reports it, ~ where it was taken from a like GPU;"
    foot += " rates dense; links per direction"
    return "\n".join([pen.bold(head), *lines, "", pen.dim(foot), *_here(here), ""])


def _here(here: tuple[LocalGpu, ...]) -> list[str]:
    if not here:
        return ["this machine: no NVIDIA GPU found"]
    lines = []
    for gpu in here:
        known = f"planned as {gpu.spec.name}" if gpu.spec is not None else "not in the catalogue"
        free = gib(gpu.total_bytes - gpu.used_bytes)
        lines.append(
            f"this machine: {clean(gpu.name)} (GPU {gpu.index}), {free} of {gib(gpu.total_bytes)} free, driver {clean(gpu.driver)}, {known}"
        )
    return lines


def _page(gpu: CatalogGpu, pen: Pen) -> str:
    spec = gpu.spec
    major, minor = spec.compute_capability
    rows = [
        ("memory", f"{gib(spec.memory_bytes)} ({spec.memory_bytes:,} bytes), {gpu.memory_evidence}: {gpu.memory_source}"),
        (
            "CUDA context" if spec.vendor == "nvidia" else "HIP context",
            f"{gib(spec.context_bytes)}, {spec.context_evidence}: {gpu.context_source}",
        ),
        (
            "compute",
            f"bf16 {_tera(spec.bf16_flops_per_s)}, fp16 {_tera(spec.fp16_flops_per_s)}, fp32 {_tera(spec.fp32_flops_per_s)}, dense",
        ),
        ("bandwidth", f"memory {_giga(spec.memory_bytes_per_s)}, link {_giga(spec.link_bytes_per_s)}, PCIe {_giga(spec.pcie_bytes_per_s)}"),
        ("multiprocessors", f"{spec.num_sms}" + (f", compute capability {major}.{minor}" if major else "")),
        ("kernels", "memory of its kernels measured" if spec.kernels_measured else "memory of its kernels not measured: wider band"),
        ("also called", ", ".join((*gpu.aliases, *gpu.devices))),
        ("source", spec.source),
    ]
    lines = [pen.bold(spec.name) + "  " + spec.title]
    for label, text in rows:
        folded = wrap(text.split(" "), pen.terminal.columns - 20)
        lines += [f"  {label if i == 0 else '':18}{part}" for i, part in enumerate(folded)]
    return "\n".join([*lines, ""])


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.4g} TFLOP/s" if rate else "none"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.4g} GB/s" if rate else "none"


def _json(gpus: tuple[CatalogGpu, ...], here: tuple[LocalGpu, ...]) -> str:
    import json

    from llmcheck.codec import to_plain

    def catalogued(gpu: CatalogGpu) -> dict[str, Any]:
        about = {"aliases": list(gpu.aliases), "devices": list(gpu.devices), "memory_evidence": gpu.memory_evidence}
        spec: dict[str, Any] = to_plain(gpu.spec)
        return {**spec, **about, "memory_source": gpu.memory_source, "context_source": gpu.context_source}

    def local(gpu: LocalGpu) -> dict[str, Any]:
        values: dict[str, Any] = to_plain(gpu)
        return {**values, "spec": None if gpu.spec is None else gpu.spec.name}

    document = {"schema": SCHEMA, "gpus": [catalogued(gpu) for gpu in gpus], "local": [local(gpu) for gpu in here]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
