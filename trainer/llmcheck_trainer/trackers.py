"""Experiment trackers by the names that accelerate knows. The JSON lines log does not depend on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from llmcheck.errors import UserError, did_you_mean, first_line


def wanted(names: str) -> list[str]:
    """The names in `names` (with commas). Raises UserError for one that accelerate does not know, or that is not installed."""
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not found:
        return found
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(kind) for kind in get_available_trackers()}
    for name in found:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = [str(kind) for kind in LOGGER_TYPE_TO_CLASS]
            hint = did_you_mean(name, known) or "known: " + ", ".join(sorted(known))
            raise UserError(f"no tracker is called {name!r}", code="tracker", where="--trackers", hint=hint)
        if name not in available:
            raise UserError(f"the tracker {name} is not installed", code="missing-package", where="--trackers", hint=f"install {name}")
    return found


class Trackers:
    """The trackers named in `names` (with commas), on the rank that has a `config`. Raises UserError, on all ranks, for one that does not
    start. One that fails later is not told any more, with a warning: no run ends for want of it.
    """

    def __init__(self, names: str, output: str, config: dict[str, Any] | None) -> None:
        self.trackers: dict[str, Any] = {}
        asked = wanted(names)
        if not asked:
            return
        told: list[UserError | None] = [None]
        if config is not None:
            try:
                self._start(asked, output, config)
            except UserError as error:
                told = [error]
        dist.broadcast_object_list(told, src=0)
        if told[0] is not None:
            raise told[0]

    def _start(self, names: list[str], output: str, config: dict[str, Any]) -> None:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it which process they are in
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            try:
                tracker = kind("llmcheck", logging_dir=output) if kind.requires_logging_directory else kind("llmcheck")
                if hasattr(tracker, "start"):
                    tracker.start()
                tracker.store_init_configuration(config)
            except Exception as reason:  # each library has its own errors: no network, no login, no room
                raise UserError(
                    f"the tracker {name} does not start",
                    code="tracker",
                    where="--trackers",
                    why=first_line(reason),
                    hint=f"is {name} set up on this machine, and logged in? log.jsonl is written without it",
                ) from reason
            self.trackers[name] = tracker

    def log(self, values: dict[str, Any], step: int) -> None:
        """Hand numbers on."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._tell(lambda tracker: tracker.log(numbers, step=step))

    def finish(self) -> None:
        """Flush and close."""
        self._tell(lambda tracker: tracker.finish())

    def _tell(self, function: Callable[[Any], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                function(tracker)
            except Exception as reason:  # noqa: PERF203 - as above
                del self.trackers[name]
                sys.stderr.write(f"warning[tracker]: {name} is not told any more: {first_line(reason)}\n")
