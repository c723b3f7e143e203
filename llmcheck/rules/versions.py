"""Ranges of versions as OSV writes them, in the order of PEP 440.

Not `SpecifierSet`: `<2.6.0` rejects 2.6.0.dev20250101 and `>=4.46` rejects 4.46.0.dev0, whatever the user meant.
Source of the walk: OSV schema 1.7.5, "Evaluation" (https://ossf.github.io/osv-schema/#evaluation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcheck.rules.rule import Affects, Event

if TYPE_CHECKING:
    from packaging.version import Version


def parse(text: str) -> Version | None:
    """`text` as a version, or None when PEP 440 knows no such version."""
    from packaging.version import InvalidVersion, Version  # 20 ms: only where versions are compared

    try:
        return Version(text)
    except InvalidVersion:
        return None


def is_affected(version: str, affects: Affects) -> bool | None:
    """Whether `version` is among those that `affects` names; None when it cannot be told.

    Cannot be told: not a PEP 440 version, or a development build at a border of the range.
    """
    parsed = parse(version)
    if parsed is None:
        return None
    if any(parse(single) == _public(parsed) for single in affects.versions):
        return True
    if not affects.events:
        return False
    if parsed.is_devrelease and any(_same_release(parsed, border) for border in _borders(affects.events)):
        return None
    return _in_range(parsed, affects.events)


def _in_range(version: Version, events: Sequence[Event]) -> bool:
    affected = False
    for event in sorted(events, key=_position):
        border = parse(_text(event))
        assert border is not None, "lint and the loader refuse other versions"
        if event.introduced is not None and (event.introduced == "0" or version >= border):
            affected = True
        elif (event.fixed is not None and version >= border) or (event.last_affected is not None and _public(version) > border):
            affected = False
    return affected


def _position(event: Event) -> tuple[Version, bool]:
    """By version; at one version `introduced` comes after `fixed`, so that a range may begin where another ends."""
    border = parse(_text(event))
    assert border is not None
    return border, event.introduced is not None


def _text(event: Event) -> str:
    return event.introduced or event.fixed or event.last_affected or "0"


def _borders(events: Sequence[Event]) -> list[Version]:
    return [border for event in events if event.introduced != "0" and (border := parse(_text(event))) is not None]


def _same_release(version: Version, border: Version) -> bool:
    length = max(len(version.release), len(border.release))
    return _padded(version, length) == _padded(border, length)


def _padded(version: Version, length: int) -> tuple[int, ...]:
    return version.release + (0,) * (length - len(version.release))


def _public(version: Version) -> Version:
    """Without the local part: 2.5.1+cu124 is 2.5.1 where single releases are named."""
    if version.local is None:
        return version
    parsed = parse(version.public)
    assert parsed is not None
    return parsed
