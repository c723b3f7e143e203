"""Data sets and tokenizers by their Hub names, through huggingface_hub: data files and tokenizer files only, never code or weights."""

from __future__ import annotations

import os
import re
from typing import Any

from llmcheck.errors import CouldNotCheckError, UserError

_NAME = re.compile(
    r"(?:hf:)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(?P<file>[^@\s]{1,500}))?(?:@(?P<revision>[\w./-]{1,100}))?"
)
_ROWS = (".jsonl", ".json", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".json.gz")
_NOT_ROWS = re.compile(r"(^|/)(dataset_infos?|config|package|state|README)[\w.-]*\.(json|txt)$", re.IGNORECASE)
_TRAIN = re.compile(r"(^|[/_.-])train([/_.-]|\d|$)", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(^|[/_.-])(test|valid|validation|dev|eval)([/_.-]|\d|$)", re.IGNORECASE)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
    "chat_template.jinja",
)  # fmt: skip


def is_name(text: str) -> bool:
    """True for hf:org/name, and for org/name where there is no such file."""
    return _NAME.fullmatch(text) is not None and (
        text.startswith("hf:") or not (os.path.lexists(text) or os.path.isdir(os.path.dirname(text)))
    )


def data_files(name: str) -> list[tuple[str, str]]:
    """(path of the downloaded copy, name in reports) of a data set's files: the one named, else those of its training split.

    Raises UserError, CouldNotCheckError where the Hub cannot be asked.
    """
    repo, file, revision = _parts(name)
    hub = _hub(name)
    info = _ask(name, lambda: hub.HfApi().dataset_info(repo, revision=revision, timeout=30))
    names = [sibling.rfilename for sibling in info.siblings]
    chosen = [file] if file is not None else training_files(names)
    if not chosen or (file is not None and file not in names):
        raise UserError(
            f"{name} has no such file" if file is not None else f"{repo} has no files of rows",
            code="input",
            where=name,
            why="it has " + (", ".join(names[:8]) or "no files"),
            hint=f"name one: hf:{repo}/FILE",
        )
    return [
        (
            _ask(name, lambda each=each: hub.hf_hub_download(repo, each, repo_type="dataset", revision=info.sha)),
            f"hf:{repo}/{each}@{info.sha[:12]}",
        )
        for each in chosen
    ]


def training_files(names: list[str]) -> list[str]:
    """Of a data set's files those with rows to train on, in order: what is called train, else what is not called otherwise."""
    rows = sorted(name for name in names if name.endswith(_ROWS) and not _NOT_ROWS.search(name) and not name.startswith("."))
    return [name for name in rows if _TRAIN.search(name)] or [name for name in rows if not _OTHER_SPLIT.search(name)]


def tokenizer_folder(name: str) -> str:
    """The folder with the tokenizer's files of a model on the Hub, or of its copy on this disk. Raises UserError, CouldNotCheckError."""
    repo, _, revision = _parts(name)
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(TOKENIZER_FILES)}
    if _offline():
        return _kept_folder(name, repo, wanted)
    hub = _hub(name)
    path: str = _ask(name, lambda: hub.snapshot_download(repo, **wanted), what="tokenizer")
    return path


def _kept_folder(name: str, repo: str, wanted: dict[str, Any]) -> str:
    """What an earlier download left on this disk."""
    try:
        import huggingface_hub  # optional; only for names

        path: str = huggingface_hub.snapshot_download(repo, local_files_only=True, **wanted)
        return path
    except ImportError as reason:
        raise _unreachable(name, "huggingface_hub is not installed (the extra `hub`)", "tokenizer") from reason
    except Exception as reason:  # nothing of that name was downloaded: the library's errors are of many kinds
        raise _unreachable(name, "the network is not to be used (HF_HUB_OFFLINE), and nothing is kept of it", "tokenizer") from reason


def _parts(name: str) -> tuple[str, str | None, str | None]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return found["repo"], found["file"], found["revision"]


def _offline() -> bool:
    return any(os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE") for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def _hub(name: str) -> Any:
    if _offline():
        raise _unreachable(name, "the network is not to be used (HF_HUB_OFFLINE)")
    try:
        import huggingface_hub  # optional; only for names
    except ImportError as reason:
        raise _unreachable(name, "huggingface_hub is not installed (the extra `hub`)") from reason
    return huggingface_hub


def _ask(name: str, question: Any, *, what: str = "file") -> Any:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return question()
    except LocalEntryNotFoundError as reason:  # an EntryNotFoundError by its class, but the network failed and nothing is kept here
        raise _unreachable(
            name, f"the network failed, and no copy is kept here: {_first_line(reason.__cause__ or reason)}", what
        ) from reason
    except GatedRepoError as reason:
        raise UserError(
            f"{name} is gated on the Hub", code="gated", where=name, hint="accept its licence there and set HF_TOKEN"
        ) from reason
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as reason:
        raise UserError(
            f"no {what} {name}, and the Hub has no such name",
            code="input",
            where=name,
            why="it does not exist there, or it is private",
            hint="check the path; private ones need HF_TOKEN",
        ) from reason
    except Exception as reason:  # the network's many ways to fail
        raise _unreachable(name, _first_line(reason), what) from reason


def _first_line(reason: BaseException) -> str:
    return str(reason).splitlines()[0][:200] if str(reason) else type(reason).__name__


def _unreachable(name: str, why: str, what: str = "file") -> CouldNotCheckError:
    return CouldNotCheckError(
        f"no {what} {name}, and the Hub cannot be asked",
        code="hub",
        where=name,
        why=why,
        hint="check the path, or download it and give " + ("its folder: --tokenizer DIR" if what == "tokenizer" else "the files"),
    )
