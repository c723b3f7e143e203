"""Weights from a checkpoint folder into a model that is constructed already: on each rank straight from the mapped files.

Files are mapped, not read: all ranks of a node share the page cache, so a node never holds more than one copy of the model in host
memory, whatever the number of GPUs (LianjiaTech/BELLE#410 is the same with one copy a rank). Under ZeRO-3 each rank touches its part only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
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
    return {name: reader for path in _files(folder) for name, reader in _readers_of(path).items()}


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
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
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
                    f"{len(missing)} of {len(names)} weight files are missing",
                    code="weights",
                    where=folder,
                    why=f"no {missing[0]}",
                    hint="copy or download them again: the index names them all",
                )
            return [os.path.join(folder, name) for name in names]
        if os.path.isfile(os.path.join(folder, stem)):
            return [os.path.join(folder, stem)]
    why, hint = "neither model.safetensors nor pytorch_model.bin, nor an index of either", "is it the model's folder? --weights FOLDER"
    raise UserError(f"no weights in {folder}", code="weights", where="--weights", why=why, hint=hint)


def _safetensors(path: str) -> Mapping[str, Reader]:
    from safetensors import safe_open

    opened: Any = safe_open(path, framework="pt", device="cpu")
    return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118 - not a mapping


def _pickle(path: str) -> Mapping[str, Reader]:
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return {name: partial(_same, tensor) for name, tensor in state.items()}


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Files:
    """A checkpoint's files, each mapped from the first tensor that is read of it until `close`."""

    def __init__(self) -> None:
        self._opened: dict[str, Mapping[str, Reader]] = {}

    def read(self, path: str, name: str) -> torch.Tensor:
        if path not in self._opened:
            self._opened[path] = _readers_of(path)
        return self._opened[path][name]()

    def close(self) -> None:
        self._opened.clear()


def load(model: Any, folder: str) -> None:
    """Fill every parameter and saved buffer of `model` from `folder`, in place. Raises UserError that names what does not fit.

    One file after the other, and none stays mapped: of the page cache, too, no more than a file is in this process.
    """
    paths = _files(folder)
    to_model = Names(model)
    found = {to_model.renamed(name): (path, name) for path in paths for name in _readers_of(path)}
    prefix = model.base_model_prefix + "."
    parameters = dict(model.named_parameters())
    persistent = set(model.state_dict(keep_vars=True))
    targets = parameters | {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    wanted: dict[str, list[tuple[str, str]]] = {path: [] for path in paths}
    missing = {}
    for name, target in targets.items():
        place = found.get(name) or found.get(name.removeprefix(prefix)) or found.get(prefix + name)
        if place is None:
            missing[name] = target
        else:
            wanted[place[0]].append((name, place[1]))
    files = _Files()
    for path, names in wanted.items():
        for name, source in names:
            _fill(name, targets[name], files.read(path, source), folder)
        files.close()
    if missing and to_model.converters:
        _load_converted(model, to_model, missing, folder)
    lost = [name for name in missing if name in parameters]
    if lost:
        raise UserError(
            f"the checkpoint lacks {len(lost)} of the model's parameters",
            code="weights",
            where=folder,
            why=f"no tensor is called {lost[0]!r}",
            hint=did_you_mean(lost[0], found) or "is it a checkpoint of this model, and not an adapter?",
        )


def shape_of(target: Any) -> tuple[int, ...]:
    """The whole shape of a parameter, partitioned or not."""
    return tuple(getattr(target, "ds_shape", target.shape))


def _fill(name: str, target: Any, value: torch.Tensor, folder: str) -> None:
    if shape_of(target) != tuple(value.shape):
        raise UserError(
            f"the weights are not of the plan's model: {name} is {tuple(value.shape)}, the plan has {shape_of(target)}",
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


class Names:
    """What checkpoints of a model's family call its tensors, and make of them."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self.renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        # Where there are any, checkpoints hold other tensors than the model, not only other names: experts one by one, for example.
        self.converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]

    def renamed(self, name: str) -> str:
        """The model's name of a tensor that checkpoints call `name`."""
        for transform in self.renamings:
            name, _ = transform.rename_source_key(name)
        return name


def _load_converted(model: Any, names: Names, missing: dict[str, Any], folder: str) -> None:
    """Fill those of `missing` that are made of other tensors, and take them out; one conversion's tensors are in memory at a time.

    The operations are transformers' own. They ask the model for shapes, which a partitioned one does not have: an empty one answers.
    """
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    empty = empty_model(model.config)
    known = dict(empty.state_dict())
    by_pattern = {pattern: converter for converter in names.converters for pattern in converter.source_patterns}
    groups: dict[str, Any] = {}
    files = _Files()
    paths = {source: path for path in _files(folder) for source in _readers_of(path)}
    for source in sorted(paths, key=dot_natural_key):
        name, pattern = rename_source_key(source, names.renamings, names.converters, model.base_model_prefix, known)
        if pattern is not None and name in known:
            group = groups.setdefault(name, deepcopy(by_pattern[pattern]))
            group.add_tensor(name, source, pattern, partial(files.read, paths[source], source))
    for first, group in groups.items():
        for name, made in group.convert(first, model=empty, config=empty.config).items():
            if name in missing:
                _fill(name, missing.pop(name), made[0] if isinstance(made, list) else made, folder)
        del group
        files.close()


def empty_model(config: Any) -> Any:
    """A model of `config` that takes no memory: it knows names and shapes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
