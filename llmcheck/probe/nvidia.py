"""Facts about the NVIDIA driver and GPUs, through nvidia-smi: versions, memory, faults, links; and Xid lines of the kernel's log.

Fields: https://docs.nvidia.com/deploy/nvidia-smi/index.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from llmcheck.probe.collect import CommandError, find_program, run_command
from llmcheck.probe.machine import Machine
from llmcheck.probe.nvml import local_gpus
from llmcheck.rules.facts import Facts, Location

DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # bare Linux and containers; WSL
CALL_DEADLINE_S = 4.0  # of one call, below the collector's: a GPU that hangs makes nvidia-smi hang
_MIB = 1 << 20
_NOT_APPLICABLE = ("[N/A]", "N/A", "[Not Supported]", "")
_CORE_FIELDS = ("index", "name", "uuid", "driver_version", "memory.total", "memory.used", "memory.free")
# Those that an old driver may not know, and that it is asked again without
_MORE_FIELDS = (
    "compute_cap", "compute_mode", "mig.mode.current", "persistence_mode", "ecc.mode.current", "ecc.errors.uncorrected.volatile.total",
    "ecc.errors.uncorrected.aggregate.total", "retired_pages.pending", "remapped_rows.pending", "remapped_rows.failure",
    "gpu_recovery_action", "pcie.link.width.current", "pcie.link.width.max", "power.limit", "power.default_limit",
    "clocks_throttle_reasons.hw_thermal_slowdown", "clocks_throttle_reasons.hw_power_brake_slowdown", "fabric.state",
)  # fmt: skip
_LINKS = ("NV", "PIX", "PXB", "PHB", "NODE", "SYS")  # nearest first, as the legend of `nvidia-smi topo -m` explains them
_XID = re.compile(r"NVRM: Xid \(PCI:[0-9a-fA-F:.]+(?: GPU-I:\d+)?\): (\d+)")


def gpus(machine: Machine, result: Facts) -> None:
    """Driver and GPUs; ``gpu.count`` is 0 on a machine without either."""
    program = find_program("nvidia-smi", machine.environ)
    has_devices = any(machine.exists(path) for path in DEVICE_FILES)
    if program is None and not has_devices:
        result.put("gpu.count", 0)
        result.close("gpu.")
        return
    if program is None:
        result.could_not("gpu.*", "there is a driver, but nvidia-smi is not on PATH")
        _kernel_driver(machine, result)
        _through_library(result)
        return
    try:
        rows = query(program, machine.environ)
    except CommandError as reason:
        result.put("gpu.driver_failure", str(reason)[:300])
        result.could_not("gpu.*", str(reason))
        _kernel_driver(machine, result)
        return
    result.absent("gpu.driver_failure")
    record(rows, result)
    _driver_cuda(program, machine.environ, result)
    if len(rows) > 1:
        _topology(program, machine.environ, result)
    else:
        result.absent("gpu.links")
        result.absent("gpu.farthest_link")


def query(program: str, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """One dictionary per GPU. Fields that this driver does not know are left out. Raises CommandError."""
    fields = [*_CORE_FIELDS, *_MORE_FIELDS]
    for _ in range(len(_MORE_FIELDS) + 1):
        arguments = [program, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
        output = run_command(arguments, deadline_s=CALL_DEADLINE_S, environ=environ, check=False)
        refused = re.search(r'Field "([\w.]+)" is not a valid field', output.text + output.errors)
        if refused is not None and refused[1] in fields and refused[1] not in _CORE_FIELDS:
            fields.remove(refused[1])
            continue
        if output.code != 0:
            said = next((line.strip() for line in (output.text + "\n" + output.errors).splitlines() if line.strip()), "")
            raise CommandError(f"nvidia-smi: exit code {output.code}: {said[:250]}")
        rows = [[value.strip() for value in line.split(", ")] for line in output.text.splitlines() if line.strip()]
        if not rows or any(len(row) != len(fields) for row in rows):
            raise CommandError("nvidia-smi: " + (output.text.strip().splitlines() or ["it lists no GPU"])[0][:250])
        return [dict(zip(fields, row, strict=True)) for row in rows]
    raise CommandError("nvidia-smi: it refuses every field")


def record(rows: Sequence[Mapping[str, str]], result: Facts) -> None:
    """The facts in nvidia-smi's answers. Lists name the indices of the GPUs concerned and are absent when there are none."""
    result.put("gpu.count", len(rows))
    result.put("gpu.driver", rows[0]["driver_version"])
    models = list(dict.fromkeys(row["name"] for row in rows))
    result.put("gpu.models", models)
    result.put("gpu.num_models", len(models))
    for key, field, choose in (
        ("memory_min_bytes", "memory.total", min), ("memory_max_bytes", "memory.total", max),
        ("memory_used_max_bytes", "memory.used", max), ("memory_free_min_bytes", "memory.free", min),
    ):  # fmt: skip
        numbers = [number for row in rows if (number := _number(row[field])) is not None]
        if numbers:
            result.put(f"gpu.{key}", int(choose(numbers) * _MIB))
        else:
            result.could_not(f"gpu.{key}", f"nvidia-smi does not give {field}")
    capabilities = list(dict.fromkeys(row["compute_cap"] for row in rows if re.fullmatch(r"\d+\.\d+", row.get("compute_cap", ""))))
    if capabilities:
        result.put("gpu.compute_capabilities", capabilities)
        ordered = sorted(capabilities, key=lambda text: tuple(map(int, text.split("."))))
        result.put("gpu.compute_capability_min", ordered[0])
    else:
        for key in ("compute_capabilities", "compute_capability_min"):
            result.could_not(f"gpu.{key}", "this driver's nvidia-smi does not give compute capabilities (it needs driver 510)")
    _flags(rows, result)


def _flags(rows: Sequence[Mapping[str, str]], result: Facts) -> None:
    """Which GPUs are in a state that matters, by one test per field."""

    def positive(text: str) -> bool:
        return (_number(text) or 0) > 0

    checks: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
        ("ecc_disabled", "ecc.mode.current", lambda text: text == "Disabled"),
        ("ecc_uncorrected_since_boot", "ecc.errors.uncorrected.volatile.total", positive),
        ("ecc_uncorrected_ever", "ecc.errors.uncorrected.aggregate.total", positive),
        ("pages_pending", "retired_pages.pending", lambda text: text == "Yes"),
        ("rows_pending", "remapped_rows.pending", lambda text: text in ("Yes", "1")),
        ("rows_failed", "remapped_rows.failure", lambda text: text in ("Yes", "1")),
        ("needs_recovery", "gpu_recovery_action", lambda text: text != "None"),
        ("mig_enabled", "mig.mode.current", lambda text: text == "Enabled"),
        ("persistence_off", "persistence_mode", lambda text: text == "Disabled"),
        ("prohibited", "compute_mode", lambda text: text == "Prohibited"),
        ("too_hot", "clocks_throttle_reasons.hw_thermal_slowdown", lambda text: text == "Active"),
        ("power_brake", "clocks_throttle_reasons.hw_power_brake_slowdown", lambda text: text == "Active"),
        ("fabric_not_ready", "fabric.state", lambda text: text not in ("Completed", "Not Supported")),
    )
    for name, field, test in checks:
        _flag(rows, result, name, (field,), lambda row, field=field, test=test: test(row[field]))  # type: ignore[misc]
    _flag(
        rows, result, "pcie_narrow", ("pcie.link.width.current", "pcie.link.width.max"),
        lambda row: (_number(row["pcie.link.width.current"]) or 0) < (_number(row["pcie.link.width.max"]) or 0),
    )  # fmt: skip
    _flag(
        rows, result, "power_limited", ("power.limit", "power.default_limit"),
        lambda row: (_number(row["power.limit"]) or 0) < (_number(row["power.default_limit"]) or 0),
    )  # fmt: skip


def _flag(
    rows: Sequence[Mapping[str, str]], result: Facts, name: str, fields: tuple[str, ...], test: Callable[[Mapping[str, str]], bool]
) -> None:
    """Put the indices of the GPUs that pass `test`; a GPU that does not have such a thing does not."""
    found: list[int] = []
    for row in rows:
        if any(field not in row for field in fields):
            result.could_not(f"gpu.{name}", f"this driver's nvidia-smi does not know {', '.join(fields)}")
            return
        values = [row[field] for field in fields]
        if any(value in _NOT_APPLICABLE for value in values):
            continue
        if any(value.startswith("[") for value in values):  # [Unknown Error], [GPU is lost], [Insufficient Permissions]
            result.could_not(f"gpu.{name}", f"GPU {row['index']}: {', '.join(values)}"[:200])
            return
        if test(row):
            found.append(int(row["index"]))
    result.put(f"gpu.{name}", found or None)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


def _driver_cuda(program: str, environ: Mapping[str, str], result: Facts) -> None:
    try:
        text = run_command([program, "-q", "-d", "COMPUTE"], deadline_s=CALL_DEADLINE_S, environ=environ).text
    except CommandError as reason:
        result.could_not("gpu.driver_cuda", str(reason))
        return
    match = re.search(r"^CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", text, re.MULTILINE)
    if match is None:
        result.could_not("gpu.driver_cuda", "nvidia-smi does not name the driver's CUDA version")
    else:
        result.put("gpu.driver_cuda", match[1])


def _kernel_driver(machine: Machine, result: Facts) -> None:
    """The driver's version from the kernel module, where nvidia-smi cannot say it."""
    path = "/proc/driver/nvidia/version"
    match = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", machine.read(path) or "")
    if match is not None:
        result.put("gpu.driver", match[1], Location(uri=path))


def _through_library(result: Facts) -> None:
    """What NVIDIA's Python package tells where the command is missing: how many GPUs, which, how large. The rest stays unknown."""
    found = local_gpus({})  # CUDA_VISIBLE_DEVICES is judged apart
    if not found:
        return
    record(
        [
            {
                "index": str(gpu.index), "name": gpu.name, "uuid": gpu.uuid, "driver_version": gpu.driver,
                "memory.total": str(gpu.total_bytes // _MIB), "memory.used": str(gpu.used_bytes // _MIB),
                "memory.free": str((gpu.total_bytes - gpu.used_bytes) // _MIB),
                **({"compute_cap": "{}.{}".format(*gpu.compute_capability)} if gpu.compute_capability > (0, 0) else {}),
            }
            for gpu in found
        ],
        result,
    )  # fmt: skip


def _topology(program: str, environ: Mapping[str, str], result: Facts) -> None:
    try:
        text = run_command([program, "topo", "-m"], deadline_s=CALL_DEADLINE_S, environ=environ).text
    except CommandError as reason:
        result.could_not("gpu.links", str(reason))
        result.could_not("gpu.farthest_link", str(reason))
        return
    links = links_in(text)
    if not links:
        result.could_not("gpu.links", "nvidia-smi topo -m prints no matrix that we can read")
        result.could_not("gpu.farthest_link", "nvidia-smi topo -m prints no matrix that we can read")
        return
    result.put("gpu.links", links)
    result.put("gpu.farthest_link", links[-1])


def links_in(text: str) -> list[str]:
    """The kinds of links between GPUs in what ``nvidia-smi topo -m`` prints, nearest first."""
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    rows = [words for words in lines if words and re.fullmatch(r"GPU\d+", words[0]) and "X" in words]
    kinds = {word for words in rows for word in words[1 : len(rows) + 1] if word != "X"}
    known = [kind for kind in kinds if re.fullmatch(r"NV\d+|" + "|".join(_LINKS[1:]), kind)]
    return sorted(known, key=lambda kind: (_LINKS.index("NV" if kind.startswith("NV") else kind), kind))


def faults(machine: Machine, result: Facts) -> None:
    """Xid codes that the driver logged since the machine started: the kernel's log, or the journal's copy of it."""
    if not any(machine.exists(path) for path in DEVICE_FILES):
        result.absent("gpu.xids")
        return
    text = kernel_log(machine)
    why = "the kernel's log is for administrators here"
    if text is None:
        program = find_program("journalctl", machine.environ)
        if program is not None:
            arguments = [program, "-k", "-b", "--no-pager", "-o", "cat", "--grep", "NVRM: Xid", "-n", "500"]
            try:
                output = run_command(arguments, deadline_s=CALL_DEADLINE_S, environ=machine.environ, check=False)
            except CommandError as reason:
                why = str(reason)
            else:
                # A user who may not see the system's messages gets an empty answer and a hint beside it
                text = None if "not seeing messages" in output.errors or "permission" in output.errors.lower() else output.text
    if text is None:
        result.could_not("gpu.xids", why)
        return
    result.put("gpu.xids", sorted({int(code) for code in _XID.findall(text)}) or None)


def kernel_log(machine: Machine) -> str | None:
    """All of /dev/kmsg that is there now, without waiting; None when it may not be read. proc(5), dmesg(1)"""
    try:
        descriptor = os.open(machine.path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    parts: list[bytes] = []
    try:
        for _ in range(100_000):  # one record a read
            try:
                data = os.read(descriptor, 8192)
            except BrokenPipeError:  # a record was overwritten meanwhile
                continue
            if not data:
                break
            if b"NVRM: Xid" in data:
                parts.append(data)
    except BlockingIOError:  # no more for now
        pass
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"\n".join(parts).decode("utf-8", "replace")
