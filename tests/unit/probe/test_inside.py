from __future__ import annotations

import ast
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llmcheck.probe import inside
from llmcheck.probe.environment import SCRIPT


def test_the_script_is_python_3_7() -> None:
    ast.parse(Path(SCRIPT).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("name", ["python3.7", "python3.8", "python3.10", "python3.12", "python3.13"])
def test_it_runs_under_other_pythons(name: str) -> None:
    program = shutil.which(name)
    if program is None or subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {name} here")
    done = subprocess.run([program, "-I", "-S", "-B", SCRIPT], capture_output=True, check=True)
    assert json.loads(done.stdout)["python"]["version"].startswith(name.removeprefix("python") + ".")


def test_only_the_standard_library_is_imported() -> None:
    avoided = ("site", "sysconfig", "importlib.metadata")
    code = f"import sys; exec(open({SCRIPT!r}).read(), {{'__name__': 'x'}}); print([m for m in sys.modules if m in {avoided}])"
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def record(folder: Path, name: str, **files: str) -> None:
    place = folder / name
    place.mkdir(parents=True)
    for file, text in {"METADATA": "Name: x\nVersion: 9\n\n", **files}.items():
        if text:
            (place / file.replace("__", ".")).write_text(text)


def test_versions_come_from_the_names_of_records(tmp_path: Path) -> None:
    record(tmp_path, "torch-2.5.1+cu124.dist-info")
    record(tmp_path, "nvidia_nccl_cu12-2.21.5.dist-info")
    found = {entry["name"]: entry["version"] for entry in inside.installed(str(tmp_path), [])}
    assert found == {"torch": "2.5.1+cu124", "nvidia_nccl_cu12": "2.21.5"}


def test_records_of_setuptools_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "old-1.2-py3.8.egg-info").write_text("Name: old\nVersion: 1.2\n")
    (tmp_path / "developed.egg-info").mkdir()
    (tmp_path / "developed.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: developed\nVersion: 0.3.dev0\n\nVersion: 7\n")
    found = {entry["name"]: entry["version"] for entry in inside.installed(str(tmp_path), [])}
    assert found == {"old": "1.2", "developed": "0.3.dev0"}


def test_records_without_metadata_and_leftovers_of_pip_are_incomplete(tmp_path: Path) -> None:
    record(tmp_path, "~orch-2.5.1.dist-info")
    record(tmp_path, "torch-2.5.1.dist-info", METADATA="")
    incomplete: list[str] = []
    assert inside.installed(str(tmp_path), incomplete) == []
    assert [Path(path).name for path in incomplete] == ["torch-2.5.1.dist-info", "~orch-2.5.1.dist-info"]


def test_direct_url_gives_the_commit_and_hostile_ones_give_nothing(tmp_path: Path) -> None:
    good = json.dumps({"url": "https://example.com/x.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}})
    record(tmp_path, "accelerate-1.0.dist-info", direct_url__json=good)
    for number, text in enumerate(["{", "[]", '"x"', '{"vcs_info": 3}', "null"]):
        record(tmp_path, f"bad{number}-1.0.dist-info", direct_url__json=text)
    found = {entry["name"]: entry["direct_url"] for entry in inside.installed(str(tmp_path), [])}
    assert found.pop("accelerate")["commit"] == "a" * 40
    assert all(not value.get("commit") for value in found.values())


def test_pth_files_add_folders_and_their_code_is_not_run(tmp_path: Path) -> None:
    site, added = tmp_path / "site", tmp_path / "added"
    site.mkdir()
    added.mkdir()
    witness = tmp_path / "ran"
    (site / "evil.pth").write_text(f"import os; open({str(witness)!r}, 'w')\n{added}\n# comment\n")
    assert inside.path_files(str(site)) == [str(added)]
    assert not witness.exists()


def test_a_virtual_environment_is_known_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = TRUE\n")
    assert inside.prefixes(str(tmp_path / "bin" / "python")) == (str(tmp_path), sys.base_prefix, True)


def test_version_py_is_read_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.5.1+cu124'\ndebug = False\ncuda: Optional[str] = '12.4'\n"
        "git_version = 'abc'\nhip: Optional[str] = None\nraise SystemExit(1)\n"
    )
    build = inside.torch_build([str(tmp_path)])
    assert build is not None
    assert (build["__version__"], build["cuda"], build["hip"], build["git_version"]) == ("2.5.1+cu124", "12.4", None, "abc")
    assert build["architectures"] is None  # no library beside it


def elf(constants: bytes) -> bytes:
    """A 64-bit ELF file with a .rodata section."""
    names = b"\0.shstrtab\0.rodata\0"
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    at = 64
    sections = [(0, 0, 0), (1, at, len(names)), (11, at + len(names), len(constants))]
    table = at + len(names) + len(constants)
    rest = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, len(sections), 1)
    rows = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, start, size, 0, 0, 1, 0) for name, start, size in sections)
    return header + rest + names + constants + rows


def test_architectures_are_one_constant_of_the_library(tmp_path: Path) -> None:
    library = tmp_path / "libtorch_python.so"
    library.write_bytes(elf(b"\0sm_90\0needs sm_80 or newer\0sm_75 sm_80 sm_86 sm_90 sm_100 compute_120\0inval"))
    assert inside.architectures(str(library)) == ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120"]


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"MZ" + b"\0" * 100, elf(b"nothing here")[:90], elf(b"nothing here"), b"\x7fELF\x02\x01" + b"\xff" * 200]
)
def test_other_files_have_no_architectures(tmp_path: Path, data: bytes) -> None:
    library = tmp_path / "libtorch_python.so"
    library.write_bytes(data)
    assert inside.architectures(str(library)) is None


def test_libraries_of_bitsandbytes_are_named_after_cuda(tmp_path: Path) -> None:
    folder = tmp_path / "bitsandbytes"
    folder.mkdir()
    for name in ("__init__.py", "libbitsandbytes_cuda118.so", "libbitsandbytes_cuda124_nocublaslt.so", "libbitsandbytes_cpu.so"):
        (folder / name).touch()
    assert inside.bitsandbytes_builds([str(tmp_path)]) == ["11.8", "12.4"]
    assert inside.bitsandbytes_builds([]) is None


def test_deepspeed_says_what_was_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "git_version_info_installed.py").write_text(
        "version='0.15.4'\ninstalled_ops={'cpu_adam': True, 'fused_adam': False}\n"
        "torch_info={'version': '2.4', 'bf16_support': True, 'cuda_version': '12.1'}\n"
    )
    assert inside.deepspeed_build([str(tmp_path)]) == {"operators": ["cpu_adam"], "torch": {"version": "2.4", "cuda_version": "12.1"}}
