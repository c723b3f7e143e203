"""Scores the signatures on a corpus of failures: ``python -m benchmarks.corpus.run [FILE] [--misses]``.

Prints the counts (and the rows that were missed), and writes ``benchmarks/results/corpus-DATE.md``, ``corpus-blind-DATE.md`` or
``corpus-unseen-DATE.md`` for the corpora of the tests.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.corpus.score import CORPUS, judge, load_rows, load_signatures, summary
from benchmarks.report import header, table, write
from llmcheck import __version__

DEV = CORPUS / "errors-dev.jsonl"
# The corpora of the tests: how the results file is called, its title, and the command that makes it.
TRACKED = {
    DEV: ("corpus", "Signatures on the corpus of failures", "python -m benchmarks.corpus.run"),
    CORPUS / "blind.jsonl": (
        "corpus-blind",
        "Signatures on the second corpus of failures",
        "python -m benchmarks.corpus.run tests/corpus/blind.jsonl",
    ),
    CORPUS / "unseen.jsonl": (
        "corpus-unseen",
        "Signatures on the third corpus of failures",
        "python -m benchmarks.corpus.run tests/corpus/unseen.jsonl",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    paths = [Path(word) for word in arguments if not word.startswith("--")]
    path = paths[0].resolve() if paths else DEV
    signatures = load_signatures()
    verdicts = [judge(row, signatures) for row in load_rows(path)]
    missed = [verdict for verdict in verdicts if (not verdict.is_right if verdict.row.cause else verdict.errors)]
    counts = table(("what", "rows", "of", "share"), summary(verdicts))
    misses = table(
        ("row", "family", "cause", "found instead"),
        [(v.row.id, v.row.family, v.row.cause or "none", ", ".join(c.group.rule.name for c in v.causes) or "nothing") for v in missed],
    )
    print("\n".join([*counts, *(misses if "--misses" in arguments else [])]))
    if path in TRACKED:
        name, title, command = TRACKED[path]
        rows = Counter(verdict.row.family for verdict in verdicts)
        right = Counter(v.row.family for v in verdicts if (v.is_right if v.row.cause else not v.errors))
        lines = header(title, command, [f"llmcheck {__version__}"])
        lines += [
            f"{len(signatures.rules)} signatures, {len(verdicts)} rows with a log.",
            "",
            *counts,
            "How honest this is: benchmarks/corpus/README.md.",
            "",
            "## Missed",
            "",
        ]
        lines += [*misses, "## By family", "", *table(("family", "rows", "right"), [(f, n, right[f]) for f, n in sorted(rows.items())])]
        print(write(name, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
