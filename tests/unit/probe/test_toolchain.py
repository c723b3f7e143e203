from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmcheck.probe import toolchain
from llmcheck.probe.machine import Machine
from llmcheck.rules.facts import ABSENT, Facts
from tests.unit.probe.machines import make

NVCC = 'echo "nvcc: NVIDIA (R) Cuda compiler driver"; echo "Cuda compilation tools, release 12.4, V12.4.131"'


def look(collector: Any, machine: Machine) -> Facts:
    facts = Facts()
    collector(machine, facts)
    return facts


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"toolchain.{name}")
    return None if fact is None else fact.value


def test_cuda_home_of_the_environment_comes_first_and_is_not_checked_by_torch(tmp_path: Path) -> None:
    facts = look(toolchain.cuda_compiler, make(tmp_path, {}, {"nvcc": NVCC}, CUDA_HOME="/gone"))
    assert (value(facts, "cuda_home"), value(facts, "cuda_home_exists"), value(facts, "nvcc_version")) == ("/gone", False, ABSENT)


def test_nvcc_on_the_path_names_the_toolkit(tmp_path: Path) -> None:
    facts = look(toolchain.cuda_compiler, make(tmp_path, {}, {"nvcc": NVCC}))
    assert (value(facts, "cuda_home"), value(facts, "nvcc_version")) == (str(tmp_path), "12.4")
    assert value(facts, "cuda_home_from_environment") is False


def test_the_usual_folder_without_nvcc_is_a_runtime_only(tmp_path: Path) -> None:
    facts = look(toolchain.cuda_compiler, make(tmp_path, {"/usr/local/cuda/version.json": "{}"}))
    assert (value(facts, "cuda_home"), value(facts, "nvcc_version")) == (str(tmp_path / "usr/local/cuda"), ABSENT)


def test_no_toolkit(tmp_path: Path) -> None:
    facts = look(toolchain.cuda_compiler, make(tmp_path))
    assert (value(facts, "cuda_home"), value(facts, "nvcc_version")) == (ABSENT, ABSENT)


@pytest.mark.parametrize("script", ["exit 1", "echo hello", "kill -9 $$"])
def test_an_nvcc_that_does_not_answer_is_unknown(tmp_path: Path, script: str) -> None:
    facts = look(toolchain.cuda_compiler, make(tmp_path, {}, {"nvcc": script}))
    assert facts.get("toolchain.nvcc_version") is None
    assert facts.why_unknown("toolchain.nvcc_version") is not None


def test_compilers_are_those_that_torch_and_nvcc_start(tmp_path: Path) -> None:
    programs = {"c++": "echo 13.2.0", "gcc": "echo 13.2.0", "g++-12": "echo 12.3.0"}
    facts = look(toolchain.host_compiler, make(tmp_path, {}, programs, CXX="g++-12"))
    assert (value(facts, "cxx_version"), value(facts, "nvcc_host_compiler_version")) == ("12.3.0", "13.2.0")
    nothing = look(toolchain.host_compiler, make(tmp_path / "b"))
    assert (value(nothing, "cxx"), value(nothing, "cxx_version")) == (ABSENT, ABSENT)


def test_a_compiler_that_is_not_gcc_has_no_gcc_version(tmp_path: Path) -> None:
    machine = make(tmp_path, {}, {"clang++": "echo 4.2.1", "gcc": "echo what?"})
    (tmp_path / "bin" / "c++").symlink_to(tmp_path / "bin" / "clang++")
    facts = look(toolchain.host_compiler, machine)
    assert facts.get("toolchain.cxx_version") is None
    assert facts.get("toolchain.nvcc_host_compiler_version") is None


def test_ninja(tmp_path: Path) -> None:
    assert value(look(toolchain.build_tools, make(tmp_path)), "ninja") is ABSENT
    assert value(look(toolchain.build_tools, make(tmp_path, {}, {"ninja": ""})), "ninja") == str(tmp_path / "bin" / "ninja")


def lock(path: Path, minutes: float) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    then = time.time() - minutes * 60
    os.utime(path, (then, then))


def test_locks_of_builds_and_their_age(tmp_path: Path) -> None:
    machine = make(tmp_path)
    folder = tmp_path / "home" / ".cache" / "torch_extensions"
    lock(folder / "py311_cu124" / "cpu_adam" / "lock", 90)
    lock(folder / "py311_cu124" / "fused_adam" / "lock", 1)
    facts = look(toolchain.extensions, machine)
    assert 89 < value(facts, "oldest_lock_minutes") < 92
    fact = facts.get("toolchain.oldest_lock_minutes")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.uri.endswith("cpu_adam/lock")
    assert len(value(facts, "extension_locks")) == 2


def test_locks_in_a_folder_that_the_environment_names_are_one_level_up(tmp_path: Path) -> None:
    lock(tmp_path / "ext" / "cpu_adam" / "lock", 5)
    facts = look(toolchain.extensions, make(tmp_path, TORCH_EXTENSIONS_DIR=str(tmp_path / "ext")))
    assert 4 < value(facts, "oldest_lock_minutes") < 6


def test_no_locks(tmp_path: Path) -> None:
    facts = look(toolchain.extensions, make(tmp_path))
    assert (value(facts, "oldest_lock_minutes"), value(facts, "extension_locks")) == (ABSENT, ABSENT)
    assert value(facts, "extensions_writable") is True
