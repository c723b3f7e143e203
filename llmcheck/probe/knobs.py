"""Facts about environment variables that change a run. Only names on the list are read: others may hold secrets."""

from __future__ import annotations

import os
import re

from llmcheck.probe.machine import Machine
from llmcheck.rules.facts import Facts, Location

MAX_VALUE_CHARS = 300
KNOBS = (
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "BNB_CUDA_VERSION", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "DS_BUILD_OPS", "DS_SKIP_CUDA_CHECK",
    "GLOO_SOCKET_IFNAME", "HF_DATASETS_OFFLINE", "HF_HUB_ENABLE_HF_TRANSFER", "HF_HUB_OFFLINE", "LOCAL_RANK", "MASTER_ADDR",
    "MASTER_PORT", "NCCL_ALGO", "NCCL_ASYNC_ERROR_HANDLING", "NCCL_BLOCKING_WAIT", "NCCL_BUFFSIZE", "NCCL_CUMEM_ENABLE", "NCCL_DEBUG",
    "NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX", "NCCL_IB_HCA", "NCCL_IB_TIMEOUT", "NCCL_LAUNCH_MODE", "NCCL_NET", "NCCL_NET_GDR_LEVEL",
    "NCCL_NVLS_ENABLE", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_PROTO", "NCCL_SHM_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_TIMEOUT",
    "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_PRETRAINED_BERT_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE", "RANK", "TOKENIZERS_PARALLELISM", "TORCHDYNAMO_DISABLE", "TORCH_CUDA_ARCH_LIST",
    "TORCH_DISTRIBUTED_DEBUG", "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT",
    "TORCH_SHOW_CPP_STACKTRACES", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_VERBOSITY", "WANDB_DISABLED",
    "WANDB_MODE", "WORLD_SIZE",
)  # fmt: skip
# NCCL also reads these, and lets the environment overrule them: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
NCCL_FILES = ("~/.nccl.conf", "/etc/nccl.conf")

# Keys that the allocator of any torch from 1.10 on knows; it refuses others with "Unrecognized key". Read in the strings of libc10.so and
# libc10_cuda.so of torch 2.11 and 2.13, and https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage
ALLOCATOR_KEYS = frozenset(
    {
        "backend", "expandable_segments", "garbage_collection_threshold", "graph_capture_record_stream_reuse", "large_segment_size_mb",
        "max_non_split_rounding_mb", "max_split_size_mb", "per_process_memory_fraction", "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb", "pinned_num_register_threads", "pinned_reserve_segment_size_mb", "pinned_use_background_threads",
        "pinned_use_cuda_host_register", "pinned_use_hip_host_register", "release_lock_on_cudamalloc", "release_lock_on_hipmalloc",
        "roundup_bypass_threshold_mb", "roundup_power2_divisions", "throw_on_cudamalloc_oom",
    }
)  # fmt: skip
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the first that is set counts

# Libraries that torch brings itself, by the beginning of their names: a folder of LD_LIBRARY_PATH is searched before torch's own
_BUNDLED = re.compile(r"lib(?:cudart|nccl|cublas|cublasLt|cudnn|nvrtc|nvJitLink|cusparse|cusolver|cufft)\.so")
_MAX_FOLDERS = 100


def variables(machine: Machine, result: Facts) -> None:
    """``env.*``: the values of the variables on the list, NCCL's files included."""
    result.close("env.")
    for path in reversed(NCCL_FILES):
        for number, line in enumerate((machine.read(_place(machine, path)) or "").splitlines()[:1000], 1):
            name, equals, value = line.partition("=")
            if equals and name.strip() in KNOBS and name.strip().startswith("NCCL_"):
                result.put(f"env.{name.strip()}", value.strip()[:MAX_VALUE_CHARS], Location(uri=path, line=number))
    for name in KNOBS:
        if name in machine.environ:
            result.put(f"env.{name}", machine.environ[name][:MAX_VALUE_CHARS])
    _allocator(machine, result)


def _place(machine: Machine, path: str) -> str:
    return machine.home(path[2:]) if path.startswith("~/") else path


def _allocator(machine: Machine, result: Facts) -> None:
    name = next((name for name in _ALLOCATOR_VARIABLES if machine.environ.get(name)), None)
    keys = allocator_keys(machine.environ[name]) if name else {}
    result.put("host.allocator_keys", list(keys) or None)
    result.put("host.allocator_keys_unknown", [key for key in keys if key not in ALLOCATOR_KEYS] or None)
    result.put("host.allocator_expandable", keys.get("expandable_segments", "").lower() == "true" if name else None)
    set_names = [name for name in _ALLOCATOR_VARIABLES if machine.environ.get(name)]
    values = {machine.environ[name] for name in set_names}
    result.put("host.allocator_variables_differ", set_names if len(values) > 1 else None)


def allocator_keys(setting: str) -> dict[str, str]:
    """``key:value,key:[a:b,c:d]`` as keys and values; the commas and colons in brackets belong to the value."""
    parts = re.split(r",(?![^\[]*\])", setting.replace(" ", ""))
    return {key: value for key, _, value in (part.partition(":") for part in parts) if key}


def libraries(machine: Machine, result: Facts) -> None:
    """What LD_LIBRARY_PATH puts before the libraries that torch brings."""
    found: list[str] = []
    stubs: list[str] = []
    for folder in machine.environ.get("LD_LIBRARY_PATH", "").split(":")[:_MAX_FOLDERS]:
        names = machine.listing(folder) if os.path.isabs(folder) else []
        first = next((name for name in names if _BUNDLED.match(name)), None)
        if first is not None:
            found.append(os.path.join(folder, first))
        if os.path.basename(folder.rstrip("/")) == "stubs" and any(name.startswith("libcuda.so") for name in names):
            stubs.append(folder)
    result.put("host.library_shadows", found or None)
    result.put("host.library_stubs", stubs or None)
    result.put("host.preload", machine.environ.get("LD_PRELOAD", "")[:MAX_VALUE_CHARS] or None)
