"""Experiment trackers by the names that accelerate knows. The JSON lines log does not depend on them."""

from __future__ import annotations

from typing import Any

from llmcheck.errors import UserError, did_you_mean


class Trackers:
    """The trackers named in `names` (with commas), on the rank that has a `config`. Raises UserError on all."""

    def __init__(self, names: str, output: str, config: dict[str, Any] | None) -> None:
        self.trackers: list[Any] = []
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if not wanted:
            return
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        available = {str(kind) for kind in get_available_trackers()}
        for name in wanted:
            if name not in LOGGER_TYPE_TO_CLASS:
                known = [str(kind) for kind in LOGGER_TYPE_TO_CLASS]
                hint = did_you_mean(name, known) or "known: " + ", ".join(sorted(known))
                raise UserError(f"no tracker is called {name!r}", code="tracker", where="--trackers", hint=hint)
            if name not in available:
                raise UserError(f"the tracker {name} is not installed", code="missing-package", where="--trackers", hint=f"install {name}")
        if config is None:
            return
        PartialState()  # accelerate's trackers ask it which process they are in
        for name in wanted:
            kind = LOGGER_TYPE_TO_CLASS[name]
            tracker = kind("llmcheck", logging_dir=output) if kind.requires_logging_directory else kind("llmcheck")
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(config)
            self.trackers.append(tracker)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Hand numbers on."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        for tracker in self.trackers:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self.trackers:
            tracker.finish()
