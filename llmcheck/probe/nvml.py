"""The GPUs of this machine, as the driver's own library (NVML) tells through NVIDIA's package nvidia-ml-py: no CUDA context is made.

Functions: https://docs.nvidia.com/deploy/nvml-api/ (nvml.h), of which the package's module ``pynvml`` is the Python form.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmcheck.catalog.gpus import find_device
from llmcheck.types import GpuSpec

# One of these exists wherever a driver is loaded: bare Linux and containers, and WSL. Looking is 1000 times quicker than importing pynvml.
DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_MAX_GPUS = 64


@dataclass(frozen=True, kw_only=True)
class LocalGpu:
    """One GPU here. `total_bytes` is the driver's, a little more than what torch reports; its own reserve is not in `used_bytes`."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    used_bytes: int  # by all processes at the time of asking
    driver: str
    compute_capability: tuple[int, int]
    spec: GpuSpec | None  # the catalogue's, None where it has none of that name and size


def local_gpus(environ: Mapping[str, str] = os.environ) -> tuple[LocalGpu, ...]:
    """The GPUs that a CUDA program started here would see (CUDA_VISIBLE_DEVICES is honoured). Empty without a driver; never raises."""
    if sys.platform != "win32" and not any(map(os.path.exists, DEVICE_FILES)):
        return ()
    try:
        import pynvml  # 20 ms, and only wanted where there is a driver

        return visible(read(pynvml), environ.get("CUDA_VISIBLE_DEVICES"))
    except Exception:  # a probe may not fail the program that asks: no driver, an old one, a broken one, another package of this name
        return ()


def visible(gpus: tuple[LocalGpu, ...], setting: str | None) -> tuple[LocalGpu, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES shows, in its order (indices or beginnings of UUIDs); an unknown one ends the list."""
    if setting is None:
        return gpus
    shown: list[LocalGpu] = []
    for item in setting.split(","):
        wanted = item.strip()
        found = [
            gpu for gpu in gpus if wanted and (wanted == str(gpu.index) or (wanted.startswith("GPU-") and gpu.uuid.startswith(wanted)))
        ]
        if len(found) != 1 or found[0] in shown:
            break
        shown += found
    return tuple(shown)


def read(library: Any) -> tuple[LocalGpu, ...]:
    """The GPUs that `library`, the module ``pynvml``, reports; those that cannot be read are left out. Raises its NVMLError."""
    library.nvmlInit()
    try:
        driver = _text(library.nvmlSystemGetDriverVersion)
        found = (_read_one(library, index, driver) for index in range(min(library.nvmlDeviceGetCount(), _MAX_GPUS)))
        return tuple(gpu for gpu in found if gpu is not None)
    finally:
        library.nvmlShutdown()


def _read_one(library: Any, index: int, driver: str) -> LocalGpu | None:
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        total, used = _memory(library, handle)
    except library.NVMLError:
        return None
    try:
        major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
    except library.NVMLError:
        major, minor = 0, 0
    name = _text(library.nvmlDeviceGetName, handle)
    return LocalGpu(
        index=index,
        name=name,
        uuid=_text(library.nvmlDeviceGetUUID, handle),
        total_bytes=total,
        used_bytes=used,
        driver=driver,
        compute_capability=(int(major), int(minor)),
        spec=find_device(name, total),
    )


def _memory(library: Any, handle: Any) -> tuple[int, int]:
    """(total, used) bytes of one GPU; version 2 of the call does not count the driver's reserve as used, version 1 (before 510) does."""
    try:
        memory = library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
    except library.NVMLError:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.total), int(memory.used)


def _text(function: Callable[..., Any], *arguments: Any) -> str:
    """What `function` answers, an empty text where it fails: each is a detail."""
    try:
        answer = function(*arguments)
    except Exception:  # NVMLError, or a text that the package cannot decode
        return ""
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
