"""Logs of a trainer, made up: deterministic, never committed. Library messages are those of the healthy logs of the tests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

CLEAN = Path(__file__).parents[2] / "tests" / "corpus" / "clean"
BAR = "█"
LETTERS = "etaoinshrdlucmfwyp"

# What the run dies of, at its end: on eight ranks at once, and what the others say of it.
FATAL = (
    "Traceback (most recent call last):",
    '  File "/workspace/train.py", line 212, in <module>',
    "    main()",
    '  File "/usr/lib/python3/site-packages/torch/nn/modules/module.py", line 1751, in _wrapped_call_impl',
    "    return self._call_impl(*args, **kwargs)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU {rank} has 79.15 GiB in total, of which 1 GiB is free.",
)
TIMEOUT = (
    "[rank{rank}]:[E1124 02:07:08.408271257 ProcessGroupNCCL.cpp:632] [Rank {rank}] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 milliseconds "
    "before timing out."
)


def trainer(num_bytes: int, seed: int = 7) -> bytes:
    """What a run writes for hours: metrics, progress bars, DeepSpeed's and NCCL's reports; one line in fifty from a library, one in twenty
    of generated text. The run dies at the end.
    """
    draw = random.Random(seed)
    library = [line for path in sorted(CLEAN.glob("*.log")) for line in path.read_text(encoding="utf-8").splitlines() if line]
    words = _words(draw)

    def line(step: int) -> str:
        kind = draw.random()
        at = f"2026-11-24 {step // 3600 % 24:02d}:{step // 60 % 60:02d}:{step % 60:02d},{draw.randrange(1000):03d}"
        if kind < 0.35:
            rates = f"'grad_norm': {draw.random():.6f}, 'learning_rate': {draw.random() * 1e-5:.4e}"
            return f"{{'loss': {draw.random() * 3 + 0.01:.4f}, {rates}, 'epoch': {step / 1e6:.2f}}}\n"
        if kind < 0.60:
            done = draw.randrange(101)
            clock = f"[{step // 60:02d}:{step % 60:02d}<1:02:03,  {draw.random() * 4:.2f}s/it]"
            return f"\r{done:3d}%|{BAR * (done // 10):10s}| {done * 100}/10000 {clock}"
        if kind < 0.75:
            rate = f"{draw.random() * 1e-5:.6e}"
            return f"[{at}] [INFO] [logging.py:128:log_dist] [Rank 0] step={step}, skipped=0, lr=[{rate}], mom=[(0.9, 0.95)]\n"
        if kind < 0.85:
            peers = f"{draw.randrange(8)}[{draw.randrange(8)}] -> {draw.randrange(8)}[{draw.randrange(8)}]"
            host = f"node{draw.randrange(8)}:{step % 9999}:7 [{draw.randrange(8)}]"
            return f"{host} NCCL INFO Channel {draw.randrange(32):02d}/0 : {peers} via P2P/CUMEM\n"
        if kind < 0.93:
            sizes = " ".join(f"{name} {draw.random() * 40:.2f} GB" for name in ("MA", "Max_MA", "CA", "Max_CA"))
            return f"[rank{draw.randrange(8)}]: {at} | INFO | trainer:log:{draw.randrange(999)} | {sizes}\n"
        if kind < 0.95:
            return re.sub(r"\d", lambda _: str(draw.randrange(10)), draw.choice(library)) + "\n"
        return " ".join(draw.choices(words, k=draw.randrange(5, 25))) + "\n"

    end = "".join(f"[rank{rank}]: {text.format(rank=rank)}\n" for text in FATAL for rank in range(8))
    end += "".join(TIMEOUT.format(rank=rank) + "\n" for rank in range(8))
    return _fill(num_bytes - len(end), line) + end.encode()


def prose(num_bytes: int, seed: int = 7) -> bytes:
    """The worst for an engine that remembers lines: no line is like another."""
    draw = random.Random(seed)
    words = _words(draw)
    return _fill(num_bytes, lambda _: " ".join(draw.choices(words, k=draw.randrange(5, 25))) + "\n")


def errors(num_bytes: int, seed: int = 7) -> bytes:
    """Every line is part of an error: a crash loop that nobody stopped."""
    draw = random.Random(seed)
    lines = [*FATAL, TIMEOUT, "RuntimeError: step {rank} failed"]
    return _fill(num_bytes, lambda step: f"[rank{step % 8}]: {lines[step // 8 % len(lines)].format(rank=draw.randrange(8))}\n")


def coloured(num_bytes: int, seed: int = 7) -> bytes:
    """The trainer's log with a colour code in each third line."""
    data = trainer(num_bytes * 9 // 10, seed).split(b"\n")
    return b"\n".join(b"\x1b[32m" + line + b"\x1b[0m" if place % 3 == 0 else line for place, line in enumerate(data))


LOGS: dict[str, Callable[[int], bytes]] = {"trainer": trainer, "coloured": coloured, "prose": prose, "errors": errors}


def _words(draw: random.Random) -> list[str]:
    return ["".join(draw.choices(LETTERS, k=draw.randrange(2, 10))) for _ in range(20_000)]


def _fill(num_bytes: int, line: Callable[[int], str]) -> bytes:
    def parts() -> Iterator[bytes]:
        size = step = 0
        while size < num_bytes:
            data = line(step).encode()
            yield data
            size += len(data)
            step += 1
        yield b"\n"

    return b"".join(parts())
