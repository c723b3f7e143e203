"""Made-up machines: a folder for ``/``, programs on PATH, environment variables."""

from __future__ import annotations

from pathlib import Path

from llmcheck.probe.machine import Machine


def make(root: Path, files: dict[str, str] | None = None, programs: dict[str, str] | None = None, **environ: str) -> Machine:
    """A machine below `root` with these files (by absolute path) and shell scripts on its PATH."""
    for path, text in (files or {}).items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    folder = root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in (programs or {}).items():
        place = folder / name
        place.write_text("#!/bin/sh\n" + script)
        place.chmod(0o755)
    return Machine(root=str(root), environ={"PATH": str(folder), "HOME": str(root / "home"), **environ}, cwd=str(root), system="linux")
