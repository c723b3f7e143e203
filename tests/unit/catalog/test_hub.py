"""The Hub: the cached file first, nothing but config.json, and a way out when it cannot be asked."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llmcheck.catalog import hub
from llmcheck.catalog.models import find_model
from llmcheck.errors import UserError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 99,
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def cache(tmp_path: Path, hub_id: str, commit: str = "0123abcd") -> Path:
    """A cached config.json as huggingface_hub lays it out."""
    folder = tmp_path / "hub" / ("models--" + hub_id.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    return snapshot / "config.json"


class NotFoundError(Exception):
    pass


class GatedError(NotFoundError):
    pass


class NoFileError(Exception):
    pass


class InvalidError(ValueError):
    pass


class NoCopyError(NoFileError):
    pass


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[tuple[str, str]]:
    """A huggingface_hub that answers with a path or an exception; returns what it was asked for."""
    asked: list[tuple[str, str]] = []

    def download(hub_id: str, file: str, **kwargs: Any) -> str:
        asked.append((hub_id, file))
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    package, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    package.hf_hub_download = download  # type: ignore[attr-defined]
    package.hf_hub_url = lambda hub_id, file: f"{hub_id}/{file}"  # type: ignore[attr-defined]
    package.get_hf_file_metadata = lambda url, timeout: None  # type: ignore[attr-defined]
    for name, kind in (
        ("RepositoryNotFoundError", NotFoundError),
        ("GatedRepoError", GatedError),
        ("EntryNotFoundError", NoFileError),
        ("HFValidationError", InvalidError),
        ("LocalEntryNotFoundError", NoCopyError),
    ):
        setattr(errors, name, kind)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_a_cached_copy_needs_neither_network_nor_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path, "owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = find_model("owner/name", allow_network=False)
    assert (spec.hub_id, spec.source) == ("owner/name", "https://huggingface.co/owner/name/blob/main/config.json")


def test_the_file_is_asked_for_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    asked = pretend(monkeypatch, path)
    assert find_model("owner/name").family == "llama"
    assert asked == [("owner/name", "config.json")]


def test_a_model_of_the_catalogue_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, OSError("never"))
    find_model("Qwen/Qwen3-8B")
    assert asked == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_is_honoured(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, OSError("never"))
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        hub.fetch_config("owner/name", allow_network=True)
    assert (asked, error.value.exit_code, error.value.code) == ([], 2, "no-hub")
    assert error.value.hint == "download https://huggingface.co/owner/name/resolve/main/config.json and give its path as --model"


def test_no_network_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, OSError("never"))
    with pytest.raises(UserError):
        hub.fetch_config("owner/name", allow_network=False)
    assert asked == []


def test_without_the_package_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as error:
        hub.fetch_config("owner/name", allow_network=True)
    assert error.value.why == "huggingface_hub is not installed"


def test_an_unreachable_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, TimeoutError("slow"))
    with pytest.raises(UserError) as error:
        hub.fetch_config("owner/name", allow_network=True)
    assert error.value.why == "the Hub could not be reached (TimeoutError)"


def test_no_network_is_not_taken_for_a_repository_without_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, NoCopyError("offline"))
    with pytest.raises(UserError) as error:
        hub.fetch_config("owner/name", allow_network=True)
    assert (error.value.code, error.value.why) == ("no-hub", "the Hub could not be reached")


def test_the_kinds_of_error_are_the_librarys() -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    assert issubclass(errors.GatedRepoError, errors.RepositoryNotFoundError)
    assert issubclass(errors.LocalEntryNotFoundError, errors.EntryNotFoundError)
    assert not issubclass(errors.RepositoryNotFoundError, errors.EntryNotFoundError)


@pytest.mark.parametrize("reason", [NotFoundError("404"), InvalidError("bad id")])
def test_an_unknown_id_is_the_users_error(reason: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, reason)
    with pytest.raises(UserError, match="unknown model 'Qwen/Qwen3-8'") as error:
        find_model("Qwen/Qwen3-8")
    assert (error.value.code, error.value.exit_code) == ("unknown-model", 2)
    assert "Qwen/Qwen3-8B" in error.value.hint


def test_a_gated_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GatedError("403"))
    with pytest.raises(UserError, match="owner/name is gated on the Hub") as error:
        find_model("owner/name")
    assert error.value.hint == "accept it there and set HF_TOKEN, or download config.json and give its path"


def test_a_repository_without_a_config_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, NoFileError("404"))
    with pytest.raises(UserError, match=r"owner/name has no config\.json"):
        find_model("owner/name")


def test_a_commit_that_is_a_path_is_not_followed(tmp_path: Path) -> None:
    cache(tmp_path, "owner/name", commit="../../../etc")
    assert hub.cached_config("owner/name") is None


@pytest.mark.parametrize(
    ("variable", "value", "folder"),
    [
        ("HF_HUB_CACHE", "/a", "/a"),
        ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
        ("HF_HOME", "/c", "/c/hub"),
        ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_library_keeps_it(variable: str, value: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv(variable, value)
    assert hub.cache_folder() == folder


def test_the_librarys_own_cache_folder_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.delenv("HF_HUB_CACHE")
    if not any(name in constants.HF_HUB_CACHE for name in (".cache/huggingface/hub",)):
        pytest.skip("the library was imported under another setting")
    assert hub.cache_folder() == constants.HF_HUB_CACHE
