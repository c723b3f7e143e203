"""The config.json of a Hub id, through huggingface_hub when it is installed: that one file, never code, never weights."""

from __future__ import annotations

import os
from typing import Any

from llmcheck.catalog.config import read_config
from llmcheck.errors import UserError

FILE = "config.json"
TIMEOUT_S = 10.0  # of one request; the whole is a few requests for 1 KB


def fetch_config(hub_id: str, *, allow_network: bool, near: str = "") -> tuple[dict[str, Any], str]:
    """(config, source URL) of a Hub id: the cached copy, else the Hub's. `near` is a hint for a miss.

    Raises UserError: the Hub does not have it, it needs a licence accepted, or the Hub could not be asked.
    """
    path = cached_config(hub_id)
    if path is None:
        if not allow_network or offline():
            raise _not_asked(hub_id, "there is no cached copy, and the network is not to be used (HF_HUB_OFFLINE)", near)
        path = _download(hub_id, near)
    return read_config(path), f"https://huggingface.co/{hub_id}/blob/main/{FILE}"


def offline() -> bool:
    """True when the environment forbids the network, by the variables that huggingface_hub itself honours."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def cache_folder() -> str:
    """huggingface_hub's cache, found by its own variables (huggingface_hub.constants)."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    return os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub"))


def cached_config(hub_id: str) -> str | None:
    """The path of the cached config.json of `main`, or None. Needs no package: the cache's layout is documented and stable."""
    folder = os.path.join(cache_folder(), "models--" + hub_id.replace("/", "--"))
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="ascii") as file:
            commit = file.read(100).strip()
    except (OSError, ValueError):
        return None
    if not commit.isalnum():
        return None
    path = os.path.join(folder, "snapshots", commit, FILE)
    return path if os.path.isfile(path) else None


def _download(hub_id: str, near: str) -> str:
    try:
        # Heavy (0.3 s) and optional: only here, where the network is asked anyway.
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError as reason:
        raise _not_asked(hub_id, "huggingface_hub is not installed", near) from reason
    try:
        # One question first: the download by itself tries for half a minute, and complains on stderr, before it says "no network".
        get_hf_file_metadata(hf_hub_url(hub_id, FILE), timeout=TIMEOUT_S)
        path: str = hf_hub_download(hub_id, FILE, etag_timeout=TIMEOUT_S)
    except GatedRepoError as reason:
        raise UserError(
            f"{hub_id} is gated on the Hub", code="gated", where="--model", why="its licence must be accepted first",
            hint="accept it there and set HF_TOKEN, or download config.json and give its path",
        ) from reason  # fmt: skip
    except (RepositoryNotFoundError, HFValidationError) as reason:
        raise UserError(
            f"unknown model {hub_id!r}",
            code="unknown-model",
            where="--model",
            why="neither the catalogue nor the Hub has it (or it is private)",
            hint=near or "`llmcheck models` lists the names",
        ) from reason
    except LocalEntryNotFoundError as reason:  # a kind of EntryNotFoundError that means: no network, no cached copy
        raise _not_asked(hub_id, "the Hub could not be reached", near) from reason
    except EntryNotFoundError as reason:
        raise UserError(
            f"{hub_id} has no config.json",
            code="unknown-model",
            where="--model",
            why="the Hub has the repository, but not that file",
            hint="is it a transformers model? GGUF and adapters have none",
        ) from reason
    except Exception as reason:  # the client's transports raise their own kinds; all of them mean that it was not reachable
        raise _not_asked(hub_id, f"the Hub could not be reached ({type(reason).__name__})", near) from reason
    return path


def _not_asked(hub_id: str, why: str, near: str) -> UserError:
    way_out = f"download https://huggingface.co/{hub_id}/resolve/main/{FILE} and give its path as --model"
    return UserError(
        f"the model {hub_id!r} is not in the catalogue, and the Hub was not asked",
        code="no-hub",
        where="--model",
        why=why,
        hint=f"{near}; or {way_out}" if near else way_out,
    )
