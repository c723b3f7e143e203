"""The package as people get it: a wheel and an editable install, each in a bare environment without extras or tools."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcheck import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "llmcheck": ROOT / "llmcheck",
    "llmcheck_rules": ROOT / "rules" / "llmcheck_rules",
    "llmcheck_trainer": ROOT / "trainer" / "llmcheck_trainer",
}

pytestmark = pytest.mark.packaging


def must(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected_files() -> set[str]:
    """What the wheel must hold: every file of the three packages that is under version control's eyes."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    must(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Path]:
    """The interpreter of a bare environment with llmcheck in it."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    what = [wheel] if request.param == "wheel" else ["--editable", ROOT]
    must(interpreter, "-m", "pip", "install", "--quiet", *what, cwd=folder)
    return interpreter


def test_the_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected_files()


def test_the_wheel_names_its_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
        assert "licenses/LICENSE" in info
        assert "llmcheck = llmcheck.cli:main" in archive.read(info["entry_points.txt"]).decode()


def test_the_command_runs_away_from_the_checkout(python: Path, tmp_path: Path) -> None:
    assert must(python.parent / "llmcheck", "--version", cwd=tmp_path) == f"llmcheck {__version__}\n"


def test_the_main_job_runs_in_a_bare_environment(python: Path, tmp_path: Path) -> None:
    command = (python.parent / "llmcheck", "plan", "--model", "bloomz-560m", "--gpus", "1", "--gpu", "A100-40G", "--format", "json")
    assert json.loads(must(*command, cwd=tmp_path))["schema"] == "llmcheck.plan/1"


def test_the_three_packages_are_siblings(python: Path, tmp_path: Path) -> None:
    code = "import llmcheck, llmcheck_rules, llmcheck_trainer; print(llmcheck.__version__)"
    assert must(python, "-c", code, cwd=tmp_path).strip() == __version__


def test_nothing_but_the_core_is_installed(python: Path, tmp_path: Path) -> None:
    listed = json.loads(must(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {entry["name"].lower() for entry in listed} - {"pip", "setuptools"}
    core = {"llmcheck", "nvidia-ml-py", "packaging", "rich", "tomli"}
    of_rich = {"markdown-it-py", "mdurl", "pygments"}
    assert names == core | of_rich
