"""What the drivers share: plans, waiting for their turn, random weights, and the measured window."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any


def wait_for_turn() -> dict[str, Any]:
    """The job, one JSON line on stdin: it comes when the process before has left the device."""
    sys.stderr.write("ready\n")
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    job: dict[str, Any] = json.loads(line)
    return job


def make_plan(words: list[str], path: Path) -> None:
    """Have `llmcheck plan` write a plan file; what it says is shown only where it fails."""
    from llmcheck.cli import main as llmcheck

    command = ["plan", *words, "--out", str(path), "--force", "--fail-on", "never"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = llmcheck(command)
    if code:
        raise SystemExit(f"llmcheck {' '.join(command)} exited with {code}:\n{said.getvalue()}")


def randomise(model: Any) -> None:
    """Weights as a fresh model has them: memory as it comes may hold zeros, which a GPU multiplies faster, or NaN."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


class Window:
    """Time of the steps after the first `warm`, and the peak of all."""

    def __init__(self, device: Any, warm: int) -> None:
        import torch

        self.torch, self.device, self.warm = torch, device, warm
        self.gpu = device.type == "cuda"
        self.steps = 0
        self.tokens = self.padded = 0
        self.start_s = self.end_s = 0.0

    def reset_peak(self) -> None:
        """Leave out what came before training."""
        if self.gpu:
            self.torch.cuda.reset_peak_memory_stats(self.device)

    def sync(self) -> None:
        """Wait for the device."""
        if self.gpu:
            self.torch.cuda.synchronize(self.device)

    def step(self, num_tokens: int, num_padded: int) -> None:
        """A step was issued."""
        self.steps += 1
        if self.steps == self.warm:
            self.sync()
            self.start_s = time.perf_counter()
        elif self.steps > self.warm:
            self.tokens += num_tokens
            self.padded += num_padded

    def result(self) -> dict[str, Any]:
        """Tokens (without padding) a second over the window, seconds a step, bytes at the peak."""
        self.sync()
        took = time.perf_counter() - self.start_s
        measured = self.steps - self.warm
        return {
            "num_steps": measured,
            "step_s": took / measured,
            "tokens_per_s": self.tokens / took,
            "padded_tokens_per_s": self.padded / took,
            "peak_allocated_bytes": self.torch.cuda.max_memory_allocated(self.device) if self.gpu else None,
            "peak_reserved_bytes": self.torch.cuda.max_memory_reserved(self.device) if self.gpu else None,
            "device": self.torch.cuda.get_device_name(self.device) if self.gpu else "cpu",
        }


def emit(result: dict[str, Any]) -> None:
    """The answer: one line on stdout."""
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")
    sys.stdout.flush()
