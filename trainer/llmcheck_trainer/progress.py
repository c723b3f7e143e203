"""One line of progress for people, and log.jsonl with every step for everything else. Rank 0 speaks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from llmcheck.types import MemoryEstimate, StepTime
from llmcheck.units import gib, human_seconds
from llmcheck_trainer.receipt import Meter
from llmcheck_trainer.trackers import Trackers

if TYPE_CHECKING:
    from llmcheck_trainer.evaluation import Result

SMOOTH_STEPS = 20  # steps over which the rate shown is averaged
LINES_EVERY_S = 10.0  # where the output is no terminal


class Progress:
    """Shows and logs steps. `total`: sequences of the run; `memory` and `time` are the plan's."""

    def __init__(self, output: str, memory: MemoryEstimate, planned: StepTime, *, total: int, position: int, trackers: Trackers) -> None:
        self.speaks = dist.get_rank() == 0
        self.memory, self.planned, self.total, self.trackers = memory, planned, total, trackers
        self.last_loss: float | None = None
        self._log = open(os.path.join(output, "log.jsonl"), "ab", buffering=0) if self.speaks else None  # noqa: SIM115
        self._log_failed = False
        self._recent: list[tuple[float, int, int, int]] = [(time.perf_counter(), position, 0, 0)]
        self._tokens = self._padded = 0
        self._line_at = 0.0
        self._bar: Any = None

    def start(self, text: str) -> None:
        """Say what runs, and open the line."""
        self.say(text)
        if self.speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._bar = Live("", console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._bar.start()

    def say(self, text: str) -> None:
        """One line above the line of progress."""
        if self.speaks:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def step(
        self, step: int, position: int, loss: float, lr: float, norm: float | None, tokens: int, padded: int, meter: Meter, kind: str
    ) -> None:
        """Log a step; `kind` is what is wrong with its loss, or empty."""
        self.last_loss = loss if math.isfinite(loss) else None
        if self._log is None:
            return
        self._tokens += tokens
        self._padded += padded
        now = time.perf_counter()
        self._recent = [*self._recent[-SMOOTH_STEPS:], (now, position, self._tokens, self._padded)]
        then = self._recent[0]
        seconds = max(now - then[0], 1e-9)
        tokens_per_s, padded_per_s = (self._tokens - then[2]) / seconds, (self._padded - then[3]) / seconds
        allocated, peak = meter.now()
        planned = self.memory.rank0.peak_allocated_bytes
        # MFU by the plan's own count of operations a token, which the trainer does not repeat.
        mfu = self.planned.mfu * tokens_per_s / self.planned.tokens_per_s if self.planned.tokens_per_s else 0.0
        left_s = (self.total - position) * seconds / max(position - then[1], 1)
        values = {
            "step": step,
            "position": position,
            "loss": _plain(loss),
            "lr": lr,
            "grad_norm": None if norm is None else _plain(norm),
            "num_tokens": tokens,
            "num_padded_tokens": padded,
            "tokens_per_s": tokens_per_s,
            "padded_tokens_per_s": padded_per_s,
            "mfu": mfu,
            "allocated_bytes": allocated,
            "peak_allocated_bytes": peak,
            "time": time.time(),
            **({"event": kind} if kind else {}),
        }
        self._write(values)
        self.trackers.log(values, step)
        text = (
            f"step {step} {100 * position / self.total:.0f} % · loss {loss:.4f} · lr {lr:.2e}"
            + (f" · norm {norm:.2f}" if norm is not None else "")
            + f" · {tokens_per_s:,.0f} tok/s ({padded_per_s:,.0f} with padding) · MFU {100 * mfu:.1f} %"
            + f" · memory {gib(allocated)} now, {gib(peak)} peak, {gib(planned)} planned · {human_seconds(left_s)} left"
        )
        if kind == "gradient":
            self.say(f"warning: the gradients of step {step} are not numbers: the step was left out")
        elif kind:
            self.say(f"warning: {kind} in the loss of step {step}: {loss}")
        if self._bar is not None:
            self._bar.update(text)
        elif now - self._line_at >= LINES_EVERY_S or position >= self.total:
            self._line_at = now
            self.say(text)

    def evaluation(self, step: int, result: Result) -> None:
        """Log an evaluation."""
        if self._log is not None:
            self._write({"step": step, "event": "evaluation", **{k: _plain(v) for k, v in result._asdict().items()}, "time": time.time()})
            self.trackers.log({"eval_loss": result.loss, "eval_perplexity": result.perplexity}, step)
            self.say(f"step {step} · evaluation loss {result.loss:.4f} · perplexity {result.perplexity:.2f} · {result.num_tokens:,} tokens")

    def end(self, outcome: str) -> None:
        """Close the line and the log."""
        if self._log is not None:
            self._write({"event": outcome, "time": time.time()})
            self._log.close()
        if self._bar is not None:
            self._bar.stop()
        self.trackers.finish()
        self.say(outcome)

    def _write(self, values: dict[str, Any]) -> None:
        """One line of the log, whole or not at all. A run does not end for want of it."""
        assert self._log is not None
        line = (json.dumps(values) + "\n").encode()
        size = os.fstat(self._log.fileno()).st_size
        try:
            if self._log.write(line) == len(line):
                return
            reason = "no room"
        except OSError as error:
            reason = error.strerror or str(error)
        with contextlib.suppress(OSError):
            os.ftruncate(self._log.fileno(), size)
        if not self._log_failed:
            self.say(f"warning[log]: {self._log.name} lacks steps from here on: {reason}")
        self._log_failed = True


def _plain(value: float) -> float | str:
    """`value` as JSON has it, which knows no NaN and no infinity."""
    return value if math.isfinite(value) else repr(value)
