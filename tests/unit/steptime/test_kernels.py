"""Kernel times: never below the roofline, never shrinking with the work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog.gpus import all_gpus, find_gpu
from llmcheck.shadow.pace import constants
from llmcheck.steptime.flops import FusedAttention, Matmul, Work
from llmcheck.steptime.kernels import GpuRates, attention_s, gpu_s, matmul_s

RATES = GpuRates.from_spec(find_gpu("H100"), "bf16")
SIZES = st.integers(1, 20_000)


@given(SIZES, SIZES, SIZES)
def test_a_product_is_never_faster_than_the_roofline(m: int, n: int, k: int) -> None:
    product = Matmul(m, n, k)
    seconds = matmul_s(RATES, product, 2)
    assert seconds >= product.flops / RATES.matmul_flops_per_s
    assert seconds >= 2 * (m * k + k * n + m * n) / RATES.memory_bytes_per_s


@given(SIZES, SIZES, SIZES, st.integers(1, 500))
def test_more_rows_never_take_less_time(m: int, n: int, k: int, more: int) -> None:
    assert matmul_s(RATES, Matmul(m, n, k), 2) <= matmul_s(RATES, Matmul(m + more, n, k), 2)


def test_a_large_product_runs_near_the_sustained_rate() -> None:
    product = Matmul(8192, 8192, 8192)
    assert product.flops / matmul_s(RATES, product, 2) > 0.9 * RATES.matmul_flops_per_s


def test_a_narrow_product_is_bound_by_memory() -> None:
    product = Matmul(4096, 16, 4096)  # the down projection of an adapter
    assert product.flops / matmul_s(RATES, product, 2) < 0.1 * RATES.matmul_flops_per_s


def test_a_part_of_a_wave_takes_a_whole_one() -> None:
    one_wave = Matmul(128 * 132, 256, 4096)
    assert matmul_s(RATES, Matmul(128 * 133, 256, 4096), 2) > 1.05 * matmul_s(RATES, one_wave, 2)


def test_narrow_heads_slow_the_attention() -> None:
    slow, fast = (attention_s(RATES, FusedAttention(1e12, 1e6, dim)) for dim in (64, 128))
    assert slow > fast


def test_seconds_of_work_add_up() -> None:
    a, b, both = Work(), Work(), Work()
    a.mm(512, 512, 512)
    b.add(1e9, 3)
    both.plus(a)
    both.plus(b)
    assert gpu_s(both, RATES, 2) == pytest.approx(gpu_s(a, RATES, 2) + gpu_s(b, RATES, 2))


@pytest.mark.parametrize("gpu", [entry.spec for entry in all_gpus()], ids=lambda gpu: gpu.name)
def test_every_gpu_has_positive_rates_below_its_data_sheet(gpu) -> None:  # type: ignore[no-untyped-def]
    rates = GpuRates.from_spec(gpu, "bf16" if gpu.bf16_flops_per_s > 0 else "fp16")
    assert 0 < rates.matmul_flops_per_s < rates.peak_flops_per_s
    assert 0 < rates.memory_bytes_per_s < gpu.memory_bytes_per_s
    assert rates.link_bytes_per_s > 0


def test_bf16_without_matrix_units_runs_at_the_fp32_rate() -> None:
    t4 = find_gpu("T4")
    assert GpuRates.from_spec(t4, "bf16").peak_flops_per_s == t4.fp32_flops_per_s


def test_efficiencies_are_shares() -> None:
    for row in constants()["architecture"].values():
        assert all(0 < share < 1 for share in row.values())
