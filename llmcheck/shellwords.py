"""Words for a POSIX shell."""

from __future__ import annotations


def quoted(word: str) -> str:
    """`word` as one word (shlex.quote, whose import costs more than a command line of ours)."""
    if word and all(c.isascii() and (c.isalnum() or c in "@%+=:,./-_") for c in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
