"""What the harness of a measured row did otherwise than today's trainers do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.accuracy.rows import Row
from llmcheck.shadow import quant, run


@contextmanager
def harness_of(row: Row) -> Iterator[None]:
    """The simulation as of the harness that measured `row`.

    The campaign's brought the weights of a QLoRA model in the order of construction (as its trace shows, ``tests/golden/traces``);
    transformers' loader, with which the trainer and the drawn runs load, brings them in the order of their names.
    """
    if row.group != "campaign" or row.recipe.method != "qlora":
        yield
        return
    forget()
    quant.BY_NAME = False
    try:
        yield
    finally:
        quant.BY_NAME = True
        forget()


def forget() -> None:
    """Empty every cache of the simulation."""
    for cached in vars(run).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
