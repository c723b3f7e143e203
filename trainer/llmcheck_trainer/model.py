"""The plan's model on a device, in the order of allocations that the plan was simulated with.

Construction in the model's own type straight on the device (under ZeRO-3 in pieces, as each module appears), weights copied in place,
then adapters. Nothing is initialised that a checkpoint fills.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from typing import Any

import torch
import torch.distributed as dist
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from llmcheck.errors import UserError, did_you_mean, first_line
from llmcheck.types import LoraSpec, ModelSpec, TrainingRecipe
from llmcheck_trainer import bloom, loss, weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build_model(spec: ModelSpec, recipe: TrainingRecipe, device: torch.device, *, folder: str | None) -> Any:
    """The model, ready for build_engine: weights from `folder` (None: memory as it comes, for measurements), adapters, checkpointing.

    Raises UserError when the folder's model is another one, a package is missing, or an adapter would match nothing.
    """
    config = build_config(spec, recipe, folder)
    if recipe.loss == "liger":
        _apply_liger(spec.family)
    if recipe.method == "qlora":
        model = _quantised(config, recipe, device, folder)
    else:
        model = _constructed(config, recipe, device)
        if folder is not None:
            weights.load(model, folder)
    own_attention = spec.family == "bloom" and recipe.attention == "sdpa"
    if own_attention:
        bloom.install(model)
    loss.install(model, recipe.loss, own_forward=own_attention)
    if recipe.lora is not None:
        model = _adapted(model, recipe.lora, recipe, device)
        if recipe.fused_adapters and recipe.zero_stage < 3:
            from llmcheck_trainer import lora

            lora.install(model)
    if recipe.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if recipe.lora is not None:
            model.enable_input_require_grads()
    model.train()
    return model


def build_config(spec: ModelSpec, recipe: TrainingRecipe, folder: str | None) -> Any:
    """The configuration: the folder's, which must say what the plan says, else the plan's."""
    planned = {key: value for key, value in spec.config.items() if key != "model_type"}
    if folder is None:
        kind = CONFIG_MAPPING[spec.family]  # some of the plan's fields are read-only properties there, Falcon's width of a head for one
        fields = {key: value for key, value in planned.items() if getattr(getattr(kind, key, None), "fset", kind) is not None}
        config = AutoConfig.for_model(spec.family, **fields)
    else:
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as reason:  # a stranger's file: whatever transformers makes of it
            raise UserError(
                f"{folder} has no usable config.json",
                code="weights",
                where=os.path.join(folder, "config.json"),
                why=first_line(reason),
                hint="copy or download it again; `llmcheck doctor --model` says more",
            ) from reason
        _compare(spec, planned, config, folder)
    eager = recipe.attention == "eager" or spec.family == "bloom"  # BLOOM's class knows no other; bloom.install brings SDPA
    config._attn_implementation = "eager" if eager else {"sdpa": "sdpa", "flash": "flash_attention_2"}[recipe.attention]
    config.use_cache = False
    return config


def _compare(spec: ModelSpec, planned: dict[str, Any], config: Any, folder: str) -> None:
    if config.model_type != spec.family:
        raise UserError(
            f"the weights are of a {config.model_type} model, the plan is for {spec.family}",
            code="weights-model",
            where=folder,
            hint="plan with `--model` set to this folder, or name the right one with --weights",
        )
    for key, value in planned.items():
        found = getattr(config, key, value)
        if isinstance(value, (int, float, str)) and isinstance(found, (int, float, str)) and found != value:
            raise UserError(
                f"the weights are of another model than the plan's: {key} is {found!r}, the plan has {value!r}",
                code="weights-model",
                where=f"{folder}/config.json",
                hint="plan with `--model` set to this folder",
            )


def _constructed(config: Any, recipe: TrainingRecipe, device: torch.device) -> Any:
    dtype = DTYPES[recipe.precision]
    config.dtype = dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Imported here: of a class that is defined inside DeepSpeed's context, it takes back what decorators did to the constructor.
        _ = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with no_init_weights(), _place(recipe, device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise UserError(
            f"transformers makes no {config.model_type} model of this configuration",
            code="weights-model",
            where="config.json",
            why=first_line(reason),
            hint="is it whole, and does this release of transformers know it? `llmcheck doctor --model` says more",
        ) from reason
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()  # no_init_weights leaves this out with the rest of the initialisation
    return model


def _place(recipe: TrainingRecipe, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where modules come into being: on the device, or cut into this rank's part at once."""
    if recipe.zero_stage == 3:
        import deepspeed

        return deepspeed.zero.Init(config_dict_or_path=dict(recipe.deepspeed))
    return device


def _apply_liger(family: str) -> None:
    try:
        import liger_kernel.transformers as liger
    except ImportError as reason:
        raise UserError(
            "the plan wants Liger kernels, and the package is not installed",
            code="missing-package",
            where="recipe.loss: liger",
            hint='pip install "llmcheck[kernels]", or plan with --loss chunked',
        ) from reason
    name = f"apply_liger_kernel_to_{family.removesuffix('_text') if family == 'gemma3_text' else family}"
    if not hasattr(liger, name):
        raise UserError(f"Liger has no kernels for {family}", code="liger", where="recipe.loss", hint="plan with --loss chunked")
    getattr(liger, name)()


def _quantised(config: Any, recipe: TrainingRecipe, device: torch.device, folder: str | None) -> Any:
    """NF4 weights through transformers and bitsandbytes, each layer packed as soon as its weight is on the device."""
    import peft
    import transformers.modeling_utils
    from transformers import BitsAndBytesConfig

    if recipe.zero_stage == 3:
        raise UserError(
            "QLoRA does not run with ZeRO-3", code="conflict", where="recipe", why="DeepSpeed cannot gather 4-bit weights", hint="--zero 2"
        )
    dtype = DTYPES[recipe.precision]
    # It would reserve the unpacked size in one block first, which no estimate contains and no allocation needs.
    transformers.modeling_utils.caching_allocator_warmup = lambda *_args, **_kwargs: None
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    try:
        kind, made_up = (AutoModelForCausalLM, None) if folder is not None else _made_up(config, dtype)
        model = kind.from_pretrained(
            folder,
            config=config,
            state_dict=made_up,
            dtype=dtype,
            quantization_config=quantisation,
            device_map={"": device.index if device.index is not None else str(device)},
            trust_remote_code=False,
        )
    except ImportError as reason:
        raise UserError(
            "the plan wants 4-bit weights, and bitsandbytes is not installed",
            code="missing-package",
            where="recipe.method: qlora",
            hint='pip install "llmcheck[kernels]", or plan with --method lora',
        ) from reason
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _made_up(config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model's class, and weights of its shapes that take no memory: each a random line, seen as often as the shape has lines."""
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    # Checkpoints hold a tied weight once, under its first name.
    first = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    shapes = {name: model.state_dict()[name].shape for name in reversed(first.values())}
    return type(model), {name: torch.randn(shape[-1:], dtype=dtype).mul_(0.02).expand(shape) for name, shape in shapes.items()}


def _adapted(model: Any, spec: LoraSpec, recipe: TrainingRecipe, device: torch.device) -> Any:
    import peft

    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=target_names(model, spec.targets),
        task_type="CAUSAL_LM",
    )
    heads = (model.get_input_embeddings(), model.get_output_embeddings())
    if spec.train_embeddings == "modules-to-save":
        names = [name for name, module in model.named_modules(remove_duplicate=False) if any(module is head for head in heads)]
        config.modules_to_save = [name.rsplit(".", 1)[-1] for name in names]
    with _place(recipe, device) if recipe.zero_stage == 3 else contextlib.nullcontext():
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    if recipe.zero_stage == 3:
        _initialise_parts(model)
    dtype = DTYPES[recipe.precision]
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    if spec.train_embeddings == "in-place":
        for head in (model.get_input_embeddings(), model.get_output_embeddings()):
            getattr(head, "base_layer", head).requires_grad_(True)
    return model


def _initialise_parts(model: Any) -> None:
    """Adapters that were cut into parts as they were made: peft's own initialisation came too late and found nothing to fill.

    A ~ U(±1/√in) and B = 0, as peft has them (kaiming_uniform with a = √5); elements are independent, so each rank fills its own.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        for down, up in zip(module.lora_A.values(), module.lora_B.values(), strict=True):
            part = down.weight.ds_tensor
            seed = zlib.crc32(f"{torch.initial_seed()} {dist.get_rank()} {name}".encode())
            generator = torch.Generator(part.device).manual_seed(seed)
            bound = 1.0 / math.sqrt(down.in_features)
            part.data.uniform_(-bound, bound, generator=generator)
            up.weight.ds_tensor.data.zero_()


def target_names(model: Any, targets: str) -> list[str]:
    """The last names of the layers that get adapters: every linear layer but the head, those within attention, or the names given.

    Not those that peft takes for fused experts, where shared experts or dense layers have them too. Raises UserError.
    """
    head = model.get_output_embeddings()
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    if targets == "all-linear":
        return [name for name in sorted({name.rsplit(".", 1)[-1] for name in linear}) if not _means_experts(model, name)]
    if targets == "attention":
        inside = tuple(name + "." for name, module in model.named_modules() if "attention" in type(module).__name__.lower())
        return sorted({name.rsplit(".", 1)[-1] for name in linear if name.startswith(inside)})
    names = [name.strip() for name in targets.split(",") if name.strip()]
    known = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))})
    for name in names:
        if name.rsplit(".", 1)[-1] not in known:
            raise UserError(
                f"no module of {model.config.model_type} is called {name!r}",
                code="lora-targets",
                where="recipe.lora.targets",
                why="LoRA would match nothing there",
                hint=did_you_mean(name, known) or "linear layers of this model: " + ", ".join(known),
            )
        if _means_experts(model, name):
            raise UserError(
                f"{name!r} cannot have adapters in a {model.config.model_type} model",
                code="lora-targets",
                where="recipe.lora.targets",
                why="peft takes the name for the fused experts' weights, not for the linear layers of that name",
                hint="all-linear, or names of these: " + ", ".join(target_names(model, "all-linear")),
            )
    return names


def _means_experts(model: Any, name: str) -> bool:
    """Whether peft takes the target `name` for fused experts' weights of a mixture.

    It does so however the name is spelt (0.21, for adapters from before transformers 5), and refuses such adapters with dropout.
    """
    import peft

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # an older peft, which has no such thing
        return False
    config = peft.LoraConfig(target_modules=[name])
    try:
        convert(config, model, conversions=None)
    except ValueError:  # one of the names that only go together
        return True
    return name not in (config.target_modules or ())


def find_weights(spec: ModelSpec, given: str) -> str:
    """The folder of the weights: the one given, else the plan's own folder, else the Hub's. Raises UserError where nothing is named."""
    if given:
        return weights.find_folder(given)
    place = os.path.dirname(spec.source) if spec.source.endswith(".json") else spec.source
    if os.path.isdir(place):
        return place
    if spec.hub_id:
        return weights.find_folder(spec.hub_id)
    raise UserError(
        f"where are the weights of {spec.name}?",
        code="weights",
        where="--weights",
        why="the plan names neither a folder nor a Hub name",
        hint="--weights FOLDER, or a Hub name",
    )
