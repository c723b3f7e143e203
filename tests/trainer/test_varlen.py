"""Packed rows by their bounds: no family that is given them lets one row see another, and the kernel is asked for nothing else."""

from __future__ import annotations

import pytest
import torch
from test_packing import tiny

from llmcheck_trainer import loss, varlen
from llmcheck_trainer.placement import PACKED, block_mask

LENGTHS = (7, 1, 12, 5)


@pytest.mark.parametrize("family", sorted(varlen.FAMILIES))
def test_bounds_say_what_the_mask_of_blocks_says(family: str) -> None:
    model = tiny(family)
    ids = torch.randint(0, model.config.vocab_size, (2, sum(LENGTHS)))
    positions = torch.stack([torch.cat([torch.arange(n) for n in order]) for order in (LENGTHS, LENGTHS[::-1])])
    labels = ids.clone()
    labels[positions == 0] = loss.IGNORED
    given = {"input_ids": ids, "position_ids": positions, "labels": labels}
    by_mask = model(**given, attention_mask=block_mask(positions, torch.float32)).loss
    by_mask.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    varlen.install(model)
    by_bounds = model(**given, **{varlen.BOUNDS: varlen.bounds(positions)}).loss
    by_bounds.backward()

    torch.testing.assert_close(by_bounds, by_mask, rtol=1e-6, atol=1e-6)
    scale = max(1.0, *(float(g.abs().max()) for g in expected.values()))
    for name, parameter in model.named_parameters():
        if name in expected:
            assert float((parameter.grad - expected[name]).abs().max()) <= 1e-5 * scale, name


def test_only_families_that_are_packed_at_all() -> None:
    assert varlen.FAMILIES <= PACKED


def test_a_family_that_hands_nothing_on_is_found_out() -> None:
    model = tiny("stablelm")
    varlen.install(model)
    ids = torch.randint(0, model.config.vocab_size, (1, 8))

    with pytest.raises(AssertionError, match="row_bounds"):
        model(input_ids=ids, **{varlen.BOUNDS: varlen.bounds(torch.arange(8)[None])})


def test_bounds_of_two_lines() -> None:
    ends, longest = varlen.bounds(torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]]))

    assert ends.tolist() == [0, 3, 4, 5, 8]
    assert ends.dtype == torch.int32
    assert longest == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch's flash kernel runs on GPUs only")
def test_the_kernel_agrees_with_the_mask() -> None:
    torch.manual_seed(0)
    positions = torch.cat([torch.arange(n) for n in (100, 1, 300, 111)])[None].repeat(2, 1)
    query, key, value = (torch.randn(2, heads, 512, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for heads in (8, 2, 2))
    ends, longest = varlen.bounds(positions)
    out, _ = varlen.attention(torch.nn.Identity(), query, key, value, None, row_bounds=(ends.cuda(), longest))
    plain = [t.detach().cpu().float().requires_grad_() for t in (query, key, value)]
    true, _ = varlen.attention(torch.nn.Identity(), *plain, None, row_bounds=(ends, longest))
    weights = torch.randn_like(true)
    (true * weights).sum().backward()
    (out * weights.cuda().bfloat16()).sum().backward()

    torch.testing.assert_close(out.float().cpu(), true, rtol=2e-2, atol=2e-2)
    for found, expected in zip((query, key, value), plain, strict=True):
        torch.testing.assert_close(found.grad.float().cpu(), expected.grad, rtol=5e-2, atol=5e-2)
