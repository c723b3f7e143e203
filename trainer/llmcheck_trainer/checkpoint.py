"""Checkpoints: whole or not at all, verified before use, exact to resume from, and convertible to another number of ranks."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.checkpoint import constants

from llmcheck.errors import UserError
from llmcheck.units import gib

SCHEMA = "llmcheck.checkpoint/1"
_NAME = re.compile(r"step-(\d{8,})")
_HEAD = "checkpoint.json"
_STATE, _UNIVERSAL = "deepspeed", "universal"  # folders: as DeepSpeed saved it; converted for any number of ranks
_WHOLE = "complete"  # written last into a converted one
_READ_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands. `position`: sequences trained on, which alone decides the data, order and learning rate that follow."""

    step: int
    position: int
    num_tokens: int
    best_loss: float | None
    bad_evaluations: int
    plan_digest: str
    run_identity: str  # what the position means: data, packing, sequence length, seed


@dataclass(frozen=True, kw_only=True)
class Found:
    """A whole checkpoint."""

    folder: str
    state: State
    world_size: int


def save(engine: Any, output: str, state: State, *, adapters: bool) -> str:
    """Write ``checkpoints/step-N`` under `output`; all ranks call it. It has that name only once everything is on the disk."""
    root = os.path.join(output, "checkpoints")
    name = f"step-{state.step:08d}"
    part = f".{name}.part"
    folder = os.path.join(root, part)
    if dist.get_rank() == 0:
        os.makedirs(root, exist_ok=True)
        for left in os.listdir(root):
            if left.endswith(".part"):  # a save that was killed
                shutil.rmtree(os.path.join(root, left))
        os.makedirs(folder)
    dist.barrier()
    # Without this entry DeepSpeed's own converter refuses checkpoints of stages 1 and 2.
    version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    convertible = {constants.UNIVERSAL_CHECKPOINT_INFO: version}
    engine.save_checkpoint(folder, tag=_STATE, client_state=convertible, save_latest=False, exclude_frozen_parameters=adapters)
    torch.save(_random_state(), os.path.join(folder, f"random-{dist.get_rank():05d}.pt"))
    dist.barrier()
    sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sums, _checksums(folder))
    if dist.get_rank() == 0:
        files = {name: entry for found in sums for name, entry in found.items()}
        head = {"schema": SCHEMA, "world_size": dist.get_world_size(), "state": asdict(state), "files": files}
        _write(os.path.join(folder, _HEAD), json.dumps(head, indent=1))
        target = os.path.join(root, name)
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.rename(folder, target)
        _sync(root)
    dist.barrier()
    return os.path.join(root, name)


def prune(output: str, *, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one. Rank 0 only."""
    folders = [folder for _, folder in _listed(output)]
    for folder in folders[: max(0, len(folders) - keep)]:
        if best is None or os.path.basename(folder) != os.path.basename(best):
            shutil.rmtree(folder)


def find(output: str, resume: str) -> Found | None:
    """The checkpoint to resume from; all ranks call it and get the same.

    `resume`: "auto" (the newest whole one; damaged ones are named and passed over), "never", or a folder, which must be whole.
    """
    if resume == "never":
        return None
    if resume != "auto":
        found, why = _read(resume)
        if found is None:
            raise UserError(
                f"{resume} is not a whole checkpoint",
                code="checkpoint",
                where=f"--resume {resume}",
                why=why,
                hint="name another, or say --resume auto for the newest whole one",
            )
        return found
    for _, folder in reversed(_listed(output)):
        found, why = _read(folder)
        if found is not None:
            return found
        if dist.get_rank() == 0:
            sys.stderr.write(f"warning: passed over the damaged checkpoint {folder}: {why}\n")
    return None


def prepare(found: Found) -> tuple[str, dict[str, Any]]:
    """The folder to load on this number of ranks, and what the DeepSpeed configuration needs for it; converts if need be."""
    if found.world_size == dist.get_world_size():
        return os.path.join(found.folder, _STATE), {}
    universal = os.path.join(found.folder, _UNIVERSAL)
    failure = ""
    if dist.get_rank() == 0 and not os.path.isfile(os.path.join(universal, _WHOLE)):
        shutil.rmtree(universal, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", os.path.join(found.folder, _STATE)]
        done = subprocess.run([*command, "--output_folder", universal], capture_output=True, text=True, env=_alone(), check=False)
        failure = done.stderr[-600:] if done.returncode else ""
        if not failure:
            _write(os.path.join(universal, _WHOLE), "")
    told = [failure]
    dist.broadcast_object_list(told, src=0)
    if told[0]:
        raise UserError(
            f"a checkpoint of {found.world_size} ranks cannot be converted for {dist.get_world_size()}",
            code="checkpoint",
            where=found.folder,
            why=told[0].strip().splitlines()[-1],
        )
    return universal, {"checkpoint": {"load_universal": True}}


def load(engine: Any, folder: str, *, adapters: bool) -> None:
    """Put weights, optimizer states, loss scale and random states of `folder` into the engine."""
    root, tag = os.path.split(os.path.abspath(folder))
    path, _ = engine.load_checkpoint(root, tag=tag, load_module_strict=not adapters)
    if path is None:
        raise UserError(f"DeepSpeed found nothing to load in {folder}", code="checkpoint", where=folder)
    own = os.path.join(root, f"random-{dist.get_rank():05d}.pt")
    if os.path.isfile(own):
        _set_random_state(torch.load(own, weights_only=False))


def check_space(output: str, needed_bytes: int) -> None:
    """Raises UserError when the file system of `output` has not `needed_bytes` free."""
    os.makedirs(output, exist_ok=True)
    free = shutil.disk_usage(output).free
    if free < needed_bytes:
        raise UserError(
            f"no room for checkpoints: {gib(needed_bytes)} needed, {gib(free)} free",
            code="disk-full",
            where=f"--output {output}",
            hint="free space, name another place, or lower --keep",
        )


def size_bytes(engine: Any, *, adapters: bool) -> int:
    """What one checkpoint takes: trained weights and their fp32 copy with two moments; the frozen ones only where they are saved."""
    total = 0
    for parameter in engine.module.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        if parameter.requires_grad:
            total += count * (parameter.element_size() + 12)
        elif not adapters:
            total += count * parameter.element_size()
    return total


# --- reading and checking ----------------------------------------------------------------------------------------------------


def _listed(output: str) -> list[tuple[int, str]]:
    root = os.path.join(output, "checkpoints")
    if not os.path.isdir(root):
        return []
    matches = ((_NAME.fullmatch(name), name) for name in os.listdir(root))
    return sorted((int(match[1]), os.path.join(root, name)) for match, name in matches if match)


def _read(folder: str) -> tuple[Found | None, str]:
    """The checkpoint if it is whole, else why not; each rank checks its share of the files, and all agree."""
    found, why = None, ""
    try:
        with open(os.path.join(folder, _HEAD), encoding="utf-8") as file:
            head = json.load(file)
        if head["schema"] != SCHEMA:
            why = f"its schema is {head['schema']!r}"
        found = Found(folder=folder, state=State(**head["state"]), world_size=head["world_size"])
        why = why or _damage(folder, head["files"])
    except OSError as reason:
        why = f"{_HEAD}: {reason.strerror}"
    except (ValueError, KeyError, TypeError) as reason:
        why = f"{_HEAD} is damaged: {reason}"
    reasons: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, why)
    why = next((reason for reason in reasons if reason), "")
    return (None if why else found), why


def _damage(folder: str, files: dict[str, Any]) -> str:
    for name in _share(sorted(files)):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{name} is missing"
        if os.path.getsize(path) != files[name]["num_bytes"]:
            return f"{name} has {os.path.getsize(path)} bytes, not {files[name]['num_bytes']}"
        if _crc(path) != files[name]["crc32"]:
            return f"{name} has changed since it was written"
    return ""


def _checksums(folder: str) -> dict[str, Any]:
    names = sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)
    return {
        name: {"num_bytes": os.path.getsize(os.path.join(folder, name)), "crc32": _crc(os.path.join(folder, name))}
        for name in _share(names)
    }


def _share(names: list[str]) -> list[str]:
    """This rank's part of the names."""
    return [name for i, name in enumerate(names) if i % dist.get_world_size() == dist.get_rank()]


def _crc(path: str) -> int:
    value = 0
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            value = zlib.crc32(data, value)
        os.fsync(file.fileno())
    return value


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alone() -> dict[str, str]:
    """The environment without what makes a process a rank."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}


# --- random states -----------------------------------------------------------------------------------------------------------


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
