"""Facts about what compiles CUDA operators at run time: CUDA_HOME and nvcc, the C++ compiler, ninja, and the folder of built extensions."""

from __future__ import annotations

import os
import re
import time

from llmcheck.probe.collect import CommandError, find_program, run_command
from llmcheck.probe.machine import Machine, nearest_existing
from llmcheck.rules.facts import Facts, Location

_MAX_EXTENSIONS = 500
_DEFAULT_CUDA_HOME = "/usr/local/cuda"


def cuda_compiler(machine: Machine, result: Facts) -> None:
    """CUDA_HOME where torch.utils.cpp_extension looks for it (CUDA_HOME, CUDA_PATH, nvcc on PATH, /usr/local/cuda), and nvcc in it."""
    home = cuda_home(machine)
    result.put("toolchain.cuda_home", home)
    result.put("toolchain.cuda_home_from_environment", bool(machine.environ.get("CUDA_HOME") or machine.environ.get("CUDA_PATH")))
    if home is None:
        result.absent("toolchain.nvcc_version")
        return
    result.put("toolchain.cuda_home_exists", os.path.isdir(home), Location(uri=home))
    nvcc = os.path.join(home, "bin", "nvcc")
    if not os.path.isfile(nvcc):
        result.absent("toolchain.nvcc_version", Location(uri=home))
        return
    try:
        text = run_command([nvcc, "-V"], environ=machine.environ).text
    except CommandError as reason:
        result.could_not("toolchain.nvcc_version", str(reason))
        return
    match = re.search(r"\brelease (\d+\.\d+)", text)
    if match is None:
        result.could_not("toolchain.nvcc_version", "nvcc -V does not name a release")
        return
    result.put("toolchain.nvcc_version", match[1], Location(uri=nvcc))


def cuda_home(machine: Machine) -> str | None:
    """The folder that torch would take for the CUDA toolkit; None when there is none."""
    named = machine.environ.get("CUDA_HOME") or machine.environ.get("CUDA_PATH")
    if named:
        return named
    nvcc = find_program("nvcc", machine.environ)
    if nvcc is not None:
        return os.path.dirname(os.path.dirname(nvcc))
    return machine.path(_DEFAULT_CUDA_HOME) if machine.exists(_DEFAULT_CUDA_HOME) else None


def host_compiler(machine: Machine, result: Facts) -> None:
    """The C++ compiler that torch's extension builder starts (CXX, else c++), and nvcc's own (CC, CUDAHOSTCXX, else g++)."""
    for key, names in (("cxx", (machine.environ.get("CXX"), "c++")), ("nvcc_host_compiler", (machine.environ.get("CC"), "gcc"))):
        name = next(name for name in names if name)
        program = name if os.path.isabs(name) and os.path.isfile(name) else find_program(name, machine.environ)
        if program is None:
            result.absent(f"toolchain.{key}")
            result.absent(f"toolchain.{key}_version")
            continue
        result.put(f"toolchain.{key}", program)
        try:
            text = run_command([program, "-dumpfullversion", "-dumpversion"], environ=machine.environ).text.strip()
        except CommandError as reason:
            result.could_not(f"toolchain.{key}_version", str(reason))
            continue
        # clang answers these switches too, with numbers of its own
        is_clang = "clang" in os.path.basename(os.path.realpath(program))
        if is_clang or re.fullmatch(r"\d+(?:\.\d+)*", text) is None:
            result.could_not(f"toolchain.{key}_version", f"{program} is not GCC")
        else:
            result.put(f"toolchain.{key}_version", text, Location(uri=program))


def build_tools(machine: Machine, result: Facts) -> None:
    """ninja, which torch's extension builder cannot do without."""
    result.put("toolchain.ninja", find_program("ninja", machine.environ))


def extensions(machine: Machine, result: Facts) -> None:
    """Where operators are built at run time: locks that are left there, the kind of file system, whether it can be written."""
    environ = machine.environ
    named = environ.get("TORCH_EXTENSIONS_DIR")
    folder = named or os.path.join(environ.get("XDG_CACHE_HOME") or machine.home(".cache"), "torch_extensions")
    place = nearest_existing(folder)
    result.put("toolchain.extensions_folder", folder)
    machine.put_file_system(result, "toolchain.extensions_type", place)
    result.put("toolchain.extensions_writable", os.access(place, os.W_OK), Location(uri=folder))
    # With TORCH_EXTENSIONS_DIR: FOLDER/<operator>/lock. Without: FOLDER/py311_cu124/<operator>/lock.
    deep = [os.path.join(folder, name) for name in _folders(folder)]
    locks = [os.path.join(path, "lock") for path in (*deep, *(os.path.join(d, n) for d in deep for n in _folders(d)))]
    ages: dict[str, float] = {}
    for path in locks[:_MAX_EXTENSIONS]:
        if os.path.isfile(path):
            ages[path] = max(time.time() - os.path.getmtime(path), 0.0)
    oldest = max(ages, key=lambda path: ages[path], default=None)
    result.put("toolchain.extension_locks", sorted(ages) or None)
    location = None if oldest is None else Location(uri=oldest)
    result.put("toolchain.oldest_lock_minutes", None if oldest is None else round(ages[oldest] / 60, 1), location)
    triton = environ.get("TRITON_CACHE_DIR") or machine.home(".triton")
    machine.put_file_system(result, "toolchain.triton_cache_type", nearest_existing(triton))


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())[:_MAX_EXTENSIONS]
    except OSError:
        return []
