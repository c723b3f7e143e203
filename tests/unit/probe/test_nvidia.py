from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcheck.probe import nvidia
from llmcheck.probe.nvml import LocalGpu
from llmcheck.rules.facts import ABSENT, Facts
from tests.unit.probe.machines import make

# What nvidia-smi of driver 580.159.04 said of an H100, by field
H100 = {
    "index": "0", "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-9f91c779-8e30-6ddf-4c86-225c9875a280", "driver_version": "580.159.04",
    "memory.total": "81559", "memory.used": "0", "memory.free": "81079", "compute_cap": "9.0", "compute_mode": "Default",
    "mig.mode.current": "Disabled", "persistence_mode": "Enabled", "ecc.mode.current": "Enabled",
    "ecc.errors.uncorrected.volatile.total": "0", "ecc.errors.uncorrected.aggregate.total": "0", "retired_pages.pending": "[N/A]",
    "remapped_rows.pending": "No", "remapped_rows.failure": "No", "gpu_recovery_action": "None", "pcie.link.width.current": "16",
    "pcie.link.width.max": "16", "power.limit": "700.00", "power.default_limit": "700.00",
    "clocks_throttle_reasons.hw_thermal_slowdown": "Not Active", "clocks_throttle_reasons.hw_power_brake_slowdown": "Not Active",
    "fabric.state": "[N/A]",
}  # fmt: skip
LISTS = (
    "ecc_disabled", "ecc_uncorrected_since_boot", "ecc_uncorrected_ever", "pages_pending", "rows_pending", "rows_failed", "needs_recovery",
    "mig_enabled", "persistence_off", "prohibited", "too_hot", "power_brake", "fabric_not_ready", "pcie_narrow", "power_limited",
)  # fmt: skip
TOPOLOGY = """\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-15\t0
GPU1\tNV18\t X \tPHB\tSYS\t0-15\t0
GPU2\tSYS\tPHB\t X \tSYS\t0-15\t0
NIC0\tPIX\tSYS\tSYS\t X \t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def recorded(*changes: dict[str, str], without: str = "") -> Facts:
    rows = [
        {key: value for key, value in {**H100, "index": str(n), **change}.items() if key != without} for n, change in enumerate(changes)
    ]
    facts = Facts()
    nvidia.record(rows, facts)
    return facts


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(f"gpu.{name}")
    return None if fact is None else fact.value


def smi(rows: list[dict[str, str]], refused: tuple[str, ...] = ()) -> str:
    """A shell script that answers as nvidia-smi does."""
    cases = [f'case "$1" in *{field}*) echo "Field \\"{field}\\" is not a valid field to query."; exit 2;; esac' for field in refused]
    table = "\n".join(f"    {key}) v='{'|'.join(row[key] for row in rows)}';;" for key in H100)
    return f"""
{chr(10).join(cases)}
case "$1" in
--query-gpu=*)
  n=1
  while [ $n -le {len(rows)} ]; do
    line=""
    for f in $(echo "${{1#--query-gpu=}}" | /usr/bin/tr ',' ' '); do
      case $f in
{table}
      esac
      line="$line, $(echo "$v" | /usr/bin/cut -d'|' -f$n)"
    done
    echo "${{line#, }}"
    n=$((n + 1))
  done;;
-q) echo "CUDA Version                                           : 13.0";;
topo) /bin/cat <<'EOF'
{TOPOLOGY}
EOF
;;
esac
"""


def test_a_healthy_gpu() -> None:
    facts = recorded({})
    assert [value(facts, name) for name in LISTS] == [ABSENT] * len(LISTS)
    assert (value(facts, "count"), value(facts, "driver"), value(facts, "memory_min_bytes")) == (1, "580.159.04", 81559 << 20)
    assert (value(facts, "compute_capabilities"), value(facts, "num_models")) == (["9.0"], 1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ecc_disabled", {"ecc.mode.current": "Disabled"}),
        ("ecc_uncorrected_since_boot", {"ecc.errors.uncorrected.volatile.total": "3"}),
        ("ecc_uncorrected_ever", {"ecc.errors.uncorrected.aggregate.total": "1"}),
        ("pages_pending", {"retired_pages.pending": "Yes"}),
        ("rows_pending", {"remapped_rows.pending": "Yes"}),
        ("rows_failed", {"remapped_rows.failure": "Yes"}),
        ("needs_recovery", {"gpu_recovery_action": "Reset"}),
        ("mig_enabled", {"mig.mode.current": "Enabled"}),
        ("persistence_off", {"persistence_mode": "Disabled"}),
        ("prohibited", {"compute_mode": "Prohibited"}),
        ("too_hot", {"clocks_throttle_reasons.hw_thermal_slowdown": "Active"}),
        ("power_brake", {"clocks_throttle_reasons.hw_power_brake_slowdown": "Active"}),
        ("fabric_not_ready", {"fabric.state": "In Progress"}),
        ("pcie_narrow", {"pcie.link.width.current": "8"}),
        ("power_limited", {"power.limit": "350.00"}),
    ],
)
def test_a_gpu_in_trouble_is_named_and_only_its_trouble(name: str, change: dict[str, str]) -> None:
    facts = recorded({}, change)
    assert value(facts, name) == [1]
    assert [other for other in LISTS if value(facts, other) is not ABSENT] == [name]


@pytest.mark.parametrize("text", ["[Unknown Error]", "[GPU is lost]", "[Insufficient Permissions]"])
def test_what_cannot_be_read_is_unknown_and_not_fine(text: str) -> None:
    facts = recorded({}, {"remapped_rows.failure": text})
    assert facts.get("gpu.rows_failed") is None
    assert text in str(facts.why_unknown("gpu.rows_failed"))


def test_an_old_driver_leaves_unknown_what_it_does_not_know() -> None:
    facts = recorded({}, without="gpu_recovery_action")
    assert facts.get("gpu.needs_recovery") is None
    assert facts.get("gpu.compute_capabilities") is not None
    assert recorded({}, without="compute_cap").get("gpu.compute_capabilities") is None


def test_gpus_that_differ() -> None:
    facts = recorded(
        {}, {"name": "NVIDIA A10", "memory.total": "23028", "memory.used": "20000", "memory.free": "3000", "compute_cap": "8.6"}
    )
    assert (value(facts, "num_models"), value(facts, "compute_capability_min")) == (2, "8.6")
    assert (value(facts, "memory_min_bytes"), value(facts, "memory_max_bytes")) == (23028 << 20, 81559 << 20)
    assert (value(facts, "memory_used_max_bytes"), value(facts, "memory_free_min_bytes")) == (20000 << 20, 3000 << 20)


def test_capabilities_are_ordered_by_number() -> None:
    assert value(recorded({"compute_cap": "10.0"}, {"compute_cap": "9.0"}), "compute_capability_min") == "9.0"


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path) -> None:
    facts = Facts()
    nvidia.gpus(make(tmp_path), facts)
    assert (value(facts, "count"), value(facts, "rows_failed")) == (0, ABSENT)


def test_the_command_is_asked_again_without_fields_it_does_not_know(tmp_path: Path) -> None:
    facts = Facts()
    script = smi([H100, {**H100, "index": "1"}], refused=("gpu_recovery_action", "fabric.state"))
    nvidia.gpus(make(tmp_path, {"/dev/nvidiactl": ""}, {"nvidia-smi": script}), facts)
    assert (value(facts, "count"), value(facts, "driver_cuda"), value(facts, "driver_failure")) == (2, "13.0", ABSENT)
    assert facts.get("gpu.needs_recovery") is None
    assert value(facts, "rows_failed") is ABSENT
    assert (value(facts, "links"), value(facts, "farthest_link")) == (["NV18", "PHB", "SYS"], "SYS")


def test_a_driver_that_does_not_answer_is_a_fact(tmp_path: Path) -> None:
    facts = Facts()
    script = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
    module = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12"
    nvidia.gpus(make(tmp_path, {"/dev/nvidiactl": "", "/proc/driver/nvidia/version": module}, {"nvidia-smi": script}), facts)
    assert "version mismatch" in value(facts, "driver_failure")
    assert (value(facts, "count"), value(facts, "driver")) == (None, "550.54.14")


@pytest.mark.parametrize("script", ["exit 0", "echo 'No devices were found'", "head -c 100000 /dev/zero", "echo a, b", "kill -9 $$"])
def test_odd_answers_are_reasons(tmp_path: Path, script: str) -> None:
    facts = Facts()
    nvidia.gpus(make(tmp_path, {"/dev/nvidiactl": ""}, {"nvidia-smi": script}), facts)
    assert facts.get("gpu.count") is None
    assert facts.why_unknown("gpu.count") is not None


def test_a_driver_without_its_command_is_unknown(tmp_path: Path) -> None:
    facts = Facts()
    nvidia.gpus(make(tmp_path, {"/dev/nvidia0": ""}), facts)
    assert facts.get("gpu.count") is None


def test_without_the_command_the_library_tells_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = LocalGpu(
        index=0, name="NVIDIA A10", uuid="GPU-1", total_bytes=23028 << 20, used_bytes=5 << 20, driver="550.54.14",
        compute_capability=(8, 6), spec=None,
    )  # fmt: skip
    monkeypatch.setattr(nvidia, "local_gpus", lambda _environ: (gpu,))
    facts = Facts()
    nvidia.gpus(make(tmp_path, {"/dev/nvidia0": ""}), facts)
    assert (value(facts, "count"), value(facts, "compute_capability_min"), value(facts, "memory_used_max_bytes")) == (1, "8.6", 5 << 20)
    assert facts.get("gpu.rows_failed") is None
    assert facts.get("gpu.driver_cuda") is None


def test_links_of_one_kind() -> None:
    assert nvidia.links_in("\tGPU0\tGPU1\nGPU0\t X \tNV12\nGPU1\tNV12\t X \n") == ["NV12"]
    assert nvidia.links_in("nothing") == []


def test_xids_are_read_from_the_journal_where_the_kernels_log_is_closed(tmp_path: Path) -> None:
    line = "NVRM: Xid (PCI:0000:3a:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    other = "NVRM: Xid (PCI:0000:3a:00 GPU-I:01): 94, Contained ECC error"
    facts = Facts()
    nvidia.faults(make(tmp_path, {"/dev/nvidiactl": ""}, {"journalctl": f'echo "{line}"; echo "{line}"; echo "{other}"'}), facts)
    assert value(facts, "xids") == [79, 94]


def test_a_journal_that_hides_the_systems_messages_is_unknown(tmp_path: Path) -> None:
    facts = Facts()
    hint = "echo 'Hint: You are currently not seeing messages from other users and the system.' >&2; exit 1"
    nvidia.faults(make(tmp_path, {"/dev/nvidiactl": ""}, {"journalctl": hint}), facts)
    assert facts.get("gpu.xids") is None


def test_the_kernels_log(tmp_path: Path) -> None:
    facts = Facts()
    text = "6,1,2,-;NVRM: loading\n4,2,3,-;NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=python, Ch 00000008\n"
    nvidia.faults(make(tmp_path, {"/dev/nvidiactl": "", "/dev/kmsg": text}), facts)
    assert value(facts, "xids") == [31]
    quiet = Facts()
    nvidia.faults(make(tmp_path / "b", {"/dev/nvidiactl": "", "/dev/kmsg": "6,1,2,-;NVRM: loading\n"}), quiet)
    assert value(quiet, "xids") is ABSENT
