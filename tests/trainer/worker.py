"""One rank of rig.Ranks: reads calls from stdin, one JSON line each, and answers on stdout."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from typing import Any

import jobs


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is not an answer
    for line in sys.stdin:
        name, args = json.loads(line)
        try:
            answer: dict[str, Any] = {"value": getattr(jobs, name)(*args)}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        gc.collect()
        answers.write("@answer " + json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
