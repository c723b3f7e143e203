"""What rig.Ranks can be asked to do; runs on every rank."""

from __future__ import annotations

from typing import Any

from llmcheck.errors import UserError


def train(argv: list[str]) -> dict[str, Any]:
    """The trainer, without its process's end."""
    from llmcheck import planfile
    from llmcheck_trainer import loop, settings

    try:
        path, found = settings.parse(argv)
        return {"exit": loop.run(planfile.read(path), path, found), "code": None}
    except UserError as error:
        return {"exit": error.exit_code, "code": error.code, "what": error.what, "why": error.why, "hint": error.hint}
