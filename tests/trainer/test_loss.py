"""The losses: the chunked one equals the stock one, value and gradients, with whatever a family does to its logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from llmcheck_trainer import loss

VOCAB, WIDTH = 97, 24


def case(*, rows: int, bias: bool, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    hidden = torch.randn(2, rows, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, dtype=dtype, requires_grad=True)
    offset = torch.randn(VOCAB, dtype=dtype, requires_grad=True) if bias else None
    labels = torch.randint(0, VOCAB, (2, rows))
    labels[torch.rand(2, rows) < 0.4] = loss.IGNORED
    return hidden, weight, offset, labels  # type: ignore[return-value]


POSTS = {
    "plain": loss.Post(),
    "cohere": loss.Post(multiply=0.25),
    "granite": loss.Post(divide=3.0),
    "gemma": loss.Post(softcap=2.0),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("post", POSTS)
def test_in_chunks_it_is_the_stock_loss(post: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)  # several chunks, the last one short
    hidden, weight, offset, labels = case(rows=19, bias=bias, dtype=torch.float32)
    inputs = [t for t in (hidden, weight, offset) if t is not None]

    ours = loss.chunked_cross_entropy(hidden, weight, offset, labels, POSTS[post])
    found = torch.autograd.grad(ours / 11.0, inputs)
    logits = POSTS[post].apply(torch.nn.functional.linear(hidden, weight, offset))
    stock = ForCausalLMLoss(logits, labels, VOCAB, num_items_in_batch=torch.tensor(11.0))
    expected = torch.autograd.grad(stock, inputs)

    torch.testing.assert_close(ours / 11.0, stock, rtol=1e-6, atol=1e-6)
    for ours_of_it, stock_of_it in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_of_it, stock_of_it, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("post", POSTS)
def test_in_bf16_it_is_as_near_to_the_truth_as_the_stock_loss(post: str) -> None:
    hidden, weight, _, labels = case(rows=40, bias=False, dtype=torch.float32)
    truth = torch.autograd.grad(loss.chunked_cross_entropy(hidden, weight, None, labels, POSTS[post]), [hidden, weight])
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in (hidden, weight)]
    ours = torch.autograd.grad(loss.chunked_cross_entropy(low[0], low[1], None, labels, POSTS[post]), low)
    logits = POSTS[post].apply(torch.nn.functional.linear(low[0], low[1]))
    stock = torch.autograd.grad(loss.summed_cross_entropy(logits, labels, VOCAB), low)

    for ours_of_it, stock_of_it, true in zip(ours, stock, truth, strict=True):
        error, allowed = (ours_of_it.float() - true).norm(), (stock_of_it.float() - true).norm()
        assert error <= 1.5 * allowed + 1e-3 * true.norm()


def test_frozen_weights_get_no_gradient_and_no_buffer() -> None:
    hidden, weight, _, labels = case(rows=9, bias=False, dtype=torch.float32)
    weight.requires_grad_(False)
    value = loss.chunked_cross_entropy(hidden, weight, None, labels)

    assert value.grad_fn.gradients[1] is None
    value.backward()
    assert hidden.grad is not None


def test_without_gradients_it_makes_none() -> None:
    hidden, weight, _, labels = case(rows=9, bias=False, dtype=torch.float32)
    with torch.no_grad():
        value = loss.chunked_cross_entropy(hidden, weight, None, labels)
    torch.testing.assert_close(value, loss.summed_cross_entropy(torch.nn.functional.linear(hidden, weight), labels, VOCAB))


def test_rows_without_supervision_give_zero_and_no_gradient() -> None:
    hidden, weight, _, labels = case(rows=9, bias=False, dtype=torch.float32)
    labels[:] = loss.IGNORED
    value = loss.chunked_cross_entropy(hidden, weight, None, labels)
    value.backward()

    assert value.item() == 0.0
    assert float(hidden.grad.abs().sum()) == float(weight.grad.abs().sum()) == 0.0


FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.3},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 5.0},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "phi": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "opt": {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_neox": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_forward_gives_the_same_loss(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **FAMILIES[family],
        },
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    ids = torch.randint(3, VOCAB, (2, 21))
    labels = ids.clone()
    labels[:, :5] = loss.IGNORED
    stock = model(input_ids=ids, labels=labels).loss * (labels[:, 1:] != loss.IGNORED).sum()
    loss.install(model, "hf")
    summed = model(input_ids=ids, labels=labels).loss
    loss.install(model, "chunked")
    chunked = model(input_ids=ids, labels=labels).loss

    torch.testing.assert_close(summed, stock, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(chunked, stock, rtol=1e-5, atol=1e-4)
