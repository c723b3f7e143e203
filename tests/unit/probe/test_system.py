from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcheck.probe import system
from llmcheck.probe.machine import Machine, file_system, nearest_existing
from llmcheck.rules.facts import ABSENT, Facts
from tests.unit.probe.machines import make

MEMINFO = "MemTotal:       528280000 kB\nMemAvailable:   400000000 kB\nSwapTotal:       8388604 kB\nSwapFree:        8388600 kB\n"


def look(collector: Any, machine: Machine) -> Facts:
    facts = Facts()
    collector(machine, facts)
    return facts


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"host.{name}")
    return None if fact is None else fact.value


def test_memory(tmp_path: Path) -> None:
    files = {"/proc/meminfo": MEMINFO, "/proc/sys/vm/overcommit_memory": "2\n", "/sys/fs/cgroup/cgroup.procs": "1"}
    facts = look(system.memory, make(tmp_path, files))
    assert (value(facts, "ram_bytes"), value(facts, "swap_used_bytes"), value(facts, "overcommit_memory")) == (528280000 << 10, 4096, 2)
    assert value(facts, "memory_limit_bytes") is ABSENT


@pytest.mark.parametrize("text", ["", "MemTotal: lots\n", "\0\xff"])
def test_memory_that_cannot_be_read_is_unknown(tmp_path: Path, text: str) -> None:
    facts = look(system.memory, make(tmp_path, {"/proc/meminfo": text}))
    names = ("ram_bytes", "swap_used_bytes", "overcommit_memory", "memory_limit_bytes")
    assert [value(facts, name) for name in names] == [None] * 4
    assert facts.why_unknown("host.ram_bytes") is not None


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "0::/kubepods/pod1/box\n",
        "/sys/fs/cgroup/kubepods/memory.max": "max\n",
        "/sys/fs/cgroup/kubepods/pod1/memory.max": "34359738368\n",
        "/sys/fs/cgroup/kubepods/pod1/box/memory.max": "68719476736\n",
        "/sys/fs/cgroup/kubepods/pod1/box/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/kubepods/pod1/cpu.max": "350000 100000\n",
    }
    machine = make(tmp_path, files)
    assert value(look(system.memory, machine), "memory_limit_bytes") == 32 << 30
    assert value(look(system.processors, machine), "cpu_quota") == 3.5


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    machine = make(tmp_path, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "1073741824\n"})
    assert value(look(system.memory, machine), "memory_limit_bytes") == 1 << 30


def test_version_one_of_control_groups(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "17179869184\n",
        "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    machine = make(tmp_path, files)
    assert value(look(system.memory, machine), "memory_limit_bytes") == 16 << 30
    assert value(look(system.processors, machine), "cpu_quota") == 2.0


def test_no_limit_of_version_one_is_no_limit(tmp_path: Path) -> None:
    files = {"/proc/self/cgroup": "4:memory:/\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert value(look(system.memory, make(tmp_path, files)), "memory_limit_bytes") is ABSENT


@pytest.mark.parametrize(
    ("release", "number", "wsl"),
    [("5.4.143-2-velinux1", "5.4.143", False), ("5.15.153.1-microsoft-standard-WSL2", "5.15.153.1", True), ("odd", None, False)],
)
def test_kernels(tmp_path: Path, release: str, number: str, wsl: bool) -> None:
    facts = look(system.kernel, make(tmp_path, {"/proc/sys/kernel/osrelease": release}))
    assert (value(facts, "kernel"), value(facts, "is_wsl")) == (number, wsl)


@pytest.mark.parametrize("files", [{"/.dockerenv": ""}, {"/run/.containerenv": ""}, {"/proc/self/cgroup": "0::/kubepods/x"}])
def test_containers(tmp_path: Path, files: dict[str, str]) -> None:
    assert value(look(system.kernel, make(tmp_path, files)), "in_container") is True


def test_no_container(tmp_path: Path) -> None:
    assert value(look(system.kernel, make(tmp_path, {"/proc/self/cgroup": "0::/user.slice"})), "in_container") is False


def test_limits_are_numbers_even_when_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    facts = look(system.limits, make(tmp_path))
    assert value(facts, "limit_nofile") == value(facts, "limit_memlock_bytes") == 2**63 - 1


def test_shared_memory_that_is_not_there_is_absent(tmp_path: Path) -> None:
    assert value(look(system.shared_memory, make(tmp_path)), "shm_bytes") is ABSENT


def test_disks_are_those_that_a_run_writes_to(tmp_path: Path) -> None:
    mounts = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / {tmp_path}/hub rw shared:1 - nfs4 server:/x rw\n"
    machine = make(tmp_path, {"/proc/self/mountinfo": mounts}, HF_HOME=str(tmp_path / "hub" / "not" / "made"), TMPDIR=str(tmp_path))
    (tmp_path / "hub").mkdir()
    facts = look(system.disks, machine)
    assert (value(facts, "disk_hf_cache_type"), value(facts, "disk_cwd_type")) == ("nfs4", "ext4")
    assert value(facts, "disk_tmp_free_bytes") > 0
    assert value(facts, "tmp_writable") is True


def test_the_closest_mount_counts_and_odd_lines_do_not(tmp_path: Path) -> None:
    mounts = ["junk", "1 0 8:1 / / rw - ext4 a rw", "2 1 0:5 / /data rw - xfs b rw", "3 1 0:6 / /data\\040x rw - lustre c rw"]
    text = "\n".join([*mounts, "4 1 0:7 / /dat rw - tmpfs d rw"])
    machine = make(tmp_path, {"/proc/self/mountinfo": text})
    assert [file_system(machine, path) for path in ("/data/a", "/data x/b", "/database", "/home")] == ["xfs", "lustre", "ext4", "ext4"]
    assert file_system(make(tmp_path / "none"), "/") is None


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert nearest_existing(str(tmp_path / "a" / "b")) == str(tmp_path)
