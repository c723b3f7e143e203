"""Weights that checkpoints hold in another form than the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmcheck_trainer import weights

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_experts_per_tok": 2, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, "mlp_only_layers": [0]},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4, "head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_loaded_as_transformers_loads_it(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | MIXTURES[family]))).save_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    weights.load(ours, str(tmp_path))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)

    for (name, parameter), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(parameter, expected), name
