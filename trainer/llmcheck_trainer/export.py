"""The trained model as Hugging Face files: shards of safetensors written one parameter at a time, adapters, or both merged.

A shard is all that is ever in host memory, under ZeRO-3 too: each parameter is gathered alone. What was written is read again and
compared before the folder gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from llmcheck.errors import UserError
from llmcheck.types import TrainingRecipe, TrainSettings
from llmcheck_trainer import weights
from llmcheck_trainer.guard import RunFailedError

SHARD_BYTES = 4 << 30
_BESIDE = ("generation_config.json", "chat_template.jinja")
_COPY = "modules_to_save.default."


def export(engine: Any, recipe: TrainingRecipe, settings: TrainSettings, source: str) -> str | None:
    """Write what `settings.export` asks for under the output folder; all ranks call it. The folder, or None for "none"."""
    kind = settings.export
    if kind == "auto":
        kind = "model" if recipe.lora is None else "adapter"
    if kind == "none":
        return None
    if (kind == "model") != (recipe.lora is None):
        raise UserError(
            f"--export {kind} does not go with the plan's method {recipe.method}",
            code="conflict",
            where="--export",
            hint="full fine-tuning exports a model, adapters an adapter or a merged model",
        )
    target = os.path.join(settings.output, kind)
    part = target + ".part"
    disk = _Disk()
    disk.attempt(_empty, part)
    if kind == "adapter":
        _write_adapter(engine.module, part, disk)
    else:
        _write_model(engine.module, part, source, disk)
    disk.attempt(_replace, part, target)
    problem: list[UserError | None] = [None if disk.error is None else _not_written(kind, target, disk.error)]
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        disk.clear(part)
        raise problem[0]
    return target


class _Disk:
    """What rank 0 writes. After a failure nothing more is tried, but all ranks still gather every parameter, so none is left waiting."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def attempt(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function` on rank 0, unless something has failed."""
        if dist.get_rank() != 0 or self.error is not None:
            return
        try:
            function(*args)
        except (OSError, SafetensorError, UserError) as error:
            self.error = error

    def clear(self, folder: str) -> None:
        """Remove what was written, on rank 0."""
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)


def _replace(part: str, target: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    os.rename(part, target)


def _not_written(kind: str, target: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return RunFailedError(
        f"the trained {kind} could not be written",
        code="export",
        where=target,
        why=f"{type(error).__name__}: {error}"[:300],
        hint="make room (a quota counts, too) and start the same command again: it goes on from the newest checkpoint and writes this",
    )


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in `folder`; no code from the folder runs."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _write_model(module: Any, folder: str, source: str, disk: _Disk) -> None:
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    writer = _Shards(folder)
    for name, tensor in _merged(base):
        disk.attempt(_add, writer, base, name, tensor)
    disk.attempt(_finish, writer, base, folder, source)


def _add(writer: _Shards, base: Any, name: str, tensor: torch.Tensor) -> None:
    for written, part in revert_weight_conversion(base, {name: tensor}).items():  # checkpoints of some families have other names
        writer.add(written, part)


def _finish(writer: _Shards, base: Any, folder: str, source: str) -> None:
    writer.finish()
    _save_config(base, folder)
    _write_beside(folder, source)
    _compare(writer.sums)
    if not weights.Names(base).converters:
        _check_keys(base, folder)


def _merged(base: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers under the names of a plain model, adapters added to what they adapt, on rank 0; gathered one by one."""
    tied = _tied_names(base)
    persistent = set(base.state_dict(keep_vars=True))
    for prefix, part in base.named_modules():
        if hasattr(part, "get_delta_weight") and hasattr(part, "base_layer"):
            yield from _merged_layer(prefix, part)
            continue
        buffers = [(name, b) for name, b in part.named_buffers(recurse=False) if f"{prefix}.{name}".lstrip(".") in persistent]
        for name, tensor in [*part.named_parameters(recurse=False), *buffers]:
            full = f"{prefix}.{name}" if prefix else name
            if ".lora_" in full or ".base_layer." in full or ".original_module." in full:
                continue
            if full in tied:
                continue
            with _gathered([tensor]):
                if dist.get_rank() == 0:
                    yield full.replace(_COPY, ""), tensor.detach().to("cpu", copy=True)
                else:
                    yield full, torch.empty(0)


def _merged_layer(prefix: str, part: Any) -> Iterator[tuple[str, torch.Tensor]]:
    base = part.base_layer
    adapters = [p for name, p in part.named_parameters() if "lora_" in name]
    with _gathered([base.weight, *adapters]):
        if dist.get_rank() == 0:
            weight: Any = base.weight
            if hasattr(weight, "quant_state"):
                from bitsandbytes.functional import dequantize_4bit

                weight = dequantize_4bit(weight.data, weight.quant_state)
            merged = weight.detach().float() + part.get_delta_weight("default").float().to(weight.device)
            dtype = adapters[0].dtype if weight.dtype == torch.uint8 else weight.dtype
            yield f"{prefix}.weight", merged.to(dtype).cpu()
        else:
            yield f"{prefix}.weight", torch.empty(0)
    if getattr(base, "bias", None) is not None:
        with _gathered([base.bias]):
            yield f"{prefix}.bias", base.bias.detach().to("cpu", copy=True) if dist.get_rank() == 0 else torch.empty(0)


def _tied_names(base: Any) -> set[str]:
    """Parameters that are another one under a second name: not written, as transformers does not."""
    tied = getattr(base, "_tied_weights_keys", None) or {}
    names = set(tied)
    copies = any("modules_to_save" in name for name, _ in base.named_parameters())
    if copies or not getattr(base.config, "tie_word_embeddings", False):
        return set()
    return names


def _gathered(parameters: list[Any]) -> Any:
    import contextlib

    import deepspeed

    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    return deepspeed.zero.GatheredParameters(partitioned) if partitioned else contextlib.nullcontext()


def _write_adapter(module: Any, folder: str, disk: _Disk) -> None:
    """adapter_model.safetensors and adapter_config.json, as peft writes them."""
    state: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            with _gathered([parameter]):
                if dist.get_rank() == 0:
                    state[name] = parameter.detach().to("cpu", copy=True)
    disk.attempt(_save_adapter, module, folder, state)


def _save_adapter(module: Any, folder: str, state: dict[str, torch.Tensor]) -> None:
    from peft import get_peft_model_state_dict

    adapter = get_peft_model_state_dict(module, state_dict=state, save_embedding_layers=False)
    in_place = {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if "lora_" not in name and _COPY not in name}
    adapter.update({name: tensor for name, tensor in in_place.items() if name not in adapter})
    if not adapter:
        raise UserError("there is no trained adapter to write", code="export", where=folder)
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, path, metadata={"format": "pt"})
    config = module.peft_config["default"]
    before, config.inference_mode = config.inference_mode, True
    config.save_pretrained(folder)
    config.inference_mode = before
    _compare({name: (path, _sum(tensor)) for name, tensor in adapter.items()})


class _Shards:
    """Collects tensors and writes a shard when it is full."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.sums: dict[str, tuple[str, float]] = {}
        self._waiting: dict[str, torch.Tensor] = {}
        self._bytes = self._total = 0
        self._paths: list[str] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._bytes + size > SHARD_BYTES:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._bytes += size
        self._total += size

    def _flush(self) -> None:
        path = os.path.join(self.folder, f"shard-{len(self._paths):05d}.safetensors")
        save_file(self._waiting, path, metadata={"format": "pt"})
        for name, tensor in self._waiting.items():
            self.sums[name] = (path, _sum(tensor))
        self._paths.append(path)
        self._waiting, self._bytes = {}, 0

    def finish(self) -> None:
        """Write the rest, and give the files the names that transformers looks for."""
        if self._waiting:
            self._flush()
        number = len(self._paths)
        renamed = {}
        for i, path in enumerate(self._paths, 1):
            name = "model.safetensors" if number == 1 else f"model-{i:05d}-of-{number:05d}.safetensors"
            renamed[path] = os.path.join(self.folder, name)
            os.rename(path, renamed[path])
        self.sums = {name: (renamed[path], value) for name, (path, value) in self.sums.items()}
        if number > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": {n: os.path.basename(p) for n, (p, _) in self.sums.items()}}
            with open(os.path.join(self.folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
                json.dump(index, file, indent=1)


def _sum(tensor: torch.Tensor) -> float:
    """A sum over the bytes as 64-bit numbers where they can be seen so: exact, whatever the type."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    even = flat[: flat.numel() // 8 * 8]
    return float(int(even.view(torch.int64).sum()) + int(flat[even.numel() :].to(torch.int64).sum())) if flat.numel() else 0.0


def _compare(sums: dict[str, tuple[str, float]]) -> None:
    """Read back what was written. Raises UserError where it is not the same: a full or failing disk."""
    by_file: dict[str, list[str]] = {}
    for name, (path, _) in sums.items():
        by_file.setdefault(path, []).append(name)
    for path, names in by_file.items():
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                if _sum(file.get_tensor(name)) != sums[name][1]:
                    raise UserError(f"{name} reads back differently", code="export", where=path, why="the disk is full or failing")


def _check_keys(base: Any, folder: str) -> None:
    """An empty model of the written configuration has exactly the written parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(p.shape) for name, p in empty.named_parameters()}
    names = weights.Names(base)
    found = {names.renamed(name): tuple(read().shape) for name, read in weights.readers(folder).items()}
    wrong = [name for name, shape in shapes.items() if found.get(name) != shape]
    if wrong:
        raise UserError(
            f"the exported model would not load: {wrong[0]} is {found.get(wrong[0])}, not {shapes[wrong[0]]}", code="export", where=folder
        )


def _save_config(base: Any, folder: str) -> None:
    from copy import deepcopy

    config = deepcopy(base.config)
    config.use_cache = True
    config.architectures = [type(base).__name__]
    if any("modules_to_save" in name for name, _ in base.named_parameters()):
        config.tie_word_embeddings = False  # the trained copies of embedding and head are two
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # merged weights are whole again
    config.save_pretrained(folder)


def _write_beside(folder: str, source: str) -> None:
    """Tokenizer and generation settings of the model that training began with."""
    for name in os.listdir(source):
        if (
            name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "added_tokens"))
            or name in _BESIDE
            or name.endswith(".tiktoken")
        ):
            path = os.path.join(source, name)
            if os.path.isfile(path):
                shutil.copyfile(path, os.path.join(folder, name))
