"""A measured profile as rates: the reference machine's gives the reference rates, a slower machine's slower ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmcheck.catalog.gpus import find_gpu
from llmcheck.errors import UserError
from llmcheck.steptime.flops import Matmul
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates, matmul_s
from llmcheck.steptime.profile import Profile, check_gpu, host_of, is_profile, profile_of, rates_of

DATA = Path(__file__).parents[3] / "benchmarks" / "probe" / "data" / "profile-h100-2026-11.json"
BASE = GpuRates.from_spec(find_gpu("H100"), "bf16")


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(DATA.read_text()), **changes}


@pytest.fixture
def profile() -> Profile:
    return profile_of(document(), "profile.json")


def test_the_reference_machine_measures_about_the_reference_rates(profile: Profile) -> None:
    rates = rates_of(profile, BASE, "bf16")

    assert rates.matmul_flops_per_s == pytest.approx(BASE.matmul_flops_per_s, rel=0.1)
    assert rates.attention_flops_per_s == pytest.approx(BASE.attention_flops_per_s, rel=0.15)
    assert rates.attention_backward_ratio == pytest.approx(BASE.attention_backward_ratio, rel=0.1)
    assert rates.memory_bytes_per_s == pytest.approx(BASE.memory_bytes_per_s, rel=0.01)
    assert host_of(profile).op_s == pytest.approx(HostRates.reference().op_s, rel=0.01)


def test_the_rate_meets_the_measured_products_in_the_median(profile: Profile) -> None:
    rates = rates_of(profile, BASE, "bf16")
    products = [x for x in profile.products if x.precision == "bf16"]
    off = sorted(matmul_s(rates, Matmul(x.m, x.n, x.k), 2) / x.time_s for x in products)

    assert off[len(off) // 2] == pytest.approx(1.0, abs=0.01)


def test_a_machine_of_half_the_speed_has_half_the_rates(profile: Profile) -> None:
    slow = replace(
        profile,
        products=tuple(replace(x, time_s=2 * x.time_s) for x in profile.products),
        attention=tuple(replace(x, forward_s=2 * x.forward_s, backward_s=2 * x.backward_s) for x in profile.attention),
        memory_bytes_per_s=profile.memory_bytes_per_s / 2,
        kernel_s=2 * profile.kernel_s,
        op_s=2 * profile.op_s,
    )
    fast, half = rates_of(profile, BASE, "bf16"), rates_of(slow, BASE, "bf16")

    assert half.matmul_flops_per_s == pytest.approx(fast.matmul_flops_per_s / 2, rel=1e-6)
    assert half.attention_flops_per_s == pytest.approx(fast.attention_flops_per_s / 2)
    assert half.attention_backward_ratio == pytest.approx(fast.attention_backward_ratio)
    assert half.memory_bytes_per_s == fast.memory_bytes_per_s / 2
    assert host_of(slow).visit_s == pytest.approx(2 * host_of(profile).visit_s)


def test_links_between_gpus_stay_as_they_are_known(profile: Profile) -> None:
    assert rates_of(profile, BASE, "bf16").link_bytes_per_s == BASE.link_bytes_per_s


def test_a_profile_of_another_gpu_is_refused(profile: Profile) -> None:
    check_gpu(profile, find_gpu("H100"), "--profile p")
    with pytest.raises(UserError, match="the plan is for A100-40G"):
        check_gpu(profile, find_gpu("A100-40G"), "--profile p")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema": "llmcheck.profile/2"}, "profile-schema"),
        ({"memory_bytes_per_s": 0.0}, "profile-invalid"),
        ({"op_s": -1.0}, "profile-invalid"),
        ({"products": []}, "profile-invalid"),
        ({"products": [{"precision": "bf16"}]}, "profile-invalid"),
        ({"surprise": 1}, "profile-invalid"),
        ({"kernel_s": "fast"}, "profile-invalid"),
    ],
)
def test_a_damaged_profile_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        profile_of(document(**changes), "profile.json")

    assert caught.value.code == code


def test_only_a_profile_may_be_replaced() -> None:
    assert is_profile(DATA.read_bytes())
    assert not is_profile(b"{}")
    assert not is_profile(b"mine")
