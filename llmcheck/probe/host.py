"""Facts about this machine: every collector by itself, with a deadline; what fails is a reason and never silence."""

from __future__ import annotations

from collections.abc import Callable

from llmcheck.probe import knobs, network, nvidia, system, toolchain
from llmcheck.probe.collect import DEADLINE_S, Collector, collect
from llmcheck.probe.machine import Machine
from llmcheck.rules.facts import Facts

Look = Callable[[Machine, Facts], None]
# What is not known when the collector fails. Wildcards only where one collector has all of a prefix.
COLLECTORS: tuple[tuple[str, Look, tuple[str, ...]], ...] = (
    ("kernel", system.kernel, ("host.system", "host.kernel", "host.architecture", "host.is_wsl", "host.in_container", "host.glibc")),
    (
        "memory", system.memory,
        ("host.ram_*", "host.swap_*", "host.overcommit_memory", "host.memory_limit_bytes"),
    ),
    ("processors", system.processors, ("host.num_cpus*", "host.cpu_quota")),
    ("limits", system.limits, ("host.limit_*", "host.user_is_root")),
    ("shared memory", system.shared_memory, ("host.shm_*",)),
    ("disks", system.disks, ("host.disk_*", "host.tmp_writable")),
    ("network", network.interfaces, ("host.interfaces", "host.nccl_interfaces_unmatched", "host.gloo_interfaces_unmatched")),
    ("InfiniBand", network.infiniband, ("host.infiniband_*", "host.gpudirect_module")),
    ("PCI", network.pci, ("host.iommu_*", "host.acs_bridges")),
    ("environment variables", knobs.variables, ("env.*", "host.allocator_*")),
    ("LD_LIBRARY_PATH", knobs.libraries, ("host.library_*", "host.preload")),
    ("CUDA compiler", toolchain.cuda_compiler, ("toolchain.cuda_*", "toolchain.nvcc_version")),
    ("C++ compiler", toolchain.host_compiler, ("toolchain.cxx*", "toolchain.nvcc_host_*")),
    ("build tools", toolchain.build_tools, ("toolchain.ninja",)),
    ("extensions", toolchain.extensions, ("toolchain.extension*", "toolchain.oldest_lock_minutes", "toolchain.triton_cache_type")),
    ("GPUs", nvidia.gpus, ("gpu.*",)),
    ("kernel log", nvidia.faults, ("gpu.xids",)),
)  # fmt: skip


def facts(machine: Machine | None = None, deadline_s: float = DEADLINE_S) -> Facts:
    """``host.*``, ``env.*``, ``toolchain.*`` and ``gpu.*`` of `machine` (None: this one), within `deadline_s` of wall-clock time."""
    place = machine or Machine()
    result = collect([_collector(title, look, names, place) for title, look, names in COLLECTORS], deadline_s)
    result.examined("host", "environment_variables", "toolchain", "gpu")
    return result


def _collector(title: str, look: Look, names: tuple[str, ...], machine: Machine) -> Collector:
    return Collector(title=title, names=names, run=lambda found: look(machine, found))
