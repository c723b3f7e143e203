"""Facts that follow from others of several subjects: rules hold no arithmetic, so what must be computed is computed here.

Pure: takes facts and gives facts. Call it last, with everything else merged.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

from llmcheck import toml
from llmcheck.rules.facts import ABSENT, Fact, Facts
from llmcheck.rules.rule import Affects, Event
from llmcheck.rules.versions import is_affected

_TABLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "builds.toml")


def facts(known: Facts) -> Facts:
    """What follows from `known`: torch's CUDA version and architectures where only a lock file gives torch, and how parts fit together."""
    result = Facts()
    _torch_cuda(known, result)
    whole = known.merged(result)
    _architectures(whole, result)
    whole = known.merged(result)
    _capabilities(whole, result)
    _compilers(whole, result)
    _visible_devices(whole, result)
    _flash_attention(whole, result)
    _bitsandbytes(known, result)
    return result


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return toml.load(_TABLES)


def _torch_cuda(known: Facts, result: Facts) -> None:
    """CUDA of a torch that is only pinned: its local part, the runtime pinned beside it, or that of the default wheel."""
    if known.get("torch.cuda_version") is not None or known.why_unknown("torch.cuda_version") is not None:
        return
    torch = known.get("pkg.torch")
    if torch is None or torch.value is ABSENT:
        return
    build = known.get("build.torch")
    local = str(build.value) if build is not None and build.value is not ABSENT else ""
    match = re.fullmatch(r"cu(\d{2})(\d+)", local)
    if match is not None:
        result.put("torch.cuda_version", f"{match[1]}.{match[2]}", torch.location)
        return
    if local:
        if local == "cpu" or local.startswith("rocm"):
            result.absent("torch.cuda_version", torch.location)
        else:
            result.could_not("torch.cuda_version", f"its build is {local[:40]!r}")
        return
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11"):
        runtime = known.get(f"pkg.{name}")
        if runtime is not None and runtime.value is not ABSENT:
            result.put("torch.cuda_version", ".".join(str(runtime.value).split(".")[:2]), runtime.location)
            return
    indexes = known.get("packages.other_indexes")
    if indexes is not None and indexes.value is not ABSENT:
        result.could_not("torch.cuda_version", "torch may come from another index than the default one")
        return
    row = next((row for row in _tables()["torch_default_cuda"] if _in_range(str(torch.value), row)), None)
    machine = known.get("host.architecture")
    if row is None or (machine is not None and machine.value != "x86_64"):
        result.could_not("torch.cuda_version", f"it is not known for which CUDA the default wheel of torch {torch.value} is built")
        return
    result.put("torch.cuda_version", row["cuda"], torch.location)


def _architectures(known: Facts, result: Facts) -> None:
    """Architectures in torch's wheel, from the table, where the library itself was not read."""
    if known.get("torch.arch_list") is not None:
        return
    torch, cuda = known.get("pkg.torch"), known.get("torch.cuda_version")
    if torch is None or cuda is None or torch.value is ABSENT or cuda.value is ABSENT:
        return
    build = known.get("build.torch")
    if build is not None and build.value is not ABSENT and re.fullmatch(r"cu\d+", str(build.value)) is None:
        return  # somebody's own build
    for row in _tables()["torch_architectures"]:
        if cuda.value in row["cuda"] and _in_range(str(torch.value), row):
            result.put("torch.arch_list", list(row["architectures"]), torch.location)
            return


def _capabilities(known: Facts, result: Facts) -> None:
    """GPUs here that torch has neither machine code nor PTX for."""
    architectures, capabilities = known.get("torch.arch_list"), known.get("gpu.compute_capabilities")
    if architectures is None or capabilities is None:
        missing = "torch.arch_list" if architectures is None else "gpu.compute_capabilities"
        result.could_not("gpu.not_in_torch_build", known.why_unknown(missing) or f"{missing} is not known")
        return
    if architectures.value is ABSENT or capabilities.value is ABSENT:
        result.absent("gpu.not_in_torch_build")
        return
    left_out = [text for text in capabilities.value if not runs_on(text, architectures.value)]
    result.put("gpu.not_in_torch_build", left_out or None, architectures.location)


def runs_on(capability: str, architectures: list[str]) -> bool:
    """Whether code for `architectures` (``sm_80``, ``compute_90``) runs on a GPU of `capability` (``8.6``).

    Machine code runs on the same major and the same or a higher minor version; PTX on any higher one. Code for ``sm_90a`` or ``sm_100f``
    is bound to that version. https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#binary-compatibility
    """
    major, minor = (int(part) for part in capability.split("."))
    device = 10 * major + minor
    for text in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", text)
        if match is None:
            continue
        kind, number, suffix = match[1], int(match[2]), match[3]
        if suffix:
            if number == device:
                return True
        elif kind == "compute":
            if number <= device:
                return True
        elif number // 10 == major and number <= device:
            return True
    return False


def _compilers(known: Facts, result: Facts) -> None:
    """How nvcc fits torch's CUDA, and GCC fits nvcc."""
    both = _both(known, result, "toolchain.nvcc_against_torch", "toolchain.nvcc_version", "torch.cuda_version")
    if both is not None:
        nvcc, cuda = both
        ours, torchs = (str(fact.value).split(".")[:2] for fact in (nvcc, cuda))
        kind = "same" if ours == torchs else "minor" if ours[0] == torchs[0] else "major"
        result.put("toolchain.nvcc_against_torch", kind, nvcc.location)
    both = _both(known, result, "toolchain.gcc_too_new", "toolchain.nvcc_version", "toolchain.nvcc_host_compiler_version")
    if both is not None:
        nvcc, gcc = both
        limit = _tables()["gcc_too_new"].get(str(nvcc.value))
        if limit is None:
            result.could_not("toolchain.gcc_too_new", f"the newest GCC that CUDA {nvcc.value} takes is not in the table")
        else:
            result.put("toolchain.gcc_too_new", int(str(gcc.value).split(".")[0]) >= limit, gcc.location)


def _visible_devices(known: Facts, result: Facts) -> None:
    """What is wrong with CUDA_VISIBLE_DEVICES, and how many GPUs it leaves."""
    setting, count = known.get("env.CUDA_VISIBLE_DEVICES"), known.get("gpu.count")
    if count is None or setting is None:
        why = known.why_unknown("gpu.count") or "the number of GPUs is not known"
        result.could_not("gpu.visible_count", why)
        result.could_not("gpu.visible_problem", why)
        return
    number = 0 if count.value is ABSENT else int(count.value)
    if setting.value is ABSENT:
        result.put("gpu.visible_count", number)
        result.absent("gpu.visible_problem")
        return
    shown, problem = visible_devices(str(setting.value), number)
    if shown is None:
        result.could_not("gpu.visible_count", "CUDA_VISIBLE_DEVICES names GPUs by UUID")
    else:
        result.put("gpu.visible_count", shown)
    result.put("gpu.visible_problem", problem)


def visible_devices(setting: str, count: int) -> tuple[int | None, str | None]:
    """(how many of `count` GPUs are left, what is wrong). CUDA reads the digits that an entry begins with, and stops without a word at
    the first entry that it does not know; a number that comes twice makes every call fail. None: not decided by numbers.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars; tried with CUDA 13.0, driver 580.
    """
    entries = [entry.strip() for entry in setting.split(",")]
    if entries == [""]:
        return 0, "it is empty, which hides every GPU"
    if any(entry.startswith(("GPU-", "MIG-")) for entry in entries):
        return None, None
    seen: list[int] = []
    problem: str | None = None
    for entry in entries:
        match = re.match(r"\d{1,9}", entry)
        if match is None:
            if entry in ("-1", "NoDevFiles") and not seen:
                return 0, None  # the usual ways to ask for no GPU
            return len(seen), problem or f"{entry[:20]!r} is not the number of a GPU; what follows it is ignored"
        number = int(match[0])
        if match[0] != entry and problem is None:
            problem = f"{entry[:20]!r} is read as {number}"
        if number >= count:
            return len(seen), f"it names GPU {number}, and there are {count}; what follows it is ignored"
        if number in seen:
            return 0, f"it names GPU {number} twice, which CUDA refuses with 'invalid device ordinal'"
        seen.append(number)
    return len(seen), problem


def _flash_attention(known: Facts, result: Facts) -> None:
    """Whether flash-attn's wheel was built for the torch that is there: the same minor release."""
    both = _both(known, result, "flash_attn.matches_torch", "flash_attn.torch_version", "pkg.torch")
    if both is not None:
        built, torch = both
        result.put("flash_attn.matches_torch", str(built.value).split(".")[:2] == str(torch.value).split(".")[:2], built.location)


def _bitsandbytes(known: Facts, result: Facts) -> None:
    """CUDA releases that a bitsandbytes brings which is only pinned, from the table."""
    if known.get("bitsandbytes.cuda_versions") is not None or known.why_unknown("bitsandbytes.cuda_versions") is not None:
        return
    pinned, machine = known.get("pkg.bitsandbytes"), known.get("host.architecture")
    if pinned is None or pinned.value is ABSENT:
        return
    row = next((row for row in _tables()["bitsandbytes_cuda"] if _in_range(str(pinned.value), row)), None)
    if row is None or (machine is not None and machine.value != "x86_64"):
        why = f"it is not known for which CUDA releases the wheel of bitsandbytes {pinned.value} is built"
        result.could_not("bitsandbytes.cuda_versions", why)
        return
    result.put("bitsandbytes.cuda_versions", list(row["cuda"]), pinned.location)


def _both(known: Facts, result: Facts, target: str, one: str, other: str) -> tuple[Fact, Fact] | None:
    """The two facts that `target` is derived from; None where one is missing: `result` then says that it is unknown, or absent."""
    first, second = known.get(one), known.get(other)
    if first is None or second is None:
        missing = one if first is None else other
        result.could_not(target, known.why_unknown(missing) or f"{missing} is not known")
        return None
    if first.value is ABSENT or second.value is ABSENT:
        result.absent(target)
        return None
    return first, second


def _in_range(version: str, row: dict[str, Any]) -> bool:
    events = (Event(introduced=row["introduced"]), Event(fixed=row["fixed"]))
    return is_affected(version.partition("+")[0], Affects(package="torch", events=events)) is True
