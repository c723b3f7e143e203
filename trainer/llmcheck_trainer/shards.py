"""safetensors files that are written tensor by tensor: names and shapes first, then each tensor to its place.

The safetensors library writes a file from tensors that are all in memory, which for a small model is the whole of it. The format is eight
bytes of length, a JSON header that says where each tensor lies, and the tensors; the library reads back what is written here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from llmcheck.errors import UserError

SHARD_BYTES = 4 << 30  # of a file; in memory there is BLOCK_BYTES of it
BLOCK_BYTES = 64 << 20  # on the way from a device to a file
_ALIGN = 8  # of the tensors in a file, by blanks at the header's end: the format's own files have it so
_SUM_MODULUS = 1 << 64
# The names of types in a header: safetensors 0.8.0, bindings/python/py_src/safetensors/torch.py. PyTorch's older releases lack some.
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4",
}  # fmt: skip
_TYPES = {getattr(torch, name): word for name, word in _NAMES.items() if hasattr(torch, name)}
_PAIRED = "F4"  # of two numbers in a byte: PyTorch's shape counts bytes along the last axis, the header's counts numbers


class _Place(NamedTuple):
    path: str
    offset: int  # in the file
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shards:
    """Files of tensors whose names, shapes and types are known. Calls in this order: create, add for each tensor, finish.

    Raises UserError where the format does not have the type of one.
    """

    def __init__(self, folder: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.folder = folder
        self.sums: dict[str, tuple[str, int]] = {}  # of each tensor that was written: its file, and the sum of its bytes
        self._files: list[list[tuple[str, torch.Tensor]]] = [[]]
        filled = self._total = 0
        for name, tensor in tensors:
            check_type(name, tensor)
            size = _size(tensor)
            if self._files[-1] and filled + size > SHARD_BYTES:
                self._files.append([])
                filled = 0
            self._files[-1].append((name, tensor.to("meta")))
            filled += size
            self._total += size
        self._places: dict[str, _Place] = {}
        self._staging: torch.Tensor | None = None

    def create(self) -> None:
        """Write the headers, and the index where there is more than one file. Raises OSError."""
        number = len(self._files)
        for i, tensors in enumerate(self._files, 1):
            name = "model.safetensors" if number == 1 else f"model-{i:05d}-of-{number:05d}.safetensors"
            self._create(os.path.join(self.folder, name), tensors)
        if number > 1:
            index = {
                "metadata": {"total_size": self._total},
                "weight_map": {name: os.path.basename(place.path) for name, place in self._places.items()},
            }
            with open(os.path.join(self.folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
                json.dump(index, file, indent=1)

    def _create(self, path: str, tensors: list[tuple[str, torch.Tensor]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # Wide types first, so that each tensor lies at a multiple of its element's size.
        for name, tensor in sorted(tensors, key=lambda pair: -pair[1].element_size()):
            begin, end = end, end + _size(tensor)
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": _shape(tensor), "data_offsets": [begin, end]}
        words = json.dumps(header, separators=(",", ":")).encode()
        words += b" " * (-len(words) % _ALIGN)
        start = 8 + len(words)
        with open(path, "wb") as file:
            file.write(len(words).to_bytes(8, "little") + words)
        for name, tensor in tensors:
            self._places[name] = _Place(path, start + header[name]["data_offsets"][0], tuple(tensor.shape), tensor.dtype)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor to its place. Raises OSError, and ValueError where it is not the one that was announced."""
        place = self._places.get(name)
        if place is None:
            raise ValueError(f"{name} is not among the tensors that were announced")
        if (tuple(tensor.shape), tensor.dtype) != (place.shape, place.dtype):
            raise ValueError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, and was to be {place.shape} of {place.dtype}")
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        total = 0
        with open(place.path, "r+b") as file:
            file.seek(place.offset)
            for begin in range(0, flat.numel(), BLOCK_BYTES):
                block = self._on_host(flat[begin : begin + BLOCK_BYTES])
                file.write(memoryview(block.numpy()))
                total += sum_of_bytes(block)
        self.sums[name] = (place.path, total % _SUM_MODULUS)

    def _on_host(self, block: torch.Tensor) -> torch.Tensor:
        if block.device.type == "cpu":
            return block
        if self._staging is None:  # one for all: pinned memory copies faster, and a new one for each would stay with the C library
            self._staging = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
        return self._staging[: block.numel()].copy_(block)

    def finish(self) -> None:
        """Raises ValueError where a tensor that was announced has not come."""
        missing = self._places.keys() - self.sums.keys()
        if missing:
            raise ValueError(f"{min(missing)} was not written")


def check_type(name: str, tensor: torch.Tensor) -> None:
    """Raises UserError where the format does not have the type of `tensor`."""
    if tensor.dtype not in _TYPES:
        raise UserError(
            f"the model's {name} cannot be written: it is of {tensor.dtype}",
            code="export",
            where=name,
            why="safetensors files have no such type; they have " + ", ".join(name for name in _NAMES if hasattr(torch, name)),
            hint="--export none trains and keeps checkpoints, and writes no model",
        )


def _shape(tensor: torch.Tensor) -> list[int]:
    shape = list(tensor.shape)
    return [*shape[:-1], 2 * shape[-1]] if shape and _TYPES[tensor.dtype] == _PAIRED else shape


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def sum_of_bytes(tensor: torch.Tensor) -> int:
    """A sum over the bytes, as 64-bit numbers where they can be seen so: exact, whatever the type."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if flat.storage_offset() % 8:  # a part of a larger tensor, of odd sizes: PyTorch sees no 64-bit numbers there
        flat = flat.clone()
    even = flat[: flat.numel() // 8 * 8]
    return (int(even.view(torch.int64).sum()) + int(flat[even.numel() :].to(torch.int64).sum())) % _SUM_MODULUS
