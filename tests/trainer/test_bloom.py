"""BLOOM's attention through scaled_dot_product_attention against the stock eager one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from llmcheck_trainer import bloom, loss


def models(num_heads: int, **changes: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    config = AutoConfig.for_model("bloom", vocab_size=97, hidden_size=num_heads * 8, n_layer=3, n_head=num_heads, **changes)
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(0, 0.2)
    ours = AutoModelForCausalLM.from_config(config)
    ours.load_state_dict(stock.state_dict())
    bloom.install(ours)
    loss.install(ours, "hf", own_forward=True)
    return stock, ours


@pytest.mark.parametrize("num_heads", [1, 2, 4, 6, 8, 12, 14, 16, 32, 112])
def test_slopes_are_those_of_transformers(num_heads: int) -> None:
    alibi = build_alibi_tensor(torch.ones(1, 3), num_heads, torch.float32)

    torch.testing.assert_close(torch.tensor(bloom.slopes(num_heads)), alibi[:, 0, 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("num_heads", [4, 6])
def test_loss_and_gradients_are_those_of_the_stock_forward(num_heads: int, checkpointing: bool) -> None:
    stock, ours = models(num_heads)
    if checkpointing:
        for model in (stock, ours):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, 97, (2, 33))
    expected = stock.train()(input_ids=ids, labels=ids).loss * 2 * 32
    found = ours.train()(input_ids=ids, labels=ids).loss
    expected.backward()
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for (name, ours_of_it), stock_of_it in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours_of_it.grad, stock_of_it.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_far_from_the_start_bf16_is_nearer_to_the_truth_than_the_stock_alibi() -> None:
    """The stock bias is slope x position, rounded: eight bits of a position in the thousands; ours is of the distance."""
    seq_len, heads = 2048, 16
    slopes = torch.tensor(bloom.slopes(heads), dtype=torch.float64)
    at = torch.arange(seq_len, dtype=torch.float64)
    near = at[None, -64:] - at[-1]  # what the last query sees of the last 64 keys, relative to itself
    truth = (slopes[:, None] * near).softmax(-1)
    ours = bloom.attention_bias(heads, seq_len, None, dtype=torch.bfloat16, device=torch.device("cpu"))[0, :, -1, -64:]
    stock = build_alibi_tensor(torch.ones(1, seq_len), heads, torch.bfloat16)[:, 0, -64:]

    def error(bias: torch.Tensor) -> float:
        return float((bias.double().softmax(-1) - truth).abs().max())

    assert error(ours) < 0.1 * error(stock)


def test_packed_sequences_do_not_see_each_other(tmp_path: Path) -> None:
    _, ours = models(6)
    lengths = (9, 1, 14, 8)
    rows = [torch.randint(0, 97, (1, n)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    alone = torch.cat([ours(input_ids=row).logits for row in rows], dim=1)
    packed = ours(input_ids=torch.cat(rows, dim=1), position_ids=positions).logits

    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
