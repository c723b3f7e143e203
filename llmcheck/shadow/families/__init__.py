"""The model families whose layer is modelled; each is imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.module import Build
from llmcheck.shadow.tape import Tape, cur

# transformers' model_type -> module of this package that models it
_MODULES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "stablelm": "llama_variants",
    "starcoder2": "llama_variants",
    "granite": "llama_variants",
    "cohere": "llama_variants",
    "smollm3": "llama_variants",
    "glm": "glm",
    "glm4": "glm",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "phi": "phi",
    "phi3": "phi",
    "mixtral": "moe",
    "qwen2_moe": "moe",
    "qwen3_moe": "moe",
    "olmoe": "moe",
    "olmo": "olmo",
    "olmo2": "olmo",
    "baichuan": "remote",
    "chatglm": "remote",
    "internlm": "remote",
    "internlm2": "remote",
    "qwen": "remote",
    "bloom": "bloom",
    "gpt2": "gpt2",
    "opt": "opt",
    "gpt_neox": "gpt_neox",
    "falcon": "falcon",
    "gptj": "gptj",
    "codegen": "gptj",
    "mpt": "mpt",
    "gpt_bigcode": "gpt_bigcode",
    "gpt_neo": "gpt_neo",
    "arcee": "arcee",
    "nemotron": "nemotron",
    "seed_oss": "seed_oss",
    "helium": "helium",
    "ernie4_5": "helium",
    "exaone4": "late_norm",
    "hunyuan_v1_dense": "late_norm",
    "apertus": "late_norm",
    "olmo3": "olmo",
    "cohere2": "llama_variants",
    "glm4_moe": "glm4_moe",
    "glm4_moe_lite": "deepseek",
    "ministral": "ministral",
    "ministral3": "ministral",
    "minimax_m2": "minimax",
    "granitemoe": "granitemoe",
    "gpt_oss": "gpt_oss",
}

STAND_IN = "stand-in"  # for families that are not modelled


def names() -> tuple[str, ...]:
    """All modelled families, by transformers' model_type."""
    return tuple(sorted(_MODULES))


def get(family: str) -> Family | None:
    """The family, or None where its layer is not modelled."""
    module = "stand_in" if family == STAND_IN else _MODULES.get(family)
    if module is None:
        return None
    found: Family = next(f for f in import_module(f"{__name__}.{module}").FAMILIES if f.name == family)
    return found


def build(family: str, config: Mapping[str, Any], run: Run | None = None, item: int = 2) -> CausalLM:
    """The shadow model on a scratch tape: for its shape only."""
    found = get(family)
    if found is None:
        raise KeyError(family)
    cur.reset(Tape())
    try:
        return found.build(Build(item), Config(config), run or Run())
    finally:
        cur.reset(Tape())


def parameters(family: str, config: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter in the order of construction; tied ones once."""
    return [(name, p.shape) for name, p in build(family, config).named_parameters()]


def num_params(family: str, config: Mapping[str, Any]) -> int:
    """The exact number of parameters, tied ones once."""
    return sum(p.numel for p in build(family, config).parameters())
