"""The GPUs of this machine, through the driver's own library (NVML) by ctypes: no package, no CUDA context; none without a driver.

Functions and structures: https://docs.nvidia.com/deploy/nvml-api/ (nvml.h).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcheck.catalog.gpus import find_device
from llmcheck.types import GpuSpec

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
# One of these exists wherever a driver is loaded: bare Linux and containers, and WSL. Looking is 100 times quicker than a failing dlopen.
DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_SUCCESS = 0
_TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE; the other texts are shorter
_MEMORY_VERSION_2 = 2 << 24 | 40  # NVML_STRUCT_VERSION(Memory, 2): version in the top byte, size in the lower ones


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
        import ctypes  # 5 ms, and only wanted where there is a driver

        return visible(read(ctypes.CDLL(LIBRARY)), environ.get("CUDA_VISIBLE_DEVICES"))
    except Exception:  # a probe may not fail the program that asks: no driver, an old one, a broken one
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
    """The GPUs that an NVML library reports; those that cannot be read are left out. Raises OSError when it cannot be started."""
    import ctypes

    if library.nvmlInit_v2() != _SUCCESS:
        raise OSError("nvmlInit_v2 failed")
    try:
        number = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(number)) != _SUCCESS:
            return ()
        driver = _text(library.nvmlSystemGetDriverVersion)
        found = (_read_one(library, index, driver) for index in range(min(number.value, 64)))
        return tuple(gpu for gpu in found if gpu is not None)
    finally:
        library.nvmlShutdown()


def _read_one(library: Any, index: int, driver: str) -> LocalGpu | None:
    import ctypes

    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != _SUCCESS:
        return None
    memory = _memory(library, handle)
    if memory is None:
        return None
    total, used = memory
    major, minor = ctypes.c_int(), ctypes.c_int()
    if library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != _SUCCESS:
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
    name = _text(library.nvmlDeviceGetName, handle)
    return LocalGpu(
        index=index, name=name, uuid=_text(library.nvmlDeviceGetUUID, handle), total_bytes=total, used_bytes=used, driver=driver,
        compute_capability=(major.value, minor.value), spec=find_device(name, total),
    )  # fmt: skip


def _memory(library: Any, handle: Any) -> tuple[int, int] | None:
    """(total, used) bytes of one GPU; version 2 of the call does not count the driver's reserve as used, version 1 (before 510) does."""
    import ctypes

    class MemoryV2(ctypes.Structure):
        _fields_ = [
            ("version", ctypes.c_uint),
            ("total", ctypes.c_ulonglong),
            ("reserved", ctypes.c_ulonglong),
            ("free", ctypes.c_ulonglong),
            ("used", ctypes.c_ulonglong),
        ]

    class MemoryV1(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    second = MemoryV2(version=_MEMORY_VERSION_2)
    ask = getattr(library, "nvmlDeviceGetMemoryInfo_v2", None)
    if ask is not None and ask(handle, ctypes.byref(second)) == _SUCCESS:
        return int(second.total), int(second.used)
    first = MemoryV1()
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(first)) == _SUCCESS:
        return int(first.total), int(first.used)
    return None


def _text(function: Any, *arguments: Any) -> str:
    import ctypes

    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    if function(*arguments, buffer, ctypes.c_uint(_TEXT_BYTES)) != _SUCCESS:
        return ""
    return buffer.value.decode("utf-8", "replace")
