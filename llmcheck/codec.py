"""Frozen dataclasses to plain JSON values and back, strictly: an unknown, missing or ill-typed field is a problem, never a guess."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from llmcheck.errors import did_you_mean
from llmcheck.jsonfile import kind_of

T = TypeVar("T")
LARGEST = (1 << 63) - 1  # nothing that is counted here is more; what is could not be a float


def to_plain(value: Any) -> Any:
    """`value` with dataclasses and mappings as dicts and tuples as lists."""
    if value is None or isinstance(value, (str, int, float)):  # first: nearly all values
        return value
    if is_dataclass(value):
        return {name: to_plain(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, Sequence):
        return [to_plain(part) for part in value]
    raise TypeError(f"no plain form for {type(value).__name__}")


def from_plain(kind: type[T], value: Any, path: str, problems: list[str]) -> T | None:
    """`value` as a `kind`; None when anything was wrong, with one line per problem added to `problems`."""
    try:
        found: T = _quick(kind)(value)  # type: ignore[arg-type]
    except _OddError:  # what and where is worked out only now
        before = len(problems)
        result: T | None = _decode(kind, value, path, problems)
        return result if len(problems) == before else None
    return found


class _OddError(Exception):
    """A value is not of its kind."""


@cache
def _quick(kind: Any) -> Callable[[Any], Any]:
    """A decoder that gives what `_decode` gives where nothing is wrong, and raises _OddError where something is: several times as fast."""
    if is_dataclass(kind):
        return _quick_dataclass(kind)
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _quick_union(args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        part = _quick(args[0])
        return lambda value: tuple([part(each) for each in value]) if type(value) is list else _odd()
    if kind in (str, bool):
        return lambda value: value if type(value) is kind else _odd()
    if kind is int:
        return lambda value: value if type(value) is int and -LARGEST <= value <= LARGEST else _odd()

    def decode(value: Any) -> Any:
        problems: list[str] = []
        found = _decode(kind, value, "", problems)
        return _odd() if problems else found

    return decode


def _quick_dataclass(kind: Any) -> Callable[[Any], Any]:
    decoders: dict[str, Callable[[Any], Any]] = {}
    required = frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)

    def decode(value: Any) -> Any:
        if not decoders:  # not before: a dataclass may hold itself
            decoders.update((name, _quick(hint)) for name, hint in _plan(kind)[0].items() if name in _plan(kind)[1])
        if type(value) is not dict or not required <= value.keys() or not value.keys() <= decoders.keys():
            _odd()
        return kind(**{name: decoders[name](part) for name, part in value.items()})

    return decode


def _quick_union(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    choices = [_quick(arg) for arg in args if arg is not type(None)]
    has_none = type(None) in args

    def decode(value: Any) -> Any:
        if value is None and has_none:
            return None
        for choice in choices[:-1]:
            try:
                return choice(value)
            except _OddError:  # noqa: PERF203 - how a union is tried
                pass
        return choices[-1](value)

    return decode


def _odd() -> NoReturn:
    raise _OddError


def _decode(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, path, problems)
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return value if value in args else _wrong(path, "one of " + ", ".join(map(repr, args)), value, problems)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, path, problems)
    if origin is tuple:
        return _decode_tuple(args, value, path, problems)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            return _wrong(path, "an object", value, problems)
        return {key: _decode(args[1], part, f"{path}.{key}", problems) for key, part in value.items()}
    if kind is float:
        try:
            return float(value) if _is_number(value) else _wrong(path, "a number", value, problems)
        except OverflowError:  # an integer of hundreds of digits
            problems.append(f"{path}: expected a number, found one too large")
            return None
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            return _wrong(path, "a whole number", value, problems)
        if not -LARGEST <= value <= LARGEST:
            problems.append(f"{path}: expected a whole number, found one too large")
        return value
    if kind is bool:
        return value if isinstance(value, bool) else _wrong(path, "true or false", value, problems)
    if kind is str:
        return value if isinstance(value, str) else _wrong(path, "a string", value, problems)
    if isinstance(kind, type):  # what TOML has beyond JSON: dates
        return value if type(value) is kind else _wrong(path, f"a {kind.__name__}", value, problems)
    raise TypeError(f"{path}: no decoder for {kind}")


def _decode_dataclass(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        return _wrong(path, "an object", value, problems)
    hints, known = _plan(kind)
    before = len(problems)
    for key in value:
        if key not in known:
            problems.append(f"{path}.{key}: unknown key; {did_you_mean(key, known) or 'it is not part of this format'}")
    given: dict[str, Any] = {}
    for name, field in known.items():
        if name in value:
            given[name] = _decode(hints[name], value[name], f"{path}.{name}", problems)
        elif field.default is MISSING and field.default_factory is MISSING:
            problems.append(f"{path}.{name}: missing")
    return kind(**given) if len(problems) == before else None


@cache  # get_type_hints takes longer than decoding, and rule packs hold thousands of the same few classes
def _plan(kind: Any) -> tuple[dict[str, Any], dict[str, Field[Any]]]:
    """Types and fields of a dataclass, by name."""
    return get_type_hints(kind), {field.name: field for field in fields(kind)}


def _decode_union(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    for arg in choices[:-1]:
        attempt: list[str] = []
        result = _decode(arg, value, path, attempt)
        if not attempt:
            return result
    return _decode(choices[-1], value, path, problems)


def _decode_tuple(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, list):
        return _wrong(path, "a list", value, problems)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], part, f"{path}[{i}]", problems) for i, part in enumerate(value))
    if len(args) != len(value):
        return _wrong(path, f"a list of {len(args)}", value, problems)
    return tuple(_decode(arg, part, f"{path}[{i}]", problems) for i, (arg, part) in enumerate(zip(args, value, strict=True)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrong(path: str, wanted: str, value: Any, problems: list[str]) -> None:
    shown = repr(value) if isinstance(value, (int, float, str)) and len(repr(value)) <= 40 else kind_of(value)
    problems.append(f"{path}: expected {wanted}, found {shown}")
