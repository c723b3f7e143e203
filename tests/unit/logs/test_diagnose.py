from __future__ import annotations

from typing import Any

import pytest

from benchmarks.logs.samples import find, signature
from llmcheck.logs.diagnose import Diagnosis, diagnose, spans
from llmcheck.logs.match import ScanResult
from llmcheck.logs.scan import scan_text
from llmcheck.logs.signatures import Signatures
from llmcheck.rules.rule import Rule


def rule(word: str, role: str = "root", **more: Any) -> Rule:
    return signature(word.upper(), word, word, role=role, **more)


def shape(diagnosis: Diagnosis) -> list[tuple[str, list[str], list[str]]]:
    return [
        (cause.group.rule.code, [group.rule.code for group in cause.effects], [group.rule.code for group in cause.context])
        for cause in diagnosis.causes
    ]


def of(text: str, *rules: Rule) -> Diagnosis:
    return diagnose([find(text, *rules)])


def test_a_cascade_is_told_under_the_root_before_it() -> None:
    assert shape(of("early\nlate\n", rule("late", "cascade"), rule("early"))) == [("EARLY", ["LATE"], [])]


def test_a_root_that_comes_later_still_explains() -> None:
    assert shape(of("effect\ncause\n", rule("effect", "cascade"), rule("cause"))) == [("CAUSE", ["EFFECT"], [])]


def test_the_nearest_root_before_it_explains() -> None:
    rules = (rule("first"), rule("second"), rule("third"), rule("effect", "cascade"))
    assert shape(of("first\nsecond\neffect\nthird\n", *rules)) == [("FIRST", [], []), ("SECOND", ["EFFECT"], []), ("THIRD", [], [])]


def test_a_root_that_the_cascade_names_beats_a_nearer_one() -> None:
    rules = (rule("far", cause="slow-save"), rule("near"), rule("effect", "cascade", candidates=("slow-save",)))
    assert shape(of("far\nnear\neffect\n", *rules)) == [("FAR", ["EFFECT"], []), ("NEAR", [], [])]


def test_a_root_of_the_cascades_family_beats_a_nearer_one() -> None:
    rules = (rule("far", family="nccl"), rule("near", family="data"), rule("effect", "cascade", family="nccl"))
    assert shape(of("far\nnear\neffect\n", *rules)) == [("FAR", ["EFFECT"], []), ("NEAR", [], [])]


def test_a_warning_does_not_explain_an_error_away() -> None:
    rules = (rule("warned", severity="warning"), rule("effect", "cascade"))
    assert shape(of("warned\neffect\n", *rules)) == [("WARNED", [], []), ("EFFECT", [], [])]


def test_a_cascade_without_a_root_is_told_with_its_candidates() -> None:
    (cause,) = of("effect\n", rule("effect", "cascade", cause="rank-desync", candidates=("slow-save", "dead-peer"))).causes
    assert cause.candidates == ("rank-desync", "slow-save", "dead-peer")


def test_causes_are_ordered_by_severity_confidence_and_time() -> None:
    rules = (rule("aaaa", severity="warning"), rule("bbbb", confidence="low"), rule("cccc"), rule("dddd"))
    assert [code for code, _, _ in shape(of("aaaa\nbbbb\ndddd\ncccc\n", *rules))] == ["DDDD", "CCCC", "BBBB", "AAAA"]


def test_context_stands_beside_the_cause_of_its_family() -> None:
    rules = (rule("cause", family="nccl"), rule("note", "context", family="nccl"), rule("other", "context", family="disk"))
    diagnosis = of("note\ncause\nother\n", *rules)
    assert (shape(diagnosis), [group.rule.code for group in diagnosis.context]) == ([("CAUSE", [], ["NOTE"])], ["OTHER"])


CRASH = 'Traceback (most recent call last):\n  File "a.py", line 1, in main\nValueError: x\n'


def test_where_nothing_matches_the_last_exception_is_given() -> None:
    diagnosis = of(CRASH, rule("cause"))
    assert diagnosis.exception is not None
    assert (diagnosis.causes, diagnosis.exception.last.cause.type) == ((), "ValueError")


def test_where_a_root_is_known_the_exception_is_not_repeated() -> None:
    assert of("cause\n" + CRASH, rule("cause")).exception is None


def test_where_only_an_effect_is_known_the_exception_is_given() -> None:
    assert of("effect\n" + CRASH, rule("effect", "cascade")).exception is not None


def test_a_messenger_is_no_exception_to_show_beside_an_effect() -> None:
    crash = CRASH.replace("ValueError: x", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:")
    assert of("effect\n" + crash, rule("effect", "cascade")).exception is None
    assert of(crash, rule("effect", "cascade")).exception is not None


def test_an_unsure_effect_stands_under_a_surer_one_where_no_root_is_known() -> None:
    rules = (rule("sure", "cascade"), rule("unsure", "cascade", confidence="low"), rule("other", "cascade"))
    assert shape(of("unsure\nsure\nother\n", *rules)) == [("SURE", ["UNSURE"], []), ("OTHER", [], [])]


def test_a_general_signature_is_not_told_of_a_line_that_an_exact_one_knows() -> None:
    general, exact = rule("general", confidence="low"), rule("exact")
    assert shape(of("general exact\n", general, exact)) == [("EXACT", [], [])]
    assert shape(of("general exact\ngeneral alone\n", general, exact)) == [("EXACT", [], []), ("GENERAL", [], [])]
    assert shape(of("general alone\n", general, exact)) == [("GENERAL", [], [])]


def test_a_clean_log_has_no_diagnosis() -> None:
    assert of("step 1\n", rule("cause")) == Diagnosis(num_lines=1, num_bytes=7)


def scans(**texts: str) -> list[ScanResult]:
    signatures = Signatures([rule("cause"), rule("effect", "cascade")], "python")
    return [scan_text(text, signatures, name) for name, text in texts.items()]


def test_logs_of_several_ranks_are_one_run() -> None:
    diagnosis = diagnose(scans(a="[rank0]: effect\n", b="[rank1]: cause\n[rank1]: effect\n"))
    assert shape(diagnosis) == [("CAUSE", ["EFFECT"], [])]
    (effect,) = diagnosis.causes[0].effects
    assert (effect.count, effect.ranks, effect.first.source) == (2, {0: 1, 1: 1}, "a")


def test_merging_leaves_the_scans_as_they_were() -> None:
    results = scans(a="cause\n", b="cause\n")
    diagnose(results)
    assert [result.groups[0].count for result in results] == [1, 1]


@pytest.mark.parametrize(
    ("ranks", "text"), [([], ""), ([None], ""), ([3], "3"), ([0, 1, 2, 3, 6], "0-3, 6"), ([7, 5, None, 6, 1], "1, 5-7")]
)
def test_ranks_are_written_as_spans(ranks: list[int | None], text: str) -> None:
    assert spans(ranks) == text
