"""Record every allocation and free of one training micro-step of a transformers model, without a GPU.

The model runs on the "oracle" device of oracle_device.cpp.  See README.md for what is and is not recorded.

    python record.py run CASE.json [-o OUT.json.gz]      one case (a JSON object, see `run_case`)
    python record.py golden [FAMILY ...]                 all cases of the families (families.json) into tests/golden/oracle/
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import gzip
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "tests" / "golden" / "oracle"
SDPA = {"math": 0, "cudnn": 3}
PHASES = ("model", "forward", "backward", "end", "gc")  # end: `del out, loss`; gc: what only the cycle collector frees

import torch  # noqa: E402


def build() -> Path:
    """Compile oracle_device.cpp if the source or torch changed; the shared library's path."""
    root = Path(os.environ.get("ORACLE_BUILD", Path(tempfile.gettempdir()) / "llmcheck-oracle"))
    source = HERE / "oracle_device.cpp"
    torch_dir = Path(torch.__file__).parent
    lib = root / f"oracle_device-{torch.__version__}-{sysconfig.get_config_var('SOABI')}.so"
    if lib.exists() and lib.stat().st_mtime >= source.stat().st_mtime:
        return lib
    root.mkdir(parents=True, exist_ok=True)
    partial = lib.with_suffix(f".{os.getpid()}")
    subprocess.run(
        ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
         f"-I{torch_dir}/include", f"-I{torch_dir}/include/torch/csrc/api/include", f"-I{sysconfig.get_paths()['include']}",
         str(source), f"-L{torch_dir}/lib", "-lc10", "-ltorch_cpu", "-ltorch", f"-Wl,-rpath,{torch_dir}/lib", "-o", str(partial)],
        check=True,
    )
    partial.replace(lib)
    return lib


def start_device() -> ctypes.CDLL:
    """Load the device, name it "oracle" and give torch the device module that checkpointing and autocast ask for."""
    lib = ctypes.CDLL(str(build()))
    lib.oracle_compute_limit.argtypes = [ctypes.c_int64]
    lib.oracle_dump.argtypes = [ctypes.c_char_p]
    torch.utils.rename_privateuse1_backend("oracle")
    module = types.ModuleType("torch.oracle")
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda _device: None,
        "is_initialized": lambda: True, "_is_in_bad_fork": lambda: False, "manual_seed_all": lambda _seed: None,
        "manual_seed": lambda _seed: None, "get_rng_state": lambda _device=0: state, "set_rng_state": lambda _state, _device=0: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16], "synchronize": lambda _device=None: None,
        "_lazy_init": lambda: None, "is_bf16_supported": lambda: True,
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    class device:  # noqa: N801 - torch.<backend>.device is the context manager's name
        def __init__(self, index: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *exc: object) -> None: ...
    module.device = device  # type: ignore[attr-defined]
    torch._register_device_module("oracle", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    lib.oracle_setup()
    return lib


LORA_TARGETS = {
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run_case(lib: ctypes.CDLL, case: dict[str, Any]) -> dict[str, Any]:
    """Events and parameters of one case.

    Keys: family, config, batch, seq, attention (eager|sdpa), sdpa (cudnn|math), checkpointing, method (full|lora), lora_r,
    grads (keep|drop), dtype (bf16|fp16), compute_limit (elements above which an operator is not computed), steps.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    c: dict[str, Any] = dict(batch=2, seq=48, attention="sdpa", sdpa="cudnn", checkpointing=False, method="full", lora_r=5,
                             grads="drop", dtype="bf16", compute_limit=2**62, steps=1)
    c.update(case)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    lib.oracle_clear()
    lib.oracle_sdpa(SDPA[c["sdpa"]])
    lib.oracle_compute_limit(c["compute_limit"])
    cfg = AutoConfig.for_model(c["family"], **c["config"])
    cfg._attn_implementation = c["attention"]
    cfg.use_cache = False
    gc.collect()
    gc.disable()
    # As the ground-truth harness: no initialisation (values are put in below, outside the record).
    for name in ("_initialize_weights", "initialize_weights"):
        setattr(transformers.modeling_utils.PreTrainedModel, name, lambda self, *args, **kwargs: None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[c["dtype"]]
    lib.oracle_phase(0)
    lib.oracle_record(1)
    torch.set_default_dtype(dtype)
    with torch.device("oracle"):
        model = AutoModelForCausalLM.from_config(cfg)
    torch.set_default_dtype(torch.float32)
    if c["method"] == "lora":
        import peft

        targets = LORA_TARGETS.get(c["family"], LLAMA_TARGETS)
        lora = peft.LoraConfig(r=c["lora_r"], lora_alpha=16, lora_dropout=0.05, target_modules=c.get("lora_targets", targets),
                               task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
        for p in model.parameters():
            if p.requires_grad and p.dtype != dtype:
                p.data = p.data.to(dtype)
    if c["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if c["method"] == "lora":
            model.enable_input_require_grads()
    model.train()
    if c["grads"] == "drop":
        def drop(p: torch.Tensor) -> None:
            p.grad = None
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(drop)
    lib.oracle_record(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if p.dim() == 1 and name.endswith("weight") else p.normal_(0, 0.02)
    lib.oracle_record(1)
    losses = []
    for _step in range(c["steps"]):
        gc.collect()
        lib.oracle_phase(1)
        ids = torch.randint(0, cfg.vocab_size, (c["batch"], c["seq"]), device="oracle")
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
        loss = out.loss
        lib.oracle_phase(2)
        loss.backward()
        lib.oracle_phase(3)
        lib.oracle_record(0)
        losses.append(float(loss.detach().cpu()))
        lib.oracle_record(1)
        del out, loss
        lib.oracle_phase(4)
        gc.collect()
    lib.oracle_record(0)
    gc.enable()
    with tempfile.NamedTemporaryFile("r") as f:
        if lib.oracle_dump(f.name.encode()):
            raise OSError(f"cannot write {f.name}")
        lines = [line.rstrip("\n").split("\t") for line in open(f.name)]
    tags = [line[1] for line in lines if line[0] == "T"]
    events = [[int(a), int(b), tags[int(t)]] for kind, a, b, t in (x for x in lines if x[0] == "E")]
    params = [[n, list(p.shape)] for n, p in model.named_parameters()]
    return {"family": c["family"], "config": c["config"], "case": {k: v for k, v in c.items() if k not in ("family", "config")},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "losses": losses, "events": events, "params": params}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run")
    one.add_argument("case")
    one.add_argument("-o", "--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lib = start_device()
    if args.command == "run":
        text = args.case if args.case.lstrip().startswith("{") else Path(args.case).read_text()
        result = run_case(lib, json.loads(text))
        if args.output:
            with gzip.open(args.output, "wt") as f:
                json.dump(result, f, separators=(",", ":"))
        else:
            for phase, num_bytes, tag in result["events"]:
                print(f"{phase} {num_bytes:+12d}  {tag}")


if __name__ == "__main__":
    main()
