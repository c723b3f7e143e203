"""What is left to say of a failure when the signatures that know it are taken away: ``python -m benchmarks.corpus.without``.

For each failure of the corpora the signatures of high and medium confidence that fired on its log are left out, and the log is judged by
the others. It is the nearest thing to a log that nobody has seen which can be counted on all of them.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.corpus.score import CORPUS, Row, Verdict, judge, load_rows, load_signatures
from benchmarks.report import table
from llmcheck.logs.match import ScanResult
from llmcheck.logs.scan import scan_text
from llmcheck.logs.signatures import Signatures

FILES = ("errors-dev.jsonl", "blind.jsonl", "unseen.jsonl")


def without_what_knows_it(row: Row, result: ScanResult, signatures: Signatures) -> Verdict:
    """The verdict of those `signatures` that are general, or did not fire in `result`, the scan of the row's log."""
    knowing = {group.rule.code for group in result.groups if group.rule.confidence != "low"}
    left = Signatures(rule for rule in (*signatures.rules, *signatures.places) if rule.code not in knowing)
    return judge(row, left)


def main() -> int:
    """Count and print."""
    signatures = load_signatures()
    counts: dict[str, Counter[str]] = {"all": Counter(), "with a traceback": Counter()}
    for row in (row for name in FILES for row in load_rows(CORPUS / name) if row.cause):
        result = scan_text(row.log, signatures)
        verdict = without_what_knows_it(row, result, signatures)
        log = verdict.first.group.rule.log if verdict.first is not None else None
        for kind in ("all", "with a traceback") if result.tracebacks else ("all",):
            counts[kind]["rows"] += 1
            counts[kind]["right"] += verdict.is_right
            counts[kind]["family"] += log is not None and log.family == row.family
            counts[kind]["nothing"] += log is None
    rows = [(kind, n["rows"], *(f"{n[what] / n['rows']:.1%}" for what in ("right", "family", "nothing"))) for kind, n in counts.items()]
    print("\n".join(table(("failures", "rows", "right cause first", "right family first", "nothing found"), rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
