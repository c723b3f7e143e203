"""Runs in the interpreter that has fitcheck-llm: its command and its numbers, of configurations in a local Hub cache.

    python drive_fitcheck.py run ARGUMENTS ...    `fitcheck ARGUMENTS ...`, unchanged
    python drive_fitcheck.py ask REQUESTS         a JSON list of {"arguments", "params"} -> of {"bytes", "overhead_bytes"} or {"refused"}

Online, fitcheck compares its own count of parameters with the Hub's and refuses a model where they differ by more than 2 %. `ask` gives
it the true count in place of that look-up, so that it judges a model as it would online.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fitcheck import cli, config_parser


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """fitcheck's answer to one request."""
    config_parser._reported_param_count = lambda model_id, token: request["params"]  # noqa: ARG005
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([*request["arguments"], "--json"])
        except SystemExit:
            pass
    if not out.getvalue().lstrip().startswith("{"):
        return {"refused": " ".join(err.getvalue().split())[:200]}
    memory = json.loads(out.getvalue())["memory_mib"]
    return {"bytes": int(memory["total"] * 2**20), "overhead_bytes": int(memory["overhead"] * 2**20)}


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.argv = ["fitcheck", *sys.argv[2:]]
        cli.main()
    else:
        print("\nANSWERS " + json.dumps([ask(request) for request in json.loads(Path(sys.argv[2]).read_text())]))
