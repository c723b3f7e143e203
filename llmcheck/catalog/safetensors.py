"""Reading the headers of safetensors files: names, types and shapes of the tensors, never the weights.

Format: https://huggingface.co/docs/safetensors/index#format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcheck import jsonfile
from llmcheck.catalog.config import check_regular
from llmcheck.errors import UserError
from llmcheck.paths import unreadable

MAX_HEADER_BYTES = 100_000_000  # the format's own limit (safetensors: MAX_HEADER_SIZE)
MAX_SHARDS = 10_000
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# bytes per element of the types of the format (safetensors/src/tensor.rs); sub-byte types as fractions
ITEM_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 0.75),
    "F4": 0.5,
}


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """What the headers of a checkpoint say."""

    num_tensors: int
    num_elements: int
    elements_by_dtype: Mapping[str, int]  # "BF16" -> elements
    shapes: Mapping[str, tuple[int, ...]]  # tensor name -> shape
    num_files: int


def read_folder(folder: str) -> WeightFiles | None:
    """The checkpoint in a folder by its index, else its one file; None when it holds no safetensors. Raises UserError for damaged ones."""
    index = os.path.join(folder, INDEX)
    if os.path.lexists(index):
        return read_files([os.path.join(folder, name) for name in _shards(index)])
    single = os.path.join(folder, SINGLE)
    return read_files([single]) if os.path.lexists(single) else None


def read_files(paths: list[str]) -> WeightFiles:
    """The tensors of some files together. Raises UserError for a damaged file or a tensor that two of them hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    by_dtype: dict[str, int] = {}
    for path in paths:
        for name, (dtype, shape) in read_header(path).items():
            if name in shapes:
                raise _damaged(path, f"the tensor {name[:80]!r} is in two files")
            shapes[name] = shape
            by_dtype[dtype] = by_dtype.get(dtype, 0) + math.prod(shape)
    return WeightFiles(
        num_tensors=len(shapes), num_elements=sum(by_dtype.values()), elements_by_dtype=by_dtype, shapes=shapes, num_files=len(paths)
    )


def read_header(path: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(type, shape) of every tensor in one file, by name. Raises UserError: not the format, cut short, or offsets that do not fit."""
    check_regular(path, "weights file")
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(MAX_HEADER_BYTES, total - 8):
                why = (
                    "it is shorter than its header says"
                    if total < 8 or length <= MAX_HEADER_BYTES
                    else "its first bytes are not a header's length"
                )
                raise _damaged(path, why)
            data = file.read(length)
    except OSError as reason:
        raise unreadable(path, what="weights file", where=path, reason=reason) from reason
    header = jsonfile.loads(data, what="header of the weights file", where=path)
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    tensors = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, start, stop = _entry(path, name, entry)
        if stop - start != math.ceil(math.prod(shape) * ITEM_BYTES[dtype]):
            raise _damaged(path, f"the tensor {name[:80]!r} has {stop - start} bytes for shape {list(shape)} of {dtype}")
        end = max(end, stop)
        tensors[name] = (dtype, shape)
    if 8 + length + end > total:
        raise _damaged(path, f"it is cut short: {total} bytes, its tensors end at {8 + length + end}")
    return tensors


def _entry(path: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry of {name[:80]!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(path, f"the tensor {name[:80]!r} has an unknown type")
    sizes, ends = _whole(shape), _whole(offsets)
    if sizes is None or len(sizes) > 16:
        raise _damaged(path, f"the tensor {name[:80]!r} has no valid shape")
    if ends is None or len(ends) != 2 or ends[1] < ends[0]:
        raise _damaged(path, f"the tensor {name[:80]!r} has no valid offsets")
    return dtype, sizes, ends[0], ends[1]


def _whole(value: Any) -> tuple[int, ...] | None:
    """`value` as a tuple if it is a list of whole numbers below 2^60."""
    if isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 60 for n in value):
        return tuple(value)
    return None


def _shards(index: str) -> list[str]:
    check_regular(index, "index of the weights")
    where = jsonfile.load_object(index, what="index of the weights").get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise _damaged(index, "it has no weight_map of file names")
    names = sorted(set(where.values()))
    # Only files of the folder itself: an index must not make us open anything else.
    bad = next((name for name in names if os.path.basename(name) != name or not name.endswith(".safetensors")), None)
    if bad is not None or len(names) > MAX_SHARDS:
        raise _damaged(
            index, f"it names {bad[:80]!r}, which is no weights file beside it" if bad is not None else f"it names {len(names)} files"
        )
    return names


def _damaged(path: str, why: str) -> UserError:
    return UserError(f"damaged weights file: {path}", code="safetensors", where=path, why=why, hint="download it again")
