"""Packs that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcheck.errors import UserError
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import faults, load_pack
from llmcheck.rules.rule import LogPattern, Rule


def test_a_file_that_may_not_be_read_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack.toml").write_text("")
    really = os.open

    def refuse(path: str, *args: int, **kwargs: int) -> int:
        if str(path).endswith("pack.toml"):
            raise PermissionError(13, "Permission denied")
        return really(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, who may read everything
    with pytest.raises(UserError, match=r"pack\.toml") as told:
        load_pack(str(tmp_path), load_registry())
    assert (told.value.why, told.value.where) == ("Permission denied", str(tmp_path))


def signature(**log: object) -> Rule:
    pattern = LogPattern(pattern="x", cause="c", family="f", **{"role": "root", **log})  # type: ignore[arg-type]
    return Rule(code="LCS001", name="n", title="t", status="stable", log=pattern)


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        ({}, "no literal"),
        ({"literal": ("abc",)}, "literal 'abc' is shorter than 4 characters"),
        ({"raised_in": ("/a/",)}, "raised_in '/a/' is shorter than 4 characters"),
        ({"raised_in": ("/lib/",), "literal": ("Error",)}, "raised_in is for the line of an exception"),
        ({"raised_in": ("/lib/",), "lines": 2}, "raised_in is for the line of an exception"),
        ({"raised_in": ("/lib/",), "role": "cascade"}, "raised_in needs role root"),
    ],
)
def test_a_signature_that_cannot_be_looked_for_is_refused(log: dict[str, object], fault: str) -> None:
    (told,) = faults(signature(**log), load_registry(), trusted=True)
    assert fault in told


def test_a_signature_about_a_place_needs_no_literal() -> None:
    assert faults(signature(raised_in=("/datasets/",)), load_registry(), trusted=True) == []
