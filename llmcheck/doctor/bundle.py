"""`doctor --bundle`: a report to attach to an issue: what is allowed by name, redacted, its manifest shown first."""

from __future__ import annotations

import fnmatch
import getpass
import gzip
import io
import json
import os
import socket
import tarfile
from typing import Any

from llmcheck import __version__
from llmcheck.codec import to_plain
from llmcheck.console import complain, is_terminal
from llmcheck.doctor.subjects import Gathered
from llmcheck.errors import UserError
from llmcheck.files import write_new
from llmcheck.report.finding import Report
from llmcheck.report.redact import Redactor
from llmcheck.rules.facts import ABSENT

SCHEMA = "llmcheck.bundle/1"

# Facts that a bundle may hold. Everything else stays here: interfaces, hosts, folders, data, values of variables that are no known knobs.
ALLOWED = (
    "pkg.*", "build.*", "python.*", "torch.*", "cuda.*", "builds.*", "gpu.*", "toolchain.*", "tok.*", "model.*", "gen.*", "ds.*", "plan.*",
    "env.*", "host.system", "host.kernel", "host.glibc", "host.architecture", "host.is_wsl", "host.in_container", "host.*_bytes",
    "host.num_cpus*", "host.cpu_quota", "host.limit_*", "host.disk_*", "host.infiniband_*", "host.iommu_*", "host.allocator_*",
    "hostfile.num_*",
)  # fmt: skip


def write_bundle(path: str, report: Report, gathered: Gathered, *, exit_code: int) -> None:
    """Write the bundle to `path`, which must not exist. Its manifest goes to stderr before the file is made. Raises UserError."""
    redact = Redactor(names=_names(), keep=frozenset(pack.digest for pack in report.packs))
    members = {
        "report.json": _text(_redacted(_report(report, exit_code), redact)),
        "facts.json": _text(_redacted(facts_allowed(gathered), redact)),
    }
    manifest = {
        "schema": SCHEMA,
        "llmcheck_version": __version__,
        "files": {name: {"bytes": len(data), "holds": _HOLDS[name]} for name, data in members.items()},
        "facts": sorted(facts_allowed(gathered)),
        "left_out": "values of environment variables that are no known knobs, folders, host and user names, addresses, data, whole logs",
    }
    complain(
        [
            f"bundle {path}:",
            *[f"  {name}  {len(data):,} bytes: {_HOLDS[name]}" for name, data in members.items()],
            f"  {len(manifest['facts'])} facts, allowed by name; names, addresses and secrets are replaced",
            "  read it before you attach it: what has no known form may have been missed",
        ]
    )
    _confirm(path)
    write_new(path, _archive({"manifest.json": _text(manifest), **members}), flag="--bundle", mode=0o600)


_HOLDS = {"report.json": "the findings, with at most three lines of evidence each", "facts.json": "what was read off this machine"}


def facts_allowed(gathered: Gathered) -> dict[str, Any]:
    """The facts that may leave the machine; null where something was looked for and is not there."""
    return {
        name: None if fact.value is ABSENT else fact.value
        for name, fact in sorted(gathered.facts.known.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED)
    }


def _report(report: Report, exit_code: int) -> dict[str, Any]:
    from llmcheck.render.report_json import document

    return document(report, exit_code)


def _redacted(value: Any, redact: Redactor) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(part, redact) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(part, redact) for part in value]
    return value


def _text(value: Any) -> bytes:
    return (json.dumps(to_plain(value), indent=1, ensure_ascii=True) + "\n").encode()


def _archive(members: dict[str, bytes]) -> bytes:
    """A tar with fixed names, no owner, no times: the same report gives the same bytes."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"llmcheck-bundle/{name}")
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def _names() -> list[str]:
    """Names of this machine and its user."""
    names = [socket.gethostname(), socket.gethostname().split(".")[0], os.environ.get("USER", ""), os.environ.get("LOGNAME", "")]
    try:
        names.append(getpass.getuser())
    except (KeyError, OSError):  # a user without an entry, as in containers
        pass
    # "root" and the like are no one's name, and part of many paths.
    return [name for name in names if name and name not in ("root", "user", "ubuntu", "localhost")]


def _confirm(path: str) -> None:
    """Ask on a terminal; a pipeline has said what it wants."""
    import sys

    if is_terminal(sys.stdin) and is_terminal(sys.stderr):
        sys.stderr.write(f"write {os.path.basename(path)}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError("the bundle was not written", code="declined", where="--bundle", hint="answer y to write it")
