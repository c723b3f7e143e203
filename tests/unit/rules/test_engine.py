"""Outcomes of rules: Kleene's logic over facts."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.rules.engine import fill, is_fragment, judge, shown
from llmcheck.rules.facts import Fact, FactKind, Facts, Location, Registry, Subject
from llmcheck.rules.rule import Affects, Condition, Escalation, Event, Fix, Rule

TODAY = date(2026, 11, 24)
TYPES = {
    "a.int": "int",
    "a.other": "int",
    "a.str": "str",
    "a.list": "list[str]",
    "a.flag": "bool",
    "a.version": "version",
    "a.size_bytes": "int",
}
REGISTRY = Registry(
    kinds={name: FactKind(name=name, type=kind, subject="a", doc="") for name, kind in TYPES.items()},  # type: ignore[arg-type]
    wildcards=(FactKind(name="pkg.*", type="version", subject="packages", doc=""),),
    subjects={"a": Subject(id="a", title="A", flag="--a"), "packages": Subject(id="packages", title="packages", flag="")},
)


def rule(**fields: Any) -> Rule:
    given: dict[str, Any] = {"code": "XX001", "name": "x", "title": "X", "status": "stable", "severity": "error", "confidence": "high"}
    return Rule(**{**given, **fields})


def facts(known: dict[str, Any], *subjects: str, absent: tuple[str, ...] = ()) -> Facts:
    result = Facts()
    for name, value in known.items():
        result.put(name, value)
    for name in absent:
        result.absent(name)
    result.examined(*(subjects or ("a", "packages")))
    return result


def when(left: str, op: Any, right: Any) -> Rule:
    return rule(when=(Condition(left=left, op=op, right=right),))


@pytest.mark.parametrize(
    ("condition", "known", "outcome"),
    [
        (("a.int", ">", 1), {"a.int": 2}, "fail"),
        (("a.int", ">", 1), {"a.int": 1}, "pass"),
        (("a.int", ">", 1), {}, "unknown"),
        (("a.int", ">", 1), {"a.int": None}, "pass"),  # absent: the comparison is false
        (("a.int", "!=", 1), {"a.int": None}, "pass"),
        (("a.int", "present", True), {"a.int": None}, "pass"),
        (("a.int", "present", False), {"a.int": None}, "fail"),
        (("a.int", "present", False), {"a.int": 0}, "pass"),
        (("a.int", "==", "$a.other"), {"a.int": 2, "a.other": 2}, "fail"),
        (("a.int", "==", "$a.other"), {"a.int": 2}, "unknown"),
        (("a.int", "==", "$a.other"), {"a.int": 2, "a.other": None}, "pass"),
        (("a.str", "==", "$$HOME"), {"a.str": "$HOME"}, "fail"),
        (("a.str", "in", ["x", "y"]), {"a.str": "y"}, "fail"),
        (("a.str", "not in", ["x", "y"]), {"a.str": "y"}, "pass"),
        (("a.str", "contains", "ell"), {"a.str": "hello"}, "fail"),
        (("a.list", "contains", "q_proj"), {"a.list": ["q_proj"]}, "fail"),
        (("a.list", "not contains", "q_proj"), {"a.list": ["v_proj"]}, "fail"),
        (("a.str", "matches", r"^LLaMA"), {"a.str": "LLaMATokenizer"}, "fail"),
        (("a.flag", "==", True), {"a.flag": 1}, "pass"),  # 1 is not true in a configuration
        (("a.version", "<", "2.10"), {"a.version": "2.9"}, "fail"),  # as versions, not as texts
        (("a.version", "<", "2.10"), {"a.version": "nightly"}, "unknown"),
        (("a.int", ">", 1), {"a.int": "two"}, "unknown"),  # of the wrong type: not comparable is not passed
    ],
)
def test_comparison(condition: tuple[str, str, Any], known: dict[str, Any], outcome: str) -> None:
    assert judge(when(*condition), facts(known), REGISTRY, TODAY).outcome == outcome


def test_false_beats_unknown() -> None:
    both = rule(when=(Condition(left="a.int", op=">", right=1), Condition(left="a.other", op=">", right=1)))
    assert judge(both, facts({"a.other": 0}), REGISTRY, TODAY).outcome == "pass"


def test_any_holds_where_one_does_even_beside_an_unknown() -> None:
    either = rule(when=(Condition(any=(Condition(left="a.int", op=">", right=1), Condition(left="a.other", op=">", right=1))),))
    assert judge(either, facts({"a.other": 5}), REGISTRY, TODAY).outcome == "fail"
    assert judge(either, facts({"a.other": 0}), REGISTRY, TODAY).outcome == "unknown"


def test_needs_that_do_not_hold_skip() -> None:
    needy = rule(needs=(Condition(left="a.flag", op="==", right=True),), when=(Condition(left="a.int", op=">", right=1),))
    result = judge(needy, facts({"a.flag": False, "a.int": 9}), REGISTRY, TODAY)
    assert (result.outcome, result.reason) == ("skip", "does not apply")


def test_a_subject_that_nobody_gave_is_skipped_and_named() -> None:
    result = judge(when("a.int", ">", 1), facts({}, "packages"), REGISTRY, TODAY)
    assert (result.outcome, result.reason) == ("skip", "not examined: a")


def test_a_subject_that_nobody_gave_skips_also_beside_what_is_unknown() -> None:
    both = rule(affects=(Affects(package="peft", events=(Event(introduced="0"),)),), when=(Condition(left="a.int", op=">", right=1),))
    result = judge(both, facts({}, "packages"), REGISTRY, TODAY)
    assert (result.outcome, result.reason) == ("skip", "not examined: a")


def test_unknown_names_what_is_missing_and_why() -> None:
    given_facts = facts({})
    given_facts.could_not("a.*", "the file is unreadable")
    assert judge(when("a.int", ">", 1), given_facts, REGISTRY, TODAY).missing == (("a.int", "the file is unreadable"),)


BAD_PEFT = Affects(package="peft", events=(Event(introduced="0.16"), Event(fixed="0.18")))
NEW_TRANSFORMERS = Affects(package="transformers", events=(Event(introduced="5.0.0"),))


@pytest.mark.parametrize(
    ("known", "absent", "outcome"),
    [
        ({"pkg.peft": "0.17.1", "pkg.transformers": "5.1.0"}, (), "fail"),
        ({"pkg.peft": "0.17.1", "pkg.transformers": "4.57.0"}, (), "pass"),
        ({"pkg.peft": "0.18.0", "pkg.transformers": "5.1.0"}, (), "pass"),
        ({"pkg.transformers": "5.1.0"}, ("pkg.peft",), "skip"),
        ({"pkg.transformers": "5.1.0"}, (), "unknown"),
        ({"pkg.peft": "0.18.0.dev0", "pkg.transformers": "5.1.0"}, (), "unknown"),
    ],
)
def test_coupling_of_two_packages(known: dict[str, Any], absent: tuple[str, ...], outcome: str) -> None:
    coupling = rule(affects=(BAD_PEFT, NEW_TRANSFORMERS))
    assert judge(coupling, facts(known, absent=absent), REGISTRY, TODAY).outcome == outcome


def test_a_package_that_should_be_there() -> None:
    missing = rule(affects=(NEW_TRANSFORMERS, Affects(package="accelerate", absent=True)))
    assert judge(missing, facts({"pkg.transformers": "5.1.0"}, absent=("pkg.accelerate",)), REGISTRY, TODAY).outcome == "fail"
    assert judge(missing, facts({"pkg.transformers": "5.1.0", "pkg.accelerate": "1.0"}), REGISTRY, TODAY).outcome == "pass"


LEVELS = rule(
    level=(
        Escalation(severity="error", confidence="high", when=(Condition(left="a.int", op=">", right=100),)),
        Escalation(severity="warning", confidence="medium", when=(Condition(left="a.int", op=">", right=10),)),
    )
)


@pytest.mark.parametrize(
    ("value", "told"), [(101, ("fail", "error", "high")), (11, ("fail", "warning", "medium")), (10, ("pass", "error", "high"))]
)
def test_first_level_that_holds(value: int, told: tuple[str, str, str]) -> None:
    result = judge(LEVELS, facts({"a.int": value}), REGISTRY, TODAY)
    assert (result.outcome, result.severity, result.confidence) == told


def test_an_overdue_review_lowers_the_confidence() -> None:
    old = rule(when=(Condition(left="a.int", op=">", right=1),), review_by=date(2026, 1, 1))
    assert judge(old, facts({"a.int": 2}), REGISTRY, TODAY).confidence == "medium"


def test_a_withdrawn_rule_is_skipped() -> None:
    old = rule(when=(Condition(left="a.int", op=">", right=1),), until=date(2026, 1, 1))
    assert judge(old, facts({"a.int": 2}), REGISTRY, TODAY).outcome == "skip"


def test_message_shows_facts_and_sizes() -> None:
    told = rule(when=(Condition(left="a.int", op=">", right=1),), message="{a.int} of {a.size_bytes}, {a.str}, {pkg.torch}")
    message = judge(told, facts({"a.int": 2, "a.size_bytes": 3 << 30, "a.str": None}), REGISTRY, TODAY).message
    assert message == "2 of 3.00 GiB, (none), (unknown)"


def test_templates_reach_no_attributes() -> None:
    assert fill("{a.__class__} {0} {a!r} {a[0]}", lambda name: "X") == "X {0} {a!r} {a[0]}"


def test_location_is_where_the_first_fact_was_read() -> None:
    given_facts = facts({"a.int": 2})
    given_facts.put("a.int", 2, Location(uri="config.json", line=3))
    assert judge(when("a.int", ">", 1), given_facts, REGISTRY, TODAY).location == Location(uri="config.json", line=3)


def test_names_of_a_closed_group_are_absent() -> None:
    given_facts = facts({})
    given_facts.close("pkg.")
    assert judge(rule(affects=(Affects(package="accelerate", absent=True),)), given_facts, REGISTRY, TODAY).outcome == "fail"


@given(st.dictionaries(st.sampled_from(["a.int", "a.other"]), st.integers(0, 20)), st.integers(0, 20), st.integers(0, 20))
def test_more_facts_never_turn_a_decided_outcome(known: dict[str, int], one: int, two: int) -> None:
    """Unknown may become anything; pass and fail stay."""
    judged = rule(when=(Condition(left="a.int", op=">", right=10), Condition(left="a.other", op="<", right=5)))
    before = judge(judged, facts(known), REGISTRY, TODAY).outcome
    after = judge(judged, facts({"a.int": one, "a.other": two, **known}), REGISTRY, TODAY).outcome
    assert before in ("unknown", after)


def test_what_a_requirements_file_does_not_name_is_skipped_and_what_it_does_not_pin_is_unknown() -> None:
    coupling = rule(affects=(BAD_PEFT, NEW_TRANSFORMERS))
    named = facts({"pkg.transformers": "5.1.0"})
    named.leave_open("pkg.", "not in requirements.txt")
    result = judge(coupling, named, REGISTRY, TODAY)
    assert (result.outcome, result.reason) == ("skip", "not in requirements.txt")
    named.could_not("pkg.peft", "not pinned")
    assert judge(coupling, named, REGISTRY, TODAY).outcome == "unknown"


def test_a_fix_names_the_facts_too() -> None:
    told = rule(when=(Condition(left="a.int", op=">", right=1),), fix=(Fix(kind="edit", text="make {a.int} smaller"),))
    assert judge(told, facts({"a.int": 2}), REGISTRY, TODAY).fix == (Fix(kind="edit", text="make 2 smaller"),)


@pytest.mark.parametrize(
    ("template", "fragment"),
    [
        ("{cap.what}", True),
        ("missing: {model.missing_shards}", True),
        ("NCCL_TIMEOUT={env.NCCL_TIMEOUT}", True),
        ("{cap.lib} was not found", False),
        ("no eos_token", False),
        ("transformers {pkg.transformers} was withdrawn by its project", False),
    ],
)
def test_a_message_that_is_no_more_than_a_value_is_a_fragment(template: str, fragment: bool) -> None:
    assert is_fragment(template) == fragment


def test_an_empty_text_leaves_no_hole_in_a_sentence() -> None:
    assert shown("tok.eos_token", Fact(value="")) == '""'
    assert shown("tok.tokens", Fact(value=["", "<s>"])) == '"", <s>'
