"""One model of the catalogue for every family that is modelled: a family without one is seen here."""

from __future__ import annotations

import pytest

from llmcheck.catalog.models import CatalogEntry, all_models, find_model
from llmcheck.shadow import families


def _smallest(family: str) -> CatalogEntry | None:
    found = [entry for entry in all_models() if entry.family == family]
    return min(found, key=lambda entry: entry.num_params) if found else None


@pytest.mark.parametrize("family", families.names())
def test_the_parameters_of_a_model_of_the_catalogue_are_counted(family: str) -> None:
    entry = _smallest(family)
    if entry is None:
        pytest.skip(f"the catalogue has no model of the family {family}")
    model = find_model(entry.name, allow_network=False)

    # the catalogue's number was counted by transformers (tests/unit/catalog/test_models_data.py)
    assert entry.num_params == families.num_params(family, model.config)
