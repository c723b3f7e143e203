"""What is measured: shapes, plans, and the trainers beside them. Each case is one process."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One measurement. `plan`: options of `llmcheck plan`; `trainer`: what trains. Cases of one `group` are compared."""

    name: str
    group: str
    model: str
    seq_len: int
    micro_batch: int
    plan: tuple[str, ...] = ()
    trainer: str = "llmcheck"  # or trl
    trl: dict[str, object] = field(default_factory=dict)  # SFTConfig's fields, and `weights` (bf16 or fp32), `lora`
    grad_accum: int = 1
    rows: str = "full"  # every row as long as a sequence; or short: log-normal, as instruction data is
    packing: str = "off"  # of TRL; ours is the plan's
    steps: int = 20  # measured, after WARM
    profile: bool = False
    env: dict[str, str] = field(default_factory=dict)


WARM = 4  # steps before the measured ones: Adam's states, the allocator's segments, the compilation of kernels

OFF = ("--checkpointing", "off")
FULL = ("--method", "full", *OFF)
LORA = ("--method", "lora", "--lora-rank", "16", "--lora-targets", "all-linear", "--lora-dropout", "0", *OFF)
LIGER, CHUNKED = ("--loss", "liger"), ("--loss", "chunked")
CHECKPOINTED = ("--method", "full", "--checkpointing", "on")
ADAM8, ADAM_BF16 = ("--optimizer", "adam-8bit"), ("--optimizer", "adam-bf16")
PACKED = ("--packing", "on")
STOCK = ("--attention", "eager", "--loss", "hf")
TRL_BEST: dict[str, object] = {"gradient_checkpointing": False, "use_liger_kernel": True}
ADAPTERS = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.0}

_L1, _L1S, _Q15, _L8 = ("llama-3.2-1b", 4096, 8), ("llama-3.2-1b", 4096, 2), ("qwen2.5-1.5b", 2048, 8), ("llama-3.1-8b", 4096, 2)
_B1, _B3 = ("bloomz-1b1", 1024, 8), ("bloomz-3b", 1024, 5)


def _case(name: str, group: str, shape: tuple[str, int, int], **more: object) -> Case:
    model, seq_len, micro = shape
    return Case(name=name, group=group, model=model, seq_len=seq_len, micro_batch=micro, **more)  # type: ignore[arg-type]


# In order of importance: where time runs out, the last are left out.
CASES = (
    _case("trl-llama1b-default", "llama1b", _L1, plan=FULL, trainer="trl"),
    _case("llama1b-bf16-checkpointing", "llama1b", _L1, plan=(*CHECKPOINTED, *LIGER, *ADAM_BF16)),
    _case("trl-llama1b-best", "llama1b", _L1, plan=FULL, trainer="trl", trl=TRL_BEST),
    _case("llama1b-bf16", "llama1b", _L1, plan=FULL + LIGER + ADAM_BF16),
    _case("lora8b-liger", "lora8b", _L8, plan=LORA + LIGER, grad_accum=2),
    _case("trl-lora8b-best", "lora8b", _L8, plan=LORA, trainer="trl", grad_accum=2, trl={**TRL_BEST, "lora": ADAPTERS}),
    _case("bloom1b1", "bloom1b1", _B1, plan=FULL + CHUNKED),
    _case("bloom1b1-stock", "bloom1b1", _B1, plan=FULL + STOCK),
    _case("bloom3b-bf16", "bloom3b", _B3, plan=FULL + CHUNKED + ADAM_BF16),
    _case("bloom3b-bf16-stock", "bloom3b", _B3, plan=FULL + STOCK + ADAM_BF16),
    _case("short-llama1b-bf16", "short", _L1, plan=FULL + LIGER + ADAM_BF16 + PACKED, rows="short"),
    _case("short-trl-llama1b", "short", _L1S, plan=FULL, trainer="trl", grad_accum=4, rows="short", packing="on", trl=TRL_BEST),
    _case("short-llama1b-bf16-small", "short", _L1S, plan=FULL + LIGER + ADAM_BF16 + PACKED, grad_accum=4, rows="short"),
    _case("qwen1.5b-liger", "qwen1.5b", _Q15, plan=FULL + LIGER),
    _case("llama1b-liger", "llama1b", _L1, plan=FULL + LIGER),
    _case("trl-llama1b-fp32", "llama1b", _L1, plan=FULL, trainer="trl", trl={**TRL_BEST, "weights": "fp32"}),
    _case("llama1b-bf16-chunked", "llama1b", _L1, plan=FULL + CHUNKED + ADAM_BF16),
    _case("llama1b-bf16-zero2", "llama1b", _L1, plan=(*FULL, *LIGER, *ADAM_BF16, "--zero", "2")),
    _case("lora8b-chunked", "lora8b", _L8, plan=LORA + CHUNKED, grad_accum=2),
    _case("qwen1.5b-chunked", "qwen1.5b", _Q15, plan=FULL + CHUNKED),
    _case("llama1b-adam8", "llama1b", _L1, plan=FULL + LIGER + ADAM8),
    _case("llama1b-checkpointing", "llama1b", _L1, plan=CHECKPOINTED + LIGER),
    _case("llama1b-zero0", "llama1b", _L1, plan=(*FULL, *LIGER, "--zero", "0")),
)
