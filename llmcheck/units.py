"""Byte and second units: constants, parsing and formatting. Inside the program everything is bytes and seconds."""

from __future__ import annotations

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def gib(num_bytes: float, digits: int = 2) -> str:
    """`num_bytes` as ``12.34 GiB``."""
    return f"{num_bytes / GIB:.{digits}f} GiB"


def human_bytes(num_bytes: float) -> str:
    """`num_bytes` in the largest binary unit that leaves at least one whole digit."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.{1 if abs(num_bytes) >= 10 * size else 2}f} {unit}"
    return f"{num_bytes:.0f} B"


def human_seconds(seconds: float) -> str:
    """`seconds` as people say it: ``0.42 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def human_count(n: float) -> str:
    """`n` with a decimal suffix: ``7.07B``, ``1.1M``."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(n) >= size:
            return f"{n / size:.3g}{suffix}"
    return f"{n:.0f}"
