"""Facts about the operating system: kernel, memory and its limits, processors, limits of the shell, shared memory, disks."""

from __future__ import annotations

import os
import re

from llmcheck.probe.machine import Machine, nearest_existing
from llmcheck.rules.facts import Facts, Location

UNLIMITED = 2**63 - 1  # of a limit, so that it compares as larger than any need
_LIMITS = (("nofile", "RLIMIT_NOFILE"), ("nproc", "RLIMIT_NPROC"), ("memlock_bytes", "RLIMIT_MEMLOCK"), ("stack_bytes", "RLIMIT_STACK"))
_SHM = "/dev/shm"  # noqa: S108 - it is looked at, not written to
_TMP = "/tmp"  # noqa: S108
_NO_CGROUP_LIMIT = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit", rounded down to pages


def kernel(machine: Machine, result: Facts) -> None:
    """Kernel, C library, processor type, WSL, container."""
    release = machine.read("/proc/sys/kernel/osrelease") or os.uname().release
    number = re.match(r"\d+(?:\.\d+)+", release)
    result.put("host.system", machine.system)
    if number is None:
        result.could_not("host.kernel", f"{release[:60]!r} is no release that we can read")
    else:
        result.put("host.kernel", number[0])
    result.put("host.architecture", os.uname().machine)
    result.put("host.is_wsl", "microsoft" in release.lower())
    result.put("host.in_container", _in_container(machine))
    try:
        library = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()  # glibc 2.36
    except (ValueError, OSError):
        library = []
    result.put("host.glibc", library[1] if len(library) == 2 and library[0] == "glibc" else None)


def memory(machine: Machine, result: Facts) -> None:
    """RAM, swap, and the limit that a container or job puts on memory."""
    text = machine.read("/proc/meminfo")
    sizes = {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text or "", re.MULTILINE)}
    for key, name in (
        ("MemTotal", "ram_bytes"), ("MemAvailable", "ram_available_bytes"), ("SwapTotal", "swap_bytes"),
    ):  # fmt: skip
        if key in sizes:
            result.put(f"host.{name}", sizes[key], Location(uri="/proc/meminfo"))
        else:
            result.could_not(f"host.{name}", f"/proc/meminfo does not give {key}")
    if "SwapTotal" in sizes and "SwapFree" in sizes:
        result.put("host.swap_used_bytes", sizes["SwapTotal"] - sizes["SwapFree"])
    else:
        result.could_not("host.swap_used_bytes", "/proc/meminfo does not give it")
    overcommit = machine.integer("/proc/sys/vm/overcommit_memory")
    if overcommit is None:
        result.could_not("host.overcommit_memory", "/proc/sys/vm/overcommit_memory cannot be read")
    else:
        result.put("host.overcommit_memory", overcommit)
    if not machine.exists("/sys/fs/cgroup"):
        result.could_not("host.memory_limit_bytes", "control groups are not mounted here")
        return
    limits = _cgroup_values(machine, "memory", "memory.max", "memory.limit_in_bytes")
    limit = min((int(value) for value in limits if value.isdigit() and int(value) < _NO_CGROUP_LIMIT), default=None)
    result.put("host.memory_limit_bytes", limit)


def processors(machine: Machine, result: Facts) -> None:
    """How many processors there are and how many of them we may use."""
    count = os.cpu_count() or 1
    result.put("host.num_cpus", count)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    result.put("host.num_cpus_allowed", allowed)
    if not machine.exists("/sys/fs/cgroup"):
        result.could_not("host.cpu_quota", "control groups are not mounted here")
        return
    quotas: list[float] = []
    for text in _cgroup_values(machine, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        match = re.fullmatch(r"(\d+)(?: (\d+))?", text)
        if match is not None:
            # v1 keeps the period in a file of its own; 100 ms is its default
            quotas.append(int(match[1]) / int(match[2] or 100_000))
    result.put("host.cpu_quota", min(quotas, default=None))


def limits(_machine: Machine, result: Facts) -> None:
    """The shell's limits (``ulimit``), which a run inherits."""
    import resource  # POSIX only

    for name, key in _LIMITS:
        number = getattr(resource, key, None)
        if number is None:
            result.could_not(f"host.limit_{name}", f"this system has no {key}")
            continue
        soft, _ = resource.getrlimit(number)
        result.put(f"host.limit_{name}", UNLIMITED if soft == resource.RLIM_INFINITY else soft)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result.put("host.limit_nofile_hard", UNLIMITED if hard == resource.RLIM_INFINITY else hard)
    result.put("host.user_is_root", os.geteuid() == 0)


def shared_memory(machine: Machine, result: Facts) -> None:
    """The file system of shared memory, through which NCCL and data loaders exchange data."""
    path = machine.path(_SHM)
    if not os.path.isdir(path):
        result.absent("host.shm_bytes")
        result.absent("host.shm_free_bytes")
        return
    status = os.statvfs(path)
    result.put("host.shm_bytes", status.f_blocks * status.f_frsize, Location(uri=_SHM))
    result.put("host.shm_free_bytes", status.f_bavail * status.f_frsize, Location(uri=_SHM))


def disks(machine: Machine, result: Facts) -> None:
    """Room where checkpoints, downloaded models and temporary files go, and what kind of file system that is."""
    environ = machine.environ
    hub = environ.get("HF_HUB_CACHE") or os.path.join(environ.get("HF_HOME") or _cache(machine, "huggingface"), "hub")
    for name, path in (("cwd", machine.cwd), ("hf_cache", hub), ("tmp", environ.get("TMPDIR") or _TMP)):
        place = nearest_existing(path)
        try:
            status = os.statvfs(place)
        except OSError as reason:
            result.could_not(f"host.disk_{name}_free_bytes", str(reason.strerror or reason))
            continue
        location = Location(uri=place)
        result.put(f"host.disk_{name}_free_bytes", status.f_bavail * status.f_frsize, location)
        result.put(f"host.disk_{name}_read_only", bool(status.f_flag & os.ST_RDONLY), location)
        if status.f_files:  # file systems without inodes of a fixed number say 0
            result.put(f"host.disk_{name}_free_inodes", status.f_favail, location)
        else:
            result.absent(f"host.disk_{name}_free_inodes", location)
        machine.put_file_system(result, f"host.disk_{name}_type", place)
    result.put("host.tmp_writable", os.access(nearest_existing(environ.get("TMPDIR") or _TMP), os.W_OK))


def _cache(machine: Machine, name: str) -> str:
    return os.path.join(machine.environ.get("XDG_CACHE_HOME") or machine.home(".cache"), name)


def _in_container(machine: Machine) -> bool:
    if machine.exists("/.dockerenv") or machine.exists("/run/.containerenv"):
        return True
    if "KUBERNETES_SERVICE_HOST" in machine.environ or machine.environ.get("container"):
        return True
    return re.search(r"docker|kubepods|containerd|/lxc", machine.read("/proc/self/cgroup") or "") is not None


def _cgroup_values(machine: Machine, controller: str, second: str, first: str) -> list[str]:
    """A setting in our control group and all above it: file `second` of version 2, or `first` of version 1. cgroups(7)"""
    found: list[str] = []
    for line in (machine.read("/proc/self/cgroup") or "0::/").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, name = "/sys/fs/cgroup", second
        elif controller in controllers.split(","):
            base, name = f"/sys/fs/cgroup/{controller}", first
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            value = machine.read("/".join([base, *parts[:depth], name]))
            if value is not None:
                found.append(value)
    return found
