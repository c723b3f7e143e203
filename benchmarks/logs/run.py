"""How fast logs are read, by each engine and end to end: ``python -m benchmarks.logs.run``.

Rules: every signature that is shipped. Each run is a process of its own, so that its peak memory is its own. The same findings are asked of
every engine. Writes ``benchmarks/results/logs-DATE.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.logs.synthetic import LOGS
from benchmarks.report import header, table, write
from llmcheck import __version__
from llmcheck.logs.prefilter import ENGINES

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"hyperscan": "hyperscan", "ahocorasick": "ahocorasick-rs"}
MODULES = {"hyperscan": "hyperscan", "ahocorasick": "ahocorasick_rs"}

SCAN = """
import json, sys, time
from benchmarks.logs.samples import peak_kib
from llmcheck.logs.diagnose import diagnose
from llmcheck.logs.scan import scan
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import open_log
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_shipped

rules = [rule for pack in load_shipped(load_registry()) for rule in pack.rules if rule.log is not None]
begin = time.perf_counter()
signatures = Signatures(rules, sys.argv[2])
ready = time.perf_counter()
before = peak_kib()
with open_log(sys.argv[1]) as log:
    result = scan(log, signatures)
done = time.perf_counter()
causes = [
    [cause.group.rule.code, cause.group.count, cause.group.first.line, [effect.rule.code for effect in cause.effects]]
    for cause in diagnose([result]).causes
]
print(json.dumps({
    "num_rules": len(rules), "num_literals": len(signatures.literals), "engine": result.engine,
    "ready_s": ready - begin, "scan_s": done - ready, "num_bytes": result.num_bytes, "num_lines": result.num_lines,
    "before_kib": before, "peak_kib": peak_kib(), "causes": causes,
}))
"""

DOCTOR = """
import sys, time
for name in sys.argv[2:]:
    sys.modules[name] = None
begin = time.perf_counter()
from llmcheck.cli import main
sys.argv = ["llmcheck", "doctor", "--log", sys.argv[1], "--full", "--format", "json"]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
seconds = time.perf_counter() - begin
from benchmarks.logs.samples import peak_kib
print(code, seconds, peak_kib(), file=sys.stderr)
"""


def scan(path: Path, engine: str, repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` scans, each in a process of its own."""
    runs = [json.loads(_python(SCAN, str(path), engine).stdout) for _ in range(repeats)]
    return min(runs, key=lambda run: run["scan_s"])


def doctor(path: Path, engine: str, repeats: int) -> tuple[float, int, int]:
    """(seconds, peak KiB, exit code) of the fastest of `repeats` whole commands; faster engines are hidden from it."""
    hidden = [MODULES[name] for name in ENGINES[: ENGINES.index(engine)]]
    runs = []
    for _ in range(repeats):
        code, seconds, peak = _python(DOCTOR, str(path), *hidden).stderr.strip().splitlines()[-1].split()
        runs.append((float(seconds), int(peak), int(code)))
    return min(runs)


def _python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done


def installed() -> dict[str, str]:
    """Engines that can run here, and the versions of what they need."""
    return {engine: text for engine in ENGINES if (text := _version(engine)) is not None}


def _version(engine: str) -> str | None:
    if engine not in DISTRIBUTIONS:
        return ""
    try:
        return f"{DISTRIBUTIONS[engine]} {version(DISTRIBUTIONS[engine])}"
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="of each log, in 10^6 bytes")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    num_bytes = args.size * 10**6
    engines = installed()
    command = f"python -m benchmarks.logs.run --size {args.size} --repeats {args.repeats}"
    rows, memory, whole, last = [], [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in LOGS.items():
            path = Path(folder) / f"{name}.log"
            path.write_bytes(make(num_bytes))
            runs = {engine: scan(path, engine, args.repeats) for engine in engines}
            answers = {json.dumps(run["causes"]) for run in runs.values()}
            assert len(answers) == 1, f"engines differ on {name}"
            last = runs["python"]
            size = path.stat().st_size
            rows += [
                (
                    name,
                    engine,
                    f"{size / 1e6 / run['scan_s']:.0f}",
                    f"{run['scan_s']:.2f}",
                    f"{run['num_lines']:,}",
                    len(run["causes"]),
                    f"{run['before_kib'] / 1024:.0f}",
                    f"{run['peak_kib'] / 1024:.0f}",
                )
                for engine, run in runs.items()
            ]
            if name == "trainer":
                for engine in engines:
                    seconds, peak, code = doctor(path, engine, args.repeats)
                    whole.append((engine, f"{size / 1e6 / seconds:.0f}", f"{seconds:.2f}", f"{peak / 1024:.0f}", code))
                large = Path(folder) / "large.log"
                with large.open("wb") as file:
                    for _ in range(4):
                        file.write(path.read_bytes())
                for engine in engines:
                    peaks = (runs[engine]["peak_kib"], scan(large, engine, 1)["peak_kib"])
                    memory.append((engine, *(f"{peak / 1024:.0f}" for peak in peaks)))
                large.unlink()
            path.unlink()
    lines = header("Reading logs", command, [f"llmcheck {__version__}", *(text for text in engines.values() if text)])
    lines += [
        f"{last['num_rules']} signatures with {last['num_literals']:,} literals. Logs of {args.size} MB (10^6 bytes), made up by",
        "`benchmarks/logs/synthetic.py`.",
        "`python` is the core's own engine; `hyperscan` comes with `llmcheck[fast]`. All engines had the same findings.",
        "",
        "## Scanning",
        "",
        f"The fastest of {args.repeats} runs; rules and engine are ready. Memory in MiB: resident before the scan, and at its peak.",
        "",
        *table(("log", "engine", "MB/s", "s", "lines", "causes", "before", "peak"), rows),
        "- trainer: metrics, progress bars, reports of DeepSpeed and NCCL, one line in fifty of those in",
        "  `tests/corpus/clean`, one in twenty of generated text; eight ranks die at the end",
        "- coloured: the same, with colour codes in each third line",
        "- prose: no line is like another, the worst for the core's engine",
        "- errors: every line is part of an error, the worst for all",
        "",
        "## The whole command",
        "",
        "`llmcheck doctor --log trainer.log --full --format json`: start of Python, packs, scan and report.",
        "",
        *table(("engine", "MB/s", "s", "peak MiB", "exit"), whole),
        "## Memory",
        "",
        "Peak MiB of a scan of the trainer's log, and of one four times as long.",
        "",
        *table(("engine", f"{args.size} MB", f"{4 * args.size} MB"), memory),
    ]
    print(write("logs", lines))


if __name__ == "__main__":
    main()
