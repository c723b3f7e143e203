from __future__ import annotations

from typing import Any

import pytest

from llmcheck.probe import derived
from llmcheck.rules.facts import ABSENT, Facts, load_registry


def derive(facts: dict[str, Any], absent: tuple[str, ...] = ()) -> Facts:
    known = Facts()
    for name, value in facts.items():
        known.put(name, value)
    for name in absent:
        known.absent(name)
    return known.merged(derived.facts(known))


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(name)
    return None if fact is None else fact.value


@pytest.mark.parametrize(
    ("facts", "cuda"),
    [
        ({"pkg.torch": "2.5.1+cu124", "build.torch": "cu124"}, "12.4"),
        ({"pkg.torch": "2.0.1+cu118", "build.torch": "cu118"}, "11.8"),
        ({"pkg.torch": "2.5.1+cpu", "build.torch": "cpu"}, ABSENT),
        ({"pkg.torch": "2.5.1+rocm6.2", "build.torch": "rocm6.2"}, ABSENT),
        ({"pkg.torch": "2.5.0a0+b465a5843b.nv24.9", "build.torch": "b465a5843b.nv24.9"}, None),
        ({"pkg.torch": "2.6.0", "pkg.nvidia-cuda-runtime-cu12": "12.4.127"}, "12.4"),
        ({"pkg.torch": "2.12.0", "pkg.nvidia-cuda-runtime": "13.0.96"}, "13.0"),
        ({"pkg.torch": "2.11.0"}, "13.0"),
        ({"pkg.torch": "2.10.0"}, "12.8"),
        ({"pkg.torch": "2.10.0", "packages.other_indexes": ["https://example.com"]}, None),
        ({"pkg.torch": "2.10.0", "host.architecture": "aarch64"}, None),
        ({"pkg.torch": "9.0.0"}, None),
        ({"pkg.torch": "2.10.0", "torch.cuda_version": "12.6"}, "12.6"),
        ({}, None),
    ],
)
def test_cuda_of_a_torch_that_is_only_pinned(facts: dict[str, Any], cuda: Any) -> None:
    assert value(derive(facts), "torch.cuda_version") == cuda


@pytest.mark.parametrize(
    ("torch", "build", "capability", "left_out"),
    [
        ("2.11.0+cu130", "cu130", "7.0", ["7.0"]),
        ("2.11.0+cu130", "cu130", "12.0", ABSENT),
        ("2.10.0+cu128", "cu128", "7.0", ABSENT),
        ("2.10.0+cu128", "cu128", "6.1", ["6.1"]),
        ("2.7.0+cu126", "cu126", "12.0", ["12.0"]),
        ("2.5.1+cu124", "cu124", "9.0", None),  # not in the table
    ],
)
def test_gpus_that_the_wheels_have_no_code_for(torch: str, build: str, capability: str, left_out: Any) -> None:
    facts = derive({"pkg.torch": torch, "build.torch": build, "gpu.compute_capabilities": [capability]})
    assert value(facts, "gpu.not_in_torch_build") == left_out


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("8.6", ["sm_80"], True),
        ("8.0", ["sm_86"], False),
        ("9.0", ["sm_80"], False),
        ("9.0", ["sm_80", "compute_80"], True),
        ("7.5", ["compute_80"], False),
        ("9.0", ["sm_90a"], True),
        ("10.3", ["sm_100"], True),
        ("10.3", ["sm_100a"], False),
        ("12.0", ["sm_100", "sm_120"], True),
        ("9.0", ["gfx90a", "odd"], False),
    ],
)
def test_which_code_runs_where(capability: str, architectures: list[str], runs: bool) -> None:
    assert derived.runs_on(capability, architectures) is runs


@pytest.mark.parametrize(
    ("nvcc", "cuda", "kind"), [("12.4", "12.4", "same"), ("12.6", "12.4", "minor"), ("13.0", "12.4", "major"), (None, "12.4", ABSENT)]
)
def test_nvcc_against_torch(nvcc: str | None, cuda: str, kind: Any) -> None:
    facts = derive({"toolchain.nvcc_version": nvcc, "torch.cuda_version": cuda})
    assert value(facts, "toolchain.nvcc_against_torch") == kind


@pytest.mark.parametrize(
    ("nvcc", "gcc", "too_new"),
    [
        ("12.1", "12.4.0", False),
        ("12.1", "13.1.0", True),
        ("11.8", "12.2.0", True),
        ("13.0", "15.1", False),
        ("99.0", "12.1", None),
        ("12.1", None, ABSENT),
    ],
)
def test_gcc_against_nvcc(nvcc: str, gcc: str | None, too_new: Any) -> None:
    facts = derive({"toolchain.nvcc_version": nvcc, "toolchain.nvcc_host_compiler_version": gcc})
    assert value(facts, "toolchain.gcc_too_new") == too_new


@pytest.mark.parametrize(
    ("setting", "count", "shown", "wrong"),
    [
        ("0,1", 4, 2, None),
        (" 3 , 0", 4, 2, None),
        ("0,4", 4, 1, "names GPU 4"),
        ("", 4, 0, "empty"),
        ("-1", 4, 0, None),
        ("0,-1,1", 4, 1, "'-1'"),
        ("0,0", 4, 0, "twice"),
        ("all", 4, 0, "'all'"),
        ("0;1", 4, 1, "'0;1' is read as 0"),
        ("0 1,2", 4, 2, "'0 1' is read as 0"),
        ("0,x", 4, 1, "'x'"),
        ("NoDevFiles", 4, 0, None),
        ("GPU-9f91c779", 4, None, None),
        ("MIG-1", 4, None, None),
        ("9" * 50, 4, 0, "it names GPU 999999999,"),
    ],
)
def test_visible_devices(setting: str, count: int, shown: int | None, wrong: str | None) -> None:
    number, problem = derived.visible_devices(setting, count)
    assert number == shown
    assert problem is None if wrong is None else wrong in str(problem)


def test_flash_attention_is_bound_to_a_minor_release() -> None:
    assert value(derive({"flash_attn.torch_version": "2.8", "pkg.torch": "2.8.1+cu128"}), "flash_attn.matches_torch") is True
    assert value(derive({"flash_attn.torch_version": "2.8", "pkg.torch": "2.18.0"}), "flash_attn.matches_torch") is False
    assert value(derive({"pkg.torch": "2.8.0"}, ("flash_attn.torch_version",)), "flash_attn.matches_torch") is ABSENT
    assert value(derive({"pkg.torch": "2.8.0"}), "flash_attn.matches_torch") is None


def test_reasons_are_passed_on() -> None:
    known = Facts()
    known.could_not("gpu.*", "nvidia-smi: no answer")
    found = known.merged(derived.facts(known))
    assert found.why_unknown("gpu.visible_problem") == "nvidia-smi: no answer"


def test_every_fact_is_registered() -> None:
    registry = load_registry()
    found = derive({"pkg.torch": "2.11.0", "gpu.compute_capabilities": ["9.0"], "gpu.count": 1}, ("env.CUDA_VISIBLE_DEVICES",))
    assert [name for name in [*found.known, *found.unreadable] if registry.kind(name) is None] == []


@pytest.mark.parametrize(
    ("facts", "has", "lacks"),
    [
        ({"pkg.bitsandbytes": "0.44.1"}, "12.5", "12.6"),
        ({"pkg.bitsandbytes": "0.45.5"}, "12.8", "12.9"),
        ({"pkg.bitsandbytes": "0.47.0"}, "12.9", "13.0"),
        ({"pkg.bitsandbytes": "0.49.2"}, "13.0", "13.2"),
        ({"pkg.bitsandbytes": "0.50.2"}, "13.2", "12.9"),
        ({"pkg.bitsandbytes": "0.50.2", "bitsandbytes.cuda_versions": ["12.9"]}, "12.9", "13.2"),  # its files say otherwise
    ],
)
def test_cuda_releases_of_a_bitsandbytes_that_is_only_pinned(facts: dict[str, Any], has: str, lacks: str) -> None:
    found = value(derive(facts), "bitsandbytes.cuda_versions")
    assert has in found
    assert lacks not in found


@pytest.mark.parametrize("facts", [{"pkg.bitsandbytes": "0.37.2"}, {"pkg.bitsandbytes": "0.47.0", "host.architecture": "aarch64"}])
def test_cuda_releases_of_an_unknown_bitsandbytes(facts: dict[str, Any]) -> None:
    found = derive(facts)
    assert found.get("bitsandbytes.cuda_versions") is None
    assert "bitsandbytes" in (found.why_unknown("bitsandbytes.cuda_versions") or "")
