"""The complete DeepSpeed configuration of a recipe: nothing left to "auto", nothing left for a reader to look up.

The user's values stay as written. "auto" becomes what Hugging Face's integration would write (transformers 5.17.0
integrations/deepspeed.py, accelerate 1.15 accelerator.py), and where that writes nothing, DeepSpeed's own default, since
DeepSpeed reads "auto" in its sections as "not given".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmcheck.dsconfig import checking
from llmcheck.dsconfig.checking import AUTO, Problem, definite, offload_device, raise_for
from llmcheck.dsconfig.conflicts import BF16_STATES, UNTESTED, check_batch, with_recipe, within_recipe
from llmcheck.dsconfig.fields import (
    AIO,
    BF16,
    FP16,
    LEAF_MODULE_CLASSES,
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    TOP,
    ZERO,
    Field,
    Section,
)
from llmcheck.dsconfig.overrides import whole_of
from llmcheck.dsconfig.reading import WHAT
from llmcheck.types import ModelSpec, TrainingRecipe

# What a completed configuration writes at the top level, in this order, before the user's further keys.
_WRITTEN = (
    "managed_gradient_accumulation",
    "prescale_gradients",
    "gradient_predivide_factor",
    "gradient_allreduce_op",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "wall_clock_breakdown",
    "memory_breakdown",
)
# TrainingArguments' defaults (transformers 5.17.0), which the Trainer writes over "auto".
_OPTIMIZER_PARAMS: dict[str, Any] = {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
_HIDDEN_SIZE_KEYS = ("hidden_size", "n_embd", "d_model")  # the second and third are what GPT-2, BLOOM and MPT call it
_NVME_PATH = "/local_nvme"  # where nothing else is said; the plan's notes tell the user to change it

# (what is set, its path) -> why the simulation does not follow it. Each changes memory; each is named in the plan's assumptions.
_UNMODELLED: tuple[tuple[str, Any], ...] = (
    ("zero_optimization.zenflow", None),
    ("zero_optimization.zero_hpz_partition_size", (0, 1)),
    ("zero_optimization.zero_quantized_weights", False),
    ("zero_optimization.zero_quantized_nontrainable_weights", False),
    ("zero_optimization.zero_quantized_gradients", False),
    ("zero_optimization.offload_optimizer.super_offload", False),
    ("zero_optimization.stage3_module_granularity_threshold", 0),
    ("torch_autocast.enabled", False),
    ("expert_parallel.enabled", False),
    ("tensor_parallel.autotp_size", (0, 1)),
    ("sequence_parallel_size", 1),
    ("hybrid_engine.enabled", False),
    ("compile.deepcompile", False),
    ("weight_quantization", None),
    ("pipeline", None),
    ("aio.use_gds", False),
    ("data_efficiency.enabled", False),
)


class Completion(NamedTuple):  # not a dataclass: those cost a millisecond each at import
    """`config` is complete; `notes` say how "auto" and old names were read; `not_modelled` which settings no estimate follows."""

    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    not_modelled: tuple[str, ...] = ()


def complete(
    recipe: TrainingRecipe, user_config: Mapping[str, Any] | None = None, *, world_size: int, hidden_size: int | None = None
) -> dict[str, Any]:
    """The complete configuration of `recipe` on `world_size` GPUs; see :func:`resolve`."""
    return resolve(recipe, user_config, world_size=world_size, hidden_size=hidden_size).config


def resolve(
    recipe: TrainingRecipe,
    user_config: Mapping[str, Any] | None = None,
    *,
    world_size: int,
    hidden_size: int | None = None,
    where: str = WHAT,
) -> Completion:
    """The complete configuration: the user's values, then the recipe's, then DeepSpeed 0.19.8's defaults.

    `hidden_size` (see :func:`hidden_size_of`) is needed only where the user's file leaves bucket sizes to "auto". Raises UserError,
    naming both sides, when the file contradicts itself or the recipe; `where` names the file in messages.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    user = checking.normalise(user_config or {}, problems, notes)
    if not problems:
        _resolve_autos(user, recipe, world_size, hidden_size, problems, notes)
        user.setdefault("gradient_clipping", recipe.gradient_clipping)
        zero = user.setdefault("zero_optimization", {})
        zero.setdefault("stage", recipe.zero_stage)
        if "offload_optimizer" not in zero and "offload_param" not in zero:
            _write_offload(zero, recipe, notes)
        checking.own_conflicts(user, problems, notes)
        if user_config:
            with_recipe(user, recipe, world_size, problems)
        within_recipe(user, recipe, problems)
        if recipe.optimizer == "adam-bf16":
            notes.append("adam-bf16 is an optimizer of the bundled trainer: no other loop can run this plan")
    raise_for(problems, where)
    config = _fill(user, recipe, world_size)
    check_batch(config, world_size, where)
    return Completion(config=config, notes=tuple(notes), not_modelled=_not_modelled(config))


def hidden_size_of(model: ModelSpec) -> int | None:
    """The width that Hugging Face's "auto" is computed from, or None when the configuration has none."""
    for key in _HIDDEN_SIZE_KEYS:
        value = model.config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _resolve_autos(
    config: dict[str, Any],
    recipe: TrainingRecipe,
    world_size: int,
    hidden_size: int | None,
    problems: list[Problem],
    notes: list[str],
) -> None:
    zero = config.get("zero_optimization", {})
    stage = whole_of(zero.get("stage"))
    stage = recipe.zero_stage if stage is None else stage
    values: dict[str, Any] = {
        "train_batch_size": recipe.micro_batch_size * recipe.grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.grad_accum_steps,
        "gradient_clipping": recipe.gradient_clipping,
        "bf16.enabled": recipe.precision == "bf16",
        "fp16.enabled": recipe.precision == "fp16",
        "zero_optimization.stage": stage,
        "zero_optimization.offload_optimizer.device": recipe.offload_device if recipe.offload != "none" else "none",
        "zero_optimization.offload_param.device": recipe.offload_device if recipe.offload == "params" else "none",
        **{f"optimizer.params.{key}": value for key, value in _OPTIMIZER_PARAMS.items()},
    }
    by_width = {"zero_optimization.reduce_bucket_size": "hidden_size²"}
    if stage == 3:
        by_width["zero_optimization.stage3_prefetch_bucket_size"] = "0.9·hidden_size²"
        by_width["zero_optimization.stage3_param_persistence_threshold"] = "10·hidden_size"
    if hidden_size is not None:
        values["zero_optimization.reduce_bucket_size"] = hidden_size * hidden_size
        if stage == 3:
            values["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden_size * hidden_size)
            values["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden_size
    params = config.get("optimizer", {}).get("params") or {}
    lr = definite(params.get("lr"))
    values["scheduler.params.warmup_min_lr"] = 0
    values["scheduler.params.warmup_max_lr"] = _OPTIMIZER_PARAMS["lr"] if lr is None else lr

    _drop_open_scheduler(config, notes)
    dropped: list[str] = []
    for path, parent, key in _autos(config, ""):
        if path in values:
            parent[key] = values[path]
            if path in by_width:
                notes.append(f'{path}: "auto" is {values[path]:,} ({by_width[path]}, as Hugging Face\'s integration writes it)')
            elif path.startswith(("optimizer.params.", "scheduler.params.")):
                notes.append(f'{path}: "auto" is {values[path]} (TrainingArguments\' default)')
        elif path in by_width:
            problems.append(Problem(path, '"auto" needs the model\'s hidden_size, which its configuration lacks', "write a number"))
        else:
            del parent[key]
            dropped.append(path)
    dropped = [path for path in dropped if not _is_native_auto(path)]
    if dropped:
        notes.append('"auto" that Hugging Face leaves alone is DeepSpeed\'s default: ' + ", ".join(dropped))


def _drop_open_scheduler(config: dict[str, Any], notes: list[str]) -> None:
    """A schedule whose length only the trainer knows cannot be written out; it has no part in memory or step time."""
    params = config.get("scheduler", {}).get("params")
    if isinstance(params, Mapping):
        unknown = [key for key in ("total_num_steps", "warmup_num_steps") if params.get(key) == AUTO]
        if unknown:
            del config["scheduler"]
            notes.append(f'scheduler left to the trainer: its {" and ".join(unknown)} ("auto") depend on the number of steps')


def _autos(node: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Every "auto" as (path, the dict or list it is in, its key there); of a list the last first, so that they can be deleted."""
    found: list[tuple[str, Any, Any]] = []
    if isinstance(node, dict):
        for key, value in node.items():
            found += [(f"{path}{key}", node, key)] if value == AUTO else _autos(value, f"{path}{key}.")
    elif isinstance(node, list):
        for i in reversed(range(len(node))):
            found += [(f"{path}{i}", node, i)] if node[i] == AUTO else _autos(node[i], f"{path}{i}.")
    return found


def _is_native_auto(path: str) -> bool:
    node: Any = TOP
    for key in path.split("."):
        if isinstance(node, Field):
            return node.kind in ("dict", "any")  # "auto" inside a section of DeepSpeed's that knows the word: its default
        node = node.get(key)
        if node is None:
            return False
    return isinstance(node, Field) and node.native_auto


def _write_offload(zero: dict[str, Any], recipe: TrainingRecipe, notes: list[str]) -> None:
    if recipe.offload == "none":
        return
    section: dict[str, Any] = {"device": recipe.offload_device}
    if recipe.offload_device == "nvme":
        section["nvme_path"] = _NVME_PATH
        notes.append(f"nvme_path is {_NVME_PATH}: change it to a folder on each node's fast disk")
    zero["offload_optimizer"] = dict(section)
    if recipe.offload == "params":
        zero["offload_param"] = dict(section)


def _fill(user: dict[str, Any], recipe: TrainingRecipe, world_size: int) -> dict[str, Any]:
    """`user`'s values with DeepSpeed's defaults around them."""
    config: dict[str, Any] = {
        "train_batch_size": recipe.micro_batch_size * recipe.grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.grad_accum_steps,
        "gradient_clipping": recipe.gradient_clipping,
        "communication_data_type": recipe.precision,
    }
    for name in _WRITTEN:
        field = TOP[name]
        assert isinstance(field, Field)
        config[name] = field.default
    zero: dict[str, Any] = user["zero_optimization"]
    if recipe.optimizer in UNTESTED and zero["stage"] != 0:
        config["zero_allow_untested_optimizer"] = True
    for name, spec in (("bf16", BF16), ("fp16", FP16)):
        given = user.get(name, {})
        config[name] = {**_defaults(spec), **given, "enabled": True} if recipe.precision == name else {**given, "enabled": False}
    if recipe.optimizer == "adam-bf16" and zero["stage"] != 0:
        config["bf16"].update(dict.fromkeys(BF16_STATES, True))  # DeepSpeed refuses them in stage 0
    config["data_types"] = {"grad_accum_dtype": recipe.precision, **_not_none(user.get("data_types", {}))}
    config["zero_optimization"] = _fill_zero(zero)
    if "nvme" in (offload_device(zero, "offload_optimizer"), offload_device(zero, "offload_param")):
        config["aio"] = {**_defaults(AIO), **user.get("aio", {})}
    for key, value in user.items():
        if value is not None and not isinstance(config.get(key), dict):
            config[key] = value
    return config


def _fill_zero(given: dict[str, Any]) -> dict[str, Any]:
    stage = int(given["stage"])
    filled: dict[str, Any] = {"stage": given["stage"]}
    for key, field in ZERO.items():
        if isinstance(field, Field) and field.default is not None and (stage == 3 or not field.stage3_only):
            filled.setdefault(key, field.default)
    filled.pop("stage3_gather_fp16_weights_on_model_save", None)  # the old name of its 16bit successor
    filled["overlap_comm"] = stage == 3
    for name, spec in (("offload_optimizer", OFFLOAD_OPTIMIZER), ("offload_param", OFFLOAD_PARAM)):
        if offload_device(given, name) != "none":
            given[name] = {**_defaults(spec), **given[name]}
    if stage == 3:
        leaf = {"classes": list(LEAF_MODULE_CLASSES), "names": [], "name_suffixes": []}
        given["leaf_module"] = {**leaf, **_not_none(given.get("leaf_module", {}))}
    return {**filled, **_not_none(given)}


def _defaults(spec: Section) -> dict[str, Any]:
    return {key: field.default for key, field in spec.items() if isinstance(field, Field) and field.default is not None}


def _not_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _not_modelled(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for path, harmless in _UNMODELLED:
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is not None and node != harmless and not (isinstance(harmless, tuple) and node in harmless):
            found.append(f"{path} ({node})" if isinstance(node, (int, str)) and not isinstance(node, bool) else path)
    return tuple(found)
