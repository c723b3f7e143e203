from __future__ import annotations

from typing import Any

import pytest

from llmcheck.probe import related
from llmcheck.rules.facts import ABSENT, Facts


def known(values: dict[str, Any], *closed: str, subjects: tuple[str, ...] = ("training", "ds_config", "model", "launcher")) -> Facts:
    facts = Facts()
    facts.examined(*subjects)
    for name, value in values.items():
        facts.put(name, value)
    for prefix in closed:
        facts.close(prefix)
    return facts


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"train.{name}")
    return None if fact is None else fact.value


HF = {"train.framework": "transformers"}


def test_a_default_counts_as_a_value() -> None:
    facts = related.facts(known({**HF, "ds.train_micro_batch_size_per_gpu": 4}, "train.", "ds."))
    assert value(facts, "ds_mismatches") == ["train_micro_batch_size_per_gpu 4, per_device_train_batch_size 8 (its default)"]


@pytest.mark.parametrize(
    ("ds", "train"),
    [
        ({"ds.gradient_clipping": "auto"}, {"train.max_grad_norm": 0.5}),
        ({"ds.gradient_clipping": 1.0}, {"train.max_grad_norm": 1}),
        ({"ds.gradient_clipping": 1.0}, {}),
        ({"ds.bf16.enabled": True}, {"train.bf16": True}),
        ({"ds.bf16.enabled": True}, {"train.bf16": "auto"}),
        ({}, {}),
    ],
)
def test_what_agrees(ds: dict[str, Any], train: dict[str, Any]) -> None:
    assert value(related.facts(known({**HF, **ds, **train}, "train.", "ds.")), "ds_mismatches") is ABSENT


def test_a_mismatch_of_flags() -> None:
    facts = related.facts(known({**HF, "ds.bf16.enabled": True, "train.fp16": True}, "train.", "ds."))
    assert value(facts, "ds_mismatches") == ["bf16.enabled true, bf16 false (its default)"]


def test_arguments_that_are_not_known_leave_it_open() -> None:
    facts = related.facts(known({**HF, "ds.gradient_clipping": 0.3}, "ds."))
    assert facts.get("train.ds_mismatches") is None
    assert facts.why_unknown("train.ds_mismatches") is not None


def test_a_trainer_that_compares_nothing() -> None:
    facts = related.facts(known({"train.framework": "belle-v1", "ds.gradient_clipping": 0.3}, "train.", "ds."))
    assert value(facts, "ds_mismatches") is ABSENT


@pytest.mark.parametrize(
    ("family", "targets", "missing", "none"),
    [
        ("llama", ["q_proj", "v_proj"], ABSENT, False),
        ("bloom", ["q_proj", "v_proj"], ["q_proj", "v_proj"], True),
        ("bloom", ["query_key_value", "gate_proj"], ["gate_proj"], False),
        ("llama", ["all-linear"], ABSENT, False),
        ("llama", ["model.layers.3.self_attn.q_proj", "lm_head"], ABSENT, False),
    ],
)
def test_lora_targets(family: str, targets: list[str], missing: Any, none: bool) -> None:
    facts = related.facts(known({"model.model_type": family, "train.lora_target_modules": targets}))
    assert (value(facts, "lora_targets_missing"), value(facts, "lora_targets_none_match")) == (missing, none)


@pytest.mark.parametrize(("family", "targets"), [("no-such-family", ["q_proj"]), ("llama", [".*_proj"])])
def test_lora_targets_that_cannot_be_told(family: str, targets: list[str]) -> None:
    facts = related.facts(known({"model.model_type": family, "train.lora_target_modules": targets}))
    assert facts.get("train.lora_targets_none_match") is None


def test_the_global_batch() -> None:
    facts = related.facts(known({"train.per_device_train_batch_size": 2, "launcher.num_processes": 8}, "train."))
    assert value(facts, "global_batch_size") == 16
    assert value(related.facts(known({}, "train.", subjects=("training",))), "global_batch_size") is ABSENT
    assert related.facts(known({}, "train.")).get("train.global_batch_size") is None


def test_nothing_without_training_arguments() -> None:
    assert related.facts(known({"ds.gradient_clipping": 0.3}, subjects=("ds_config",))).known == {}
