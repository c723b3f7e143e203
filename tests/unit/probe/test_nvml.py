"""The probe of local GPUs against a driver library made up for the test."""

# ruff: noqa: N802 - the functions are called as NVML calls them

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from llmcheck.probe import nvml
from llmcheck.probe.nvml import LocalGpu, local_gpus, read, visible
from llmcheck.units import GIB, MIB


def deref(pointer: Any) -> Any:
    return pointer._obj


class Library:
    """NVML for `gpus`: (name, total, used, capability); `old` lacks the second version of the memory call, `broken` names failing calls."""

    def __init__(self, *gpus: tuple[str, int, int, tuple[int, int]], old: bool = False, broken: tuple[str, ...] = ()) -> None:
        self.gpus, self.broken, self.shut_down = gpus, broken, 0
        if not old:
            self.nvmlDeviceGetMemoryInfo_v2 = self.memory

    def result(self, name: str) -> int:
        return 999 if name in self.broken else 0

    def nvmlInit_v2(self) -> int:
        return self.result("init")

    def nvmlShutdown(self) -> int:
        self.shut_down += 1
        return 0

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:
        deref(number).value = len(self.gpus)
        return self.result("count")

    def nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = b"580.159.03"
        return self.result("driver")

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        deref(handle).value = index.value + 1
        return self.result(f"handle{index.value}")

    def gpu(self, handle: Any) -> tuple[str, int, int, tuple[int, int]]:
        return self.gpus[handle.value - 1]

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = self.gpu(handle)[0].encode()
        return self.result("name")

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = f"GPU-0000000{handle.value - 1}-aaaa".encode()
        return self.result("uuid")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        deref(major).value, deref(minor).value = self.gpu(handle)[3]
        return self.result("capability")

    def memory(self, handle: Any, info: Any) -> int:
        deref(info).total, deref(info).used = self.gpu(handle)[1:3]
        return self.result("memory_v2")

    def nvmlDeviceGetMemoryInfo(self, handle: Any, info: Any) -> int:
        deref(info).total, deref(info).used = self.gpu(handle)[1:3]
        return self.result("memory")


H100 = ("NVIDIA H100 80GB HBM3", 81559 * MIB, 3 * GIB, (9, 0))
T4 = ("Tesla T4", 15360 * MIB, 0, (7, 5))


def test_a_gpu_is_read() -> None:
    (gpu,) = read(Library(H100))
    assert (gpu.name, gpu.total_bytes, gpu.used_bytes, gpu.driver) == ("NVIDIA H100 80GB HBM3", 81559 * MIB, 3 * GIB, "580.159.03")
    assert (gpu.index, gpu.uuid, gpu.compute_capability) == (0, "GPU-00000000-aaaa", (9, 0))


def test_a_gpu_is_found_in_the_catalogue() -> None:
    assert [gpu.spec.name if gpu.spec else None for gpu in read(Library(H100, T4))] == ["H100", "T4"]


def test_a_gpu_that_the_catalogue_lacks_has_no_spec() -> None:
    (gpu,) = read(Library(("NVIDIA New", 8 * GIB, 0, (13, 0))))
    assert gpu.spec is None


def test_an_old_driver_is_asked_the_old_way() -> None:
    (gpu,) = read(Library(H100, old=True))
    assert gpu.total_bytes == 81559 * MIB


def test_a_call_that_an_older_driver_refuses_is_asked_the_old_way() -> None:
    (gpu,) = read(Library(H100, broken=("memory_v2",)))
    assert gpu.total_bytes == 81559 * MIB


def test_a_gpu_that_cannot_be_read_is_left_out() -> None:
    assert [gpu.index for gpu in read(Library(H100, T4, broken=("handle0",)))] == [1]


def test_missing_details_are_left_empty() -> None:
    (gpu,) = read(Library(H100, broken=("driver", "uuid", "capability")))
    assert (gpu.driver, gpu.uuid, gpu.compute_capability) == ("", "", (0, 0))


def test_a_driver_that_does_not_start_is_an_error() -> None:
    with pytest.raises(OSError, match="nvmlInit_v2 failed"):
        read(Library(H100, broken=("init",)))


@pytest.mark.parametrize("broken", [(), ("count",), ("handle0",)])
def test_the_library_is_shut_down_whatever_happens(broken: tuple[str, ...]) -> None:
    library = Library(H100, broken=broken)
    read(library)
    assert library.shut_down == 1


# --- CUDA_VISIBLE_DEVICES -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 2 , 1 ", [2, 1]),
        ("0,7,1", [0]),
        ("-1", []),
        ("0,0", [0]),
        ("GPU-00000002", [2]),
        ("GPU-0000000", []),
        ("none", []),
    ],
)
def test_only_visible_gpus_count(setting: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible(read(Library(H100, H100, T4)), setting)] == indices


# --- never raises -----------------------------------------------------------------------------------------------------------------------


def with_driver(monkeypatch: pytest.MonkeyPatch, library: Any) -> tuple[LocalGpu, ...]:
    monkeypatch.setattr(nvml, "DEVICE_FILES", ("/",))

    def load(name: str) -> Any:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    return local_gpus({})


def test_local_gpus_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu.name for gpu in with_driver(monkeypatch, Library(H100))] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize("library", [OSError("no such library"), object(), Library(H100, broken=("init",)), MemoryError()])
def test_a_driver_that_fails_is_no_gpu(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_driver(monkeypatch, library) == ()


def test_without_device_files_the_library_is_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "DEVICE_FILES", ("/nonexistent",))
    monkeypatch.setattr(sys, "platform", "linux")

    def load(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert local_gpus({}) == ()


def test_the_probe_imports_no_ctypes_until_there_is_a_driver() -> None:
    code = "import sys; from llmcheck.probe import nvml; nvml.DEVICE_FILES = ('/none',); nvml.local_gpus(); print('ctypes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
