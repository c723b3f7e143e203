"""Record every allocation and free of one training micro-step of a transformers model, without a GPU.

The model runs on the "oracle" device of oracle_device.cpp.  See README.md for what is and is not recorded.

    python record.py run CASE.json [-o OUT.json.gz]      one case (a JSON object, see `run_case`)
    python record.py golden [NAME ...]                   all cases of entries of families.json into tests/golden/oracle/
    python record.py cuda [NAME ...]                     on a machine with an NVIDIA GPU: the same cases there, compared with the goldens
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
import time
import traceback
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # cases are forked: the parent must not start CUDA

import torch
import torch.utils.checkpoint

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "tests" / "golden" / "oracle"
SDPA = {"math": 0, "cudnn": 3}
PHASES = ("model", "forward", "backward", "end", "gc")  # end: `del out, loss`; gc: what only the cycle collector frees


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
        [
            "g++",
            "-O1",
            "-std=c++20",
            "-shared",
            "-fPIC",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
            f"-I{torch_dir}/include",
            f"-I{torch_dir}/include/torch/csrc/api/include",
            f"-I{sysconfig.get_paths()['include']}",
            str(source),
            f"-L{torch_dir}/lib",
            "-lc10",
            "-ltorch_cpu",
            "-ltorch",
            f"-Wl,-rpath,{torch_dir}/lib",
            "-o",
            str(partial),
        ],
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
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda _seed: None,
        "manual_seed": lambda _seed: None,
        "get_rng_state": lambda _device=0: state,
        "set_rng_state": lambda _state, _device=0: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "synchronize": lambda _device=None: None,
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda: True,
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
    "falcon": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gptj": ["k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "fc_out"],
    "codegen": ["qkv_proj", "out_proj", "fc_in", "fc_out"],
    "mpt": ["Wqkv", "out_proj", "up_proj", "down_proj"],
    "gpt_bigcode": ["c_attn", "c_proj", "c_fc"],
    "gpt_neo": ["k_proj", "v_proj", "q_proj", "out_proj", "c_fc", "c_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class OracleRecorder:
    """Events of the oracle device."""

    device = "oracle"

    def __init__(self, case: dict[str, Any]) -> None:
        self.lib = start_device()
        self.lib.oracle_sdpa(SDPA[case["sdpa"]])
        self.lib.oracle_compute_limit(case["compute_limit"])

    def phase(self, phase: int) -> None:
        """Events from here on belong to `phase`; -1: they are not recorded."""
        if phase >= 0:
            self.lib.oracle_phase(phase)
        self.lib.oracle_record(int(phase >= 0))

    def events(self) -> list[list[Any]]:
        with tempfile.NamedTemporaryFile("r") as f:
            if self.lib.oracle_dump(f.name.encode()):
                raise OSError(f"cannot write {f.name}")
            lines = [line.rstrip("\n").split("\t") for line in f]
        tags = [line[1] for line in lines if line[0] == "T"]
        return [[int(line[1]), int(line[2]), tags[int(line[3])]] for line in lines if line[0] == "E"]


class CudaRecorder:
    """Events of a real GPU's caching allocator, to check goldens where there is one."""

    device = "cuda"

    def __init__(self, _case: dict[str, Any]) -> None:
        # Both threads' cuBLAS and cuBLASLt workspaces, outside the record: the backward pass runs the biased product again.
        layer = torch.nn.Linear(64, 64, device="cuda", dtype=torch.bfloat16)
        x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        (torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) @ x).sum().backward()
        torch.cuda.memory._record_memory_history(enabled="all", context="alloc", stacks="python", max_entries=2_000_000)
        self.marks: list[tuple[int, int]] = []

    def phase(self, phase: int) -> None:
        torch.cuda.synchronize()
        time.sleep(0.001)  # the allocator's clock counts microseconds: keep marks and events apart
        self.marks.append((int(time.time() * 1e6), phase))
        time.sleep(0.001)

    def events(self) -> list[list[Any]]:
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        torch.cuda.memory._record_memory_history(enabled=None)
        out: list[list[Any]] = []
        for e in trace:
            phase = next((p for t, p in reversed(self.marks) if t <= e["time_us"]), -1)
            if phase < 0 or e["action"] not in ("alloc", "free_requested"):
                continue
            frames = [f"{f['filename'].rsplit('/', 1)[-1]}:{f['line']}" for f in e.get("frames", []) if "/torch/" not in f["filename"]]
            out.append([phase, e["size"] if e["action"] == "alloc" else -e["size"], " < ".join(frames[:3])])
        return out


def run_case(case: dict[str, Any], recorder_class: type[OracleRecorder] | type[CudaRecorder] = OracleRecorder) -> dict[str, Any]:
    """Events and parameters of one case (in a fresh process: a device can be started once).

    Keys: family, config, batch, seq, attention (eager|sdpa), sdpa (cudnn|math), checkpointing, method (full|lora), lora_r, lora_targets,
    train_embeddings (in-place|modules-to-save), grads (keep|drop), dtype (bf16|fp16|fp32), compute_limit (elements above which an
    operator is not computed).
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    c: dict[str, Any] = {
        "batch": 2,
        "seq": 48,
        "attention": "sdpa",
        "sdpa": "cudnn",
        "checkpointing": False,
        "method": "full",
        "lora_r": 5,
        "train_embeddings": None,
        "grads": "drop",
        "dtype": "bf16",
        "compute_limit": 2**62,
        **case,
    }
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    recorder = recorder_class(c)
    device = recorder.device
    cfg = AutoConfig.for_model(c["family"], **c["config"])
    cfg._attn_implementation = c["attention"]
    cfg.use_cache = False
    # As the ground-truth harness: no initialisation (values are put in below, outside the record).
    for name in ("_initialize_weights", "initialize_weights"):
        setattr(transformers.modeling_utils.PreTrainedModel, name, lambda *_args, **_kwargs: None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[c["dtype"]]
    gc.collect()
    gc.disable()
    recorder.phase(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(cfg)
    torch.set_default_dtype(torch.float32)
    if c["method"] == "lora":
        import peft

        targets = c.get("lora_targets", LORA_TARGETS.get(c["family"], LLAMA_TARGETS))
        lora = peft.LoraConfig(r=c["lora_r"], lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
        if c["train_embeddings"] == "modules-to-save":
            heads = (model.get_input_embeddings(), model.get_output_embeddings())
            lora.modules_to_save = [name.rsplit(".", 1)[-1] for name, m in model.named_modules(remove_duplicate=False) if m in heads]
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
        for p in model.parameters():
            if p.requires_grad and p.dtype != dtype:
                p.data = p.data.to(dtype)
        if c["train_embeddings"] == "in-place":
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(True)
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
    recorder.phase(-1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if p.dim() == 1 and name.endswith("weight") else p.normal_(0, 0.02)
    gc.collect()
    recorder.phase(1)
    ids = torch.randint(0, cfg.vocab_size, (c["batch"], c["seq"]), device=device)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    loss = out.loss
    recorder.phase(2)
    loss.backward()
    recorder.phase(-1)
    value = float(loss.detach().cpu())
    recorder.phase(3)
    del out, loss
    recorder.phase(4)
    gc.collect()
    recorder.phase(-1)
    gc.enable()
    params = [[n, list(p.shape)] for n, p in model.named_parameters()]
    return {
        "family": c["family"],
        "config": c["config"],
        "case": {k: v for k, v in c.items() if k not in ("family", "config")},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "loss": round(value, 4),
        "events": recorder.events(),
        "params": params,
        "num_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def cases_of(name: str) -> dict[str, dict[str, Any]]:
    """The golden cases of one entry of families.json: {"full-ckpt-sdpa-drop": case, ...}."""
    entry = json.loads((HERE / "families.json").read_text())[name]
    out = {}
    for method in entry.get("methods", ("full", "lora") if entry.get("lora") else ("full",)):
        for checkpointing in (True, False):
            for attention in entry.get("attention", ["sdpa", "eager"]):
                for grads in ("drop", "keep") if method == "full" else ("drop",):
                    key = f"{method}-{'ckpt' if checkpointing else 'plain'}-{attention}-{grads}"
                    out[key] = {
                        "family": entry["family"],
                        "config": entry["config"],
                        "batch": 2,
                        "seq": 40,
                        "method": method,
                        "grads": grads,
                        "attention": attention,
                        "checkpointing": checkpointing,
                    }
                    if attention == "sdpa" and "sdpa" in entry:
                        out[key]["sdpa"] = entry["sdpa"]
                    if method == "lora" and "lora_targets" in entry:
                        out[key]["lora_targets"] = entry["lora_targets"]
                    if "train_embeddings" in entry:
                        out[key]["train_embeddings"] = entry["train_embeddings"]
    return out


def in_child(case: dict[str, Any], recorder_class: type[OracleRecorder] | type[CudaRecorder] = OracleRecorder) -> dict[str, Any]:
    """`run_case` in a forked process, so that no case sees what another one cached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        pid = os.fork()
        if pid == 0:
            try:
                path.write_text(json.dumps(run_case(case, recorder_class)))
            except BaseException as error:  # the parent reports it
                path.write_text(json.dumps({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}))
            os._exit(0)
        os.waitpid(pid, 0)
        result: dict[str, Any] = json.loads(path.read_text())
        return result


def golden(name: str) -> str:
    """Record every case of one family into its golden file; a one-line summary."""
    tags: dict[str, int] = {}
    data: dict[str, Any] = {"cases": {}}
    summary = []
    for key, case in cases_of(name).items():
        result = in_child(case)
        if "error" in result:
            summary.append(f"{key} FAILED {result['error'][:200]}")
            print(result["trace"], file=sys.stderr)
            continue
        events = result.pop("events")
        packed = {
            "phases": [sum(e[0] == k for e in events) for k in range(len(PHASES))],
            "bytes": [e[1] for e in events],
            "tags": [tags.setdefault(e[2], len(tags)) for e in events],
        }
        if "params" not in data:
            data.update({k: result[k] for k in ("family", "config", "versions", "params")})
        data["cases"][key] = {k: result[k] for k in ("case", "loss", "num_trainable")} | {"events": packed}
        if result["params"] != data["params"]:  # LoRA has others
            data["cases"][key]["params"] = result["params"]
        summary.append(f"{key} {len(events)}")
    data["tags"] = list(tags)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / f"{name}.json.gz"
    raw = json.dumps(data, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(raw, 9, mtime=0))
    return f"{name}: {path.stat().st_size} bytes; " + ", ".join(summary)


def check_cuda(name: str, min_bytes: int) -> bool:
    """Run the golden cases of one family on a real GPU and compare with the committed lists; True if all agree."""
    import compare

    good = True
    for key, case in cases_of(name).items():
        result = in_child(case, CudaRecorder)
        if "error" in result:
            print(f"{name} {key}: FAILED {result['error'][:300]}", flush=True)
            good = False
            continue
        expected = compare.load(GOLDEN / f"{name}.json.gz", key)["events"]
        same = compare.compare(expected, result["events"], min_bytes=min_bytes, ignore_transients=True)
        good &= same.equal
        print(f"{name} {key}: {'equal' if same.equal else same.report(2, 2)}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run")
    one.add_argument("case")
    one.add_argument("-o", "--output")
    many = sub.add_parser("golden")
    many.add_argument("names", nargs="*", help="entries of families.json; none: all")
    cuda = sub.add_parser("cuda")
    cuda.add_argument("names", nargs="*", help="entries of families.json; none: all")
    cuda.add_argument("--min-bytes", type=int, default=700)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "run":
        result = run_case(json.loads(args.case if args.case.lstrip().startswith("{") else Path(args.case).read_text()))
        if args.output:
            with gzip.open(args.output, "wt") as f:
                json.dump(result, f, separators=(",", ":"))
        else:
            for phase, num_bytes, tag in result["events"]:
                print(f"{phase} {num_bytes:+12d}  {tag}")
        return 0
    # imported once, before the forks
    import transformers.masking_utils  # noqa: F401

    if args.command == "golden":
        build()
        import peft  # noqa: F401
    names = args.names or list(json.loads((HERE / "families.json").read_text()))
    if args.command == "cuda":
        results = [check_cuda(name, args.min_bytes) for name in names]
        return 0 if all(results) else 1
    for name in names:
        print(golden(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
