"""Sample signatures, shared by the tests and the benchmark: each feature once, in the words of the libraries that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmcheck.logs.match import Group, ScanResult
from llmcheck.logs.scan import Limits, Scanner, scan_text
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.source import Chunk, LineSplitter
from llmcheck.rules.rule import Context, LogPattern, Rule


def signature(
    code: str, literal: str | Sequence[str], pattern: str, *, severity: Any = "error", confidence: Any = "high", **log: Any
) -> Rule:
    literals = (literal,) if isinstance(literal, str) else tuple(literal)
    values = {"role": "root", "cause": code.lower(), "family": "general", **log}
    return Rule(
        code=code,
        name=code.lower(),
        title=code,
        status="stable",
        severity=severity,
        confidence=confidence,
        log=LogPattern(literal=literals, pattern=pattern, **values),
    )


OOM = signature(
    "OOM",
    "CUDA out of memory. Tried to allocate",
    r"CUDA out of memory\. Tried to allocate (?P<size>[\d.]+ [GM]iB)",
    family="cuda-oom",
)
WATCHDOG = signature(
    "WATCHDOG",
    "Watchdog caught collective operation timeout: WorkNCCL(",
    r"\[Rank (?P<rank>\d+)\] Watchdog caught collective operation timeout: WorkNCCL\(SeqNum=\d+, OpType=(?P<op>\w+)",
    role="cascade",
    family="nccl-timeout",
    group_by=("op",),
)
OVERFLOW = signature("OVERFLOW", "OVERFLOW! Rank", r"OVERFLOW! Rank (?P<rank>\d+) Skipping step", min_count=3, severity="warning")
SHM = signature("SHM", "NCCL WARN Error while", r"NCCL WARN Error while creating shared memory segment", levels=("warning",))
BUILD = signature(
    "BUILD",
    "Error building extension",
    r"Error building extension '(?P<name>\w+)'",
    above=(Context(literal="unsupported GNU version", within=5),),
)
BUILD_ELSE = signature(
    "BUILDELSE",
    "Error building extension",
    r"Error building extension '(?P<name>\w+)'",
    above=(Context(literal="unsupported GNU version", within=5, absent=True),),
)
KILLED = signature(
    "KILLED",
    "exits with return code",
    r"exits with return code = (?P<code>-\d+)",
    below=(Context(literal="oom-kill event", pattern=r"oom-kill event in \w+", within=3),),
)
QUIET = signature("QUIET", "exits with return code", r"exits with return code", below=(Context(literal="oom-kill", within=3, absent=True),))
SHAPE = signature("SHAPE", "size mismatch for", r"size mismatch for (?P<key>[\w.]+): copying[^\n]*\n\s*the shape", lines=3)

RULES = (OOM, WATCHDOG, OVERFLOW, SHM, BUILD, BUILD_ELSE, KILLED, QUIET, SHAPE)


def codes(result: ScanResult) -> list[str]:
    return [group.rule.code for group in result.groups]


def find(text: str, *rules: Rule, engine: Any = "python") -> ScanResult:
    return scan_text(text, Signatures(rules or RULES, engine))


def only(result: ScanResult) -> Group:
    assert len(result.groups) == 1, codes(result)
    return result.groups[0]


def in_blocks(data: bytes, block_bytes: int, signatures: Signatures, limits: Limits | None = None) -> ScanResult:
    """`data` scanned as it comes in blocks of that size."""
    scanner, splitter = Scanner(signatures, limits=limits), LineSplitter()
    for at in range(0, len(data), block_bytes):
        for whole, offset in splitter.feed(data[at : at + block_bytes]):
            scanner.feed(Chunk(whole, offset))
    for whole, offset in splitter.finish():
        scanner.feed(Chunk(whole, offset))
    return scanner.finish()


def peak_kib() -> int:
    """The most memory that this process has had, in KiB. Linux only; getrusage also counts what the parent had at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0])
