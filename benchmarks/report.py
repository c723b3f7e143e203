"""What every results file says about itself, and Markdown tables."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Cores, memory and processor of this machine; no names of hosts or paths."""
    cpu = "unknown processor"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except OSError:
        memory = "memory unknown"
    return f"{len(os.sched_getaffinity(0))} cores ({cpu}), {memory}, {platform.system()} {platform.machine()}"


def revision() -> str:
    """The commit of this checkout, and whether it has changes; empty outside one."""
    root = str(Path(__file__).parent.parent)
    try:
        commit, dirty = (
            subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "llmcheck"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + (" with uncommitted changes" if dirty else "")


def header(title: str, command: str, versions: Iterable[str]) -> list[str]:
    """The lines that every results file begins with."""
    return [
        f"# {title}",
        "",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- machine: {machine()}",
        "- versions: " + ", ".join([*versions, f"Python {platform.python_version()}"]),
        f"- revision: {revision() or 'no checkout'}",
        f"- made by: `{command}`",
        "",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; columns whose cells are all numbers stand right."""
    cells = [[str(c) for c in row] for row in rows]
    right = [bool(cells) and all(not row[i] or row[i].strip("+-%").replace(".", "").isdigit() for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---:" if r else "---" for r in right) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in cells] + [""]


def errors_words(errors: Sequence[float]) -> tuple[str, str, str, str]:
    """(mean of |error|, median of |error|, worst with its sign, share that is too low) of relative errors."""
    if not errors:
        return ("", "", "", "")
    sizes = [abs(e) for e in errors]
    worst = max(errors, key=abs)
    low = sum(e < 0 for e in errors) / len(errors)
    return (f"{statistics.mean(sizes):.1%}", f"{statistics.median(sizes):.1%}", f"{worst:+.1%}", f"{low:.0%}")


def write(name: str, lines: Sequence[str]) -> Path:
    """Write ``results/NAME-DATE.md``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y-%m-%d')}.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path
