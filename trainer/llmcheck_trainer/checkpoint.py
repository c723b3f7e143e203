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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.checkpoint import constants

from llmcheck.errors import UserError
from llmcheck.types import TrainingRecipe
from llmcheck.units import human_bytes
from llmcheck_trainer.guard import RunFailedError, is_out_of_memory

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
    best_step: int | None = None  # of best_loss
    recipe: dict[str, Any] = field(default_factory=dict)  # what DeepSpeed's files are of: recipe_of


@dataclass(frozen=True, kw_only=True)
class Found:
    """A whole checkpoint."""

    folder: str
    state: State
    world_size: int


class NotSavedError(RunFailedError):
    """A checkpoint could not be written on some rank; raised on all, and nothing of it is left."""


def recipe_of(recipe: TrainingRecipe) -> dict[str, Any]:
    """What a run must share with the one that saved: the tensors that there are, their types, and how they are spread."""
    found: dict[str, Any] = {"method": recipe.method, "precision": recipe.precision, "zero_stage": recipe.zero_stage}
    of_deepspeed = "bf16, DeepSpeed's" if recipe.deepspeed.get("bf16", {}).get("bf16_optimizer_states") else "fp32"
    found["optimizer_states"] = {"adam-8bit": "8-bit", "adam-bf16": "bf16"}.get(recipe.optimizer, of_deepspeed)
    if recipe.lora is not None:
        found.update({f"lora_{name}": value for name, value in asdict(recipe.lora).items() if name != "dropout"})
    return found


def check_recipe(found: Found, recipe: TrainingRecipe) -> None:
    """Raises UserError where the plan's recipe cannot go on from the checkpoint's."""
    theirs, ours = found.state.recipe, recipe_of(recipe)
    if not theirs or theirs == ours:
        return
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    differing = ", ".join(f"{name.replace('_', ' ')} {theirs.get(name)}, not {ours.get(name)}" for name in names)
    raise UserError(
        f"the checkpoint is of another recipe than the plan: {differing}",
        code="other-recipe",
        where=found.folder,
        why="its optimizer states belong to other tensors, or are spread over the ranks in another way",
        hint="plan as before, name another --output, or say --resume never; an exported model can be the new run's --weights",
    )


def save(engine: Any, output: str, state: State, *, adapters: bool) -> str:
    """Write ``checkpoints/step-N`` under `output`; all ranks call it. It has that name only once everything is on the disk.

    Raises NotSavedError on all ranks where one could not write.
    """
    root = os.path.join(output, "checkpoints")
    name = f"step-{state.step:08d}"
    folder = os.path.join(root, f".{name}.part")
    target = os.path.join(root, name)
    failures: list[str] = []
    if dist.get_rank() == 0:
        with _noted(failures):
            os.makedirs(root, exist_ok=True)
            for left in os.listdir(root):
                if left.endswith(".part"):  # a save that was killed
                    shutil.rmtree(os.path.join(root, left))
            os.makedirs(folder)
    _agree(failures, folder, state.step)
    # Without this entry DeepSpeed's own converter refuses checkpoints of stages 1 and 2.
    version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    convertible = {constants.UNIVERSAL_CHECKPOINT_INFO: version}
    with _writing_noted(engine, failures):
        engine.save_checkpoint(folder, tag=_STATE, client_state=convertible, save_latest=False, exclude_frozen_parameters=adapters)
    with _noted(failures):
        torch.save(_random_state(), os.path.join(folder, f"random-{dist.get_rank():05d}.pt"))
    _agree(failures, folder, state.step)
    own: dict[str, Any] = {}
    with _noted(failures):
        own = _checksums(folder)
    sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sums, own)
    _agree(failures, folder, state.step)
    if dist.get_rank() == 0:
        files = {name: entry for found in sums for name, entry in found.items()}
        head = {"schema": SCHEMA, "world_size": dist.get_world_size(), "state": asdict(state), "files": files}
        with _noted(failures):
            _write(os.path.join(folder, _HEAD), json.dumps(head, indent=1))
            if os.path.isdir(target):
                shutil.rmtree(target)
            os.rename(folder, target)
            _sync(root)
    _agree(failures, folder, state.step)
    return target


def prune(output: str, *, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one. Rank 0 only."""
    listed = _listed(output)
    for step, folder in listed[: max(0, len(listed) - keep)]:
        if step != best_step:
            shutil.rmtree(folder)


def after_which(output: str, found: Found | None) -> int:
    """The step up to which the checkpoints under `output` belong to a run that goes on from `found`; -1 where none does."""
    if found is None or os.path.realpath(os.path.dirname(found.folder)) != os.path.realpath(os.path.join(output, "checkpoints")):
        return -1
    return found.state.step


def set_aside(output: str, *, after: int) -> list[str]:
    """Rename the checkpoints beyond the step `after`; their new names. Rank 0 only.

    They are of a course that this run does not take: damaged, or passed over by --resume. As the newest by number they would push out
    those that are saved now, and a later `--resume auto` would go on from them.
    """
    names = []
    for step, folder in _listed(output):
        if step <= after:
            continue
        name, number = folder + ".aside", 2
        while os.path.exists(name):
            name, number = f"{folder}.aside-{number}", number + 1
        os.rename(folder, name)
        names.append(os.path.basename(name))
    return names


def newest(output: str) -> str | None:
    """The newest checkpoint's folder, whole by its name; it is not read."""
    listed = _listed(output)
    return listed[-1][1] if listed else None


def find(output: str, resume: str) -> Found | None:
    """The checkpoint to resume from; all ranks call it and get the same.

    `resume`: "auto" (the newest whole one; damaged ones are named and passed over), "never", or a folder, which must be whole.
    """
    if resume == "never":
        return None
    if resume != "auto":
        found, why = _read(resume)
        if found is None:
            inside = newest(resume) or newest(os.path.dirname(resume))
            raise UserError(
                f"{resume} is not a whole checkpoint",
                code="checkpoint",
                where=f"--resume {resume}",
                why=why,
                hint=f"did you mean {inside}?"
                if inside and not os.path.isfile(os.path.join(resume, _HEAD))
                else "name another, or say --resume auto for the newest whole one",
            )
        return found
    for _, folder in reversed(_listed(output)):
        found, why = _read(folder)
        if found is not None:
            return found
        if dist.get_rank() == 0:
            sys.stderr.write(f"warning: passed over the damaged checkpoint {folder}: {why}\n")
    return None


def at_step(output: str, step: int) -> tuple[Found | None, str]:
    """The checkpoint of `step` if it is there, whole, and of this number of ranks; else why not. All ranks call it and get the same."""
    folder = dict(_listed(output)).get(step)
    if folder is None:
        return None, "it was not kept"
    found, why = _read(folder)
    if found is not None and found.world_size != dist.get_world_size():
        return None, f"it is of {found.world_size} ranks"
    return found, why


def prepare(found: Found) -> tuple[str, dict[str, Any]]:
    """The folder to load on this number of ranks, and what the DeepSpeed configuration needs for it; converts if need be."""
    # Without ZeRO every rank has the whole state, and one of them has saved it.
    if found.world_size == dist.get_world_size() or found.state.recipe.get("zero_stage") == 0:
        return os.path.join(found.folder, _STATE), {}
    universal = os.path.join(found.folder, _UNIVERSAL)
    failure = ""
    if dist.get_rank() == 0 and not os.path.isfile(os.path.join(universal, _WHOLE)):
        shutil.rmtree(universal, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", os.path.join(found.folder, _STATE)]
        done = subprocess.run([*command, "--output_folder", universal], capture_output=True, text=True, env=_alone(), check=False)
        if done.returncode:
            failure = (done.stderr.strip().splitlines() or [""])[-1][-600:] or f"its process ended with {done.returncode}"
        else:
            try:
                _write(os.path.join(universal, _WHOLE), "")
            except OSError as reason:
                failure = reason.strerror or str(reason)
    told = [failure]
    dist.broadcast_object_list(told, src=0)
    if told[0]:
        raise UserError(
            f"a checkpoint of {found.world_size} ranks cannot be converted for {dist.get_world_size()}",
            code="checkpoint",
            where=found.folder,
            why=told[0],
            hint="is there room beside it, and may this user write there?",
        )
    return universal, {"checkpoint": {"load_universal": True}}


def load(engine: Any, folder: str, *, adapters: bool) -> None:
    """Put weights, optimizer states, loss scale and random states of `folder` into the engine."""
    root, tag = os.path.split(os.path.abspath(folder))
    path, _ = engine.load_checkpoint(root, tag=tag, load_module_strict=not adapters)
    if path is None:
        why, hint = "its files of weights or optimizer states are missing", "go on from an older one: --resume FOLDER"
        raise UserError(f"DeepSpeed found nothing to load in {folder}", code="checkpoint", where=folder, why=why, hint=hint)
    own = os.path.join(root, f"random-{dist.get_rank():05d}.pt")
    if os.path.isfile(own):
        _set_random_state(torch.load(own, weights_only=False))


def check_room(output: str, size: int, *, keep: int, after: int) -> None:
    """Raises UserError on all ranks when there is no room for `keep` checkpoints of `size` bytes and the one that replaces the oldest.

    Those up to the step `after` that are there already are among the ones that are kept.
    """
    told: list[UserError | None] = [None]
    if dist.get_rank() == 0:
        there = sum(1 for step, _ in _listed(output) if step <= after)
        try:
            check_space(output, size * max(keep + 1 - there, 1))
        except UserError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise told[0]


def check_space(output: str, needed_bytes: int) -> None:
    """Raises UserError when the file system of `output` has not `needed_bytes` free."""
    os.makedirs(output, exist_ok=True)
    free = shutil.disk_usage(output).free
    if free < needed_bytes:
        raise UserError(
            f"no room for checkpoints: {human_bytes(needed_bytes)} needed, {human_bytes(free)} free",
            code="disk-full",
            where=f"--output {output}",
            hint="free space, name another place, or lower --keep",
        )


# --- writing -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _noted(failures: list[str]) -> Iterator[None]:
    """Keep the text of what the disk refuses: a rank that raised alone would leave the others waiting for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        if is_out_of_memory(error):
            raise
        failures.append(f"rank {dist.get_rank()}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])


@contextmanager
def _writing_noted(engine: Any, failures: list[str]) -> Iterator[None]:
    """Note what DeepSpeed cannot write, too: its ranks wait for each other between its files."""

    def noting(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            with _noted(failures):
                function(*args, **kwargs)

        return call

    places = [(engine.checkpoint_engine, "save"), (engine, "_copy_recovery_script")]
    for place, name in places:
        setattr(place, name, noting(getattr(place, name)))
    try:
        yield
    finally:
        for place, name in places:
            delattr(place, name)  # the class's own again


def _agree(failures: list[str], folder: str, step: int) -> None:
    """Go on together or not at all; what was written of the checkpoint is removed in the second case."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, failures[:1])
    why = next((reasons[0] for reasons in told if reasons), None)
    if why is None:
        return
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    raise NotSavedError(
        f"the checkpoint of step {step} could not be written",
        code="not-saved",
        where=os.path.dirname(folder),
        why=why,
        hint="make room (a quota counts, too) and start the same command again: it goes on from the newest whole checkpoint",
    )


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
