"""Training data in JSON lines or JSON -> ``data.*`` facts: what is wrong with the rows, how many, and the first line of each kind."""

from __future__ import annotations

import json
from typing import Any

from llmcheck.dataprep import TokenizerKind
from llmcheck.probe.data_reading import Reader
from llmcheck.probe.data_rows import RowScan
from llmcheck.rules.facts import ABSENT, Facts, Location
from llmcheck.units import GIB

# Read whole up to here: at 40 MB/s some seven minutes. Beyond, the first part is read and the rest is said to be unread.
DEFAULT_MAX_BYTES = 16 * GIB
_GIVE_UP_ROWS = 1_000  # none of so many first rows is JSON: this is no such file
_MOST_WRONG_FRACTION = 0.5

# Counts of RowScan, and of reading, that become data.num_<name>.
_COUNTS = (
    "bad_json", "not_objects", "not_utf8", "replacement", "nul", "mojibake", "surrogates", "huge", "type_changes", "unknown_format",
    "empty_answers", "empty_prompts", "unsupervised", "no_turns", "bad_turns", "bad_roles", "role_order", "begins_with_assistant",
    "last_not_assistant", "empty_system", "system_not_first", "control_tokens", "role_markers", "placeholders", "trailing_space",
    "same_preference",
)  # fmt: skip


def facts(path: str, context: Facts, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Facts:
    """The ``data.*`` facts of the file at `path`; `context` may hold the sequence length and the tokenizer.

    Raises UserError when the file cannot be read, or is UTF-16.
    """
    seq_len = _number(context, "train.seq_len") or _number(context, "plan.seq_len")
    scan = RowScan(seq_len, tokenizer_kind(context))
    reader = Reader(path, max_bytes)
    gave_up = False
    for line, raw, parsed in reader.rows():
        value = _parsed(scan, line, raw) if parsed is None else parsed
        if parsed is not None and not raw.isascii():
            _decoded(scan, line, raw)
        if value is not _BAD:
            scan.add(line, raw, value)
        elif not scan.num_rows and scan.counts["bad_json"] >= _GIVE_UP_ROWS:
            gave_up = True
            break
    if reader.first_huge_line is not None:
        scan.counts["huge"] = scan.counts.get("huge", 0) + reader.num_huge
        scan.first.setdefault("huge", reader.first_huge_line)
    return _as_facts(path, scan, reader, gave_up)


def tokenizer_kind(context: Facts) -> TokenizerKind:
    """The tokenizer of `context`; byte-level BPE, which makes fewer tokens, where it is not known: fewer rows are called too long."""
    return (
        "sentencepiece" if _value(context, "tok.byte_fallback") is True or _value(context, "tok.has_sentencepiece") is True else "byte-bpe"
    )


_BAD: Any = object()


def _parsed(scan: RowScan, line: int, raw: bytes) -> Any:
    try:
        return json.loads(_decoded(scan, line, raw))
    except (ValueError, RecursionError):  # also integers of thousands of digits
        scan.note("bad_json", line)
        return _BAD


def _decoded(scan: RowScan, line: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        scan.note("not_utf8", line)
        return raw.decode(errors="replace")


def _value(context: Facts, name: str) -> Any:
    fact = context.get(name)
    return None if fact is None or fact.value is ABSENT else fact.value


def _number(context: Facts, name: str) -> int | None:
    value = _value(context, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _as_facts(path: str, scan: RowScan, reader: Reader, gave_up: bool) -> Facts:
    result, here = Facts(), Location(uri=path)
    result.examined("data")
    rest = gave_up or reader.problem is not None or reader.unread_bytes > 0
    why = reader.problem or f"only a part of the file was read: {reader.unread_bytes} bytes were not"
    if gave_up:
        why = "reading ended: none of the first rows is JSON"

    def at(name: str) -> Location:
        line = scan.first.get(name)
        return here if line is None else Location(uri=path, line=line)

    def put_count(fact: str, count: int, place: Location) -> None:
        if rest and not count:
            result.could_not(fact, why)  # there may be some in what was not read
        else:
            result.put(fact, count, place)

    result.put("data.num_rows", scan.num_rows, here)
    result.put("data.num_bytes", reader.num_bytes, here)
    result.put("data.unread_bytes", reader.unread_bytes or None, here)
    result.put("data.read_problem", reader.problem, here)
    result.put("data.has_bom", reader.has_bom, Location(uri=path, line=1))
    result.put("data.num_blank_lines", reader.num_blank, here)
    for name in _COUNTS:
        put_count(f"data.num_{name}", scan.counts.get(name, 0), at(name))
    pretty = not reader.is_array and scan.counts.get("bad_json", 0) > max(1, scan.num_rows) and scan.first.get("bad_json") == 1
    result.put("data.one_object_over_lines", pretty, at("bad_json"))
    result.put("data.type_changes", scan.type_changes or None, at("type_changes"))
    result.put("data.bad_roles", sorted(scan.bad_roles, key=lambda name: -scan.bad_roles[name]) or None, at("bad_roles"))
    result.put(
        "data.control_tokens", sorted(scan.control_tokens, key=lambda token: -scan.control_tokens[token]) or None, at("control_tokens")
    )
    _put_formats(result, scan, here)
    _put_duplicates(result, scan, path, rest, why)
    _put_lengths(result, scan, path, put_count, at)
    if scan.num_rows:
        result.put("data.unsupervised_fraction", scan.counts.get("unsupervised", 0) / scan.num_rows, at("unsupervised"))
    else:
        result.could_not("data.unsupervised_fraction", "there is no row")
    return result


def _put_formats(result: Facts, scan: RowScan, here: Location) -> None:
    names = sorted(scan.formats, key=lambda name: -scan.formats[name])
    shares = {"belle", "sharegpt"}
    if set(names) == shares:  # conversations with no answer in them do not tell the two apart
        names = [names[0]]
    result.put("data.formats", names or None, here)
    result.put("data.format", None if not names else names[0] if len(names) == 1 else "mixed", here)


def _put_duplicates(result: Facts, scan: RowScan, path: str, rest: bool, why: str) -> None:
    found = scan.duplicates
    place = Location(uri=path, line=found.first_pair[1] if found.first_pair is not None else None)
    if rest and not found.num_rows:
        result.could_not("data.num_duplicates", why)
        result.could_not("data.duplicates_fraction", why)
        return
    result.put("data.num_duplicates", found.num_rows, place)
    result.put("data.duplicates_fraction", found.num_rows / scan.num_rows if scan.num_rows else 0.0, place)
    result.put("data.duplicates_estimated", found.sampling > 1, place)


def _put_lengths(result: Facts, scan: RowScan, path: str, put_count: Any, at: Any) -> None:
    result.put("data.longest_row_chars", scan.longest_chars, Location(uri=path, line=scan.longest_line or None))
    result.put("data.seq_len", scan.seq_len)
    for name in ("over_seq_len", "prompt_over_seq_len"):
        if scan.seq_len is None:
            result.absent(f"data.num_{name}_estimate")
        else:
            put_count(f"data.num_{name}_estimate", scan.counts.get(name, 0), at(name))
    fraction = scan.counts.get("over_seq_len", 0) / scan.num_rows if scan.num_rows and scan.seq_len is not None else None
    result.put("data.over_seq_len_fraction", fraction, at("over_seq_len"))
