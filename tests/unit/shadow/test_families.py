from __future__ import annotations

import pytest

from llmcheck.catalog.config import spec_of_config
from llmcheck.catalog.models import all_models, find_model
from llmcheck.errors import UserError
from llmcheck.shadow import families
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.families.base import Run, attention_kind
from llmcheck.shadow.tape import Tape, cur
from llmcheck.shadow.tensor import Tensor

MODELLED = [entry.name for entry in all_models() if find_model(entry.name, allow_network=False).family in families.names()]


@pytest.mark.parametrize("name", MODELLED)
def test_the_number_of_parameters_is_that_of_transformers(name: str) -> None:
    model = find_model(name, allow_network=False)

    assert model.num_params == families.num_params(model.family, model.config)


def test_without_sdpa_transformers_runs_eager() -> None:
    assert attention_kind(Run(attention="sdpa"), "a model", sdpa=False) == "eager"


def test_flash_attention_that_a_model_lacks_is_an_error() -> None:
    with pytest.raises(UserError, match="FlashAttention"):
        attention_kind(Run(attention="flash"), "a model", flash=False)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "minimax_m2", "gpt_oss"])
def test_router_logits_stay_with_the_output_and_their_softmax_for_backward(family: str) -> None:
    # load_balancing_loss_func of transformers 5.17: a softmax a layer is saved, and the output has the logits until it is dropped
    config = {
        "model_type": family,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    config |= {"intermediate_size": 32, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2}
    config |= {"head_dim": 16} if family in ("minimax_m2", "gpt_oss", "qwen3_moe") else {}
    held = []
    for wanted in (False, True):
        spec = spec_of_config({**config, "output_router_logits": wanted}, name=family, source="tests", where=family)
        tape = Tape()
        cur.reset(tape)
        model = families.build(family, spec.config)
        cur.reset(tape)
        ids = Tensor((2, 1024), 8)
        loss, logits = model(ids, Tensor((2, 1024), 8), ids)
        whole = live(tape)
        backward(loss)
        del loss
        held.append((whole, live(tape)))
        del logits
    experts = spec.config.get("num_local_experts") or spec.config["num_experts"]
    layer = 2 * 2048 * experts  # bf16

    assert held[1][0] - held[0][0] >= 2 * layer
    assert held[1][1] - held[0][1] == 2 * layer
    cur.reset(Tape())


def live(tape: Tape) -> int:
    return sum(tape.sizes[e] if e >= 0 else -tape.sizes[~e] for e in tape.events)
