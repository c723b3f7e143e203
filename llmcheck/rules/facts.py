"""Facts: what probes saw, by name; and the registry that gives every name a type, a subject and a meaning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from llmcheck import toml

FactType = Literal["bool", "int", "float", "str", "version", "list[str]", "list[int]", "any"]

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "facts")


class _Absent:
    """The value of a fact that was looked for and is not there."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where something was read: a path or ``-``, and a line (from 1) where there is one."""

    uri: str
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that a probe saw. `value` is ABSENT when we looked and it was not there."""

    value: Any
    location: Location | None = None


@dataclass(kw_only=True)
class Facts:
    """What is known, what could not be found out (with the reason), and which subjects were examined at all."""

    known: dict[str, Fact] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # name or wildcard ("pkg.*") -> why it could not be found out
    subjects: set[str] = field(default_factory=set)
    closed: dict[str, Location | None] = field(default_factory=dict)  # "pkg.": names with this beginning that are not known are absent

    open: dict[str, str] = field(default_factory=dict)  # "pkg.": what such names lack, where a source names only some ("not in …")

    def put(self, name: str, value: Any, location: Location | None = None) -> None:
        """Record `value`; None counts as ABSENT."""
        self.known[name] = Fact(value=ABSENT if value is None else value, location=location)

    def absent(self, name: str, location: Location | None = None) -> None:
        """Record that we looked for `name` and it is not there."""
        self.known[name] = Fact(value=ABSENT, location=location)

    def could_not(self, name: str, why: str) -> None:
        """Record that `name` (or all of ``pkg.*``) could not be found out."""
        self.unreadable[name] = why

    def close(self, prefix: str, location: Location | None = None) -> None:
        """Record that everything that begins with `prefix` (``pkg.``) was looked at: what is not known is not there."""
        self.closed[prefix] = location

    def leave_open(self, prefix: str, why: str) -> None:
        """Record that a source (a requirements.txt) names only some of what begins with `prefix`: rules over the rest do not apply.

        A whole name is left open even where its group was closed.
        """
        self.open[prefix] = why

    def examined(self, *subjects: str) -> None:
        """Record that these subjects were looked at."""
        self.subjects.update(subjects)

    def get(self, name: str) -> Fact | None:
        """The fact, ABSENT where its whole group was read, or None where it is not known."""
        found = self.known.get(name)
        if found is not None:
            return found
        if self.why_unknown(name) is not None or name in self.open:
            return None
        for prefix, location in self.closed.items():
            if name.startswith(prefix):
                return Fact(value=ABSENT, location=location)
        return None

    def why_unknown(self, name: str) -> str | None:
        """Why a probe could not find `name` out; None when nobody said."""
        if name in self.unreadable:
            return self.unreadable[name]
        return next((why for key, why in self.unreadable.items() if key.endswith("*") and name.startswith(key[:-1])), None)

    def why_open(self, name: str) -> str | None:
        """Why `name` is neither known nor missing: its source names only some of its kind. None when that is not so."""
        if self.get(name) is not None or self.why_unknown(name) is not None:
            return None
        return next((why for prefix, why in self.open.items() if name.startswith(prefix)), None)

    def merged(self, *others: Facts) -> Facts:
        """These facts and those of `others`; later ones win."""
        result = Facts(
            known=dict(self.known),
            unreadable=dict(self.unreadable),
            subjects=set(self.subjects),
            closed=dict(self.closed),
            open=dict(self.open),
        )
        for other in others:
            for name in other.known:
                result.unreadable.pop(name, None)
            result.known.update(other.known)
            result.unreadable.update(other.unreadable)
            result.subjects |= other.subjects
            result.closed.update(other.closed)
            result.open.update(other.open)
        return result


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that a user can have examined."""

    id: str
    title: str
    flag: str  # how to give it to us, for "not examined" notes


@dataclass(frozen=True, kw_only=True)
class FactKind:
    """The registry's entry of a fact. A `name` that ends in ``*`` stands for all names that begin so."""

    name: str
    type: FactType
    subject: str
    doc: str


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All facts and subjects there are."""

    kinds: dict[str, FactKind]
    wildcards: tuple[FactKind, ...]
    subjects: dict[str, Subject]

    def kind(self, name: str) -> FactKind | None:
        """The entry of `name`, or None when no such fact exists."""
        exact = self.kinds.get(name)
        if exact is not None:
            return exact
        return next((kind for kind in self.wildcards if name.startswith(kind.name[:-1]) and len(name) >= len(kind.name)), None)

    def names(self) -> Iterator[str]:
        """Every name and wildcard."""
        yield from self.kinds
        yield from (kind.name for kind in self.wildcards)


def load_registry(folder: str = _FOLDER) -> Registry:
    """The registry in `folder`: one TOML file per subject. Our own data: a fault in it is a bug, not the user's."""
    kinds: list[FactKind] = []
    subjects: dict[str, Subject] = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".toml"):
            continue
        document = toml.load(os.path.join(folder, name))
        subject = Subject(**document["subject"])
        assert subject.id not in subjects, subject.id
        subjects[subject.id] = subject
        kinds += (FactKind(subject=subject.id, **entry) for entry in document.get("fact", ()))
    return _registry(kinds, subjects)


def _registry(kinds: Iterable[FactKind], subjects: dict[str, Subject]) -> Registry:
    exact: dict[str, FactKind] = {}
    wildcards: list[FactKind] = []
    for kind in kinds:
        if kind.name.endswith("*"):
            wildcards.append(kind)
        else:
            assert kind.name not in exact, kind.name
            exact[kind.name] = kind
    wildcards.sort(key=lambda kind: -len(kind.name))  # the closest first
    return Registry(kinds=exact, wildcards=tuple(wildcards), subjects=subjects)
