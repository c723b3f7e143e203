"""Weights from a checkpoint folder into a model that is constructed already: on each rank straight from the mapped files.

Files are mapped, not read: all ranks of a node share the page cache, so a node never holds more than one copy of the model in host
memory, whatever the number of GPUs (LianjiaTech/BELLE#410 is the same with one copy a rank). Under ZeRO-3 each rank touches its part only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from llmcheck.errors import UserError, did_you_mean

Reader = Callable[[], torch.Tensor]


def find_folder(name: str) -> str:
    """The folder of `name`: itself, or the snapshot of a Hub name (one download a node: the others wait on its lock)."""
    if os.path.isdir(name):
        return name
    if os.path.sep in name and (name.startswith((".", os.path.sep)) or name.count("/") != 1):
        raise UserError(f"no folder {name}", code="weights", where="--weights", hint="a folder with config.json and weights, or a Hub name")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "*.tiktoken"])
    except Exception as reason:  # the library's errors are of many kinds: network, name, licence
        raise UserError(
            f"cannot get {name} from the Hub",
            code="weights",
            where="--weights",
            why=f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"[:300],
            hint="download it first, and give the folder as --weights",
        ) from reason


def readers(folder: str) -> dict[str, Reader]:
    """A function for each tensor of the checkpoint that maps it into memory. Raises UserError where there is none, or it is damaged."""
    found: dict[str, Reader] = {}
    for path in _files(folder):
        found.update(_readers_of(path))
    return found


def _readers_of(path: str) -> Mapping[str, Reader]:
    try:
        return _safetensors(path) if path.endswith(".safetensors") else _pickle(path)
    except Exception as reason:  # safetensors and zip errors: the file is cut off or not what its name says
        raise UserError(
            f"cannot read {path}",
            code="weights",
            where=path,
            why=f"{type(reason).__name__}: {str(reason)[:200]}",
            hint="the file is damaged or incomplete: copy or download it again",
        ) from reason


def _files(folder: str) -> list[str]:
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = os.path.join(folder, stem + ".index.json")
        if os.path.isfile(index):
            try:
                with open(index, encoding="utf-8") as file:
                    names = sorted({str(name) for name in json.load(file)["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as reason:
                raise UserError(
                    f"cannot read {index}",
                    code="weights",
                    where=index,
                    why=f"{type(reason).__name__}: {str(reason)[:200]}",
                    hint="the file is damaged or incomplete: copy or download it again",
                ) from reason
            missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
            if missing:
                raise UserError(
                    f"{len(missing)} of {len(names)} weight files are missing", code="weights", where=folder, why=f"no {missing[0]}"
                )
            return [os.path.join(folder, name) for name in names]
        if os.path.isfile(os.path.join(folder, stem)):
            return [os.path.join(folder, stem)]
    raise UserError(f"no weights in {folder}", code="weights", where="--weights", why="neither model.safetensors nor pytorch_model.bin")


def _safetensors(path: str) -> Mapping[str, Reader]:
    from safetensors import safe_open

    opened: Any = safe_open(path, framework="pt", device="cpu")
    return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118 - not a mapping


def _pickle(path: str) -> Mapping[str, Reader]:
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return {name: partial(_same, tensor) for name, tensor in state.items()}


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def load(model: Any, folder: str) -> None:
    """Fill every parameter and saved buffer of `model` from `folder`, in place. Raises UserError that names what does not fit."""
    found = {renamed(model, name): reader for name, reader in readers(folder).items()}
    prefix = model.base_model_prefix + "."
    targets = dict(model.named_parameters())
    persistent = set(model.state_dict(keep_vars=True))
    targets.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    missing = []
    for name, target in targets.items():
        reader = found.get(name) or found.get(name.removeprefix(prefix)) or found.get(prefix + name)
        if reader is None:
            missing.append(name)
            continue
        _fill(name, target, reader(), folder)
    missing = [name for name in missing if name in dict(model.named_parameters())]
    if not missing:
        return
    if not has_other_layout(model):
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the model's parameters",
            code="weights",
            where=folder,
            why=f"no tensor is called {missing[0]!r}",
            hint=did_you_mean(missing[0], found) or "is it a checkpoint of this model, and not an adapter?",
        )
    _load_converted(model, folder)


def _shape(target: Any) -> tuple[int, ...]:
    return tuple(getattr(target, "ds_shape", target.shape))


def _fill(name: str, target: Any, value: torch.Tensor, folder: str) -> None:
    if _shape(target) != tuple(value.shape):
        raise UserError(
            f"the weights are not of the plan's model: {name} is {tuple(value.shape)}, the plan has {_shape(target)}",
            code="weights-shape",
            where=folder,
            hint="plan with `--model` set to this folder",
        )
    with torch.no_grad():
        part = getattr(target, "ds_tensor", None)
        if part is None:
            target.copy_(value)
        elif part.device.type == "meta" or part.numel() == 0:  # swapped out to NVMe
            import deepspeed

            with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
                if dist.get_rank() == 0:
                    target.copy_(value)
        else:
            rank = dist.get_rank(group=target.ds_process_group)
            piece = value.reshape(-1)[rank * part.numel() : (rank + 1) * part.numel()]
            part.data.view(-1)[: piece.numel()].copy_(piece)


def renamed(model: Any, name: str) -> str:
    """The model's name of a tensor that checkpoints of its family call `name`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for transform in get_model_conversion_mapping(model):
        if isinstance(transform, WeightRenaming):
            name, _ = transform.rename_source_key(name)
    return name


def has_other_layout(model: Any) -> bool:
    """Whether checkpoints of this family have other tensors than the model, not only other names (experts one by one, for example)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return any(isinstance(transform, WeightConverter) for transform in get_model_conversion_mapping(model))


def _load_converted(model: Any, folder: str) -> None:
    """Through transformers' own loading, which rearranges tensors: one rank of a node after the other, so one copy at a time."""
    from transformers import AutoModelForCausalLM

    local, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    for turn in range(size):
        if turn == local:
            whole = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
            values = dict(whole.named_parameters())
            for name, target in model.named_parameters():
                if name not in values:
                    raise UserError(f"the checkpoint lacks {name}", code="weights", where=folder)
                _fill(name, target, values[name].data, folder)
            del whole, values
        dist.barrier()
