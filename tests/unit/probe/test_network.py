from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcheck.probe import network
from llmcheck.rules.facts import ABSENT, Facts
from tests.unit.probe.machines import make

UP, DOWN = "0x1003", "0x1002"
CARDS = {"/sys/class/net/eth0/flags": UP, "/sys/class/net/lo/flags": "0x9", "/sys/class/net/ib0/flags": DOWN}


def look(collector: Any, machine: Any) -> dict[str, Any]:
    facts = Facts()
    collector(machine, facts)
    return {name.removeprefix("host."): fact.value for name, fact in facts.known.items()}


@pytest.mark.parametrize(
    ("setting", "unmatched"),
    [
        *((setting, ABSENT) for setting in ("eth", "=eth0", "^docker,lo", "ib0,eth0", "^=eth1")),
        *((setting, setting) for setting in ("ib0", "=eth", "^eth,lo")),
    ],
)
def test_names_are_matched_as_nccl_does(tmp_path: Path, setting: str, unmatched: Any) -> None:
    found = look(network.interfaces, make(tmp_path, CARDS, NCCL_SOCKET_IFNAME=setting))
    assert found["nccl_interfaces_unmatched"] == unmatched
    assert found["interfaces"] == ["eth0", "lo"]


def test_gloo_takes_whole_names(tmp_path: Path) -> None:
    assert look(network.interfaces, make(tmp_path, CARDS, GLOO_SOCKET_IFNAME="eth,eth0"))["gloo_interfaces_unmatched"] == ["eth"]
    assert look(network.interfaces, make(tmp_path, CARDS))["gloo_interfaces_unmatched"] is ABSENT


def test_what_cannot_be_read_is_unknown_and_not_missing(tmp_path: Path) -> None:
    facts = Facts()
    for collector in (network.interfaces, network.infiniband, network.pci):
        collector(make(tmp_path), facts)
    assert facts.known == {}
    assert len(facts.unreadable) == 10


def test_infiniband(tmp_path: Path) -> None:
    files = {
        "/sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
        "/sys/class/infiniband/mlx5_1/ports/1/state": "1: DOWN\n",
        "/dev/infiniband/uverbs0": "",
        "/sys/module/nvidia_peermem/refcnt": "0",
    }
    found = look(network.infiniband, make(tmp_path, files))
    assert (found["infiniband_devices"], found["infiniband_active"]) == (["mlx5_0", "mlx5_1"], ["mlx5_0"])
    assert (found["infiniband_usable"], found["gpudirect_module"]) == (True, True)
    nothing = look(network.infiniband, make(tmp_path / "b", {"/dev/infiniband/rdma_cm": "", "/sys/class/net/lo/flags": "0x9"}))
    assert (nothing["infiniband_devices"], nothing["infiniband_usable"]) == (ABSENT, False)


def bridge(folder: Path, address: str, control: int | None, size: int = 4096) -> None:
    place = folder / "sys/bus/pci/devices" / address
    place.mkdir(parents=True)
    (place / "class").write_text("0x060400\n")
    data = bytearray(size)
    if control is not None:
        data[0x100:0x104] = (0x0001 | 0x150 << 20).to_bytes(4, "little")  # another capability first
        data[0x150:0x154] = 0x000D.to_bytes(4, "little")
        data[0x156:0x158] = control.to_bytes(2, "little")
    (place / "config").write_bytes(bytes(data[:size]))


def test_access_control_is_read_in_the_bridges_registers(tmp_path: Path) -> None:
    bridge(tmp_path, "0000:00:01.0", 0x001D)
    bridge(tmp_path, "0000:00:02.0", 0x0000)
    bridge(tmp_path, "0000:00:03.0", None)
    bridge(tmp_path, "0000:00:04.0", None, size=256)
    found = look(network.pci, make(tmp_path, {"/proc/cmdline": "ro intel_iommu=on iommu=pt", "/sys/class/iommu/dmar0/x": ""}))
    assert found["acs_bridges"] == ["0000:00:01.0"]
    assert (found["iommu_active"], found["iommu_passthrough"]) == (True, True)


def test_a_chain_of_capabilities_that_does_not_end_is_left(tmp_path: Path) -> None:
    bridge(tmp_path, "0000:00:01.0", None)
    data = bytearray(4096)
    data[0x100:0x104] = (0x0001 | 0x100 << 20).to_bytes(4, "little")  # points to itself
    (tmp_path / "sys/bus/pci/devices/0000:00:01.0/config").write_bytes(bytes(data))
    assert look(network.pci, make(tmp_path))["acs_bridges"] is ABSENT


def test_what_only_root_may_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    bridge(tmp_path, "0000:00:01.0", None, size=64)
    facts = Facts()
    network.pci(make(tmp_path), facts)
    assert facts.get("host.acs_bridges") is None
    assert facts.why_unknown("host.acs_bridges") is not None
