"""The complete DeepSpeed configuration of a recipe: nothing left to "auto", nothing left for a reader to look up.

The user's values stay as written. "auto" becomes what Hugging Face's integration would write (transformers 5.17.0
integrations/deepspeed.py, accelerate 1.15 accelerator.py), and where that writes nothing, DeepSpeed's own default, since
DeepSpeed reads "auto" in its sections as "not given".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn

from llmcheck.dsconfig import checking
from llmcheck.dsconfig.checking import AUTO, Problem, definite, offload_device
from llmcheck.dsconfig.fields import (
    ADAM_TYPES,
    AIO,
    BF16,
    DTYPES,
    FP16,
    LEAF_MODULE_CLASSES,
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    TOP,
    ZERO,
    Field,
    Section,
)
from llmcheck.dsconfig.reading import WHAT
from llmcheck.errors import UserError
from llmcheck.types import ModelSpec, Offload, Optimizer, Precision, TrainingRecipe

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
_BF16_STATES = ("bf16_master_weights_and_grads", "bf16_optimizer_states")
_UNTESTED = ("adam-8bit", "adam-bf16")  # neither bitsandbytes' Adam nor the trainer's is on DeepSpeed's list
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


class RecipeOverrides(NamedTuple):
    """What a user's configuration fixes of the recipe. None: it leaves that open."""

    zero_stage: int | None = None
    precision: Precision | None = None
    micro_batch_size: int | None = None
    grad_accum_steps: int | None = None
    global_batch_size: int | None = None
    offload: Offload | None = None
    offload_device: Literal["cpu", "nvme"] | None = None
    gradient_clipping: float | None = None
    optimizer: Optimizer | None = None


def recipe_overrides(config: Mapping[str, Any] | None, *, where: str = WHAT) -> RecipeOverrides:
    """What `config` fixes. Raises UserError when DeepSpeed 0.19.8 would not take it, or when it contradicts itself."""
    if not config:
        return RecipeOverrides()
    problems: list[Problem] = []
    found = checking.normalise(config, problems, [])
    if not problems:
        checking.own_conflicts(found, problems, [])
    _raise(problems, where)
    return _overrides(found)


def _overrides(config: Mapping[str, Any]) -> RecipeOverrides:
    zero = config.get("zero_optimization", {})
    stage = _whole(zero.get("stage"))
    mentioned = [definite(zero[name].get("device", "none")) for name in ("offload_optimizer", "offload_param") if name in zero]
    offload: Offload | None = None
    device: Literal["cpu", "nvme"] | None = None
    if mentioned and None not in mentioned:
        optimizer_device, param_device = offload_device(zero, "offload_optimizer"), offload_device(zero, "offload_param")
        offload = "params" if param_device != "none" else "optimizer" if optimizer_device != "none" else "none"
        if offload == "params" and stage is None:
            stage = 3  # nothing below it offloads parameters
        if offload != "none":
            device = "nvme" if "nvme" in (optimizer_device, param_device) else "cpu"
    clipping = definite(config.get("gradient_clipping"))
    return RecipeOverrides(
        zero_stage=stage,
        precision=_precision(config),
        micro_batch_size=_whole(config.get("train_micro_batch_size_per_gpu")),
        grad_accum_steps=_whole(config.get("gradient_accumulation_steps")),
        global_batch_size=_whole(config.get("train_batch_size")),
        offload=offload,
        offload_device=device,
        gradient_clipping=None if clipping is None else float(clipping),
        optimizer=_optimizer(config),
    )


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
            _recipe_conflicts(user, recipe, world_size, problems)
        _recipe_against_itself(user, recipe, problems)
        if recipe.optimizer == "adam-bf16":
            notes.append("adam-bf16 is an optimizer of the bundled trainer: no other loop can run this plan")
    _raise(problems, where)
    config = _fill(user, recipe, world_size)
    _check_batch(config, world_size, where)
    return Completion(config=config, notes=tuple(notes), not_modelled=_not_modelled(config))


def hidden_size_of(model: ModelSpec) -> int | None:
    """The width that Hugging Face's "auto" is computed from, or None when the configuration has none."""
    for key in _HIDDEN_SIZE_KEYS:
        value = model.config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


# --- "auto" ---------------------------------------------------------------------------------------------------------


def _resolve_autos(
    config: dict[str, Any],
    recipe: TrainingRecipe,
    world_size: int,
    hidden_size: int | None,
    problems: list[Problem],
    notes: list[str],
) -> None:
    zero = config.get("zero_optimization", {})
    stage = _whole(zero.get("stage"))
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


# --- conflicts with the recipe --------------------------------------------------------------------------------------


def _recipe_conflicts(config: Mapping[str, Any], recipe: TrainingRecipe, world_size: int, problems: list[Problem]) -> None:
    """The file against what the flags fixed (the planner has put into the recipe whatever the file fixes and no flag does)."""
    fixed = _overrides(config)
    micro, accum = recipe.micro_batch_size, recipe.grad_accum_steps
    rows: tuple[tuple[str, str, Any, Any], ...] = (
        ("zero_optimization.stage", "--zero", fixed.zero_stage, recipe.zero_stage),
        ("bf16.enabled, fp16.enabled", "--precision", fixed.precision, recipe.precision),
        ("train_micro_batch_size_per_gpu", "--micro-batch", fixed.micro_batch_size, micro),
        ("gradient_accumulation_steps", "--grad-accum", fixed.grad_accum_steps, accum),
        ("zero_optimization.offload_optimizer, offload_param", "--offload", fixed.offload, recipe.offload),
        ("gradient_clipping", "the recipe's gradient clipping", fixed.gradient_clipping, recipe.gradient_clipping),
        ("optimizer.type", "--optimizer", _built_optimizer(config), recipe.optimizer),
    )
    found = [
        Problem(path, f"says {theirs}, {flag} says {ours}", "change the one or the other")
        for path, flag, theirs, ours in rows
        if theirs is not None and theirs != ours
    ]
    if fixed.offload_device is not None and recipe.offload != "none" and fixed.offload_device != recipe.offload_device:
        found.append(Problem("zero_optimization.offload_*.device", f"says {fixed.offload_device}, the recipe says {recipe.offload_device}"))
    total = fixed.global_batch_size
    batch = {p.where for p in found} & {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    if total is not None and not batch and total != micro * accum * world_size:
        found.append(
            Problem(
                "train_batch_size",
                f"says {total}; micro-batch {micro} × accumulation {accum} × {world_size} GPUs is {micro * accum * world_size}",
                "leave train_batch_size out, or make the product right",
            )
        )
    bf16, fp16 = config.get("bf16", {}).get("enabled"), config.get("fp16", {}).get("enabled")
    if (recipe.precision == "bf16" and bf16 is False) or (recipe.precision == "fp16" and fp16 is False):
        found.append(Problem(f"{recipe.precision}.enabled", f"says false, --precision says {recipe.precision}"))
    problems += found


def _recipe_against_itself(config: Mapping[str, Any], recipe: TrainingRecipe, problems: list[Problem]) -> None:
    """Optimizer and offload, which DeepSpeed allows in few pairs (runtime/engine.py, _configure_optimizer)."""
    if problems:
        return
    zero = config["zero_optimization"]
    offloaded = offload_device(zero, "offload_optimizer") != "none"
    if offloaded and recipe.optimizer != "cpu-adam" and config.get("zero_force_ds_cpu_optimizer") is not False:
        problems.append(
            Problem(
                "zero_optimization.offload_optimizer",
                f"needs --optimizer cpu-adam, not {recipe.optimizer}",
                "choose cpu-adam, or set zero_force_ds_cpu_optimizer to false",
                "DeepSpeed refuses another optimizer for states in host memory",
            )
        )
    if recipe.optimizer == "cpu-adam" and not offloaded:
        problems.append(
            Problem("zero_optimization.offload_optimizer", "--optimizer cpu-adam needs it", "add --offload optimizer, or choose fused-adam")
        )
    if recipe.optimizer in _UNTESTED and zero["stage"] != 0 and config.get("zero_allow_untested_optimizer") is False:
        what = f"must be true for --optimizer {recipe.optimizer}, which DeepSpeed calls untested"
        problems.append(Problem("zero_allow_untested_optimizer", what, "leave it out"))
    if recipe.optimizer == "adam-bf16":
        _bf16_adam_conflicts(config, recipe, problems)
    dtypes = config.get("data_types", {})
    param_dtype, grad_dtype = _dtype(dtypes.get("param_dtype")), _dtype(dtypes.get("grad_accum_dtype"))
    if param_dtype not in (None, recipe.precision):
        problems.append(Problem("data_types.param_dtype", f"says {param_dtype}, the precision is {recipe.precision}"))
    if zero["stage"] == 0 and grad_dtype not in (None, recipe.precision):
        problems.append(
            Problem("data_types.grad_accum_dtype", f"must be {recipe.precision} in ZeRO stage 0, not {grad_dtype}", "use stage 1, 2 or 3")
        )
    if zero["stage"] == 1 and grad_dtype == "fp32" and recipe.precision == "bf16" and zero.get("compute_grad_norm") is False:
        problems.append(Problem("zero_optimization.compute_grad_norm", "false excludes stage 1 with data_types.grad_accum_dtype fp32"))


def _bf16_adam_conflicts(config: Mapping[str, Any], recipe: TrainingRecipe, problems: list[Problem]) -> None:
    """adam-bf16 keeps weights and moments in bf16 and no second copy: what the file says must allow that."""
    stage, bf16 = config["zero_optimization"]["stage"], config.get("bf16", {})
    if recipe.precision != "bf16":
        problems.append(Problem("bf16.enabled", f"--optimizer adam-bf16 works on bf16 weights, the precision is {recipe.precision}"))
    if stage == 0:
        return
    for key in _BF16_STATES:
        if bf16.get(key) is False:
            problems.append(Problem(f"bf16.{key}", "must be true for --optimizer adam-bf16", "leave it out"))
    if stage == 1 and _dtype(config.get("data_types", {}).get("grad_accum_dtype")) == "fp32":
        problems.append(
            Problem("data_types.grad_accum_dtype", "fp32 in stage 1 makes DeepSpeed keep fp32 masters", "leave it out, or use stage 2 or 3")
        )


def _check_batch(config: Mapping[str, Any], world_size: int, where: str) -> None:
    """The identity that DeepSpeed asserts; a user's numbers cannot break it here, a caller's can."""
    total, micro, accum = (int(config[k]) for k in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if total != micro * accum * world_size:
        what = f"train_batch_size {total} is not micro-batch {micro} × accumulation {accum} × {world_size} GPUs"
        _raise([Problem("train_batch_size", what)], where)


# --- writing --------------------------------------------------------------------------------------------------------


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
    if recipe.optimizer in _UNTESTED and zero["stage"] != 0:
        config["zero_allow_untested_optimizer"] = True
    for name, spec in (("bf16", BF16), ("fp16", FP16)):
        given = user.get(name, {})
        config[name] = {**_defaults(spec), **given, "enabled": True} if recipe.precision == name else {**given, "enabled": False}
    if recipe.optimizer == "adam-bf16" and zero["stage"] != 0:
        config["bf16"].update(dict.fromkeys(_BF16_STATES, True))  # DeepSpeed refuses them in stage 0
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


# --- small readings -------------------------------------------------------------------------------------------------


def _precision(config: Mapping[str, Any]) -> Precision | None:
    bf16, fp16 = config.get("bf16", {}).get("enabled"), config.get("fp16", {}).get("enabled")
    if bf16 is True:
        return "bf16"
    if fp16 is True:
        return "fp16"
    return "fp32" if bf16 is False and fp16 is False else None


def _optimizer(config: Mapping[str, Any]) -> Optimizer | None:
    section = config.get("optimizer", {})
    kind = definite(section.get("type"))
    if not isinstance(kind, str) or kind.lower() not in ADAM_TYPES:
        return None
    params = section.get("params")
    if isinstance(params, Mapping) and params.get("torch_adam") is True:
        return "adamw"
    zero = config.get("zero_optimization", {})
    if "offload_optimizer" not in zero and "offload_param" not in zero:
        return None  # FusedAdam on the GPU, DeepSpeedCPUAdam with offload: left to whoever decides the offload
    return "cpu-adam" if offload_device(zero, "offload_optimizer") != "none" else "fused-adam"


def _built_optimizer(config: Mapping[str, Any]) -> Optimizer | None:
    """What DeepSpeed builds from the file once the offload is decided."""
    zero = config.get("zero_optimization", {})
    return _optimizer({**config, "zero_optimization": {"offload_optimizer": {}, **zero}})


def _whole(value: Any) -> int | None:
    return None if value is None or value == AUTO else int(value)


def _dtype(value: Any) -> str | None:
    return None if value is None or value == AUTO else DTYPES[value]


def _not_modelled(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for path, harmless in _UNMODELLED:
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is not None and node != harmless and not (isinstance(harmless, tuple) and node in harmless):
            found.append(f"{path} ({node})" if isinstance(node, (int, str)) and not isinstance(node, bool) else path)
    return tuple(found)


_MEND = "mend that value, or leave it out"


def _raise(problems: list[Problem], where: str) -> None:
    if not problems:
        return
    if len(problems) == 1:
        (only,) = problems
        _fail(f"{WHAT}: {only.where}: {only.what}", where=where, why=only.why, hint=only.hint or _MEND)
    listed = "; ".join(f"{p.where}: {p.what}" + (f" ({p.hint})" if p.hint.startswith("did you mean") else "") for p in problems)
    _fail(f"{WHAT}: {len(problems)} problems", where=where, why=listed, hint=next((p.hint for p in problems if p.hint), _MEND))


def _fail(what: str, **parts: str) -> NoReturn:
    raise UserError(what, code="ds-config", **parts)
