"""AdamW without fp32 copies: PyTorch's where nothing is rounded, unbiased where it is, the same again from the same state."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rig import Ranks, make_model, make_plan

from llmcheck_trainer import adam_bf16

SETTINGS: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
HAS_KERNEL = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
needs_kernel = pytest.mark.skipif(not HAS_KERNEL, reason="Triton's kernels run on GPUs, or in its interpreter")


def steps(optimizer: Any, parameter: Any, number: int, *, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter)
        optimizer.step()


def parameter_of(size: int, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, size).to(dtype))


def test_in_fp32_it_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam_bf16, "CHUNK", 100)  # several chunks, the last one shorter
    ours, theirs = parameter_of(333, torch.float32), parameter_of(333, torch.float32)

    steps(adam_bf16.AdamBf16([ours], **SETTINGS), ours, 5)
    steps(torch.optim.AdamW([theirs], **SETTINGS), theirs, 5)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.integers(0, 2**62))
def test_a_number_is_rounded_to_one_of_its_neighbours(value: float, seed: int) -> None:
    values = torch.full((64,), value)
    found = adam_bf16.rounded(values, torch.bfloat16, torch.Generator().manual_seed(seed))
    bits = torch.tensor([value]).view(torch.int32) & -(1 << 16)
    neighbours = {float(bits.view(torch.float32)), float((bits + (1 << 16)).view(torch.float32))}

    assert set(found.float().tolist()) <= neighbours
    if float(torch.tensor([value]).bfloat16()) == value:
        assert set(found.float().tolist()) == {value}


def test_what_is_no_number_stays_so() -> None:
    found = adam_bf16.rounded(torch.tensor([torch.inf, -torch.inf, torch.nan]), torch.bfloat16, torch.Generator().manual_seed(0))

    assert found[0] == torch.inf
    assert found[1] == -torch.inf
    assert found[2].isnan()


def test_the_mean_of_the_rounded_is_the_number() -> None:
    value = 1.0 + 0.3 * 2**-7  # three tenths of the way from one bf16 number to the next
    found = adam_bf16.rounded(torch.full((200_000,), value), torch.bfloat16, torch.Generator().manual_seed(3)).float()

    assert float(found.mean() - 1.0) * 2**7 == pytest.approx(0.3, abs=0.01)  # five standard deviations: 0.0051


def drift(make: Callable[[list[Any]], Any]) -> float:
    """How far 20 steps of 1e-5 each bring weights of 0.02, which are bf16: 2e-4 if nothing is lost."""
    weight = torch.nn.Parameter(torch.full((50_000,), 0.02, dtype=torch.bfloat16))
    before = weight.detach().float()
    optimizer = make([weight])
    for _ in range(20):
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
    return float((weight.detach().float() - before).mean())


def test_small_steps_are_not_lost() -> None:
    settings = {**SETTINGS, "lr": 1e-5, "weight_decay": 0.0}

    assert drift(lambda p: torch.optim.AdamW(p, **settings)) == 0.0
    assert drift(lambda p: adam_bf16.AdamBf16(p, **settings)) == pytest.approx(2e-4, rel=0.03)


def test_the_norm_is_clipped_and_a_step_without_one_left_out() -> None:
    clipped, by_hand = parameter_of(64, torch.float32), parameter_of(64, torch.float32)
    optimizer, plain = adam_bf16.AdamBf16([clipped], **SETTINGS, max_norm=1.0), adam_bf16.AdamBf16([by_hand], **SETTINGS)
    gradient = torch.arange(64.0)
    clipped.grad, by_hand.grad = gradient.clone(), gradient / (gradient.norm() + 1e-6)
    optimizer.step()
    plain.step()

    torch.testing.assert_close(clipped, by_hand)
    assert float(optimizer._global_grad_norm) == pytest.approx(float(gradient.norm()))

    before = clipped.detach().clone()
    for wrong in (torch.nan, torch.inf):
        clipped.grad = torch.full_like(clipped, 1.0)
        clipped.grad[3] = wrong
        optimizer.step()
        assert torch.equal(clipped, before)
        assert float(optimizer._global_grad_norm) == torch.inf


def run_of(factors: list[float], *, max_norm: float = 1.0, cut: int = 0) -> tuple[Any, Any]:
    """Two weights after a step for each factor of the same gradients; after `cut` of them another optimizer goes on with the state."""
    ours = [parameter_of(300, torch.bfloat16), parameter_of(70, torch.bfloat16)]
    optimizer = adam_bf16.AdamBf16(ours, **SETTINGS, max_norm=max_norm)
    for number, factor in enumerate(factors):
        if number == cut > 0:
            state = optimizer.state_dict()
            optimizer = adam_bf16.AdamBf16(ours, **SETTINGS, max_norm=max_norm)
            optimizer.load_state_dict(state)
        for weight in ours:
            weight.grad = torch.cos(torch.arange(float(weight.numel()))).to(weight) * factor
        optimizer.step()
    return ours, optimizer


@pytest.mark.parametrize("cut", [0, 1, 2, 4])
def test_a_step_that_is_left_out_leaves_no_trace(cut: int) -> None:
    """The first step, two in a row, the last: in weights, moments, counts, and the random bits of what follows."""
    plain, their_optimizer = run_of([1.0, 0.5, 2.0])
    ours, our_optimizer = run_of([torch.nan, 1.0, torch.inf, torch.nan, 0.5, 2.0, torch.nan], cut=cut)

    for mine, theirs in zip(ours, plain, strict=True):
        assert torch.equal(mine, theirs)
        assert int(our_optimizer.state[mine]["step"]) == 3
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(our_optimizer.state[mine][name], their_optimizer.state[theirs][name])


def test_a_count_on_the_device_is_the_count_of_the_host() -> None:
    """The same steps with a wrapper that clips, and so in the checkpoints of other stages, and of releases that counted there."""
    (ours, _), (theirs, plain) = run_of([0.01, 0.01, 0.01]), run_of([0.01, 0.01, 0.01], max_norm=0.0)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [type(state["step"]) for state in plain.state.values()] == [int, int]

    state = deepcopy(plain.state_dict())
    optimizer = adam_bf16.AdamBf16(ours, **SETTINGS, max_norm=1.0)
    optimizer.load_state_dict(state)
    for each, weights in ((plain, theirs), (optimizer, ours)):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.001)
        each.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def seed_by_hand(step: int, place: int) -> int:
    mixed = (step * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) >> 2


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**31)), min_size=1))
def test_seeds_are_splitmix64_without_its_last_bits(pairs: list[tuple[int, int]]) -> None:
    counts, places = torch.tensor(pairs).unbind(1)

    assert adam_bf16._seeds(counts, places).tolist() == [seed_by_hand(*pair) for pair in pairs]


def test_a_state_that_was_loaded_goes_on_with_the_same_bits() -> None:
    straight, cut = parameter_of(500, torch.bfloat16), parameter_of(500, torch.bfloat16)
    first, second = adam_bf16.AdamBf16([straight], **SETTINGS), adam_bf16.AdamBf16([cut], **SETTINGS)
    steps(first, straight, 3)
    steps(second, cut, 3)
    resumed = adam_bf16.AdamBf16([cut], **SETTINGS)
    resumed.load_state_dict(second.state_dict())
    steps(first, straight, 2)
    steps(resumed, cut, 2)

    assert torch.equal(straight, cut)
    assert resumed.state[cut]["exp_avg_sq"].dtype == torch.bfloat16


@needs_kernel
@pytest.mark.parametrize("size", [1, 1000, 5000])
def test_the_kernel_is_pytorchs_in_fp32(size: int) -> None:
    kernel = pytest.importorskip("llmcheck_trainer.adam_kernel", exc_type=ImportError)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, theirs = parameter_of(size, torch.float32).data.to(device), torch.nn.Parameter(parameter_of(size, torch.float32).data.to(device))
    gradient = torch.randn(size).to(device)
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    figures, seed = torch.tensor([1.0, 1 - 0.9, 1 - 0.95]).to(device), torch.tensor([5]).to(device)
    first_step = {"betas": (0.9, 0.95), "options": (1e-8, 0.1)}
    kernel.step_(ours, gradient, first, second, figures, seed, 3e-3, **first_step)
    theirs.grad = gradient
    torch.optim.AdamW([theirs], **SETTINGS).step()

    torch.testing.assert_close(ours, theirs.data, rtol=1e-5, atol=1e-6)
    before = ours.clone()
    kernel.step_(ours, gradient, first, second, figures * torch.nan, seed, 3e-3, **first_step)
    assert torch.equal(ours, before)


@needs_kernel
def test_the_kernel_loses_no_small_steps() -> None:
    kernel = pytest.importorskip("llmcheck_trainer.adam_kernel", exc_type=ImportError)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.full((50_000,), 0.02, dtype=torch.bfloat16, device=device)
    gradient, first, second = torch.full_like(weight, -1.0), torch.zeros_like(weight), torch.zeros_like(weight)
    before = weight.float().mean()
    for step in range(1, 21):
        figures = torch.tensor([1.0, 1 - 0.9**step, 1 - 0.95**step]).to(device)
        seed = adam_bf16._seeds(torch.tensor([step]), torch.tensor([1])).to(device)
        kernel.step_(weight, gradient, first, second, figures, seed, 1e-5, betas=(0.9, 0.95), options=(1e-8, 0.0))

    assert float(weight.float().mean() - before) == pytest.approx(2e-4, rel=0.03)
    assert float(first.float().mean()) == pytest.approx(-(1 - 0.9**20), rel=5e-3)
    assert len(set(weight.float().tolist())) > 2  # neighbours differ: the bits are not the same everywhere


@pytest.mark.parametrize(("zero", "copies"), [("1", 3), ("2", 3), ("3", 4)])  # weights, two moments; stage 3 keeps its gradients' buffer
def test_no_stage_keeps_a_copy_of_the_weights(one: Ranks, tmp_path: Path, zero: str, copies: int) -> None:
    model = make_model(tmp_path / "model", "llama")
    plan = make_plan(tmp_path / "plan.json", model, "--zero", zero, "--precision", "bf16", "--optimizer", "adam-bf16", gpus=1)

    assert one.call("flat_copies_between_steps", str(model), str(plan)) == [copies]
