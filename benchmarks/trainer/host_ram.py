"""Host memory while a model is loaded, its engine built, and it is exported: ``python -m benchmarks.trainer.host_ram --model NAME``.

Random bf16 weights of the model's shape are written to a scratch folder in shards, a block at a time. Real ranks then do what
``llmcheck train`` does before and after its steps, and this process, which holds nothing of the model, reads every 20 ms what they hold
together: anonymous and shared memory; and apart from it the page cache that they have mapped, which the system may drop. One row a
phase: the peak above the state before the phase, as a multiple of the model's bf16 size. Results go as JSON lines to --out;
``--report FILE`` makes ``benchmarks/results/host-ram-DATE.md`` of them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.trainer import host_memory
from benchmarks.trainer.common import make_plan
from llmcheck import planfile
from llmcheck.types import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
SHARD_BYTES = 2_000_000_000  # of the model that is loaded
BLOCK_BYTES = 64 << 20  # of random weights, which repeats
LIMIT_S = 600.0
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_local_experts", "vocab_size")  # said of a model without a name
PHASES = ("loading", "engine", "export")


def plan_of(args: argparse.Namespace, folder: Path) -> Path:
    """The plan that the ranks run, made by `llmcheck plan`."""
    path = folder / "plan.json"
    words = ["--model", args.model, "--gpus", str(args.ranks), "--gpu", "H100", "--zero", str(args.zero), "--method", args.method]
    words += ["--precision", "bf16", "--seq-len", "512", "--micro-batch", "1", "--checkpointing", "on", "--loss", "chunked"]
    words += ["--offload", args.offload]
    words += ["--optimizer", "adamw"] if args.offload == "none" else []  # PyTorch's: DeepSpeed's would be compiled first
    make_plan(words, path)
    return path


def write_weights(spec: ModelSpec, folder: Path) -> int:
    """config.json and random bf16 shards of the model's shape, in the layout of its family's checkpoints; the bytes of all tensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    folder.mkdir()
    config = AutoConfig.for_model(spec.family, **{key: value for key, value in spec.config.items() if key != "model_type"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.tie_weights()
    first: dict[int, tuple[str, Any]] = {}  # a tied weight stands in a checkpoint once, under its first name
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor.detach()))
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for name, tensor in first.values():
        for written, part in revert_weight_conversion(model, {name: tensor}).items():
            if shards[-1] and filled + part.numel() * 2 > SHARD_BYTES:
                shards.append({})
                filled = 0
            shards[-1][written] = part
            filled += part.numel() * 2
    block = (torch.randn(BLOCK_BYTES // 2) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy()
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        sizes = list(pool.map(lambda at: _write_shard(folder / names[at], shards[at], block), range(len(shards))))
    weight_map = {name: names[at] for at, shard in enumerate(shards) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}))
    return sum(sizes)


def _write_shard(path: Path, tensors: dict[str, Any], block: Any) -> int:
    """A safetensors file of the block over and over: eight bytes of length, the header, the tensors; the bytes of the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    view = memoryview(block)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for begin in range(0, at, len(view)):
            file.write(view[: min(len(view), at - begin)])
    return at


class Rank:
    """A process of drive_host_ram.py."""

    def __init__(self, rank: int, size: int, port: int, device: str, job: dict[str, str]) -> None:
        paths = [str(ROOT), str(ROOT / "rules"), str(ROOT / "trainer"), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
        if device == "cpu":
            env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
        self.phase, self.lines = "", list[str]()
        command = [sys.executable, "-m", "benchmarks.trainer.drive_host_ram"]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.say(json.dumps(job))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("PHASE "):
                self.phase = line.split()[1]

    def say(self, line: str) -> None:
        """A line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The phases of one run. Raises SystemExit with the words of a rank that failed."""
    plan = plan_of(args, scratch)
    spec = planfile.read(str(plan)).plan.model
    job = {"plan": str(plan), "weights": str(scratch / "weights"), "output": str(scratch / "out")}
    (scratch / "out").mkdir()
    port = _free_port()
    # They import while the weights are written, and then wait for the word.
    ranks = [Rank(rank, args.ranks, port, args.device, job) for rank in range(args.ranks)]
    try:
        began = time.monotonic()
        model_bytes = write_weights(spec, scratch / "weights")
        wrote_s = time.monotonic() - began
        rows = _watch(ranks)
        for rank in ranks:
            rank.process.wait(LIMIT_S)
        (said,) = [line for line in ranks[0].lines if line.startswith("RESULT ")]
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
    exported = sum(path.stat().st_size for path in (scratch / "out").rglob("*.safetensors"))
    head = {"model": spec.name, "ranks": args.ranks, "zero": args.zero, "method": args.method, "offload": args.offload}
    if os.path.isdir(args.model):
        head["shape"] = ", ".join(f"{key} {spec.config[key]}" for key in _SHAPE if key in spec.config)
    facts = {"machine": report.machine(), "revision": report.revision(), "wrote_s": wrote_s}
    facts |= {"model_bytes": model_bytes, "exported_bytes": exported}
    return {**head, **facts, **json.loads(said.removeprefix("RESULT ")), "phases": rows}


def _watch(ranks: list[Rank]) -> list[dict[str, Any]]:
    """One row for each phase, from the word to begin until all ranks are at the next."""
    pids = [rank.process.pid for rank in ranks]
    rows = []
    peaks = host_memory.Peaks(pids)
    with peaks.watching():
        for name, following in zip(PHASES, (*PHASES[1:], "end"), strict=True):
            _await(ranks, name)
            before = host_memory.of_processes(pids)
            peaks.restart()
            began = time.monotonic()
            for rank in ranks:
                rank.say("go")
            _await(ranks, following)
            took = time.monotonic() - began
            peak = peaks.above
            after = host_memory.of_processes(pids)
            rows.append(
                {
                    "phase": name,
                    "seconds": took,
                    "num_samples": peaks.num_samples,
                    "before": before._asdict(),
                    "after": after._asdict(),
                    "peak_held_bytes": peak.held_bytes,
                    "left_held_bytes": after.held_bytes - before.held_bytes,
                    "peak_mapped_bytes": peak.mapped_bytes,
                    "peak_machine_bytes": peak.machine_bytes,
                }
            )
    for rank in ranks:
        rank.say("go")
    return rows


def _await(ranks: list[Rank], phase: str) -> None:
    def there() -> bool:
        return all(rank.phase == phase for rank in ranks) or any(rank.process.poll() is not None for rank in ranks)

    if not host_memory.wait_until(there, LIMIT_S) or not all(rank.phase == phase for rank in ranks):
        raise SystemExit(f"not all ranks came to {phase}:\n" + "".join(line for rank in ranks for line in rank.lines[-25:]))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _cells(run: dict[str, Any], row: dict[str, Any]) -> list[str]:
    size = run["model_bytes"]
    words = [run["model"], f"{size / 1e9:.2f}", run["method"], str(run["zero"]), str(run["ranks"]), run["device"], row["phase"]]
    words += [f"{row[key] / 1e9:.2f}" for key in ("peak_held_bytes", "left_held_bytes", "peak_mapped_bytes", "peak_machine_bytes")]
    return [*words, f"{row['peak_held_bytes'] / size:.2f}", f"{row['seconds']:.0f}", run["revision"]]


HEAD = (
    "model", "bf16 GB", "method", "ZeRO", "ranks", "device", "phase", "peak GB", "left GB", "page cache GB", "machine GB", "peak / bf16",
    "s", "revision",
)  # fmt: skip


def write_report(paths: list[Path]) -> Path:
    """The runs of the JSON lines as ``benchmarks/results/host-ram-DATE.md``."""
    runs = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    versions = sorted({f"{name} {version}" for run in runs for name, version in run["versions"].items() if version and name != "python"})
    command = "python -m benchmarks.trainer.host_ram --model M --ranks N --zero Z --method METHOD --device cpu|cuda --out FILE"
    lines = report.header("Host memory of loading and exporting", f"{command}; --report FILE ...", versions)
    lines = [line for line in lines if not line.startswith(("- machine", "- revision"))]
    lines[3:3] = [f"- machine: {machine}" for machine in sorted({f"{run['machine']}, {run['device']}" for run in runs})]
    lines += [
        "Memory of all ranks together that only they can give back (anonymous, shared and pinned), read every 20 ms. `peak`: the highest",
        "value of the phase above the value at its start; `left`: what stays at its end; `page cache`: pages of files that one rank has",
        "mapped, at most: the ranks share them, and the system drops them when something else needs the room; `machine`: how much less",
        "was available on the whole machine, whoever took it, drivers among them; only where nothing else runs is it the ranks' own.",
        "On `cpu` the parameters themselves are in host memory: among `peak` and `left` of loading, with fp32 copies and gradients in the",
        "engine, and whole while one is gathered, on each rank; on a GPU they are not.",
        "",
    ]
    lines += report.table(HEAD, [_cells(run, row) for run in runs for row in run["phases"]])
    lines += sorted({f"{run['model']}: {run['shape']}." for run in runs if "shape" in run})
    return report.write("host-ram", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama-3.2-1b", metavar="NAME_OR_FOLDER", help="of the catalogue, or a folder with config.json")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero", type=int, choices=range(4), default=3)
    parser.add_argument("--method", choices=("full", "lora"), default="lora")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--offload", choices=("none", "optimizer", "params"), default="none", help="what the plan keeps in host memory")
    parser.add_argument("--out", type=Path, default=Path("host-ram.jsonl"))
    parser.add_argument("--scratch", help="a folder with room for twice the model")
    parser.add_argument("--report", nargs="+", type=Path, metavar="FILE", help="make the results file of these runs, and run nothing")
    args = parser.parse_args()
    if args.report:
        print(f"wrote {write_report(args.report).name}")
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        found = measure(args, Path(scratch))
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print("\n".join(report.table(HEAD, [_cells(found, row) for row in found["phases"]])))


if __name__ == "__main__":
    main()
