"""Facts about the network and the PCI bus: interfaces, InfiniBand, and what redirects traffic between GPUs."""

from __future__ import annotations

import os
import re

from llmcheck.probe.machine import Machine
from llmcheck.rules.facts import Facts

_IFF_UP = 0x1  # https://man7.org/linux/man-pages/man7/netdevice.7.html
_EXTENDED_CAPABILITIES = 0x100  # PCI Express: extended capabilities begin here; only root reads that far
_ACS = 0x000D  # Access Control Services
_ACS_CONTROL = 6  # offset in the capability
_ACS_SOURCE_VALIDATION = 0x1
_CLASS_BRIDGE = "0x0604"


def interfaces(machine: Machine, result: Facts) -> None:
    """Network interfaces, and whether NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name any."""
    names = machine.listing("/sys/class/net")
    if not names:
        for key in ("host.interfaces", "host.nccl_interfaces_unmatched", "host.gloo_interfaces_unmatched"):
            result.could_not(key, "/sys/class/net cannot be read")
        return
    up = [name for name in names if int(machine.read(f"/sys/class/net/{name}/flags") or "0", 16) & _IFF_UP]
    result.put("host.interfaces", up)
    setting = machine.environ.get("NCCL_SOCKET_IFNAME")
    unmatched = setting if setting and not nccl_interfaces(setting, up) else None
    result.put("host.nccl_interfaces_unmatched", unmatched)
    gloo = [name for name in machine.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    result.put("host.gloo_interfaces_unmatched", [name for name in gloo if name not in up] or None)


def nccl_interfaces(setting: str, names: list[str]) -> list[str]:
    """The interfaces that NCCL would take: a list of beginnings of names, ``^`` for all others, ``=`` for whole names.

    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname
    """
    others = setting.startswith("^")
    rest = setting[1:] if others else setting
    exact = rest.startswith("=")
    wanted = [item.strip() for item in (rest[1:] if exact else rest).split(",") if item.strip()]
    return [name for name in names if any(name == item if exact else name.startswith(item) for item in wanted) != others]


def infiniband(machine: Machine, result: Facts) -> None:
    """InfiniBand (and RoCE) devices, those with a working port, and whether this process may use them."""
    if not machine.exists("/sys/class"):
        for key in ("infiniband_devices", "infiniband_active", "infiniband_usable", "gpudirect_module"):
            result.could_not(f"host.{key}", "/sys/class cannot be read")
        return
    devices = machine.listing("/sys/class/infiniband")
    result.put("host.infiniband_devices", devices or None)
    active = [
        device
        for device in devices
        if any("ACTIVE" in (machine.read(f"/sys/class/infiniband/{device}/ports/{port}/state") or "") for port in _ports(machine, device))
    ]
    result.put("host.infiniband_active", active or None)
    result.put("host.infiniband_usable", any(name.startswith("uverbs") for name in machine.listing("/dev/infiniband")))
    result.put("host.gpudirect_module", machine.exists("/sys/module/nvidia_peermem") or machine.exists("/sys/module/nv_peer_mem"))


def _ports(machine: Machine, device: str) -> list[str]:
    return machine.listing(f"/sys/class/infiniband/{device}/ports")


def pci(machine: Machine, result: Facts) -> None:
    """IOMMU, and PCI bridges whose access control sends traffic between GPUs through the processor."""
    if not machine.exists("/sys/class"):
        result.could_not("host.iommu_active", "/sys/class cannot be read")
    else:
        result.put("host.iommu_active", bool(machine.listing("/sys/class/iommu")))
    command_line = machine.read("/proc/cmdline")
    if command_line is None:
        result.could_not("host.iommu_passthrough", "/proc/cmdline cannot be read")
    else:
        result.put("host.iommu_passthrough", re.search(r"\biommu(?:\.passthrough)?=(?:pt|1)\b", command_line) is not None)
    if not machine.exists("/sys/bus/pci/devices"):
        result.could_not("host.acs_bridges", "/sys/bus/pci cannot be read")
        return
    controlled: list[str] = []
    for device in machine.listing("/sys/bus/pci/devices"):
        folder = f"/sys/bus/pci/devices/{device}"
        if not (machine.read(f"{folder}/class") or "").startswith(_CLASS_BRIDGE):
            continue
        enabled = _access_control(machine.path(f"{folder}/config"))
        if enabled is None:
            result.could_not("host.acs_bridges", "only root may read the PCI bridges' settings")
            return
        if enabled:
            controlled.append(device)
    result.put("host.acs_bridges", controlled or None)


def _access_control(path: str) -> bool | None:
    """Whether a bridge's ACS validates sources, as ``lspci -vvv`` shows by ``ACSCtl: SrcValid+``; None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(4096)
    except OSError:
        return None
    if len(data) <= _EXTENDED_CAPABILITIES:
        return None if len(data) <= 64 and os.geteuid() != 0 else False  # a plain PCI bridge has 256 bytes and no ACS
    offset, seen = _EXTENDED_CAPABILITIES, 0
    while _EXTENDED_CAPABILITIES <= offset <= len(data) - 8 and seen < 64:
        header = int.from_bytes(data[offset : offset + 4], "little")
        if header & 0xFFFF == _ACS:
            return bool(int.from_bytes(data[offset + _ACS_CONTROL : offset + _ACS_CONTROL + 2], "little") & _ACS_SOURCE_VALIDATION)
        offset, seen = header >> 20, seen + 1
    return False
