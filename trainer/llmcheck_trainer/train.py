"""Run a plan: ``python -m llmcheck_trainer.train --plan plan.json --data FOLDER --output FOLDER``, once per GPU.

A launcher (deepspeed, torchrun) starts it with RANK, WORLD_SIZE and LOCAL_RANK set. The plan's environment is set here, before torch is
imported, since the launchers pass only some variables on to other nodes and PyTorch's allocator reads its own only once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from llmcheck import planfile
from llmcheck.errors import UserError
from llmcheck_trainer import last_words
from llmcheck_trainer import settings as command_line
from llmcheck_trainer.stopping import StopRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code: 0 done, 1 the run had to stop (out of memory, NaN), 2 bad input."""
    try:
        path, settings = command_line.parse(sys.argv[1:] if argv is None else argv)
        plan_file = planfile.read(path)
        stop = StopRequest()  # before the seconds that importing takes
        for name, value in plan_file.launch.env.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Of DeepSpeed's calls, two lines from every rank: nobody who reads them can do anything about it.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
        from llmcheck_trainer import loop  # torch is imported here, after the environment is set

        code = loop.run(plan_file, path, settings, stop)
        loop.leave()
        return code
    except UserError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def as_process(argv: Sequence[str] | None = None) -> NoReturn:
    """Train, and end the process with the exit code, after all that is registered for its end but before the interpreter is taken apart.

    DeepSpeed's globals keep gloo's groups, so their threads outlive destroy_process_group; one that lets go of a tensor while the
    interpreter goes ends the process by std::terminate, after a run that was whole: https://github.com/pytorch/pytorch/pull/179291.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # registered first, it is called last
    codes.append(main(argv))
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    if codes:  # without one, an error nobody foresaw is on its way up: Python ends the process
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(codes[0])


def complain(error: UserError) -> None:
    """Print the error as `llmcheck` prints it, with the rank that it is from."""
    rank = os.environ.get("RANK", "0")
    lines = [f"error[{error.code}] (rank {rank}): {error.what}"]
    lines += [f"  {label}: {text}" for label, text in (("where", error.where), ("why", error.why), ("hint", error.hint)) if text]
    text = "".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) + "\n" for line in lines)
    sys.stderr.write(text)  # in one piece, so that ranks do not interleave
    sys.stderr.flush()
    last_words.keep(error.exit_code, text)


if __name__ == "__main__":
    as_process()
