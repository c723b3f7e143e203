from __future__ import annotations

from pathlib import Path

import pytest

from llmcheck.probe import host
from llmcheck.probe.machine import Machine
from llmcheck.rules.facts import Facts, load_registry
from tests.unit.probe.machines import make
from tests.unit.probe.test_nvidia import H100, smi


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One with a GPU, a compiler and InfiniBand, so that every collector has something to say."""
    files = {
        "/dev/nvidiactl": "", "/dev/kmsg": "", "/sys/class/net/eth0/flags": "0x1003",
        "/proc/meminfo": "MemTotal: 1 kB\nMemAvailable: 1 kB\n",
        "/sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE", "/usr/local/cuda/x": "", "/dev/shm/x": "",
        "/sys/fs/cgroup/x": "", "/sys/bus/pci/devices/x/class": "", "/proc/cmdline": "",
        "/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 a rw",
    }  # fmt: skip
    programs = {"nvidia-smi": smi([H100, {**H100, "index": "1"}]), "nvcc": "echo release 12.4,", "gcc": "echo 12.1.0", "c++": "echo 12.1.0"}
    return make(tmp_path, files, programs, LD_LIBRARY_PATH="/x", PYTORCH_ALLOC_CONF="a:1", NCCL_SOCKET_IFNAME="eth0")


def test_every_fact_is_registered_and_every_registered_fact_is_looked_for(machine: Machine) -> None:
    registry = load_registry()
    found = host.facts(machine)
    assert found.subjects == {"host", "environment_variables", "toolchain", "gpu"}
    assert [name for name in [*found.known, *found.unreadable] if registry.kind(name) is None] == []
    made_elsewhere = {
        "gpu.not_in_torch_build", "gpu.visible_count", "gpu.visible_problem", "toolchain.nvcc_against_torch", "toolchain.gcc_too_new",
        "toolchain.python_headers",
    }  # fmt: skip
    ours = [kind.name for kind in registry.kinds.values() if kind.subject in found.subjects and not kind.name.startswith("env.")]
    assert {name for name in ours if name not in found.known and found.why_unknown(name) is None} == made_elsewhere


@pytest.mark.parametrize(("title", "look", "names"), host.COLLECTORS, ids=[title for title, _, _ in host.COLLECTORS])
def test_a_collector_that_fails_leaves_nothing_that_it_finds_unsaid(
    machine: Machine, title: str, look: host.Look, names: tuple[str, ...]
) -> None:
    found, failed = Facts(), Facts()
    look(machine, found)
    for name in names:
        failed.could_not(name, title)
    if title == "kernel log":  # nothing in the log here
        assert found.known.keys() == {"gpu.xids"}
    assert [name for name in found.known if failed.why_unknown(name) is None] == []


def test_one_broken_collector_is_a_reason(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_machine: Machine, _facts: Facts) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(host, "COLLECTORS", (("memory", broken, ("host.ram_*",)), host.COLLECTORS[0]))
    found = host.facts(machine)
    assert found.why_unknown("host.ram_bytes") == "memory: RuntimeError: boom"
    assert "host.system" in found.known


def test_this_machine_is_read() -> None:
    found = host.facts()
    assert found.known["host.num_cpus"].value >= 1
