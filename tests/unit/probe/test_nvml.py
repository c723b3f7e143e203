"""The probe of local GPUs against a module made up for the test in the place of ``pynvml``."""

# ruff: noqa: N802 - the functions are called as NVML calls them

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmcheck.probe import nvml
from llmcheck.probe.nvml import LocalGpu, local_gpus, read, visible
from llmcheck.units import GIB, MIB


class NVMLError(Exception):
    """What pynvml raises."""


class Library:
    """pynvml for `gpus`: (name, total, used, capability); `old` lacks the memory call's second version, `broken` names failing calls."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    def __init__(
        self, *gpus: tuple[str, int, int, tuple[int, int]], old: bool = False, broken: tuple[str, ...] = (), as_bytes: bool = False
    ) -> None:
        self.gpus, self.broken, self.shut_down, self.as_bytes = gpus, broken + ("memory_v2",) * old, 0, as_bytes

    def check(self, name: str) -> None:
        if name in self.broken:
            raise NVMLError(999)

    def text(self, name: str, value: str) -> str | bytes:
        self.check(name)
        return value.encode() if self.as_bytes else value

    def nvmlInit(self) -> None:
        self.check("init")

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:
        self.check("count")
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self.text("driver", "580.159.03")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.check(f"handle{index}")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.text("name", self.gpus[handle][0])

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return self.text("uuid", f"GPU-0000000{handle}-aaaa")

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        self.check("capability")
        return self.gpus[handle][3]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:
        self.check("memory_v2" if version == self.nvmlMemory_v2 else "memory")
        reserve = 0 if version else 600 * MIB  # the first version counts it as used
        return SimpleNamespace(total=self.gpus[handle][1], used=self.gpus[handle][2] + reserve)


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


def test_a_driver_before_510_is_asked_the_old_way() -> None:
    (gpu,) = read(Library(H100, old=True))
    assert (gpu.total_bytes, gpu.used_bytes) == (81559 * MIB, 3 * GIB + 600 * MIB)


def test_texts_may_be_bytes_as_older_packages_give_them() -> None:
    (gpu,) = read(Library(H100, as_bytes=True))
    assert (gpu.name, gpu.uuid, gpu.driver) == ("NVIDIA H100 80GB HBM3", "GPU-00000000-aaaa", "580.159.03")


def test_a_gpu_whose_memory_cannot_be_read_is_left_out() -> None:
    assert read(Library(H100, broken=("memory_v2", "memory"))) == ()


def test_a_gpu_that_cannot_be_read_is_left_out() -> None:
    assert [gpu.index for gpu in read(Library(H100, T4, broken=("handle0",)))] == [1]


def test_missing_details_are_left_empty() -> None:
    (gpu,) = read(Library(H100, broken=("driver", "uuid", "capability")))
    assert (gpu.driver, gpu.uuid, gpu.compute_capability) == ("", "", (0, 0))


@pytest.mark.parametrize("broken", ["init", "count"])
def test_a_driver_that_does_not_answer_is_an_error(broken: str) -> None:
    with pytest.raises(NVMLError):
        read(Library(H100, broken=(broken,)))


@pytest.mark.parametrize("broken", [(), ("count",), ("handle0",), ("memory", "memory_v2")])
def test_the_library_is_shut_down_whatever_happens(broken: tuple[str, ...]) -> None:
    library = Library(H100, broken=broken)
    with contextlib.suppress(NVMLError):
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
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return local_gpus({})


def test_local_gpus_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu.name for gpu in with_driver(monkeypatch, Library(H100))] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    "library",
    [
        None,  # the package is not installed: the import raises
        object(),  # something else of that name
        Library(H100, broken=("init",)),  # no driver, or not the one that is loaded
        Library(H100, broken=("count",)),
    ],
)
def test_a_driver_that_fails_is_no_gpu(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_driver(monkeypatch, library) == ()


LOADED = """
import contextlib, io, json, sys
from llmcheck.probe import nvml
nvml.DEVICE_FILES = tuple(json.loads(sys.argv[1]))
from llmcheck.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[2:])
print("pynvml" in sys.modules)
"""
PLAN = "plan --model bloomz-560m --method lora --micro-batch 1 --checkpointing on --zero 2".split()


@pytest.mark.skipif(sys.platform == "win32", reason="no device files there")
@pytest.mark.parametrize(
    ("files", "words", "loaded"),
    [(["/none"], [], False), (["/"], ["--gpu", "T4"], False), (["/"], [], True)],
    ids=["no-driver", "gpu-named", "gpu-looked-for"],
)
def test_the_package_is_loaded_only_where_a_plan_looks_for_gpus(tmp_path: Path, files: list[str], words: list[str], loaded: bool) -> None:
    (tmp_path / "pynvml.py").write_text("class NVMLError(Exception): ...\ndef nvmlInit(): raise NVMLError('no driver')\n")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-c", LOADED, json.dumps(files), *PLAN, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environ)
    assert done.stdout == f"{loaded}\n"
