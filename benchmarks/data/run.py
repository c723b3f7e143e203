"""Data preparation: time and memory at 0.2 and 2 million rows: ``python -m benchmarks.data.run [--rows 200000 2000000] [--folder DIR]``.

Needs the extra `fast-data`. Writes ``benchmarks/results/data-DATE.md``. The rows are made up (rows.py) and made once per folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data import rows as made
from benchmarks.report import header, table, write
from llmcheck import __version__

TIME_BAR_S, MEMORY_BAR_BYTES, FLAT_FRACTION = 150.0, 1 << 30, 0.10  # at two million rows; growth from the fewest to the most rows
_POLL_S = 0.1

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Run:
    """One preparation: what was measured, and its manifest."""

    time_s: float
    cpu_s: float  # of all processes; unlike the time it hardly depends on what else runs
    peak_bytes: int
    load: float
    manifest: dict[str, Any]


def prepare(data: Path, tokenizer: Path, out: Path, *, template: str, fast: str) -> Run:
    """Prepare `data` in processes of their own; the peak is of the sum of their resident memory, looked at every 100 ms."""
    command = [sys.executable, "-m", "llmcheck", "data", "prepare", str(data), "--tokenizer", str(tokenizer), "--seq-len", "1024"]
    command += ["--out", str(out), "--template", template, "--fast", fast, "--format", "json"]
    load, start, peak, before = os.getloadavg()[0], time.perf_counter(), 0, _children_s()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(_POLL_S)
    took = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return Run(took, _children_s() - before, peak, load, json.loads((out / "manifest.json").read_text(encoding="utf-8")))


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tree_bytes(root: int) -> int:
    """Resident memory of the process `root` and all below it, pages that they share counted for each."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(encoding="ascii", errors="replace")
            resident[int(entry)] = int(Path("/proc", entry, "statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            continue
        parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    family = {root}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(resident.get(member, 0) for member in family) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--folder", type=Path, help="where the rows are kept (default: a temporary folder)")
    parser.add_argument("--slow-rows", type=int, default=200_000, help="of the run without the fast encoder, and of the chat template's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(exist_ok=True, parents=True)
        tokenizer = folder / "tokenizer"
        if not tokenizer.exists():
            made.train_tokenizer(tokenizer)
        (folder / "template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        results: list[tuple[str, int, Run]] = []
        for number in sorted({*args.rows, args.slow_rows}):
            data = folder / f"{number}.jsonl"
            if not data.exists():
                made.write(data, number)
            if number in args.rows:
                results.append(
                    ("gigatoken, template belle", number, prepare(data, tokenizer, folder / "fast", template="belle", fast="require"))
                )
            if number == args.slow_rows:
                slow = prepare(data, tokenizer, folder / "slow", template="belle", fast="off")
                results.append(("tokenizers alone, template belle", number, slow))
                jinja = prepare(data, tokenizer, folder / "jinja", template=str(folder / "template.jinja"), fast="require")
                results.append(("gigatoken, a chat template in Jinja", number, jinja))
        report(results, folder)


def report(results: list[tuple[str, int, Run]], folder: Path) -> None:
    versions = [f"llmcheck {__version__}", *(f"{name} {version(name)}" for name in ("gigatoken", "tokenizers", "numpy", "jinja2"))]
    lines = header("Data preparation", "python -m benchmarks.data.run", versions)
    lines += [
        f"Rows are made up: words by Zipf's law over {made.NUM_WORDS:,} made-up words, {made.CHINESE_SHARE:.0%} Chinese characters; the",
        "tokenizer is a byte-level BPE of 32,000 tokens trained on other such rows. Real text repeats its words in other ways. Time is of",
        "the whole command; memory the sum over its processes every 100 ms (shared pages counted for each); load the machine's before.",
        "",
    ]
    cells = []
    for name, number, run in results:
        size, tokens = (folder / f"{number}.jsonl").stat().st_size, run.manifest["num_tokens"]
        rates = (f"{number / run.time_s:,.0f}", f"{tokens / run.time_s / 1e6:.2f}")
        usage = (f"{run.peak_bytes / 2**20:.0f}", f"{run.load:.1f}")
        cells.append(
            (name, f"{number:,}", f"{size / number:.0f}", f"{tokens / 1e6:.0f}", f"{run.time_s:.1f}", f"{run.cpu_s:.1f}", *rates, *usage)
        )
    lines += table(("way", "rows", "B a row", "Mtokens", "s", "CPU s", "rows/s", "Mtok/s", "peak MiB", "load"), cells)
    lines += [f"- {line}" for line in verdicts(results)]
    print("\n".join(lines))
    write("data", lines)


def verdicts(results: list[tuple[str, int, Run]]) -> list[str]:
    """The bars, met or not."""
    fast = {number: run for name, number, run in results if name == "gigatoken, template belle"}
    most, fewest = max(fast), min(fast)
    run, growth = fast[most], fast[most].peak_bytes / fast[fewest].peak_bytes - 1
    lines = [
        f"{most:,} rows in at most {TIME_BAR_S:.0f} s: {_word(run.time_s <= TIME_BAR_S)} ({run.time_s:.0f} s)",
        f"at most 1 GiB for all processes together: {_word(run.peak_bytes <= MEMORY_BAR_BYTES)} ({run.peak_bytes / 2**20:.0f} MiB)",
        f"flat from {fewest:,} to {most:,} rows (at most +{FLAT_FRACTION:.0%}): {_word(growth <= FLAT_FRACTION)} ({growth:+.1%})",
    ]
    for name, number, slow in results:
        if name.startswith("tokenizers") and number in fast:
            equal = slow.manifest["files"] == fast[number].manifest["files"]
            lines.append(f"the same files without the fast encoder, {number:,} rows: {_word(equal)}")
    return lines


def _word(met: bool) -> str:
    return "met" if met else "NOT met"


if __name__ == "__main__":
    main()
