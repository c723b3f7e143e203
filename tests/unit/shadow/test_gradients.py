"""Every trainable parameter takes part: of each family, with each loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcheck.catalog.config import spec_of_config
from llmcheck.shadow import families
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.families.base import Config, Run
from llmcheck.shadow.module import Build
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Tensor

SMALL: dict[str, Any] = json.loads((Path(__file__).parents[3] / "benchmarks" / "oracle" / "families.json").read_text())


def _cases() -> list[Any]:
    out = []
    for name in sorted(SMALL):
        for loss in ("hf", "chunked"):
            out.append(pytest.param(name, loss, id=f"{name}-{loss}"))
    return out


@pytest.mark.parametrize(("name", "loss"), _cases())
def test_every_parameter_has_a_gradient_of_its_shape(name: str, loss: str) -> None:
    raw = SMALL[name]
    spec = spec_of_config({"model_type": raw["family"], **raw["config"]}, name=name, source="tests", where=name)
    family = families.get(spec.family)
    assert family is not None
    cur.reset(Tape())
    try:
        model = family.build(Build(2), Config(spec.config), Run(loss=loss))
        ids = Tensor((2, 40), 8)
        backward(model(ids, Tensor((2, 40), 8), ids)[0])
        found = {name: None if p.grad is None else p.grad.shape for name, p in model.named_parameters()}
        expected = {name: p.shape for name, p in model.named_parameters()}
    finally:
        cur.reset(Tape())

    assert expected == found
