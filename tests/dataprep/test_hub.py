"""Hub names: which files of a data set are taken, and what is said where the Hub cannot be asked. The Hub itself is played here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck_trainer.dataprep import hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True), ("hf:org/name", True), ("hf:org/name/data/x.jsonl@main", True), ("org/data.jsonl", True), ("a.jsonl", False),
        ("/a/b", False), ("./a/b", False), ("hf:", False), ("../x/y", False),
    ],
)  # fmt: skip
def test_what_is_a_name(text: str, expected: bool) -> None:
    assert hub.is_name(text) is expected


def test_a_file_that_is_there_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not hub.is_name("org/name")  # the folder is there, so the file is mistyped


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["README.md", "data/train-00000.parquet", "data/test-00000.parquet"], ["data/train-00000.parquet"]),
        (["train_2M_CN.json", ".gitattributes"], ["train_2M_CN.json"]),
        (["a.jsonl", "b.jsonl", "dataset_infos.json"], ["a.jsonl", "b.jsonl"]),
        (["rows.json", "validation.json"], ["rows.json"]),
        (["model.safetensors"], []),
    ],
)
def test_the_files_of_the_training_split_are_taken(names: list[str], expected: list[str]) -> None:
    assert hub.training_files(names) == expected


class _Hub:
    """Answers as huggingface_hub does."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error = folder, error

    def HfApi(self) -> Any:  # noqa: N802
        return self

    def dataset_info(self, repo: str, revision: str | None, timeout: float) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(sha="0123456789abcdef", siblings=[SimpleNamespace(rfilename=name) for name in ("train.jsonl", "test.jsonl")])

    def hf_hub_download(self, repo: str, file: str, repo_type: str, revision: str) -> str:
        assert (repo_type, revision) == ("dataset", "0123456789abcdef")
        return str(self.folder / file)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def start(error: Exception | None = None) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(hub, "_hub", lambda name: _Hub(tmp_path, error))

    return start


def test_a_data_set_by_its_name(play: Any, tmp_path: Path) -> None:
    play()
    assert hub.data_files("org/name") == [(str(tmp_path / "train.jsonl"), "hf:org/name/train.jsonl@0123456789ab")]
    assert hub.data_files("hf:org/name/test.jsonl@main") == [(str(tmp_path / "test.jsonl"), "hf:org/name/test.jsonl@0123456789ab")]


def test_a_file_that_the_data_set_does_not_have(play: Any) -> None:
    play()
    with pytest.raises(UserError, match="has no such file") as caught:
        hub.data_files("hf:org/name/other.jsonl")
    assert "train.jsonl" in caught.value.why


def test_no_network_is_no_verdict(play: Any) -> None:
    play(OSError("Name or service not known"))
    with pytest.raises(CouldNotCheckError, match="the Hub cannot be asked"):
        hub.data_files("org/name")


def test_a_network_that_fails_in_a_download_is_no_verdict(play: Any) -> None:
    """huggingface_hub raises an EntryNotFoundError for it: to a user that means that the file does not exist."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    play(LocalEntryNotFoundError("outgoing traffic has been disabled"))
    with pytest.raises(CouldNotCheckError, match="no file org/name, and the Hub cannot be asked") as caught:
        hub.data_files("org/name")
    assert "no copy is kept here" in caught.value.why


def test_offline_takes_the_tokenizer_that_an_earlier_download_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the layout of the Hub's cache."""
    cache = tmp_path / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert hub.tokenizer_folder("org/name") == str(snapshot)


def test_offline_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CouldNotCheckError, match="the Hub cannot be asked"):
        hub.tokenizer_folder("org/name")


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CouldNotCheckError) as caught:
        hub.data_files("org/name")
    assert "huggingface_hub is not installed" in caught.value.why
