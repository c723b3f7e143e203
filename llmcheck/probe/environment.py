"""Facts about the packages of an interpreter, found out by that interpreter in its own process; nothing in it is imported or executed."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from llmcheck.errors import UserError
from llmcheck.paths import trouble_with
from llmcheck.probe.collect import DEADLINE_S, CommandError, run_command
from llmcheck.rules.facts import ABSENT, Facts, Location

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]{0,99}$")
_PYTHON_WANTED = "--python wants Python 3.7 or newer, or the folder of a virtual environment"
_PYTHON_HINT = "give the path that `which python` prints in the environment to be examined, or its folder"
_FLASH_ATTENTION_TAG = re.compile(r"cu(?P<cuda>\d{2})\d*torch(?P<torch>\d+\.\d+)cxx11abi(?P<abi>true|false)", re.IGNORECASE)


def facts(python: str | None = None, deadline_s: float = DEADLINE_S) -> Facts:
    """``pkg.*``, ``build.*``, ``python.version`` and what is known of compiled packages, for the interpreter `python` (None: our own).

    `python` may be the folder of a virtual environment. Raises UserError when there is no such program; what cannot be found out is
    recorded with its reason.
    """
    executable = sys.executable if python is None else _interpreter(python)
    result = Facts()
    result.examined("packages", "python", "builds", "environment")
    try:
        # -I and -S: neither PYTHON* variables nor site, whose .pth files may hold code; -B: write nothing
        output = run_command([executable, "-I", "-S", "-B", SCRIPT], deadline_s=deadline_s)
        _record(result, json.loads(output.text))
    except CommandError as reason:
        _give_up(result, f"{executable}: {reason}; {_PYTHON_WANTED}")
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        _give_up(result, f"{executable}: asked for its packages, it answered something else ({type(reason).__name__}); {_PYTHON_WANTED}")
    return result


def normalised(name: str) -> str:
    """A distribution's name as facts have it. https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


def put_package(result: Facts, name: str, version: str, location: Location | None) -> None:
    """Record a version, its local part as ``build.*``; one that is not a version is recorded as not found out."""
    if not _VERSION.match(version):
        result.could_not(f"pkg.{name}", f"{version[:80]!r} is not a version")
        return
    result.put(f"pkg.{name}", version, location)
    _, plus, local = version.partition("+")
    if plus and local:
        result.put(f"build.{name}", local.lower(), location)


def _interpreter(python: str) -> str:
    candidates = [python]
    if os.path.isdir(python):
        candidates = [os.path.join(python, *tail) for tail in (("bin", "python"), ("Scripts", "python.exe"), ("python.exe",))]
    for path in candidates:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    missing = None if os.path.exists(python) else trouble_with(python, otherwise=_PYTHON_HINT)
    why, hint = missing or ("it is not a program", _PYTHON_HINT)
    raise UserError(
        f"no Python interpreter at {python}", code="python", where=f"--python {python}",
        why=why, hint=hint,
    )  # fmt: skip


def _give_up(result: Facts, why: str) -> None:
    names = ("pkg.*", "build.*", "python.*", "torch.*", "bitsandbytes.*", "deepspeed.*", "flash_attn.*", "environment.*", "packages.*")
    for name in (*names, "toolchain.python_headers"):
        result.could_not(name, why[:400])


def _record(result: Facts, report: dict[str, Any]) -> None:
    python = report["python"]
    result.put("python.version", str(python["version"]))
    result.put("python.implementation", str(python["implementation"]))
    result.put("environment.is_virtual", bool(python["is_venv"] or python["is_conda"]))
    result.put("environment.incomplete", [os.path.basename(str(path)) for path in report["incomplete"]] or None)
    result.put("toolchain.python_headers", python["headers"])
    _packages(result, report["packages"])
    _torch(result, report["torch"])
    _others(result, report)


def _packages(result: Facts, records: list[dict[str, Any]]) -> None:
    result.close("pkg.")
    result.close("build.")
    result.absent("packages.is_lock")
    result.absent("packages.other_indexes")
    seen: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        seen.setdefault(normalised(str(record["name"])), []).append(record)
    doubled: list[str] = []
    shadowed: list[str] = []
    editable: list[str] = []
    for name, found in seen.items():
        first = found[0]
        folder = os.path.dirname(first["path"])
        versions = sorted({str(record["version"]) for record in found if os.path.dirname(record["path"]) == folder})
        hidden = [record for record in found[1:] if os.path.dirname(record["path"]) != folder and record["version"] != first["version"]]
        direct = first.get("direct_url") or {}
        if direct.get("editable"):
            editable.append(name)
        shadowed += [f"{name} {first['version']} hides {record['version']}" for record in hidden]
        if len(versions) > 1:
            doubled.append(f"{name} {', '.join(versions)}")
            result.could_not(f"pkg.{name}", f"{folder} records several versions of it: {', '.join(versions)}")
            result.could_not(f"build.{name}", "several versions of the package are recorded")
            continue
        put_package(result, name, str(first["version"]), Location(uri=str(first["path"])))
        if direct.get("commit"):
            result.put(f"build.{name}", str(direct["commit"])[:64], Location(uri=str(first["path"])))
        if name == "flash-attn":
            _flash_attention(result, str(first["version"]) + " " + str(direct.get("file", "")))
    result.put("environment.duplicates", doubled or None)
    result.put("environment.shadowed", shadowed or None)
    result.put("environment.editable", editable or None)
    if "flash-attn" not in seen:
        for key in ("torch_version", "cuda_major", "cxx11_abi"):
            result.absent(f"flash_attn.{key}")


def _flash_attention(result: Facts, text: str) -> None:
    """The wheel's name says what it was built for: ``2.8.3+cu12torch2.8cxx11abiFALSE``. A build from source says nothing."""
    match = _FLASH_ATTENTION_TAG.search(text)
    if match is None:
        result.could_not("flash_attn.*", "the package's version does not say for which torch it was built")
        return
    result.put("flash_attn.torch_version", match["torch"])
    result.put("flash_attn.cuda_major", int(match["cuda"]))
    result.put("flash_attn.cxx11_abi", match["abi"].lower() == "true")


def _torch(result: Facts, build: dict[str, Any] | None) -> None:
    if build is None:
        for key in ("cuda_version", "hip_version", "git_version", "arch_list", "file_version"):
            result.absent(f"torch.{key}")
        result.absent("environment.torch_differs")
        return
    location = Location(uri=str(build["path"]))
    recorded, version = result.get("pkg.torch"), str(build["__version__"] or "")
    if recorded is None or recorded.value is ABSENT or not version:
        result.could_not("environment.torch_differs", "torch's version is not known from both its record and its files")
    else:  # local parts differ by design: the record of the default wheel has none
        result.put("environment.torch_differs", str(recorded.value).partition("+")[0] != version.partition("+")[0], location)
    result.put("torch.file_version", build["__version__"], location)
    result.put("torch.cuda_version", build["cuda"], location)
    result.put("torch.hip_version", _plain_version(build["hip"]), location)
    result.put("torch.git_version", build["git_version"], location)
    if build["architectures"]:
        result.put("torch.arch_list", list(build["architectures"]), location)
    elif build["cuda"] is None:
        result.absent("torch.arch_list", location)
    else:
        result.could_not("torch.arch_list", "no list of architectures found in libtorch_python.so")


def _plain_version(text: str | None) -> str | None:
    """``6.2.41133-dd7f95766`` as a version."""
    match = re.match(r"\d+(?:\.\d+)*", text or "")
    return match[0] if match else None


def _others(result: Facts, report: dict[str, Any]) -> None:
    result.put("bitsandbytes.cuda_versions", report["bitsandbytes"])
    build = report["deepspeed"]
    if build is None or build["operators"] is None:
        for key in ("prebuilt_ops", "built_for_torch", "built_for_cuda"):
            if build is None:
                result.absent(f"deepspeed.{key}")
            else:
                result.could_not(f"deepspeed.{key}", "git_version_info_installed.py is missing or of another form")
        return
    result.put("deepspeed.prebuilt_ops", list(build["operators"]))
    target = build["torch"] or {}
    for key, name in (("version", "built_for_torch"), ("cuda_version", "built_for_cuda")):
        value = _plain_version(target.get(key))
        result.put(f"deepspeed.{name}", None if value in (None, "0.0") else value)  # 0.0: nothing was built
