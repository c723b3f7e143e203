"""llmcheck beside other estimators, in one run on one machine: ``python -m benchmarks.peers.run [--with PYTHON ...] [--llmcheck PYTHON]``.

Time: CPU and wall seconds of whole processes. Memory: answers against the measured peaks of ``benchmarks/accuracy/data/peaks.jsonl``.
A peer is looked for in this interpreter and in those of ``--with``, and is left out, with a word, where it is in none. No network: models
are folders in a temporary place, made from ``benchmarks/accuracy/data/configs``. Writes ``benchmarks/results/peers-DATE.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.harness import harness_of
from benchmarks.accuracy.rows import Row, config_of, rows
from benchmarks.report import errors_words, header, table, write
from llmcheck import __version__
from llmcheck.errors import UserError
from llmcheck.shadow.run import simulate_rank

HERE = Path(__file__).parent
GPUS_PER_NODE = 8
COMMIT = "0" * 40
MODEL = "llama-7b"
LLAMA_7B = (6738415616, 131072000)  # parameters; those of the largest layer, the embedding

EXPLICIT = (
    f"plan --model {MODEL} --gpus 8 --gpu A100-80G --zero 2 --micro-batch 1 --seq-len 2048 --method full --checkpointing on "
    "--attention sdpa --loss hf --allocator expandable --offload none"
).split()


@dataclass(frozen=True)
class Peer:
    """Another estimator: its distribution, and where it is installed."""

    name: str
    distribution: str
    driver: str
    needs: tuple[str, ...]
    python: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.distribution} {self.versions.get(self.distribution, '')}".strip()


PEERS = (
    Peer("accelerate", "accelerate", "drive_accelerate.py", ("accelerate", "torch", "transformers")),
    Peer("DeepSpeed", "deepspeed", "drive_deepspeed.py", ("deepspeed", "torch", "transformers")),
    Peer("fitcheck", "fitcheck-llm", "drive_fitcheck.py", ("fitcheck-llm",)),
)

PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def locate(peer: Peer, pythons: Sequence[str]) -> Peer:
    """`peer` with the first interpreter that has all it needs."""
    for python in pythons:
        done = subprocess.run([python, "-c", PROBE, *peer.needs], capture_output=True, text=True, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        if len(found) == len(peer.needs):
            return replace(peer, python=python, versions=found)
    return peer


@dataclass(frozen=True)
class Spent:
    """Medians over the repetitions of one command."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    returncode: int


def timed(argv: Sequence[str], env: dict[str, str], repeats: int) -> Spent:
    """Run a command; CPU time of it and its children, wall time, resident peak. A first run, not counted, warms the disk."""
    cpu, wall, peak, code = [], [], 0, 0
    for i in range(repeats + 1):
        start = time.monotonic()
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        if i:
            cpu.append(usage.ru_utime + usage.ru_stime)
            wall.append(time.monotonic() - start)
            peak = max(peak, usage.ru_maxrss * 1024)
    return Spent(statistics.median(cpu), statistics.median(wall), peak, code)


def make_models(folder: Path, names: Sequence[str]) -> None:
    """Each model as a folder and in the layout of a Hub cache, its configuration only."""
    for name in names:
        text = json.dumps(config_of(name))
        plain = folder / "models" / name
        snapshot = folder / "hf" / "hub" / f"models--bench--{name}" / "snapshots" / COMMIT
        refs = snapshot.parent.parent / "refs"
        for place in (plain, snapshot, refs):
            place.mkdir(parents=True)
        (plain / "config.json").write_text(text)
        (snapshot / "config.json").write_text(text)
        (refs / "main").write_text(COMMIT)


def environment(folder: Path) -> dict[str, str]:
    """The children's environment: no network, nothing read from the user's caches, no GPU looked for."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGING_FACE"))}
    env |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": ""}
    return env


def ask(peer: Peer, requests: list[dict[str, Any]], folder: Path, env: dict[str, str]) -> list[dict[str, Any]] | str:
    """The peer's answers, or why there are none."""
    assert peer.python is not None
    place = folder / "requests.json"
    place.write_text(json.dumps(requests))
    done = subprocess.run([peer.python, str(HERE / peer.driver), "ask", str(place)], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        return "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    answers: list[dict[str, Any]] = json.loads(done.stdout.rpartition("ANSWERS ")[2])
    return answers


# --- requests ------------------------------------------------------------------------------------------------------------------


def ask_accelerate(row: Row, folder: Path) -> dict[str, Any]:
    return {"folder": str(folder / "models" / row.raw["model"])}


def ask_deepspeed(row: Row, folder: Path) -> dict[str, Any]:
    world = row.cluster.num_gpus
    return {
        "folder": str(folder / "models" / row.raw["model"]),
        "stage": 3 if row.recipe.zero_stage == 3 else 2,
        "gpus": min(world, GPUS_PER_NODE),
        "nodes": max(1, world // GPUS_PER_NODE),
        "optimizer_offload": row.recipe.offload != "none",
        "param_offload": row.recipe.offload == "params",
    }


def ask_fitcheck(row: Row, folder: Path) -> dict[str, Any]:  # noqa: ARG001
    r = row.recipe
    arguments = [f"bench/{row.raw['model']}", "--precision", r.precision, "--gpu", "h100", "--optimizer", "adamw"]
    arguments += ["--batch-size", str(r.micro_batch_size), "--seq-len", str(r.seq_len), "--grad-accum", str(r.grad_accum_steps)]
    arguments += ["--no-lora"] if r.lora is None else ["--lora-r", str(r.lora.rank), "--lora-targets", "full"]
    arguments += ["--grad-checkpoint"] * r.checkpointing + ["--flash-attn"] * (r.attention != "eager")
    return {"arguments": arguments, "params": row.raw["n_params"]}


ASK: dict[str, Callable[[Row, Path], dict[str, Any]]] = {"accelerate": ask_accelerate, "DeepSpeed": ask_deepspeed, "fitcheck": ask_fitcheck}


def in_claim(peer: str, row: Row) -> bool:
    """Whether the peer's number and the measured peak mean the same run (`COMPARED` says it in words)."""
    r, single = row.recipe, row.cluster.num_gpus == 1
    if peer == "accelerate":
        return single and r.method == "full"
    if peer == "DeepSpeed":
        return r.method == "full" and r.zero_stage in (2, 3)
    return single and r.loss == "hf"


COMPARED = {
    "accelerate": (
        "`Training using Adam` of `--dtypes float16` (for batch size 1, the largest of model, gradients, Adam's states and step) "
        "against the allocated peak. Comparable: full fine-tuning on one GPU. It knows no GPUs, ZeRO, batch, length or LoRA, and prints "
        "the same number for all other rows."
    ),
    "DeepSpeed": (
        "`estimate_zero2/3_model_states_mem_needs`, GPU memory of the option that was run (offload), against the allocated peak. "
        "Comparable: full fine-tuning under ZeRO-2 and 3. It claims parameters, gradients and optimizer states; activations, logits and "
        "buffers are in the peak, and in the question that its users ask. It has no LoRA (given all parameters, it counts all as trained) "
        "and no stage 0 or 1 (asked for stage 2)."
    ),
    "fitcheck": (
        "total less its `overhead` (CUDA context and allocator) against the allocated peak, and total against the process's memory. "
        "Comparable: one GPU with Hugging Face's loss; it knows no DeepSpeed, whose flat buffers and buckets are in the peak. "
        "`--flash-attn` stands for SDPA, `--lora-targets full` for all linear layers. It refuses models not shaped like Llama, and "
        "has no option for several GPUs or for a loss without logits (asked as if on one GPU, with them)."
    ),
}


@dataclass(frozen=True)
class Line:
    """One measured run, llmcheck's answer and the peers'."""

    row: Row
    ours: tuple[float, float] | None  # errors of allocated and process
    theirs: dict[str, dict[str, Any]]

    @property
    def allocated(self) -> int:
        measured: int = self.row.raw["peak_alloc_train"]
        return measured

    def error(self, peer: str) -> float | None:
        """Error of the peer's answer against the allocated peak."""
        answer = self.theirs.get(peer, {})
        if "bytes" not in answer:
            return None
        return float((answer["bytes"] - answer.get("overhead_bytes", 0)) / self.allocated - 1)

    def process_error(self, peer: str) -> float | None:
        """Error of the peer's whole answer against the process's memory."""
        answer = self.theirs.get(peer, {})
        return float(answer["bytes"] / self.row.raw["nvml_proc"] - 1) if "bytes" in answer else None


def ours(row: Row) -> tuple[float, float] | None:
    """llmcheck's errors of allocated and process memory, None where the row is not modelled."""
    try:
        with harness_of(row):
            found = simulate_rank(row.model, row.recipe, row.cluster, rank=row.rank)
    except UserError:
        return None
    return found.peak_allocated_bytes / row.raw["peak_alloc_train"] - 1, found.process_bytes / row.raw["nvml_proc"] - 1


def memory(peers: Sequence[Peer], folder: Path, env: dict[str, str], measured: Sequence[Row]) -> tuple[list[Line], dict[str, str]]:
    """(a line per measured run, why a peer gave no answers)."""
    answers: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for peer in peers:
        if peer.python is None:
            continue
        found = ask(peer, [ASK[peer.name](row, folder) for row in measured], folder, env)
        if isinstance(found, str):
            failed[peer.name] = found
        else:
            answers[peer.name] = found
    return [Line(row, ours(row), {name: a[i] for name, a in answers.items()}) for i, row in enumerate(measured)], failed


# --- the report ----------------------------------------------------------------------------------------------------------------


def commands(peers: Sequence[Peer], llmcheck: str, folder: Path) -> list[tuple[str, str, list[str] | None]]:
    """(who, what, argument list or None where it is not installed)."""
    out: list[tuple[str, str, list[str] | None]] = [
        ("llmcheck", "--help", [llmcheck, "-m", "llmcheck", "--help"]),
        ("llmcheck", "plan, explicit recipe: 7B, ZeRO-2, 8 GPUs", [llmcheck, "-m", "llmcheck", *EXPLICIT]),
        ("llmcheck", "plan, automatic search: 7B, 8 GPUs", [llmcheck, "-m", "llmcheck", "plan", "--model", MODEL, "--gpus", "8"]),
    ]
    params, largest = LLAMA_7B
    model = str(folder / "models" / MODEL)
    training = f"bench/{MODEL} --no-lora --batch-size 1 --seq-len 2048 --grad-checkpoint --flash-attn --gpu a100-80".split()
    for name, what, tail in (
        ("accelerate", "estimate-memory --help", ["--help"]),
        ("accelerate", "estimate-memory, 7B", [model]),
        ("DeepSpeed", "estimate_zero2 ... all_cold, 7B, 8 GPUs", ["2", str(params), str(largest), "8"]),
        ("DeepSpeed", "estimate_zero3 ... all_cold, 7B, 8 GPUs", ["3", str(params), str(largest), "8"]),
        ("fitcheck", "--help", ["--help"]),
        ("fitcheck", "7B, full, one GPU", training),
    ):
        peer = next(p for p in peers if p.name == name)
        out.append((name, what, None if peer.python is None else [peer.python, str(HERE / peer.driver), "run", *tail]))
    return out


def time_lines(peers: Sequence[Peer], llmcheck: str, folder: Path, env: dict[str, str], repeats: int) -> list[str]:
    body: list[tuple[object, ...]] = []
    for who, what, argv in commands(peers, llmcheck, folder):
        if argv is None:
            body.append((who, what, "not installed", "", "", ""))
            continue
        spent = timed(argv, env, repeats)
        print(f"{who:10} {what:44} {spent.cpu_s:7.3f} CPU s {spent.wall_s:7.3f} s", flush=True)
        body.append((who, what, f"{spent.cpu_s:.3f}", f"{spent.wall_s:.3f}", f"{spent.peak_bytes / 2**20:.0f}", spent.returncode))
    return [
        "## Time of a whole process",
        "",
        f"Median of {repeats} runs after one that is not counted; CPU is user + system of the process and its children.",
        "",
        *table(("tool", "what", "CPU s", "wall s", "resident MiB", "exit"), body),
        "accelerate and fitcheck fetch the model's configuration from the Hub; here they read it from this disk, so no network is timed.",
        "llmcheck's catalogue is in the package. Exit 1 of fitcheck is its verdict: a 7B model does not fit one GPU.",
        "",
    ]


def memory_lines(peers: Sequence[Peer], lines: Sequence[Line], failed: dict[str, str]) -> list[str]:
    out = [
        "## Memory against measured peaks",
        "",
        f"{len(lines)} runs of `benchmarks/accuracy/data/peaks.jsonl` (one H100, rank 0 of N; allocated = `max_memory_allocated` over the",
        "training steps). Error: answer / measured - 1; mean and median of its size. `llmcheck` is on the same rows as the peer above it.",
        "These runs were at hand while llmcheck was written, and no peer has seen them. For runs that llmcheck had not seen, see the",
        "published figures (`python -m benchmarks.published.run`) and the other groups of `python -m benchmarks.accuracy.run`.",
        "",
        "What is compared:",
        "",
        *[f"- {name}: {words}" for name, words in COMPARED.items()],
        "",
    ]
    body: list[tuple[object, ...]] = []

    def pair(title: str, name: str, chosen: Sequence[Line], error: Callable[[Line], float | None], which: int) -> None:
        answered = [line for line in chosen if error(line) is not None]
        errors = [e for line in answered if (e := error(line)) is not None]
        body.append((name, title, len(answered), len(chosen) - len(answered), *errors_words(errors)))
        mine = [line.ours[which] for line in answered if line.ours is not None]
        body.append(("llmcheck", "the same rows", len(mine), len(answered) - len(mine), *map(_fine, errors_of(mine))))

    for peer in peers:
        name = peer.name
        if peer.python is None or name in failed:
            body.append((name, failed.get(name, "not installed"), "", "", "", "", "", ""))
            continue
        comparable = [line for line in lines if in_claim(name, line.row)]
        pair("allocated, comparable rows", name, comparable, lambda line, name=name: line.error(name), 0)  # type: ignore[misc]
        if name == "fitcheck":
            pair("process, comparable rows", name, comparable, lambda line: line.process_error("fitcheck"), 1)
        pair("allocated, all rows, as a user would read it", name, lines, lambda line, name=name: line.error(name), 0)  # type: ignore[misc]
    mine = [line.ours[0] for line in lines if line.ours is not None]
    body.append(("llmcheck", "allocated, all rows", len(mine), len(lines) - len(mine), *map(_fine, errors_of(mine))))
    mine = [line.ours[1] for line in lines if line.ours is not None]
    body.append(("llmcheck", "process, all rows", len(mine), len(lines) - len(mine), *map(_fine, errors_of(mine))))
    out += table(("tool", "what", "n", "refused", "mean", "median", "worst", "too low"), body)
    out += [
        "## Rows",
        "",
        "Error of allocated; in brackets where the peer's number does not mean this run; `refused` by the tool itself.",
        "",
    ]
    names = [p.name for p in peers]
    body = []
    for line in lines:
        cells = [_cell(line, peer, failed) for peer in peers]
        body.append((line.row.label, f"{line.allocated / 2**30:.2f}", "" if line.ours is None else f"{line.ours[0]:+.3%}", *cells))
    return out + table(("run", "GiB", "llmcheck", *names), body) + _refusals(lines)


def _refusals(lines: Sequence[Line]) -> list[str]:
    words = {(line.row.raw["model"], name, a["refused"]) for line in lines for name, a in line.theirs.items() if "refused" in a}
    return ["Refused:", "", *[f"- {name}, {model}: {why}" for model, name, why in sorted(words)]] if words else []


def _cell(line: Line, peer: Peer, failed: dict[str, str]) -> str:
    if peer.python is None or peer.name in failed:
        return "not installed" if peer.python is None else "failed"
    error = line.error(peer.name)
    if error is None:
        return "refused"
    return f"{error:+.1%}" if in_claim(peer.name, line.row) else f"({error:+.1%})"


def errors_of(errors: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, median, worst, share too low), as `errors_words`, unrounded."""
    if not errors:
        return (0.0, 0.0, 0.0, 0.0)
    sizes = [abs(e) for e in errors]
    return statistics.mean(sizes), statistics.median(sizes), max(errors, key=abs), sum(e < 0 for e in errors) / len(errors)


def _fine(value: float) -> str:
    return f"{value:.3%}" if abs(value) < 0.01 else f"{value:.1%}"


def main(argv: Sequence[str] | None = None) -> int:
    """Time, compare, write the results file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.run", description="llmcheck beside other estimators.")
    parser.add_argument("--with", dest="pythons", action="append", default=[], metavar="PYTHON", help="an interpreter that has peers")
    parser.add_argument("--llmcheck", default=sys.executable, metavar="PYTHON", help="the interpreter whose llmcheck is timed")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    peers = [locate(peer, [sys.executable, *args.pythons]) for peer in PEERS]
    measured = [row for row in rows("peaks") if "error" not in row.raw]
    with tempfile.TemporaryDirectory(prefix="llmcheck-peers-") as name:
        folder = Path(name)
        make_models(folder, sorted({row.raw["model"] for row in measured}))
        env = environment(folder)
        times = time_lines(peers, args.llmcheck, folder, env, args.repeats)
        lines, failed = memory(peers, folder, env, measured)
    versions = {k: v for peer in peers for k, v in peer.versions.items()}
    hint = "pip install {}, here or for an interpreter named by --with"
    missing = [f"- not installed: {p.name} ({hint.format(' '.join(p.needs))})" for p in peers if p.python is None]
    shown = [f"llmcheck {__version__}", *(f"{k} {v}" for k, v in sorted(versions.items()))]
    head = header("llmcheck beside other estimators", _command(argv), shown)
    body = memory_lines(peers, lines, failed)
    path = write("peers", [*head[:-1], *missing, "", *times, *body])
    print("\n".join(body[: body.index("## Rows")]))
    print(f"wrote {path.name}")
    return 0


def _command(argv: Sequence[str] | None) -> str:
    """The command, interpreters by name only."""
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", "benchmarks.peers.run", *(os.path.basename(w) if os.sep in w else w for w in words)])


if __name__ == "__main__":
    sys.exit(main())
