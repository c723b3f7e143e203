"""The trained model as Hugging Face files: shards of safetensors written one parameter at a time, adapters, or both merged.

One parameter is all that is ever in host memory, under ZeRO-3 too: each is gathered alone, and goes to its place in a file whose header
was written first. What was written is read again and compared before the folder gets its name.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from llmcheck.errors import UserError
from llmcheck.types import TrainingRecipe, TrainSettings
from llmcheck_trainer import weights
from llmcheck_trainer.guard import RunFailedError
from llmcheck_trainer.shards import Shards, check_type, sum_of_bytes

TRIM_BYTES = 1 << 20  # of parameters between two trims, which take 0.3 ms each
_BESIDE = ("generation_config.json", "chat_template.jinja")
_COPY = "modules_to_save.default."


def export(engine: Any, recipe: TrainingRecipe, settings: TrainSettings, source: str) -> str | None:
    """Write what `settings.export` asks for under the output folder; all ranks call it. The folder, or None for "none"."""
    kind = _kind(recipe, settings)
    if kind == "none":
        return None
    assert (kind == "model") == (recipe.lora is None)  # PlanFile.check_export
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


def check(module: Any, recipe: TrainingRecipe, settings: TrainSettings) -> None:
    """Raises UserError where a tensor of the model is of a type that its files cannot hold: before the training, not after it."""
    if _kind(recipe, settings) in ("model", "merged"):
        for name, tensor in _merged(_base_of(module), shapes_only=True):
            check_type(name, tensor)


def _kind(recipe: TrainingRecipe, settings: TrainSettings) -> str:
    if settings.export != "auto":
        return settings.export
    return "model" if recipe.lora is None else "adapter"


def _base_of(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module


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
        except (OSError, SafetensorError, ValueError, UserError) as error:
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
    base = _base_of(module)
    saved = _SavedForm(base)
    shapes = list(_merged(base, shapes_only=True))
    shards = Shards(folder, [spec for name, shape in shapes for spec in saved.of(name, shape).items()])
    disk.attempt(shards.create)
    on_host = next(base.parameters()).device.type == "cpu"
    num_freed_bytes = 0
    for (name, tensor), (_, shape) in zip(_merged(base), shapes, strict=True):
        disk.attempt(_add, shards, saved, name, tensor)
        num_freed_bytes += shape.numel() * shape.element_size()
        if on_host and num_freed_bytes > TRIM_BYTES:
            _return_freed()
            num_freed_bytes = 0
    disk.attempt(_finish, shards, saved, folder, source)


def _return_freed() -> None:
    """Have the C library return what was freed.

    Gathering on the CPU takes aligned blocks, and glibc finds no use for one again as such: as much as was gathered would stay with it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's only
    if trim is not None:
        trim(0)


class _SavedForm:
    """Names and shapes in which checkpoints of the model's family hold its tensors; an empty model of what is written stands for it."""

    def __init__(self, base: Any) -> None:
        self.config = _saved_config(base)
        self.empty = weights.empty_model(self.config)
        if hasattr(base, "_weight_conversions"):  # what transformers itself loaded it by
            self.empty._weight_conversions = base._weight_conversions

    def of(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """`tensor` as it is saved: mostly itself; fused experts are many."""
        found: dict[str, torch.Tensor] = revert_weight_conversion(self.empty, {name: tensor})
        return found


def _add(shards: Shards, saved: _SavedForm, name: str, tensor: torch.Tensor) -> None:
    for written, part in saved.of(name, tensor.detach()).items():
        shards.add(written, part)


def _finish(shards: Shards, saved: _SavedForm, folder: str, source: str) -> None:
    shards.finish()
    saved.config.save_pretrained(folder)
    _write_beside(folder, source)
    _compare(shards.sums)
    names = weights.Names(saved.empty)
    if not names.converters:
        _check_keys(saved.empty, names, folder)


def _merged(base: Any, *, shapes_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers under the names of a plain model, adapters added to what they adapt; gathered one by one.

    On other ranks than 0 the tensors are empty; with `shapes_only`, nothing is gathered, and they have shape and type on all ranks.
    A tensor may be the parameter itself, and is gone when the next one comes.
    """
    tied = _tied_names(base)
    persistent = set(base.state_dict(keep_vars=True))
    for prefix, part in base.named_modules():
        if hasattr(part, "get_delta_weight") and hasattr(part, "base_layer"):
            yield from _merged_layer(prefix, part, shapes_only=shapes_only)
            continue
        buffers = [(name, b) for name, b in part.named_buffers(recurse=False) if f"{prefix}.{name}".lstrip(".") in persistent]
        for name, tensor in [*part.named_parameters(recurse=False), *buffers]:
            full = f"{prefix}.{name}" if prefix else name
            if ".lora_" in full or ".base_layer." in full or ".original_module." in full:
                continue
            if full in tied:
                continue
            yield from _alone(full.replace(_COPY, ""), tensor, part, shapes_only=shapes_only)


def _alone(name: str, tensor: Any, layer: Any, *, shapes_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
    if shapes_only:
        yield name, _empty_whole(tensor, layer)
        return
    with _gathered([tensor]):
        yield name, _turned(_whole(tensor), tensor, layer) if dist.get_rank() == 0 else torch.empty(0)


def _merged_layer(prefix: str, part: Any, *, shapes_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
    base = part.base_layer
    adapters = [p for name, p in part.named_parameters() if "lora_" in name]
    if shapes_only:
        yield f"{prefix}.weight", _empty_whole(base.weight, base)
    else:
        with _gathered([base.weight, *adapters]):
            yield f"{prefix}.weight", _turned(_sum_of(part), base.weight, base) if dist.get_rank() == 0 else torch.empty(0)
    if getattr(base, "bias", None) is not None:
        yield from _alone(f"{prefix}.bias", base.bias, base, shapes_only=shapes_only)


def _empty_whole(tensor: Any, layer: Any) -> torch.Tensor:
    """Shape and type of what is written of a tensor, partitioned or packed as it may be."""
    packed = getattr(tensor, "quant_state", None)
    if packed is not None:
        return _turned(torch.empty(packed.shape, dtype=packed.dtype, device="meta"), tensor, layer)
    return torch.empty(weights.shape_of(tensor), dtype=tensor.dtype, device="meta")


def _whole(tensor: Any) -> torch.Tensor:
    """The tensor itself; of a weight that bitsandbytes has packed to 4 bits, the numbers that it stands for."""
    packed, whole = getattr(tensor, "quant_state", None), tensor
    if packed is not None:
        from bitsandbytes.functional import dequantize_4bit

        whole = dequantize_4bit(tensor.data, packed)
    found: torch.Tensor = whole
    return found


def _turned(whole: torch.Tensor, tensor: Any, layer: Any) -> torch.Tensor:
    """What was made of `tensor`, with the axes of the plain model: packing a Conv1D (GPT-2's), transformers turns its weight."""
    was_conv = getattr(tensor, "quant_state", None) is not None and issubclass(getattr(layer, "source_cls", torch.nn.Linear), Conv1D)
    return whole.t() if was_conv else whole


def _sum_of(part: Any) -> torch.Tensor:
    """Weight and adapter of a layer added in fp32."""
    weight = _whole(part.base_layer.weight)
    total = weight.detach().to(torch.float32, copy=True)
    total += part.get_delta_weight("default").to(weight.device)
    return total.to(weight.dtype)


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
        why, hint = "the model has no weights of an adapter", "this is a bug of the trainer's: the checkpoints hold what was learnt"
        raise UserError("there is no trained adapter to write", code="export", where=folder, why=why, hint=hint)
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, path, metadata={"format": "pt"})
    config = module.peft_config["default"]
    before, config.inference_mode = config.inference_mode, True
    config.save_pretrained(folder)
    config.inference_mode = before
    _compare({name: (path, sum_of_bytes(tensor)) for name, tensor in adapter.items()})


def _compare(sums: dict[str, tuple[str, int]]) -> None:
    """Read back what was written. Raises UserError where it is not the same: a full or failing disk."""
    by_file: dict[str, list[str]] = {}
    for name, (path, _) in sums.items():
        by_file.setdefault(path, []).append(name)
    for path, names in by_file.items():
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                if sum_of_bytes(file.get_tensor(name)) != sums[name][1]:
                    why, hint = "the disk is full or failing", "run the same command again, with an --output on another disk"
                    raise UserError(f"{name} reads back differently", code="export", where=path, why=why, hint=hint)


def _check_keys(empty: Any, names: weights.Names, folder: str) -> None:
    """An empty model of the written configuration has exactly the written parameters."""
    shapes = {name: tuple(p.shape) for name, p in empty.named_parameters()}
    found = {names.renamed(name): tuple(read().shape) for name, read in weights.readers(folder).items()}
    wrong = [name for name, shape in shapes.items() if found.get(name) != shape]
    if wrong:
        raise UserError(
            f"the exported model would not load: {wrong[0]} is {found.get(wrong[0])}, not {shapes[wrong[0]]}",
            code="export",
            where=folder,
            why="its configuration makes other parameters than were written",
            hint="this is a bug of the trainer's: the checkpoints hold what was learnt",
        )


def _saved_config(base: Any) -> Any:
    config = deepcopy(base.config)
    config.use_cache = True
    config.architectures = [type(base).__name__]
    if any("modules_to_save" in name for name, _ in base.named_parameters()):
        config.tie_word_embeddings = False  # the trained copies of embedding and head are two
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # merged weights are whole again
    return config


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
