"""The values that modules hand to each other. Bytes, seconds and FLOPs inside; GiB only in `render`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Method = Literal["full", "lora", "qlora"]
TrainEmbeddings = Literal["in-place", "modules-to-save"]
Precision = Literal["bf16", "fp16", "fp32"]
Offload = Literal["none", "optimizer", "params"]
Attention = Literal["eager", "sdpa", "flash"]
Loss = Literal["hf", "chunked", "liger"]
Optimizer = Literal["fused-adam", "adamw", "cpu-adam", "adam-8bit", "adam-bf16"]
AllocatorKind = Literal["expandable", "native"]
Verdict = Literal["fits", "tight", "does-not-fit"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One causal language model: its shape as the Hugging Face configuration gives it.

    `config` holds every field that the family's layer needs, defaults of the family's configuration class filled in
    (so nothing downstream asks "is it there?"). `num_params` is counted from the shape, exactly.
    """

    name: str
    family: str  # transformers' model_type: "llama", "bloom", ...
    config: Mapping[str, Any]
    source: str  # where the shape comes from: URL, or the path the user gave
    num_params: int
    hub_id: str | None = None
    family_known: bool = True  # False: the layer is not modelled, the estimate is a conservative stand-in
    notes: tuple[str, ...] = ()  # e.g. "safetensors headers agree: 291 tensors, 6,738,415,616 parameters"


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One GPU model. Rates are dense (no sparsity), per GPU, one direction for links."""

    name: str
    title: str
    source: str
    memory_bytes: int  # what torch reports as total_memory
    compute_capability: tuple[int, int]  # (0, 0) for AMD
    num_sms: int
    bf16_flops_per_s: float  # 0 where the GPU has no bf16 matrix units
    fp16_flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float  # NVLink / Infinity Fabric per direction, 0: none (PCIe is used)
    pcie_bytes_per_s: float  # per direction
    context_bytes: int  # CUDA context of one process, before any library is loaded
    context_evidence: Literal["measured", "published", "assumed"] = "assumed"
    kernels_measured: bool = False  # True only where our own traces cover this architecture
    vendor: Literal["nvidia", "amd"] = "nvidia"
    usd_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The machine: `num_nodes` equal nodes of `gpus_per_node` equal GPUs."""

    gpu: GpuSpec
    num_nodes: int = 1
    gpus_per_node: int = 1
    inter_node_bytes_per_s: float = 25e9  # per node and direction; 200 Gbit/s unless the user says otherwise
    host_memory_bytes: int | None = None  # per node; None: not known, not checked
    disk_bytes: int | None = None

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank adapters. `targets`: "all-linear", "attention", or comma-separated module name endings.

    `train_embeddings`: the token embedding and the output projection are trained beside the adapters, the model's own ("in-place") or the
    copies that peft's ``modules_to_save`` makes ("modules-to-save").
    """

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.05
    targets: str = "all-linear"
    train_embeddings: TrainEmbeddings | None = None  # None: both stay frozen


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Everything that decides what one rank executes. `deepspeed` is the complete DeepSpeed configuration (no "auto")."""

    method: Method = "full"
    lora: LoraSpec | None = None  # None exactly when method == "full"
    precision: Precision = "bf16"
    optimizer: Optimizer = "fused-adam"
    zero_stage: int = 2
    offload: Offload = "none"
    offload_device: Literal["cpu", "nvme"] = "cpu"
    checkpointing: bool = True
    attention: Attention = "sdpa"
    loss: Loss = "hf"
    allocator: AllocatorKind = "expandable"
    micro_batch_size: int = 1  # sequences per GPU per forward
    grad_accum_steps: int = 1
    seq_len: int = 1024  # tokens
    gradient_clipping: float = 1.0
    packing: bool = False  # several rows in a sequence, none seeing another
    fused_adapters: bool = False  # adapters accumulate into their layer's product (the trainer's, below ZeRO-3), not as peft has it
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PhaseStats:
    """Device memory of one phase (``model``, ``init``, ``fwdK``, ``bwdK``, ``stepK``), bytes; `peak_*` within the phase."""

    name: str
    allocated_bytes: int
    peak_allocated_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The request that failed under the cap."""

    phase: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    category: str


@dataclass(frozen=True, kw_only=True)
class RankEstimate:
    """Simulated device memory of one rank. `breakdown` sums to `peak_allocated_bytes`."""

    rank: int
    peak_allocated_bytes: int  # over the training steps
    init_peak_allocated_bytes: int  # over model construction and deepspeed.initialize
    peak_reserved_bytes: int  # whole run
    peak_reserved_low_bytes: int  # the same where the GPU keeps up with the CPU
    peak_reserved_high_bytes: int  # the same where the CPU is as far ahead as it can be (ZeRO-3; elsewhere all three are one)
    process_bytes: int  # reserved + CUDA context + loaded kernels; nvidia-smi shows `nccl_bytes` on top
    required_bytes: int  # smallest GPU (torch's total_memory) that runs it
    breakdown: Mapping[str, int]
    peak_phase: str
    phases: tuple[PhaseStats, ...]
    timeline: tuple[tuple[float, Mapping[str, int]], ...]  # one steady step: (fraction of its events, bytes by category)
    nccl_bytes: int = 0  # NCCL's kernels and buffers, beside `process_bytes` and `required_bytes` (llmcheck.shadow.communicators)
    num_alloc_retries: int = 0
    out_of_memory: OutOfMemory | None = None
    runs_at_high: bool = True  # whether it also runs where `peak_reserved_high_bytes` belongs

    @property
    def least_bytes(self) -> int:
        """What the tensors and the process take at the least: below it nothing runs."""
        beside = self.process_bytes - self.peak_reserved_bytes
        return max(self.peak_allocated_bytes, self.init_peak_allocated_bytes) + beside

    def runs_in(self, memory_bytes: int) -> bool:
        """Whether it runs on a GPU of `memory_bytes`."""
        return self.required_bytes <= memory_bytes

    @property
    def is_calm(self) -> bool:
        """Whether it likely runs without flushes, and runs however far the CPU gets ahead of the GPU."""
        return self.out_of_memory is None and self.num_alloc_retries == 0 and self.runs_at_high

    def estimate(self) -> RankEstimate:
        """Itself: a search takes it, or what computes it by and by."""
        return self


@dataclass(frozen=True, kw_only=True)
class HostEstimate:
    """Host memory and disk. Per node unless the name says otherwise."""

    host_bytes_per_node: int
    pinned_bytes_per_node: int
    load_peak_bytes_per_node: int  # while the weights are read
    disk_bytes: int  # checkpoints kept + offload to NVMe
    nvme_bytes_per_node: int
    checkpoint_bytes: int  # one, over all ranks
    terms: Mapping[str, int]  # named parts of host_bytes_per_node, summing to it


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of a recipe on a cluster: rank 0, the worst rank where it differs, and the host."""

    rank0: RankEstimate
    worst: RankEstimate
    host: HostEstimate
    evidence: Literal["simulated-measured-kernels", "simulated-unmeasured-kernels", "conservative-stand-in"]
    error_fraction: float
    assumptions: tuple[str, ...]
    not_checked: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step (all micro-steps of it)."""

    step_s: float
    compute_s: float
    communication_exposed_s: float
    optimizer_s: float
    offload_s: float
    host_s: float  # what Python and kernel launches take, overlapped with the GPU
    host_bound: bool
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    mfu: float
    error_fraction: float
    assumptions: tuple[str, ...]
    total_s: float | None = None  # for --samples / --tokens
    cost: float | None = None  # USD


class TrainSettings(NamedTuple):  # not a dataclass: those cost a millisecond each at import
    """What a run needs beside its plan: the data, the places, and what decides learning but not memory.

    `llmcheck train` has an option for each field and hands it on under the same name; the trainer's parser is made from this.
    """

    data: str  # folder that `llmcheck data prepare` wrote
    output: str  # folder of checkpoints, logs, run.json and the exported model; on a file system that every node sees
    weights: str = ""  # folder with config.json and weights, or a Hub name; empty: the plan's own folder or Hub name
    eval_data: str = ""  # prepared like `data`
    epochs: float = 1.0
    max_steps: int = 0  # optimizer steps; 0: as many as `epochs` ask for
    lr: float = 0.0  # 0: the plan's (deepspeed.optimizer.params.lr), else 1e-5 for full fine-tuning and 2e-4 for adapters
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03  # fraction of the steps
    min_lr: float = 0.1  # where the schedule ends, as a fraction of `lr`
    weight_decay: float = 0.0
    seed: int = 42
    packing: Literal["auto", "on", "off"] = "auto"
    save_every: int = 500  # optimizer steps; 0: only at the end
    keep: int = 2  # newest checkpoints that stay; the best one by evaluation loss stays beside them
    eval_every: int = 0  # optimizer steps; 0: only at the end
    patience: int = 0  # evaluations without improvement before the run stops; 0: never
    num_generations: int = 0  # continuations of evaluation prompts that each evaluation writes
    resume: str = "auto"  # auto: the newest whole checkpoint in `output`; never; or the folder of one
    export: Literal["auto", "model", "adapter", "merged", "none"] = "auto"
    trackers: str = ""  # names that accelerate knows, with commas: tensorboard, wandb, mlflow, ...
    on_nan: Literal["stop", "continue"] = "stop"
    compile: bool = False  # torch.compile of the model
    allow: str = ""  # codes of identity checks that only warn, with commas
