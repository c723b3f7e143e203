"""Runs in the interpreter that has accelerate: its own command, and its own numbers, of model folders on this disk.

    python drive_accelerate.py run FOLDER ...     `accelerate estimate-memory FOLDER ...`, unchanged but for the look-up on the Hub
    python drive_accelerate.py ask REQUESTS       a JSON list of {"folder": ...} -> a JSON list of bytes of "Training using Adam", float16

The command asks the Hub whether the model exists and which library it is of, even for a folder. That one function is replaced: nothing
is fetched, and what its network round trip would take is not in the timing.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

from accelerate.commands import estimate


def local(repo: str, token: str | None = None) -> SimpleNamespace:  # noqa: ARG001
    """What the Hub says of a plain transformers model."""
    return SimpleNamespace(library_name="transformers", config={})


estimate.verify_on_hub = local

if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.argv = ["accelerate-estimate-memory", *sys.argv[2:]]
        estimate.main()
    else:
        requests = json.loads(Path(sys.argv[2]).read_text())
        answers = {}
        for folder in {request["folder"] for request in requests}:
            args = Namespace(model_name=folder, library_name="transformers", trust_remote_code=False, dtypes=["float16"])
            (row,) = estimate.gather_data(args)
            answers[folder] = {"bytes": max(row[3].values())}
        print("\nANSWERS " + json.dumps([answers[request["folder"]] for request in requests]))  # it writes to stdout too
