"""A micro-batch on the device, with the mask that the plan's attention and the model's family need."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from llmcheck.errors import UserError
from llmcheck.types import ModelSpec, TrainingRecipe
from llmcheck_trainer import varlen
from llmcheck_trainer.data import MicroBatch

# Families whose forward makes something of the attention mask even where nothing is hidden: ALiBi, and positions counted from it.
_COUNT_THE_MASK = ("bloom", "falcon", "mpt", "opt")
# Families that take position ids, and hide what a four-dimensional mask hides: proven by tests/trainer/test_packing.py, family by family.
PACKED = frozenset(
    (
        "apertus arcee bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 "
        "glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite granitemoe helium hunyuan_v1_dense llama minimax_m2 "
        "ministral ministral3 mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss "
        "smollm3 stablelm starcoder2"
    ).split()
)


class Placement(NamedTuple):
    """How micro-batches get to the device."""

    device: torch.device
    dtype: torch.dtype
    ones: bool  # pass an attention mask of ones
    blocks: bool  # pass a four-dimensional mask of the packed sequences
    packing: bool
    rows: bool = False  # pass the bounds of the packed rows instead (varlen.py)

    def put(self, batch: MicroBatch) -> MicroBatch:
        """`batch` on the device; copies do not wait for it."""
        inputs: dict[str, Any] = {}
        for name, tensor in batch.inputs.items():
            pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
            inputs[name] = pinned.to(self.device, non_blocking=True)
        if self.packing and self.rows:
            ends, longest = varlen.bounds(batch.inputs["position_ids"])
            inputs[varlen.BOUNDS] = (ends.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else ends, longest)
        elif self.packing and self.blocks:
            inputs["attention_mask"] = block_mask(inputs["position_ids"], self.dtype)
        elif self.ones and not self.packing:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return batch._replace(inputs=inputs)


def block_mask(position_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[b, 1, s, s] to be added to scores: zero where the key is no later than the query and of the same packed sequence.

    One tensor for all layers: a boolean mask would be converted, and kept for the backward pass, by each of them.
    """
    at = torch.arange(position_ids.shape[1], device=position_ids.device)
    block = at[None, :] - position_ids
    visible = (block[:, None, :] == block[:, :, None]) & (at[None, :] <= at[:, None])
    mask = torch.zeros(visible.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def choose_packing(wanted: str, spec: ModelSpec, recipe: TrainingRecipe, config: Any) -> bool:
    """Whether rows are packed: as the plan says, unless `wanted` is on or off.

    Raises UserError where that was asked for and the model would see one row from another.
    """
    packing = recipe.packing if wanted == "auto" else wanted == "on"
    why = _cannot_pack(spec, recipe, config)
    if packing and why:
        where = "recipe.packing" if wanted == "auto" else "--packing on"
        raise UserError(f"{spec.name} cannot be packed", code="packing", where=where, why=why, hint="--packing off")
    return packing


def _cannot_pack(spec: ModelSpec, recipe: TrainingRecipe, config: Any) -> str:
    if spec.family == "bloom" and recipe.attention != "sdpa":
        return "transformers' own attention of BLOOM ignores position ids; the trainer's, with the plan's attention sdpa, does not"
    if spec.family == "falcon" and getattr(config, "alibi", False):
        return "Falcon with ALiBi takes a plain mask only"
    if spec.family not in PACKED:
        return f"no test shows that transformers' {spec.family} keeps packed rows apart"
    if recipe.attention != "flash" and _window(config) is not None and recipe.seq_len > (_window(config) or 0):
        return "its attention window is shorter than a sequence, which a mask of packed rows does not express"
    return ""


def _window(config: Any) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def placement_of(
    spec: ModelSpec, recipe: TrainingRecipe, device: torch.device, dtype: torch.dtype, *, packing: bool, config: Any = None
) -> Placement:
    """The placement for a model of this family under this recipe. With `rows`, the model needs varlen.install."""
    ours = spec.family == "bloom" and recipe.attention == "sdpa"
    return Placement(
        device=device,
        dtype=dtype,
        ones=(recipe.attention == "eager" or spec.family in _COUNT_THE_MASK) and not ours,
        blocks=recipe.attention != "flash" and not ours,
        packing=packing,
        rows=packing and recipe.attention == "sdpa" and config is not None and varlen.supported(spec.family, config, device, dtype),
    )
