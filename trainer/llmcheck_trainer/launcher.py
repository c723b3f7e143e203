"""Run a launcher (deepspeed, torchrun) so that a request to stop reaches the ranks: ``python -m llmcheck_trainer.launcher deepspeed ...``.

DeepSpeed's launcher ends at SIGTERM and leaves its ranks running; torchrun gives them 30 seconds to save, then kills them. Here the ranks
of this machine are asked themselves, take the time that saving takes, and the launcher ends as after any run. An error that a rank ended
with is said once more, below what the launcher has to say of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

from llmcheck_trainer import last_words

RANK_MODULE = b"llmcheck_trainer.train"
REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`; the exit code of the rank that failed, else its own, 128 + N where signal N ended it."""
    command = list(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(prefix="llmcheck-run-") as folder:
        code = _run(command, {**os.environ, last_words.VARIABLE: folder})
        said = last_words.first(folder) if code else None
    if said is None:
        return code
    sys.stderr.write("\nthe run ended with\n" + said.text)
    return said.exit_code


def _run(command: Sequence[str], env: dict[str, str]) -> int:
    # A session of its own: Ctrl-C in a terminal comes to this process only, which then asks the ranks.
    process = subprocess.Popen(command, env=env, start_new_session=True)
    requests = Requests(process)
    for number in REQUESTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish is kept
            signal.signal(number, requests.take)
    code = process.wait()
    if code:  # a launcher that was killed leaves its ranks behind
        requests.end(signal.SIGTERM)
    return code if code >= 0 else 128 - code


class Requests:
    """Asks the ranks to save and stop; at the second request ends them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.number = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """A signal has come."""
        del frame
        self.number += 1
        ranks = ranks_under(self.process.pid)
        if self.number > 1 or not ranks:  # elsewhere, or not there yet: the launcher has to do it
            for rank in ranks:
                _send(rank, signal.SIGKILL)
            self.end(signal.SIGTERM)
            return
        sys.stderr.write(
            f"{signal.Signals(number).name}: the ranks save after the step in progress, then stop; once more ends them at once\n"
        )
        sys.stderr.flush()
        for rank in ranks:
            _send(rank, signal.SIGUSR1)

    def end(self, number: int) -> None:
        """Send `number` to whatever the launcher has started, whether it is still there itself or not."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def ranks_under(ancestor: int) -> list[int]:
    """Processes below `ancestor` that run the trainer as a rank. None where there is no /proc."""
    parents = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            status = _read(f"/proc/{name}/stat")
            if b")" in status:  # the name of a program may hold blanks, so what follows its closing bracket is split
                parents[int(name)] = int(status.rpartition(b")")[2].split()[1])
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and pid != ancestor and _is_rank(pid):
            found.append(pid)
    return found


def _is_rank(pid: int) -> bool:
    words = _read(f"/proc/{pid}/cmdline").split(b"\0")
    return RANK_MODULE in words and any(entry.startswith(b"RANK=") for entry in _read(f"/proc/{pid}/environ").split(b"\0"))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended meanwhile
        return b""


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
