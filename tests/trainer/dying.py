"""The trainer as a rank that dies: ``python -m dying WHERE STEP RANKS ...``. Its signal is its own, at a place that no timing moves."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


class Aborts:
    """Ends the process when the interpreter lets go of it, as a thread of gloo's does that meets the interpreter half taken apart."""

    def __del__(self, abort: Any = os.abort) -> None:
        abort()


def main() -> None:
    where, step, ranks = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
    from llmcheck_trainer import checkpoint, receipt, train

    def die() -> None:
        if os.environ["RANK"] in ranks:
            os.kill(os.getpid(), signal.SIGKILL)

    write, step_done = checkpoint._write, receipt.Meter.step_done

    def written(path: str, text: str) -> None:
        """Between the files of a checkpoint and its name."""
        write(path, text)
        if f".step-{step:08d}.part" in path:
            die()

    def done(self: Any) -> None:
        step_done(self)
        if self.step == step:
            die()

    if where == "save":
        checkpoint._write = written
    elif where == "step":
        receipt.Meter.step_done = done  # type: ignore[method-assign]
    elif os.environ["RANK"] in ranks:
        sys.aborts = Aborts()  # type: ignore[attr-defined]
    train.as_process(sys.argv[4:])


if __name__ == "__main__":
    main()
