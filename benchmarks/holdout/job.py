"""One run of the harness: a plain loop over a stock model, as the rows of benchmarks/accuracy were measured.

peft and bitsandbytes are imported where a run wants them: bitsandbytes asks the GPU what it is, after which a process cannot fork.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Any

os.environ.update(PYTORCH_NVML_BASED_CUDA_CHECK="1", TOKENIZERS_PARALLELISM="false", DS_SKIP_CUDA_CHECK="1")

import deepspeed
import torch
import torch.distributed as dist
import transformers
import transformers.modeling_utils
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from benchmarks.accuracy.rows import deepspeed_config
from llmcheck.catalog.familydata import family_data

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WEIGHT_DEVIATION = 0.02  # the usual `initializer_range`
NUM_STEPS = 3

Mark = Callable[[str], None]


def device_used_bytes() -> int:
    """Memory in use on the GPU, of all processes."""
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def config_of(case: dict[str, Any]) -> Any:
    """The model's configuration as transformers has it."""
    fields = {key: value for key, value in case["config"].items() if key != "model_type"}
    config = AutoConfig.for_model(case["config"]["model_type"], **fields)
    config._attn_implementation = case["attn"]
    config.use_cache = False
    return config


def model_of(case: dict[str, Any], config: Any, ds: dict[str, Any], device: str, mark: Mark) -> Any:
    """The model with random weights, adapters and checkpointing; gradients only where it is trained."""
    dtype = DTYPES[case["dtype"]]
    if case["method"] == "qlora":
        model = _quantised(config, dtype, device, mark)
    else:
        # weights are filled below, faster
        transformers.modeling_utils.PreTrainedModel._initialize_weights = _leave
        transformers.modeling_utils.PreTrainedModel.initialize_weights = _leave
        torch.set_default_dtype(dtype)
        config.dtype = dtype
        with deepspeed.zero.Init(config_dict_or_path=ds) if case["zero"] == 3 else torch.device(device):
            model = AutoModelForCausalLM.from_config(config)
        torch.set_default_dtype(torch.float32)
        _fill(model)
    case["n_params"] = sum(_numel(p) for p in model.parameters())
    if case["method"] != "full":
        import peft

        adapters = peft.LoraConfig(
            r=case["lora_r"],
            lora_alpha=16,
            lora_dropout=case["lora_dropout"],
            target_modules=case["lora_targets"] or _all_linear(model, case["model"]),
            task_type="CAUSAL_LM",
        )
        if case["zero"] == 3:
            with deepspeed.zero.Init(config_dict_or_path=ds):
                model = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
        else:
            model = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
        for p in model.parameters():
            if p.requires_grad and p.dtype != dtype:
                p.data = p.data.to(dtype)
    if case["ckpt"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if case["method"] != "full":
            model.enable_input_require_grads()
    model.train()
    return model


def _leave(*_args: Any, **_kwargs: Any) -> None:
    """What initialises nothing."""


def _numel(p: Any) -> int:
    if type(p).__name__ == "Params4bit" and p.quant_state is not None:
        return int(torch.Size(p.quant_state.shape).numel())
    return int(getattr(p, "ds_numel", p.numel()))


def _fill(model: Any) -> None:
    """Random numbers in place: memory as it comes may hold NaN, with which a step is skipped and experts are not chosen."""
    with torch.no_grad():
        for p in model.parameters():
            part = getattr(p, "ds_tensor", p)
            if part.numel():
                part.normal_(0.0, WEIGHT_DEVIATION)


def _all_linear(model: Any, family: str) -> list[str]:
    """The linear layers of the blocks that peft can adapt by name, as the catalogue has them: a name that fused experts bear is not one."""
    data = family_data(family)
    assert data is not None, family
    found = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    return sorted(found & set(data.linear_targets))


def _quantised(config: Any, dtype: torch.dtype, device: str, mark: Mark) -> Any:
    """NF4 with double quantisation, each layer packed as soon as its weight is on the device."""
    import peft

    # transformers would reserve the unpacked size in one block first: a matter of loading speed
    transformers.modeling_utils.caching_allocator_warmup = lambda *_args, **_kwargs: None
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    empty.tie_weights()
    # a checkpoint holds a tied weight once, under its first name; each weight is one random line, seen as often as the shape has lines
    tensors = empty.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    made_up = {
        name: torch.randn(tensors[name].shape[-1:], dtype=dtype).mul_(WEIGHT_DEVIATION).expand(tensors[name].shape)
        for name in reversed(first.values())
    }
    model = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=made_up,
        dtype=dtype,
        device_map={"": 0 if device == "cuda" else "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    )
    mark("quantised")
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    mark("kbit")
    return model


def optimizer_of(name: str, params: list[Any], device: str) -> Any:
    """The optimizer that a row names; on a CPU (for tests) torch's."""
    if device == "cpu" or name == "torch":
        return torch.optim.AdamW(params, lr=1e-5, fused=device == "cuda")
    if name == "adam8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(params, lr=1e-5)
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(params, lr=1e-5, betas=(0.9, 0.95))


def run(case: dict[str, Any], *, alone: bool, device: str = "cuda") -> dict[str, Any]:
    """Measure `case` in this process, which must be fresh. `alone`: nothing else runs on the GPU, so the driver's figure is this run's."""
    began = time.monotonic()
    cuda = device == "cuda"
    case = dict(case)
    phases: dict[str, dict[str, int]] = {}

    def mark(name: str) -> None:
        if not cuda:
            phases[name] = {}
            return
        torch.cuda.synchronize()
        phases[name] = {
            "alloc": torch.cuda.memory_allocated(),
            "peak": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
        }
        torch.cuda.reset_peak_memory_stats()

    before = context = 0
    if cuda:
        before = device_used_bytes()
        if case.get("alloc_conf"):
            torch.cuda.memory._set_allocator_settings(case["alloc_conf"])
        torch.cuda.set_device(0)
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        context = device_used_bytes() - before
    _join(case["world"], cuda)
    torch.manual_seed(0)
    config = config_of(case)
    ds = {**deepspeed_config(case), "steps_per_print": 10**9}
    if case["optimizer"] == "adam8bit":
        ds["zero_allow_untested_optimizer"] = True
    model = model_of(case, config, ds, device, mark)
    case["attn_seen"] = model.config._attn_implementation
    params = [p for p in model.parameters() if p.requires_grad]
    n_train = sum(_numel(p) for p in params)
    mark("model")
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(case["optimizer"], params, device), config=ds)
    mark("init")
    times = []
    for step in range(NUM_STEPS):
        start = time.monotonic()
        _step(engine, case, config, device, mark, step)
        times.append(time.monotonic() - start)
    out = {
        **case,
        "n_train": n_train,
        "skipped": getattr(engine, "skipped_steps", None),
        "loss_finite": bool(torch.isfinite(torch.as_tensor(engine.last_loss)).all()),
        "phases": phases,
        "step_s": round(min(times[1:]), 4),
        "rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "wall_s": round(time.monotonic() - began, 1),
    }
    if not cuda:
        return out
    training = [p["peak"] for name, p in phases.items() if name[:3] in ("fwd", "bwd", "ste")]
    out |= {
        "peak_alloc_train": max(training),
        "peak_alloc_init": max(phases["model"]["peak"], phases["init"]["peak"]),
        "peak_reserved": max(p["peak_reserved"] for p in phases.values()),
        "num_alloc_retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
        "gpu": torch.cuda.get_device_name(),
    }
    if alone:
        out |= {
            "nvml_proc": device_used_bytes() - before,
            "ctx_nvml": context,
            "nvml_before": before,
            "reserved_at_end": torch.cuda.memory_reserved(),
        }
    return out


def _step(engine: Any, case: dict[str, Any], config: Any, device: str, mark: Mark, step: int) -> None:
    for micro in range(case["accum"]):
        ids = torch.randint(0, config.get_text_config().vocab_size, (case["mbs"], case["seq"]), device=device)
        out = engine(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
        loss = out.loss
        if micro == 0:
            mark(f"fwd{step}")
        engine.backward(loss)
        if micro == case["accum"] - 1:
            mark(f"bwd{step}")
            engine.last_loss = float(loss)
        del out, loss
        engine.step()
    mark(f"step{step}")


def _join(world: int, cuda: bool) -> None:
    """Rank 0 of `world` ranks that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="29512")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False)


def prepare() -> None:
    """Compile FusedAdam, which the runs then find ready."""
    from deepspeed.ops.op_builder import FusedAdamBuilder

    FusedAdamBuilder().load()
