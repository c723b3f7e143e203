from __future__ import annotations

import pytest

from llmcheck.catalog.models import all_models, find_model
from llmcheck.errors import UserError
from llmcheck.shadow import families
from llmcheck.shadow.families.base import Run, attention_kind

MODELLED = [entry.name for entry in all_models() if find_model(entry.name, allow_network=False).family in families.names()]


@pytest.mark.parametrize("name", MODELLED)
def test_the_number_of_parameters_is_that_of_transformers(name: str) -> None:
    model = find_model(name, allow_network=False)

    assert model.num_params == families.num_params(model.family, model.config)


def test_without_sdpa_transformers_runs_eager() -> None:
    assert attention_kind(Run(attention="sdpa"), "a model", sdpa=False) == "eager"


def test_flash_attention_that_a_model_lacks_is_an_error() -> None:
    with pytest.raises(UserError, match="FlashAttention"):
        attention_kind(Run(attention="flash"), "a model", flash=False)
