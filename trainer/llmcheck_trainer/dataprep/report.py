"""What a preparation says: the summary, and samples with what is learnt in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmcheck.console import Terminal, escape
from llmcheck.units import human_bytes, human_count
from llmcheck_trainer.dataprep.rows import BAD, REASONS

_GREEN, _DIM, _YELLOW, _BOLD, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_BAR_WIDTH = 40
_PLACES = 3  # named of each reason


def paint(text: str, style: str, terminal: Terminal) -> str:
    """`text` in a style where the terminal has colours."""
    return f"{style}{text}{_PLAIN}" if terminal.colour and text else text


def summary(manifest: dict[str, Any], terminal: Terminal) -> list[str]:
    """Rows, tokens, files; what was left out and why; lengths; notes."""
    tokens, learnt = manifest["num_tokens"], manifest["num_supervised_tokens"]
    share = learnt / tokens if tokens else 0.0
    size = sum(file["num_bytes"] for file in manifest["files"].values())
    template = manifest["template"]["name"] or "none"
    lines = [
        paint(_rows(manifest), _BOLD, terminal) + f", {human_count(tokens)} tokens, {share:.1%} of them learnt; {human_bytes(size)}",
        f"sequence length {manifest['seq_len']:,}, template {escape(str(template))}, {manifest['token_dtype']} tokens",
    ]
    lines += ["", *left_out(manifest, terminal)] if manifest["dropped"] or manifest["truncated"]["count"] else []
    lines += ["", *lengths(manifest, terminal)]
    lines += [paint(f"note: {escape(note)}", _YELLOW, terminal) for note in manifest["notes"]]
    return lines


def brief(manifest: Mapping[str, Any], terminal: Terminal) -> list[str]:
    """The first line of :func:`summary`, what was left out or cut off, and the notes."""
    tokens, learnt = manifest["num_tokens"], manifest["num_supervised_tokens"]
    share = learnt / tokens if tokens else 0.0
    head = f"{_rows(manifest)}, {human_count(tokens)} tokens, {share:.1%} of them learnt"
    told = left_out(manifest, terminal) if "dropped" in manifest and "truncated" in manifest else []
    return [head, *told, *(paint(f"note: {escape(note)}", _YELLOW, terminal) for note in manifest.get("notes", ()))]


def num_rows_used(manifest: Mapping[str, Any]) -> int:
    """Rows of the sources that became one or more of those that are written."""
    pieces = manifest.get("pieces") or {"count": 0, "num_rows": 0}
    return int(manifest["num_rows"] - pieces["num_rows"] + pieces["count"])


def _rows(manifest: Mapping[str, Any]) -> str:
    """How many rows became of how many; a plain text longer than the sequence length becomes several."""
    rows, more, pieces = num_rows_used(manifest), "", manifest.get("pieces")
    if pieces and pieces["count"]:
        texts = "1 longer text" if pieces["count"] == 1 else f"{pieces['count']:,} longer texts"
        more = f", as {manifest['num_rows']:,} sequences: {texts} in {pieces['num_rows']:,} pieces"
    return f"{rows:,} rows of {manifest.get('num_source_rows', manifest['num_rows']):,}{more}"


def left_out(manifest: Mapping[str, Any], terminal: Terminal) -> list[str]:
    """Rows that were left out or cut off, by reason, with the first of each."""
    lines = []
    for reason, places in manifest["dropped"].items():
        kind = "bad" if reason in BAD else "left out"
        lines.append(paint(f"{places['count']:,} {kind}: {REASONS.get(reason, escape(reason))}", _YELLOW, terminal))
        lines += _places(places["first"], places["count"])
    truncated = manifest["truncated"]
    if truncated["count"]:
        lines.append(f"{truncated['count']:,} cut off at {manifest['seq_len']:,} tokens, {truncated['num_tokens_lost']:,} tokens lost")
        lines += _places(truncated["first"], truncated["count"])
    return lines


def _places(first: Sequence[dict[str, Any]], count: int) -> list[str]:
    lines = [
        f"  {escape(place['file'])}:{place['line']}" + (f"  {escape(place['detail'])}" if place.get("detail") else "") for place in first
    ]
    shown = lines[:_PLACES]
    if count > len(shown):
        shown.append(f"  and {count - len(shown):,} more; the manifest names the first {len(first)}")
    return shown


def lengths(manifest: dict[str, Any], terminal: Terminal) -> list[str]:
    """The histogram, and what other sequence lengths would cut."""
    told = manifest["lengths"]
    if not told["count"]:
        return []
    most = max(number for _, number in told["histogram"])
    block = "█" if terminal.unicode else "#"
    lines = [f"tokens a row: mean {told['mean']:,}, half up to {told['p50']:,}, 99 % up to {told['p99']:,}, longest {told['max']:,}"]
    empty = 0
    for edge, number in told["histogram"]:
        own = edge >= manifest["seq_len"] > edge * 2 // 3
        empty = 0 if number or own else empty + 1
        if empty > 1:  # the second and later of a gap
            lines += ["  ..."] if empty == 2 else []
            continue
        bar = block * max(round(_BAR_WIDTH * number / most), 1 if number else 0)
        mark = "  <- sequence length" if own else ""
        lines.append(f"  up to {edge:>9,}  {number:>11,}  {bar}{mark}")
    dropped = manifest.get("asked", {}).get("too_long") == "drop"
    what = "rows left out" if dropped else "rows cut"
    lines.append(f"sequence length   {what}   tokens lost")
    for row in told["by_seq_len"]:
        mark = "*" if row["seq_len"] == manifest["seq_len"] else " "
        rows, tokens = row["rows_cut_fraction"], row["tokens_cut_fraction"]
        lines.append(f"{mark} {row['seq_len']:>13,}   {rows:>{len(what)}.2%}   {tokens:>11.2%}")
    return lines


def sample(title: str, parts: Sequence[tuple[str, bool]], num_tokens: int, num_learnt: int, terminal: Terminal) -> list[str]:
    """A row: what is learnt green (without colours in brackets), the rest dim."""
    lines = [paint(f"{escape(title)}: {num_tokens:,} tokens, {num_learnt:,} learnt", _BOLD, terminal)]
    marks = ("", "") if terminal.colour else ("⟦", "⟧") if terminal.unicode else ("[[", "]]")
    text = ""
    for part, learnt in parts:
        style = _GREEN if learnt else _DIM
        shown = "\n".join(paint(escape(line), style, terminal) for line in part.split("\n"))
        text += f"{marks[0]}{shown}{marks[1]}" if learnt else shown
    return [*lines, *(f"  {line}" for line in text.split("\n")), ""]
