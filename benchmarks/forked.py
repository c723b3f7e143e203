"""A measurement in a fork of a process that has imported everything and has no CUDA context yet, so that it takes seconds."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_fork(call: Callable[[], dict[str, Any]], scratch: Path, limit_s: float) -> dict[str, Any]:
    """The result of `call` in a fork with its words in a file beside `scratch`; `error` and `traceback` where it raised or left none."""
    scratch.unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        log = os.open(scratch.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            found = call()
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-2000:]}
        scratch.write_text(json.dumps(found))
        os._exit(0)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > limit_s:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            break
        time.sleep(0.02)
    return json.loads(scratch.read_text()) if scratch.exists() else {"error": "it ended without a result"}
