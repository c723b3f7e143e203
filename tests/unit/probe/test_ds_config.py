from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck.dsconfig.fields import TOP
from llmcheck.errors import UserError
from llmcheck.probe import ds_config
from llmcheck.probe.key_lines import key_lines
from llmcheck.rules.facts import ABSENT, Facts, load_registry
from llmcheck.rules.load import load_shipped

REGISTRY = load_registry()


def read(tmp_path: Path, config: Any) -> Facts:
    file = tmp_path / "ds.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return ds_config.facts(str(file))


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"ds.{name}")
    return None if fact is None else fact.value


def line(facts: Facts, name: str) -> int | None:
    fact = facts.get(f"ds.{name}")
    return None if fact is None or fact.location is None else fact.location.line


def test_every_key_has_its_value_and_line(tmp_path: Path) -> None:
    facts = read(tmp_path, '{\n"train_batch_size": 8,\n"optimizer": {\n  "type": "AdamW",\n  "params": {"lr": "auto"}}}')
    assert (value(facts, "train_batch_size"), line(facts, "train_batch_size")) == (8, 2)
    assert (value(facts, "optimizer.params.lr"), line(facts, "optimizer.params.lr")) == ("auto", 5)
    assert value(facts, "optimizer") == ["params", "type"]


def test_what_is_not_written_is_absent(tmp_path: Path) -> None:
    facts = read(tmp_path, {"train_batch_size": 8})
    assert value(facts, "scheduler") is ABSENT
    assert facts.subjects == {"ds_config"}


def test_a_key_with_dots_is_no_path(tmp_path: Path) -> None:
    facts = read(tmp_path, {"train_batch_size": 8, "zero_optimization.stage": 3})
    assert value(facts, "zero_optimization.stage") is ABSENT
    assert value(facts, "zero_stage") == 0
    assert value(facts, "unknown_keys") is not ABSENT


def test_unknown_keys_come_with_what_was_meant(tmp_path: Path) -> None:
    facts = read(tmp_path, '{"train_batch_size": 8,\n "zero_optimisation": {}}')
    assert value(facts, "unknown_keys") == ["zero_optimisation (did you mean 'zero_optimization'?)"]
    assert line(facts, "unknown_keys") == 2


def test_second_names_are_the_first_ones_too(tmp_path: Path) -> None:
    facts = read(tmp_path, {"zero_optimization": {"stage": 3, "max_live_parameters": 0}, "bfloat16": {"enabled": True}})
    assert value(facts, "zero_optimization.stage3_max_live_parameters") == 0
    assert value(facts, "bf16.enabled") is True
    assert value(facts, "precision") == "bf16"
    assert value(facts, "stage3_zeros") == ["zero_optimization.max_live_parameters"]
    assert value(facts, "deprecated_keys") == ["bfloat16"]


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 2, "cpu_offload": True}, (2, "cpu", "none")),
        ({"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}, (3, "none", "nvme")),
        (True, (1, "none", "none")),
        ({}, (0, "none", "none")),
    ],
)
def test_stage_and_offload_as_they_take_effect(tmp_path: Path, zero: Any, expected: tuple[Any, ...]) -> None:
    facts = read(tmp_path, {"train_batch_size": 1, "zero_optimization": zero})
    names = ("zero_stage", "offload_optimizer_device", "offload_param_device")
    assert tuple(value(facts, name) for name in names) == expected


@pytest.mark.parametrize(
    ("total", "micro", "accum", "broken", "world"),
    [
        (32, 4, 2, False, 4),
        (32, 3, 2, True, ABSENT),
        (30, None, 4, True, ABSENT),
        (32, "auto", 2, False, ABSENT),
        (None, 4, 2, False, ABSENT),
    ],
)
def test_batch_identity(tmp_path: Path, total: Any, micro: Any, accum: Any, broken: bool, world: Any) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config = {name: number for name, number in zip(names, (total, micro, accum), strict=True) if number is not None}
    facts = read(tmp_path, config)
    assert (value(facts, "batch_identity_broken"), value(facts, "world_size_implied")) == (broken, world)


def test_a_wrong_value_makes_what_depends_on_it_unknown(tmp_path: Path) -> None:
    facts = read(tmp_path, {"zero_optimization": {"stage": "3"}})
    assert value(facts, "wrong_values") == ["zero_optimization.stage: needs a whole number, not '3' (write it without quotes)"]
    assert facts.get("ds.zero_stage") is None
    assert facts.why_unknown("ds.conflicts") is not None


def test_limits_of_our_plans_are_no_conflicts(tmp_path: Path) -> None:
    facts = read(tmp_path, {"train_batch_size": 8, "sequence_parallel_size": 2, "optimizer": {"type": "Lion"}})
    assert value(facts, "conflicts") is ABSENT


def test_conflicts_are_deepspeeds_own(tmp_path: Path) -> None:
    facts = read(tmp_path, {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}})
    assert [text.split(":")[0] for text in value(facts, "conflicts")] == ["zero_optimization.offload_optimizer"]


def test_comments_are_read_and_told(tmp_path: Path) -> None:
    facts = read(tmp_path, '{ // a batch\n "train_batch_size": 8, }')
    assert (value(facts, "strict_json"), line(facts, "train_batch_size")) == (False, 2)
    assert value(read(tmp_path, {"train_batch_size": 8}), "strict_json") is True


def test_auto_is_listed_save_where_it_is_deepspeeds_own(tmp_path: Path) -> None:
    config = {
        "train_batch_size": "auto",
        "data_types": {"keep_in_fp32_modules": "auto"},
        "optimizer": {"type": "Adam", "params": {"lr": "auto"}},
    }
    assert value(read(tmp_path, config), "auto_keys") == ["train_batch_size", "optimizer.params.lr"]


def test_the_largest_keys_of_a_lower_stage_are_ignored(tmp_path: Path) -> None:
    facts = read(tmp_path, {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1e9, "overlap_comm": True}})
    assert value(facts, "ignored_keys") == ["zero_optimization.stage3_max_live_parameters"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "\x00", "compute_environment: LOCAL\n", '{"a":' * 3000])
def test_what_is_no_configuration_is_the_users_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        read(tmp_path, text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8) | st.just("auto"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
_KEYS = st.sampled_from(
    [
        "train_batch_size",
        "zero_optimization",
        "bf16",
        "fp16",
        "bfloat16",
        "optimizer",
        "scheduler",
        "amp",
        "stage",
        "enabled",
        "cpu_offload",
        "x.y",
    ]
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=150)
@given(config=st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON, max_size=3), max_size=5))
def test_no_configuration_breaks_it_and_every_fact_is_registered(tmp_path: Path, config: dict[str, Any]) -> None:
    facts = read(tmp_path, config)
    assert [name for name in (*facts.known, *facts.unreadable) if REGISTRY.kind(name) is None] == []


@given(config=st.dictionaries(st.text(max_size=6), _JSON, max_size=4))
def test_key_lines_agree_with_the_document(config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=1)
    lines = key_lines(text)
    assert {path[0] for path in lines} == set(config)
    for path, number in lines.items():
        assert json.dumps(path[-1]) in text.splitlines()[number - 1]


def test_rules_name_only_keys_that_deepspeed_has() -> None:
    (pack,) = load_shipped(REGISTRY, ["configuration"])
    names = {name for rule in pack.rules for name in rule.facts() if name.startswith("ds.") and name not in REGISTRY.kinds}
    wrong = []
    for name in sorted(names):
        spec: Any = TOP
        for key in name.split(".")[1:]:
            spec = spec.get(key) if isinstance(spec, dict) else spec if spec.kind in ("dict", "any") else None
        wrong += [name] if spec is None else []
    assert wrong == []
