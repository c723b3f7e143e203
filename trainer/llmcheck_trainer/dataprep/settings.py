"""What a preparation is asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from llmcheck.errors import UserError

RowFormat = Literal["auto", "alpaca", "sharegpt", "belle", "messages", "text"]
TooLong = Literal["truncate", "drop"]
Fast = Literal["auto", "off", "require"]

ROW_FORMATS: tuple[str, ...] = get_args(RowFormat)
AUTO_TEMPLATE = "auto"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One preparation. `files` and `tokenizer` are paths or Hub names; `max_bad` rows may be unreadable (None: half of them)."""

    files: tuple[str, ...]
    tokenizer: str
    seq_len: int
    out: str
    template: str = AUTO_TEMPLATE
    format: RowFormat = "auto"
    too_long: TooLong = "truncate"
    max_bad: int | None = None
    pad_token: str | None = None
    fast: Fast = "auto"
    date: str = ""  # what a chat template takes for today, YYYY-MM-DD


def from_json(text: str) -> Settings:
    """The settings in `text`, as :func:`to_json` writes them. Raises UserError."""
    try:
        document: dict[str, Any] = json.loads(text)
        document["files"] = tuple(document["files"])
        unknown = set(document) - {field.name for field in fields(Settings)}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        return Settings(**document)
    except (ValueError, TypeError, KeyError) as reason:
        raise UserError(
            "not the settings of a preparation",
            code="usage",
            where="llmcheck_trainer.dataprep",
            why=str(reason),
            hint="`llmcheck data prepare` writes them",
        ) from reason


def to_json(settings: Settings) -> str:
    """`settings` as one line of JSON."""
    return json.dumps(asdict(settings))
