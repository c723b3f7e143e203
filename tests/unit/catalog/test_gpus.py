"""data/gpus.toml and the names that find a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmcheck
from llmcheck import toml
from llmcheck.catalog import gpus, tables
from llmcheck.catalog.gpus import FILE, HEADER, CatalogGpu, all_gpus, find_device, find_gpu, squeezed
from llmcheck.errors import UserError
from llmcheck.units import GIB, MIB

DATA = Path(llmcheck.__file__).parent / "data" / FILE
GPUS = all_gpus()


def by_name(gpu: CatalogGpu) -> str:
    return gpu.spec.name


def test_there_are_enough_gpus() -> None:
    assert len(GPUS) >= 50


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("A100-40G", "A100-40G"),
        ("a100-80gb", "A100-80G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("A100 80GB PCIe", "A100-80G-PCIe"),
        ("H100", "H100"),
        ("H100-80GB-SXM5", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100 pcie", "H100-PCIe"),
        ("H200", "H200"),
        ("B200", "B200"),
        ("GB200", "GB200"),
        ("L40S", "L40S"),
        ("L4", "L4"),
        ("A10", "A10"),
        ("A10G", "A10G"),
        ("A30", "A30"),
        ("Tesla T4", "T4"),
        ("V100-32GB", "V100-32G"),
        ("RTX 4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX-2080-Ti"),
        ("RTX A6000", "RTX-A6000"),
        ("A6000", "RTX-A6000"),
        ("MI300X", "MI300X"),
        ("AMD Instinct MI250X", "MI250X"),
    ],
)
def test_a_spelling_finds_its_gpu(name: str, gpu: str) -> None:
    assert find_gpu(name).name == gpu


@pytest.mark.parametrize("gpu", GPUS, ids=by_name)
def test_every_gpu_is_found_by_its_name_and_aliases(gpu: CatalogGpu) -> None:
    assert {find_gpu(name) for name in (gpu.spec.name, *gpu.aliases)} == {gpu.spec}


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("a100", "A100-40G, A100-40G-PCIe, A100-80G, A100-80G-PCIe"),
        ("V100", "V100-16G, V100-16G-PCIe, V100-32G, V100-32G-PCIe"),
        ("rtx 3080", "RTX-3080-10G, RTX-3080-12G"),
        ("4060 Ti", "RTX-4060-Ti-8G, RTX-4060-Ti-16G"),
    ],
)
def test_a_name_that_leaves_the_memory_open_lists_the_candidates(name: str, candidates: str) -> None:
    with pytest.raises(UserError, match="is more than one GPU") as error:
        find_gpu(name)
    assert error.value.why == f"they differ in memory or speed: {candidates}"
    assert (error.value.code, error.value.exit_code) == ("ambiguous-gpu", 2)


@pytest.mark.parametrize(("typo", "meant"), [("RTX 4099", "RTX-4090"), ("H10", "H100"), ("A100-4G", "A100-40G")])
def test_a_miss_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(UserError, match="unknown GPU") as error:
        find_gpu(typo)
    assert meant in error.value.hint


@pytest.mark.parametrize("name", ["", "-", "x" * 1000, "NVIDIA"])
def test_what_names_nothing_is_unknown(name: str) -> None:
    with pytest.raises(UserError, match="unknown GPU"):
        find_gpu(name)


@given(st.text(max_size=30))
def test_any_text_is_a_gpu_or_a_user_error(text: str) -> None:
    try:
        spec = find_gpu(text)
    except UserError:
        return
    assert spec.memory_bytes > 0


def test_only_boards_that_drivers_call_alike_share_a_spelling() -> None:
    shared = {name: [GPUS[b].spec.name for b in blocks] for name, blocks in gpus._index().items() if len(blocks) > 1}
    assert shared == {"rtx3080": ["RTX-3080-10G", "RTX-3080-12G"], "rtx4060ti": ["RTX-4060-Ti-8G", "RTX-4060-Ti-16G"]}


def test_a_device_is_told_from_its_namesake_by_its_memory() -> None:
    found = [find_device("NVIDIA GeForce RTX 3080", size * GIB) for size in (10, 12)]
    assert [spec.name if spec else None for spec in found] == ["RTX-3080-10G", "RTX-3080-12G"]


def test_a_device_of_another_size_is_not_taken_for_its_namesake() -> None:
    assert find_device("NVIDIA GeForce RTX 4090", 48 * GIB) is None


def test_an_unknown_device_is_none() -> None:
    assert find_device("NVIDIA Something", 8 * GIB) is None


def test_the_quick_scan_sees_what_the_parser_sees() -> None:
    parsed = toml.load(DATA)["gpu"]
    scanned = [{key: tables.strings(block, key) for key in ("name", "aliases", "devices")} for block in tables.blocks(FILE, HEADER)]
    assert scanned == [{"name": (g["name"],), "aliases": tuple(g.get("aliases", ())), "devices": tuple(g["devices"])} for g in parsed]


# --- the figures ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", GPUS, ids=by_name)
def test_a_gpu_has_a_source_for_everything(gpu: CatalogGpu) -> None:
    assert gpu.spec.source.startswith("https://")
    assert gpu.memory_evidence in ("published", "measured", "assumed")
    assert len(gpu.memory_source) > 20
    assert len(gpu.context_source) > 10
    assert gpu.devices


@pytest.mark.parametrize("gpu", GPUS, ids=by_name)
def test_torch_reports_a_little_less_than_the_box_says(gpu: CatalogGpu) -> None:
    (size,) = {int(n) for n in re.findall(r"\b(\d+)GB\b", gpu.spec.title)} or {288}
    assert 0.85 * size * GIB < gpu.spec.memory_bytes <= size * GIB


@pytest.mark.parametrize("gpu", GPUS, ids=by_name)
def test_rates_are_of_the_right_order(gpu: CatalogGpu) -> None:
    spec = gpu.spec
    assert 4e12 < spec.fp32_flops_per_s < 2e14
    assert spec.bf16_flops_per_s in (0, spec.fp16_flops_per_s) or spec.name == "MI100"
    assert spec.fp16_flops_per_s >= 2 * spec.fp32_flops_per_s * 0.99
    assert 1.9e11 < spec.memory_bytes_per_s < 1e13
    assert 1.5e10 < spec.pcie_bytes_per_s < 7e10
    assert spec.link_bytes_per_s == 0 or 4e10 < spec.link_bytes_per_s < 1e12
    assert 64 * MIB < spec.context_bytes < 1 * GIB


@pytest.mark.parametrize("gpu", [g for g in GPUS if g.spec.vendor == "nvidia"], ids=by_name)
def test_bf16_matrix_units_came_with_ampere(gpu: CatalogGpu) -> None:
    assert (gpu.spec.bf16_flops_per_s > 0) == (gpu.spec.compute_capability >= (8, 0))


@pytest.mark.parametrize("gpu", GPUS, ids=by_name)
def test_only_hopper_is_measured(gpu: CatalogGpu) -> None:
    assert gpu.spec.kernels_measured == (gpu.spec.compute_capability == (9, 0))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("H100", "79.18"),
        ("A100-40G", "39.49"),
        ("T4", "14.56"),
        ("B200", "178.35"),
        ("H200", "139.80"),
        ("MI300X", "191.98"),
        ("L40S", "44.39"),
    ],
)
def test_memory_is_what_out_of_memory_messages_say(name: str, text: str) -> None:
    assert f"{find_gpu(name).memory_bytes / GIB:.2f}" == text


def test_the_context_of_an_h100_is_the_measured_one() -> None:
    assert (find_gpu("H100").context_bytes, find_gpu("H100").context_evidence) == (650_969_088, "measured")


def test_makers_and_punctuation_do_not_matter() -> None:
    assert squeezed("NVIDIA GeForce RTX 4090") == squeezed("rtx_4090")
