"""Packs that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcheck.errors import UserError
from llmcheck.rules.facts import load_registry
from llmcheck.rules.load import load_pack


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
