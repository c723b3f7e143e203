"""Errors that are the user's to mend: each says what, where, why and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SEPARATOR = "\n"  # between several reasons in one `why`: the only line end that an error may hold; others are spelt out


class UserError(Exception):
    """Bad usage or bad input. The command line prints it and exits with :attr:`exit_code`; never a traceback.

    Args:
        what: one line: what is wrong (for example ``unknown model 'lama-7b'``).
        code: short stable slug, printed as ``error[code]``.
        where: the flag, file or field that it concerns.
        why: the reason, if ``what`` does not say it all; several with :data:`SEPARATOR` between them.
        hint: what to do next.
    """

    exit_code = 2

    def __init__(self, what: str, *, code: str = "input", where: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.code, self.where, self.why, self.hint = what, code, where, why, hint


class CouldNotCheckError(UserError):
    """The input is fine but the check could not be made (a missing package, no network): exit code 3."""

    exit_code = 3


def first_line(reason: BaseException) -> str:
    """Another library's error in a line of ours: its type, and what it says first, at most 300 characters of it."""
    lines = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {lines[0][:300]}" if lines else type(reason).__name__


def several(reasons: Iterable[str]) -> str:
    """`reasons` as one `why`."""
    return SEPARATOR.join(reason.replace(SEPARATOR, " ") for reason in reasons)


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """``did you mean 'x', 'y'?`` for the known names closest to `name`, or an empty string."""
    pool = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), pool, n=limit, cutoff=0.6)
    if not near:
        return ""
    return "did you mean " + ", ".join(repr(pool[n]) for n in near) + "?"
