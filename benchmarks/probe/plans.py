"""Plan files of the cases, for a machine with a GPU: ``python -m benchmarks.probe.plans FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.probe.cases import cases
from llmcheck import planfile
from llmcheck.planner.evaluate import evaluate


def main(folder: Path) -> int:
    """Write ``NNN.json``, a plan for each case, and ``cases.json``, their lines, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, case in enumerate(cases()):
        plan = evaluate(case.model, case.recipe, case.cluster)
        planfile.write(str(folder / f"{number:03}.json"), planfile.document(plan), force=True)
        lines.append(case.raw)
    (folder / "cases.json").write_text(json.dumps(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
