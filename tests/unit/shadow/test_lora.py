"""Adapters: counts that peft itself printed for known models, which layers are wrapped, what a forward and backward allocate."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from llmcheck.catalog.config import complete, spec_of_config
from llmcheck.catalog.familydata import family_data
from llmcheck.catalog.models import find_model
from llmcheck.errors import UserError
from llmcheck.shadow import families, lora
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.families.base import CausalLM, Config, Run
from llmcheck.shadow.module import Build, Linear
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Param, Tensor
from llmcheck.types import LoraSpec

SMALL_FIELDS = {
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_experts_per_tok": 2,
    "attention_types": [[["global", "local"], 1]],
}


@pytest.fixture(autouse=True)
def tape() -> Iterator[Tape]:
    collecting = gc.isenabled()
    gc.disable()
    found = Tape()
    cur.reset(found)
    yield found
    cur.reset(Tape())
    if collecting:
        gc.enable()


def adapted(name: str, **spec: object) -> tuple[CausalLM, int]:
    """The model of the catalogue with adapters, and how many layers were wrapped."""
    model = find_model(name, allow_network=False)
    family = families.get(model.family)
    assert family is not None
    build = Build(2)
    built = family.build(build, Config(model.config), Run())
    return built, lora.inject(built, LoraSpec(**spec), family, build)  # type: ignore[arg-type]


def trainable(model: CausalLM) -> int:
    return sum(p.numel for p in model.parameters() if p.req)


@pytest.mark.parametrize(
    ("name", "rank", "targets", "expected"),
    [
        # huggingface/peft, README.md and docs/source/quicktour.md (bloomz-560m, r=8): "trainable params: 786,432"
        ("bloomz-560m", 8, "query_key_value", 786_432),
        # tloen/alpaca-lora (LLaMA-7B, r=8, q_proj and v_proj): "trainable params: 4,194,304 || all params: 6,742,609,920"
        ("llama-7b", 8, "q_proj,v_proj", 4_194_304),
        # peft, examples/int8_training (OPT-6.7B, r=16, q_proj and v_proj): "trainable params: 8388608 || all params: 6666862592"
        ("opt-6.7b", 16, "q_proj,v_proj", 8_388_608),
        # peft's default target of GPT-2, c_attn 768 -> 2304, r=8: 12 * 8 * (768 + 2304)
        ("gpt2", 8, "c_attn", 294_912),
        # 32 layers of 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008)): the number that QLoRA scripts print for r=16 on all linear layers
        ("llama-7b", 16, "all-linear", 39_976_960),
        # grouped heads: 32 layers of 16 * (q, o: 2 * (4096 + 4096); k, v: 2 * (4096 + 1024))
        ("mistral-7b-v0.1", 16, "attention", 13_631_488),
    ],
)
def test_the_number_of_trainable_parameters_is_that_of_peft(name: str, rank: int, targets: str, expected: int) -> None:
    model, _ = adapted(name, rank=rank, targets=targets)

    assert expected == trainable(model)


@pytest.mark.parametrize(("targets", "per_layer"), [("all-linear", 7), ("attention", 4), ("down_proj", 1), (" q_proj , k_proj ", 2)])
def test_the_targeted_layers_of_every_block_are_wrapped(targets: str, per_layer: int) -> None:
    _, count = adapted("smollm-135m", targets=targets)

    assert 30 * per_layer == count


def test_the_output_head_is_no_target_of_all_linear() -> None:
    # peft, tuners/tuners_utils.py, _maybe_include_all_linear_layers: the output embedding is left out
    model, _ = adapted("llama-7b", targets="all-linear")

    assert not any("lm_head.lora" in name for name, _ in model.named_parameters())


def test_everything_but_the_adapters_is_frozen() -> None:
    model, _ = adapted("smollm-135m")

    assert all(("lora_" in name) == p.req for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "how", "trained", "made"),
    [
        ("smollm-135m", "in-place", 49152 * 576, 0),  # tied: one matrix
        ("smollm-135m", "modules-to-save", 2 * 49152 * 576, 2 * 49152 * 576),  # a tied pair is copied twice
        ("llama-7b", "in-place", 2 * 32000 * 4096, 0),
        ("llama-7b", "modules-to-save", 2 * 32000 * 4096, 2 * 32000 * 4096),
        ("gpt2", "in-place", 50257 * 768, 0),  # learned positions stay frozen
    ],
)
def test_embedding_and_head_train_where_it_is_said(name: str, how: str, trained: int, made: int) -> None:
    model, _ = adapted(name, train_embeddings=how)
    without, _ = adapted(name)

    assert trainable(model) == trainable(without) + trained
    assert sum(p.numel for p in model.parameters()) == sum(p.numel for p in without.parameters()) + made


def test_a_head_with_an_adapter_cannot_be_copied() -> None:
    with pytest.raises(UserError, match="output projection") as error:
        adapted("llama-7b", targets="q_proj,lm_head", train_embeddings="modules-to-save")

    assert error.value.code == "conflict"


def test_a_head_with_an_adapter_may_train_in_place() -> None:
    both, _ = adapted("llama-7b", targets="q_proj,lm_head", train_embeddings="in-place")
    alone, _ = adapted("llama-7b", targets="q_proj,lm_head")

    assert trainable(both) == trainable(alone) + 2 * 32000 * 4096


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("loss", ["hf", "chunked"])
def test_copies_of_embedding_and_head_are_trained_in_every_family(family: str, loss: str) -> None:
    found = families.get(family)
    assert found is not None
    data = family_data(family)
    assert data is not None
    more = {"head_dim": 128} if family == "glm4_moe" else {}  # the class's own sizes do not divide
    config = complete(data, {**SMALL_FIELDS, **more}, family)
    build = Build(2)
    model = found.build(build, Config(config), Run(loss=loss, checkpointing=False))
    lora.inject(model, LoraSpec(train_embeddings="modules-to-save"), found, build)
    ids = Tensor((1, 8), 8)
    loss_value, logits = model(ids, ids, ids)
    del logits
    backward(loss_value)

    copies = [p for name, p in model.named_parameters() if "modules_to_save" in name]
    assert len(copies) >= 2
    assert all(p.grad is not None and p.grad.shape == p.shape for p in copies)
    assert all(p.grad is None for name, p in model.named_parameters() if "original_module" in name)


def test_a_name_that_no_module_has_is_an_error_with_the_closest_name() -> None:
    with pytest.raises(UserError) as error:
        adapted("llama-7b", targets="q_prj")

    assert error.value.where == "--lora-targets"
    assert error.value.hint.startswith("did you mean 'q_proj'")


def test_a_name_like_none_lists_all() -> None:
    with pytest.raises(UserError) as error:
        adapted("gpt2", targets="zzz")

    assert error.value.hint == "linear layers of this family: c_attn, c_fc, c_proj, lm_head"


def test_one_wrong_name_among_right_ones_is_an_error() -> None:
    with pytest.raises(UserError, match="wv"):
        adapted("llama-7b", targets="q_proj,wv")


# --- memory: x [4, 8], base [10, 8], rank 3, bf16 -------------------------------------------------------------------------------

X, MASK, INNER, OUT = 64, 32, 24, 80


def layer(dropout: float) -> lora.LoraLinear:
    build = Build(2)
    base = Linear(build, 8, 10)
    base.weight.req = False
    return lora.LoraLinear(build, base, 3, dropout)


def signed(tape: Tape, start: int) -> list[int]:
    return [tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events[start:]]


def test_two_outputs_lie_beside_the_base_result(tape: Tape) -> None:
    wrapped, x = layer(0.05), Param((4, 8), 2)
    start = len(tape.events)
    y = wrapped(x)

    # base; mask, dropped-out x (saved by A); A (saved by B); B's product, its scaling; the sum; the three outputs before it go
    assert signed(tape, start) == [OUT, MASK, X, INNER, OUT, OUT, -OUT, OUT, -OUT, -OUT]
    assert y.req


def test_without_dropout_the_input_itself_is_saved(tape: Tape) -> None:
    wrapped, x = layer(0.0), Param((4, 8), 2)
    start = len(tape.events)
    y = wrapped(x)

    assert signed(tape, start) == [OUT, INNER, OUT, OUT, -OUT, OUT, -OUT, -OUT]
    assert y.req


def test_without_gradient_into_the_input_the_mask_goes_at_once(tape: Tape) -> None:
    wrapped, x = layer(0.05), Tensor((4, 8), 2)
    start = len(tape.events)
    y = wrapped(x)

    assert signed(tape, start)[:4] == [OUT, MASK, X, -MASK]
    assert y.req


def test_backward_makes_gradients_of_the_adapters_alone(tape: Tape) -> None:
    wrapped = layer(0.05)
    backward(wrapped(Param((4, 8), 2)))

    assert wrapped.base_layer.weight.grad is None
    assert [p.grad.shape for p in (wrapped.lora_A.weight, wrapped.lora_B.weight) if p.grad is not None] == [(3, 8), (10, 3)]


def test_a_name_that_peft_takes_for_experts_is_refused() -> None:
    # tests/trainer/test_targets.py shows that peft does
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0]}
    spec = spec_of_config(config, name="tiny", source="tests", where="tiny")
    family = families.get("qwen3_moe")
    assert family is not None
    model = family.build(Build(2), Config(spec.config), Run())
    with pytest.raises(UserError, match="cannot have adapters in a qwen3_moe model") as found:
        lora.target_names(LoraSpec(targets="q_proj,gate_proj"), family, model)

    assert found.value.where == "--lora-targets"
