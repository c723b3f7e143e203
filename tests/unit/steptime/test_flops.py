"""Work of a micro-step: FLOPs by formula, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.catalog.models import find_model
from llmcheck.steptime.flops import (
    Batch,
    Variant,
    Work,
    adapter_params,
    ends_backward,
    ends_forward,
    is_adapted,
    layer_backward,
    layer_forward,
    model_flops_per_token,
    trained_embeddings,
)
from llmcheck.steptime.reading import read_shape
from llmcheck.steptime.shape import Linear, Shape
from llmcheck.types import LoraSpec, TrainEmbeddings

FULL = Variant("full", None, "sdpa", "hf")
LORA = Variant("lora", LoraSpec(), "sdpa", "hf")


@pytest.fixture(scope="module")
def llama() -> Shape:
    return read_shape(find_model("llama-7b", allow_network=False))


def forward(shape: Shape, batch: Batch, variant: Variant = FULL) -> Work:
    work = Work()
    for layer, count in shape.layers:
        work.plus(layer_forward(layer, batch, variant, shape), count)
    work.plus(ends_forward(shape, batch, variant))
    return work


def test_forward_products_take_two_flops_per_parameter_and_token(llama: Shape) -> None:
    batch = Batch(size=2, seq_len=512, element_bytes=2)
    matrices = llama.num_params - 32_000 * 4096 - (2 * 32 + 1) * 4096  # embedding rows and norms multiply nothing
    assert forward(llama, batch).matmul_flops == 2 * matrices * batch.tokens


def test_backward_takes_twice_the_forward(llama: Shape) -> None:
    batch = Batch(size=1, seq_len=256, element_bytes=2)
    layer = llama.layers[0][0]
    assert layer_backward(layer, batch, FULL, llama).matmul_flops == 2 * layer_forward(layer, batch, FULL, llama).matmul_flops


def test_frozen_weights_have_no_gradient_product(llama: Shape) -> None:
    batch = Batch(size=1, seq_len=256, element_bytes=2)
    layer = llama.layers[0][0]
    base = layer_forward(layer, batch, FULL, llama).matmul_flops
    adapters = 2 * batch.tokens * 16 * sum(li.in_features + li.out_features for li in layer.linears)
    assert layer_backward(layer, batch, LORA, llama).matmul_flops == base + 2 * adapters


def test_recomputation_stops_before_the_last_projection(llama: Shape) -> None:
    batch = Batch(size=1, seq_len=256, element_bytes=2)
    layer = llama.layers[0][0]
    whole = layer_forward(layer, batch, FULL, llama).matmul_flops
    early = layer_forward(layer, batch, FULL, llama, until_last_saved=True).matmul_flops
    assert whole - early == 2 * batch.tokens * 11008 * 4096


def test_fused_attention_skips_the_masked_half(llama: Shape) -> None:
    batch = Batch(size=1, seq_len=1024, element_bytes=2)
    work = layer_forward(llama.layers[0][0], batch, FULL, llama)
    assert work.attention_flops == 2 * 1024 * 1024 * 4096 * 2 / 2


def test_a_window_bounds_the_attention(llama: Shape) -> None:
    batch = Batch(size=1, seq_len=4096, element_bytes=2)
    layer = llama.layers[0][0]
    windowed = layer_forward(layer._replace(window=512), batch, FULL, llama).attention_flops
    assert windowed < 0.3 * layer_forward(layer, batch, FULL, llama).attention_flops


def test_mfu_counts_six_flops_per_matrix_parameter(llama: Shape) -> None:
    matrices = llama.num_params - 32_000 * 4096 - (2 * 32 + 1) * 4096
    assert model_flops_per_token(llama, 1024, FULL) == 6 * matrices + 32 * 12 * 4096 * 1024


def test_adapters_of_every_linear_layer(llama: Shape) -> None:
    per_layer = 4 * 2 * 4096 + 3 * (4096 + 11008)
    assert adapter_params(llama, LoraSpec(rank=16)) == (32 * 16 * per_layer, 32 * 7 * 2)


@pytest.mark.parametrize(
    ("tied", "how", "matrices", "unfrozen"),
    [
        (False, None, 0, 0),
        (False, "in-place", 2, 2),
        (True, "in-place", 1, 1),
        (False, "modules-to-save", 2, 0),
        (True, "modules-to-save", 2, 0),
    ],
)
def test_what_is_trained_beside_adapters(llama: Shape, tied: bool, how: TrainEmbeddings | None, matrices: int, unfrozen: int) -> None:
    found = trained_embeddings(llama._replace(tied=tied), LoraSpec(train_embeddings=how))
    assert found == (matrices * 32_000 * 4096, matrices, unfrozen * 32_000 * 4096)


def test_targets_by_group_and_by_name() -> None:
    linear = Linear(name="q_proj", group="attention", in_features=8, out_features=8)
    assert [is_adapted(linear, t) for t in ("all-linear", "attention", "v_proj,model.q_proj", "up_proj")] == [True, True, True, False]


def test_experts_work_on_their_share_of_the_tokens() -> None:
    shape = read_shape(find_model("mixtral-8x7b", allow_network=False))
    batch = Batch(size=1, seq_len=1024, element_bytes=2)
    layer = shape.layers[0][0]
    assert layer.experts is not None
    experts = sum(x.flops for x in layer_forward(layer, batch, FULL, shape).matmuls if x.batch == 8)
    assert experts == 2 * batch.tokens * layer.experts.top_k * layer.experts.params_per_expert


@given(st.integers(1, 4096), st.integers(1, 8), st.integers(1, 1024))
def test_more_tokens_never_take_fewer_flops_or_bytes(seq_len: int, size: int, more: int) -> None:
    shape = read_shape(find_model("llama-7b", allow_network=False))
    few, many = (forward(shape, Batch(size=size, seq_len=n, element_bytes=2)) for n in (seq_len, seq_len + more))
    assert few.flops <= many.flops
    assert few.num_bytes <= many.num_bytes


@given(st.floats(0.5, 50), st.floats(0.5, 50))
def test_repetitions_add_up(a: float, b: float) -> None:
    shape = read_shape(find_model("llama-7b", allow_network=False))
    one = layer_forward(shape.layers[0][0], Batch(size=1, seq_len=64, element_bytes=2), FULL, shape)
    twice, once = Work(), Work()
    twice.plus(one, a)
    twice.plus(one, b)
    once.plus(one, a + b)
    assert twice.flops == pytest.approx(once.flops)
    assert twice.kernels == pytest.approx(once.kernels)


@pytest.mark.parametrize("loss", ["hf", "chunked", "liger"])
def test_every_loss_multiplies_the_head_three_times_at_least(llama: Shape, loss: str) -> None:
    variant = replace_loss(loss)
    batch = Batch(size=1, seq_len=2048, element_bytes=2)
    work = ends_forward(llama, batch, variant)
    work.plus(ends_backward(llama, batch, variant))
    assert work.matmul_flops >= 6 * batch.tokens * 32_000 * 4096


def replace_loss(loss: str) -> Variant:
    return FULL._replace(loss=loss)  # type: ignore[arg-type]


def test_lora_spec_is_a_key_of_caches() -> None:
    assert hash(LORA) == hash(LORA._replace(lora=replace(LoraSpec(), rank=16)))
