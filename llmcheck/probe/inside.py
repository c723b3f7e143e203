"""What an interpreter has installed, as JSON. Run by that interpreter itself as a script: ``python -I -S -B inside.py``.

It may be any Python from 3.7 on, so nothing newer is used here, and only modules that cost little to import. Nothing of the examined
environment is executed: neither ``site`` nor ``.pth`` files run (both may hold code); folders and files are read as text.
Names of files and their contents: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

SITE_PACKAGES_DEBIAN = "/usr/lib/python3/dist-packages"  # beside site-packages: https://wiki.debian.org/Python
_MAX_TEXT_BYTES = 1 << 16  # of any file that is read here
_MAX_FOLDERS = 200
_MAX_PACKAGES = 20_000
_MAX_RODATA_BYTES = 64 << 20  # 1 MiB in torch 2.11
_DIRECT = re.compile(r"^(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py[\d.]+(?:-.+)?)?$")
_ASSIGNMENT = re.compile(r"""^(\w+)\s*(?::[^=\n]+)?=\s*(?:(None|True|False)|(['"])(.*?)\3)\s*$""", re.MULTILINE)
_ARCHITECTURES = re.compile(rb"(?:sm|compute)_\d+[a-z]?(?: (?:sm|compute)_\d+[a-z]?)*(?=\x00)")


def main() -> None:
    """Print the report as one line of JSON."""
    sys.stdout.write(json.dumps(report(sys.executable)) + "\n")


def report(executable: str) -> dict[str, Any]:
    """Everything that this script finds out; `executable` is the examined interpreter, by the name it was started with."""
    prefix, base, shares_system = prefixes(executable)
    folders = search_folders(prefix, base, shares_system)
    incomplete: list[str] = []
    packages = [found for folder in folders for found in installed(folder, incomplete)][:_MAX_PACKAGES]
    return {
        "python": {
            "version": "%d.%d.%d" % sys.version_info[:3],  # noqa: UP031 - old Pythons are examined too
            "implementation": sys.implementation.name,
            "prefix": prefix,
            "is_venv": prefix != base,
            "is_conda": os.path.isdir(os.path.join(prefix, "conda-meta")),
            "headers": headers(base),
        },
        "folders": folders,
        "packages": packages,
        "incomplete": incomplete,
        "torch": torch_build(folders),
        "bitsandbytes": bitsandbytes_builds(folders),
        "deepspeed": deepspeed_build(folders),
    }


def prefixes(executable: str) -> tuple[str, str, bool]:
    """(folder of the environment, folder of its base Python, whether it also sees the base's packages); PEP 405's search for pyvenv.cfg."""
    here = os.path.dirname(os.path.abspath(executable)) if executable else sys.prefix
    for folder in (os.path.dirname(here), here):
        text = read_text(os.path.join(folder, "pyvenv.cfg"))
        if text is not None:
            shares = re.search(r"^\s*include-system-site-packages\s*=\s*true\s*$", text, re.IGNORECASE | re.MULTILINE) is not None
            return folder, sys.base_prefix, shares
    return sys.base_prefix, sys.base_prefix, True


def search_folders(prefix: str, base: str, shares_system: bool) -> list[str]:
    """The folders that a program of this environment would import packages from, in its order; what .pth files add comes last."""
    wanted = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if shares_system and "PYTHONNOUSERSITE" not in os.environ:
        wanted += user_site()
    wanted += site_folders(prefix)
    if prefix != base and shares_system:
        wanted += site_folders(base)
    found: list[str] = []
    for folder in wanted:
        add_folder(found, folder)
    for folder in tuple(found):  # not those that are added here: .pth files count in site folders only
        for added in path_files(folder):
            add_folder(found, added)
    return found[:_MAX_FOLDERS]


def add_folder(folders: list[str], folder: str) -> None:
    """Append a folder that exists and is not there yet."""
    path = os.path.realpath(folder)
    if path not in folders and os.path.isdir(path):
        folders.append(path)


def site_folders(prefix: str) -> list[str]:
    """Where packages are kept below `prefix`, as the standard library and the large distributions lay it out."""
    short = "python%d.%d" % sys.version_info[:2]  # noqa: UP031
    if os.name == "nt":
        return [os.path.join(prefix, "Lib", "site-packages")]
    folders = [os.path.join(prefix, library, short, "site-packages") for library in ("lib", "lib64")]
    if prefix == "/usr":
        folders = [os.path.join("/usr/local/lib", short, "dist-packages"), *folders, SITE_PACKAGES_DEBIAN]
    return folders


def user_site() -> list[str]:
    """The user's own packages."""
    short = "%d.%d" % sys.version_info[:2]  # noqa: UP031
    if os.name == "nt":
        home = os.environ.get("PYTHONUSERBASE") or os.path.join(os.environ.get("APPDATA", ""), "Python")
        return [os.path.join(home, "Python" + short.replace(".", ""), "site-packages")]
    home = os.environ.get("PYTHONUSERBASE") or os.path.expanduser("~/.local")
    return [os.path.join(home, "lib", "python" + short, "site-packages")]


def path_files(folder: str) -> list[str]:
    """Folders that the .pth and .egg-link files of `folder` name. Lines with code are left alone."""
    added: list[str] = []
    for name in listing(folder):
        if name.endswith((".pth", ".egg-link")):
            for line in (read_text(os.path.join(folder, name)) or "").splitlines()[:1000]:
                entry = line.strip()
                if entry and entry != "." and not entry.startswith(("#", "import ", "import\t")):
                    added.append(os.path.join(folder, entry))
    return added


def installed(folder: str, incomplete: list[str]) -> list[dict[str, Any]]:
    """The distributions recorded in `folder`. Records without their file of metadata go to `incomplete`."""
    found = []
    for entry in listing(folder):
        stem, kind = os.path.splitext(entry)
        if kind not in (".dist-info", ".egg-info", ".egg"):
            continue
        path = os.path.join(folder, entry)
        if entry.startswith("~"):  # what pip leaves of a removal that failed
            incomplete.append(path)
            continue
        metadata = path if os.path.isfile(path) else os.path.join(path, *_METADATA[kind])
        if not os.path.isfile(metadata):
            incomplete.append(path)
            continue
        match = _DIRECT.match(stem)
        name, version = (match.group("name"), match.group("version")) if match else head_of(metadata)
        if not name or not version:
            incomplete.append(path)
            continue
        record: dict[str, Any] = {"name": name, "version": version, "path": path}
        direct = read_text(os.path.join(path, "direct_url.json")) if kind == ".dist-info" else None
        if direct is not None:
            record["direct_url"] = direct_url(direct)
        found.append(record)
    return found


_METADATA = {".dist-info": ("METADATA",), ".egg-info": ("PKG-INFO",), ".egg": ("EGG-INFO", "PKG-INFO")}


def head_of(metadata: str) -> tuple[str, str]:
    """Name and version in a METADATA or PKG-INFO file."""
    text = (read_text(metadata) or "").split("\n\n", 1)[0]
    name, version = (re.search(rf"^{key}:[ \t]*(\S+)", text, re.MULTILINE) for key in ("Name", "Version"))
    return (name.group(1) if name else "", version.group(1) if version else "")


def direct_url(text: str) -> dict[str, Any]:
    """What direct_url.json says of where a package came from: PEP 610."""
    try:
        document = json.loads(text)
        version_control = document.get("vcs_info") or {}
        return {
            "commit": str(version_control.get("commit_id") or ""),
            "editable": bool((document.get("dir_info") or {}).get("editable")),
            "file": str(document.get("url") or "").split("?")[0].split("#")[0].rsplit("/", 1)[-1],
        }
    except (ValueError, AttributeError):
        return {}


def torch_build(folders: list[str]) -> dict[str, Any] | None:
    """What torch/version.py and the library say; None without torch."""
    folder = package_folder(folders, "torch", "version.py")
    if folder is None:
        return None
    values = assignments(read_text(os.path.join(folder, "version.py")) or "")
    build: dict[str, Any] = {key: values.get(key) for key in ("__version__", "cuda", "hip", "git_version")}
    build["path"] = os.path.join(folder, "version.py")
    build["architectures"] = architectures(os.path.join(folder, "lib", "libtorch_python.so"))
    return build


def assignments(text: str) -> dict[str, str | None]:
    """``name = 'text'`` and ``name: type = None`` lines of a Python file, read as text."""
    return {match[1]: None if match[2] == "None" else match[2] or match[4] for match in _ASSIGNMENT.finditer(text)}


def architectures(library: str) -> list[str] | None:
    """The GPU architectures that a CUDA build of torch has code for: what ``torch.cuda.get_arch_list()`` returns is one constant text in
    libtorch_python.so, and so in the section of an ELF file that holds constants. None where it is not found."""
    try:
        with open(library, "rb") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
                return None
            table, size, number, names = (
                int.from_bytes(head[40:48], "little"),
                *(int.from_bytes(head[at : at + 2], "little") for at in (58, 60, 62)),
            )
            if size != 64 or names >= number:
                return None
            file.seek(table)
            raw = file.read(size * number)
            sections = [raw[at : at + size] for at in range(0, len(raw), size)]
            text = section(file, sections[names], 1 << 20)
            for header in sections:
                start = int.from_bytes(header[:4], "little")
                if text[start : start + 8] == b".rodata\x00":
                    constants = section(file, header, _MAX_RODATA_BYTES)
                    found = max(_ARCHITECTURES.findall(constants), key=len, default=b"")
                    return found.decode("ascii").split() or None
    except (OSError, IndexError):
        pass
    return None


def section(file: Any, header: bytes, limit: int) -> bytes:
    """The bytes of one section, by its ELF64 section header."""
    file.seek(int.from_bytes(header[24:32], "little"))
    data: bytes = file.read(min(int.from_bytes(header[32:40], "little"), limit))
    return data


def bitsandbytes_builds(folders: list[str]) -> list[str] | None:
    """CUDA versions that bitsandbytes brings a library for (``12.4``); None without it."""
    folder = package_folder(folders, "bitsandbytes", "__init__.py")
    if folder is None:
        return None
    digits = (re.match(r"libbitsandbytes_cuda(\d{3,4})(?:_nocublaslt\d*)?\.(?:so|dll)$", name) for name in listing(folder))
    return sorted({match[1][:2] + "." + match[1][2:] for match in digits if match})


def deepspeed_build(folders: list[str]) -> dict[str, Any] | None:
    """What DeepSpeed's setup.py wrote when it was installed: operators built then, and for which torch; None without DeepSpeed."""
    folder = package_folder(folders, "deepspeed", "__init__.py")
    if folder is None:
        return None
    text = read_text(os.path.join(folder, "git_version_info_installed.py")) or ""
    operators = re.search(r"^installed_ops\s*=\s*\{([^}]*)\}", text, re.MULTILINE)
    torch = re.search(r"^torch_info\s*=\s*\{([^}]*)\}", text, re.MULTILINE)
    return {
        "operators": sorted(re.findall(r"'(\w+)':\s*True", operators[1])) if operators else None,
        "torch": dict(re.findall(r"'(\w+)':\s*'([^']*)'", torch[1])) if torch else None,
    }


def headers(base: str) -> str | None:
    """The folder with Python.h, which compiling an operator needs; None without one."""
    short = "python%d.%d" % sys.version_info[:2]  # noqa: UP031
    folders = [os.path.join(base, "include", short + getattr(sys, "abiflags", "")), os.path.join(base, "include", short)]
    folders += [os.path.join(base, "Include"), os.path.join(base, "include")]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "Python.h"))), None)


def package_folder(folders: list[str], package: str, witness: str) -> str | None:
    """The folder that ``import package`` would find, known by a file in it."""
    candidates = (os.path.join(folder, package) for folder in folders)
    return next((path for path in candidates if os.path.isfile(os.path.join(path, witness))), None)


def listing(folder: str) -> list[str]:
    """The names in a folder, in order; empty when it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def read_text(path: str) -> str | None:
    """The beginning of a text file; None when there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


if __name__ == "__main__":
    main()
