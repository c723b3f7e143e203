"""The shipped packs by their own examples, and what must be in them."""

from __future__ import annotations

from datetime import date

import pytest

from llmcheck.rulecheck.examples import run_examples
from llmcheck.rulecheck.lint import lint
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_all
from llmcheck.rules.rule import Pack

REGISTRY = load_registry()
PACKS = load_all(REGISTRY, examples=True)
TODAY = date.today()


def test_nothing_to_complain_of() -> None:
    assert [f"{c.code}: {c.text}" for c in lint(PACKS, REGISTRY, TODAY) if c.grave] == []


def test_every_example_has_its_outcome_and_no_signature_steals() -> None:
    assert [f"{f.code}[{f.index}]: {f.text}" for f in run_examples(PACKS, REGISTRY, TODAY)] == []


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.id)
def test_every_fact_is_documented(pack: Pack) -> None:
    assert [name for rule in pack.rules for name in rule.facts() if not (kind := REGISTRY.kind(name)) or not kind.doc] == []
