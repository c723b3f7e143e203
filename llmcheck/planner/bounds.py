"""Closed forms of GPU memory that decide what a search simulates. Neither is ever shown: what is shown is simulated.

`lower_bound_bytes` is certain: whatever it excludes cannot run. `guess_bytes` is near the peak, and only orders the candidates.
Symbols as in Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 3: 2 + 2 + 12 bytes per parameter in mixed precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmcheck.steptime.flops import adapter_params, is_adapted, trained_embeddings
from llmcheck.steptime.shape import Layer, Shape
from llmcheck.types import ClusterSpec, ModelSpec, TrainingRecipe

# NF4 with double quantisation: 4 bits a weight, an 8-bit scale per block of 64, an fp32 scale per 256 of those (Dettmers et al.
# 2023, QLoRA, arXiv:2305.14314, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class States(NamedTuple):
    """Bytes of one rank that stay over a whole step, and the gradients that the step ends with."""

    resident: float
    gradients: float
    trained: float  # parameters, not bytes; of all ranks


def _quantised_params(shape: Shape) -> int:
    return sum(count * sum(li.in_features * li.out_features for li in layer.linears) for layer, count in shape.layers)


def states(model: ModelSpec, shape: Shape, recipe: TrainingRecipe, cluster: ClusterSpec) -> States:
    """Weights, master copies and optimizer states of one rank; gradients apart. More ranks never raise either."""
    element = 4 if recipe.precision == "fp32" else 2
    ranks = cluster.num_gpus
    stage = recipe.zero_stage
    trained, frozen = float(model.num_params), 0.0
    if recipe.method != "full":
        trained, frozen = float(adapter_params(shape, recipe.lora)[0]), float(model.num_params)
        embeddings = trained_embeddings(shape, recipe.lora)
        trained, frozen = trained + embeddings.params, frozen - embeddings.unfrozen
    frozen_bytes = frozen * element
    if recipe.method == "qlora":
        quantised = min(frozen, _quantised_params(shape))
        frozen_bytes = quantised * NF4_BYTES + (frozen - quantised) * element
    weights = trained * element + frozen_bytes
    shards = ranks if stage >= 1 else 1
    if recipe.offload == "params":
        weights = 0.0
    elif stage == 3:
        weights /= ranks
    master, moments = _optimizer_bytes(recipe, element)
    optimizer = 0.0 if recipe.offload != "none" else trained * (master + moments) / shards
    gradients = trained * element / (ranks if stage >= 2 else 1)
    if recipe.offload != "none":
        gradients = 0.0
    return States(weights + optimizer, gradients, trained)


def lower_bound_bytes(model: ModelSpec, shape: Shape, recipe: TrainingRecipe, cluster: ClusterSpec) -> int:
    """Bytes that one rank certainly has allocated at some moment of the steady step."""
    element = 4 if recipe.precision == "fp32" else 2
    kept = states(model, shape, recipe, cluster)
    tokens = recipe.micro_batch_size * recipe.seq_len
    # when the loss's backward begins: checkpoints of all layers, or at least the inputs of their linears, and the logits
    activations = 0.0
    for layer, count in shape.layers:
        activations += count * (tokens * layer.hidden * element if recipe.checkpointing else _least_saved(layer, recipe, tokens, element))
    logits = 0.0
    if recipe.loss == "hf":
        logits = tokens * shape.vocab_size * (element + 4.0)  # 16-bit logits held by the model's output, fp32 log-softmax
    step = 0.0
    if recipe.zero_stage >= 1 and recipe.offload == "none" and element == 2:
        # the optimizer step: 16-bit gradients of the partition beside their fp32 copy (stage 3: of one sub-group)
        own = kept.trained / cluster.num_gpus
        copied = min(own, _sub_group_size(recipe)) if recipe.zero_stage == 3 else own
        step = own * element + (0.0 if _bf16_masters(recipe) else 4.0 * copied)
    return int(kept.resident + max(activations + logits, kept.gradients, step))


def _optimizer_bytes(recipe: TrainingRecipe, element: int) -> tuple[int, int]:
    """Bytes a trained parameter of the optimizer's copy of the weights, and of both moments."""
    if recipe.optimizer == "adam-bf16":
        return 0, 4  # it works on the weights themselves
    if element == 4:  # fp32 has no second copy of the weights to keep
        master, moments = 0, 8
    else:
        master, moments = (2, 4) if _bf16_masters(recipe) else (4, 8)
    return master, 2 if recipe.optimizer == "adam-8bit" else moments


def _bf16_masters(recipe: TrainingRecipe) -> bool:
    """Whether the optimizer's weights and gradients are bf16: by the optimizer, or as the DeepSpeed configuration says."""
    section = recipe.deepspeed.get("bf16")
    return recipe.optimizer == "adam-bf16" or (isinstance(section, Mapping) and section.get("bf16_master_weights_and_grads") is True)


def _sub_group_size(recipe: TrainingRecipe) -> float:
    """Elements of the partition that stage 3 steps at a time; DeepSpeed's default is 1e9."""
    section = recipe.deepspeed.get("zero_optimization")
    value = section.get("sub_group_size") if isinstance(section, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else 1e9


def _least_saved(layer: Layer, recipe: TrainingRecipe, tokens: int, element: int) -> float:
    """Without checkpointing a linear whose weight is trained keeps its input; several share one."""
    if recipe.method != "full":
        return 0.0
    inputs = {(li.in_features, li.group) for li in layer.linears}
    return float(tokens * element * sum(width for width, _ in inputs))


def guess_bytes(model: ModelSpec, shape: Shape, recipe: TrainingRecipe, cluster: ClusterSpec) -> float:
    """About what one rank's process takes: the bound, the working set of a layer, buckets, the loss's copies, allocator and context."""
    element = 4 if recipe.precision == "fp32" else 2
    kept = states(model, shape, recipe, cluster)
    batch, seq = recipe.micro_batch_size, recipe.seq_len
    tokens = batch * seq
    attention = recipe.attention if shape.has_sdpa or shape.trainer_sdpa else "eager"
    saved = checkpoints = working = layer_params = 0.0
    for layer, count in shape.layers:
        width = _saved_width(layer, recipe, element)
        scores = batch * layer.num_heads * seq * seq
        layer_saved = tokens * width + (scores * (4 + 2 * element) if attention == "eager" else 0.0)
        backward = tokens * (6 * layer.hidden + 3 * layer.act_width) * element + (scores * 14.0 if attention == "eager" else 0.0)
        saved += count * layer_saved
        checkpoints += count * tokens * layer.hidden * element
        working = max(working, layer_saved + backward)
        layer_params = max(layer_params, float(layer.num_params))
    activations = checkpoints + working if recipe.checkpointing else saved + working / 2
    logits = tokens * shape.vocab_size * (element + 12.0)
    if recipe.loss != "hf":
        logits = min(tokens, 1024) * shape.vocab_size * (element + 12.0)
    held = kept.gradients
    buffers = 0.0
    if recipe.method == "full":
        bucket = min(5e8, float(model.num_params)) * element
        buffers = (bucket if recipe.zero_stage >= 1 else 0.0) + kept.gradients
        if recipe.zero_stage == 3:
            buffers += 2 * element * max(layer_params, float(shape.vocab_size * shape.embed_dim)) + min(1e9, model.num_params) * element / 2
        elif recipe.zero_stage == 1:
            held = model.num_params * element
    copies = 6.0  # bytes a parameter of the partition: flat gradients, and those in fp32
    norm = 8.0 * shape.vocab_size * shape.embed_dim / max(1, cluster.num_gpus)  # of the largest gradient, in fp64
    if _bf16_masters(recipe):
        copies = 2.0
    if recipe.optimizer == "adam-bf16" and recipe.zero_stage == 0:  # gradients stay on the parameters, whose activations go meanwhile
        copies = norm = buffers = 0.0
    step = held + _partition_params(model, recipe, cluster) * copies + norm
    at_loss = checkpoints if recipe.checkpointing else saved  # what is held when backward begins, beside the logits
    peak = kept.resident + max(buffers + activations, buffers / 2 + at_loss + logits, step)
    slack = 1.04 if recipe.allocator == "expandable" else 1.12
    return peak * slack + 1.0 * (1 << 30)


def _partition_params(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec) -> float:
    if recipe.method != "full" or recipe.offload != "none":
        return 0.0
    return model.num_params / (cluster.num_gpus if recipe.zero_stage >= 1 else 1)


def _saved_width(layer: Layer, recipe: TrainingRecipe, element: int) -> float:
    """Bytes per token that one layer saves for its backward pass."""
    norms = sum(norm.width * ((4 + 2 * element) if norm.kind == "rms" else element) for norm in layer.norms)
    attention = (layer.q_width + layer.kv_width + layer.num_heads * layer.v_head_dim) * element
    mlp = layer.act_width * element * (4 if layer.gated else 2)
    total = norms + attention + mlp + 2.0 * layer.hidden * element
    if recipe.lora is not None:
        for linear in layer.linears:
            if is_adapted(linear, recipe.lora.targets):
                total += linear.in_features * (1 + element) + 2 * recipe.lora.rank * element
    return total
