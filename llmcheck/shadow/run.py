"""The memory of one rank: execute the recipe in miniature, replay the allocations, read off peaks, verdict and smallest GPU.

One call yields everything that `plan` shows of a rank. Results are cached by what decides them, since a search asks again and again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from llmcheck.collector import without_collector
from llmcheck.dsconfig import ZeroSettings
from llmcheck.shadow.communicators import nccl_bytes
from llmcheck.shadow.execute import execute
from llmcheck.shadow.families.base import Config
from llmcheck.shadow.kernels import kernels_for
from llmcheck.shadow.late import Late, LateReplay, replay_late, replay_until_flush
from llmcheck.shadow.pace import Pace
from llmcheck.shadow.parameters import family_of, touched, trainable_numels
from llmcheck.shadow.replay import Replay, Replays, breakdown, timeline
from llmcheck.shadow.tape import Tape
from llmcheck.types import AllocatorKind, ClusterSpec, GpuSpec, ModelSpec, OutOfMemory, PhaseStats, RankEstimate, TrainingRecipe
from llmcheck.units import MIB

# Device memory of loaded kernels and library handles beyond the bare CUDA context, read off nvidia-smi's figure minus torch's reserved
# bytes in 146 runs (H100, driver 580, torch 2.11, CUDA 13.0): the same to 4 MiB within each group.
_LOADED_BYTES = 130 * MIB
_STREAMS_BYTES = 70 * MIB  # torch makes its 32 streams with the first one that is asked for
_LOADED_CUDNN_ATTENTION_BYTES = 16 * MIB


class Sequence:
    """A simulated rank: its tape, how many steps are on it, and its replays."""

    def __init__(self, tape: Tape, steps: int) -> None:
        self.tape, self.steps = tape, steps
        self._replays: dict[AllocatorKind, Replays] = {}

    def replays(self, kind: AllocatorKind) -> Replays:
        """Replays through an allocator of `kind`."""
        if kind not in self._replays:
            self._replays[kind] = Replays(self.tape, kind)
        return self._replays[kind]


def loaded_bytes(recipe: TrainingRecipe, gpu: GpuSpec) -> int:
    """Device memory of the process outside torch's allocator, beyond the CUDA context."""
    total = _LOADED_BYTES
    if _has_streams(recipe):
        total += _STREAMS_BYTES
    if recipe.attention == "sdpa" and gpu.compute_capability >= (9, 0) and recipe.precision != "fp32":  # cuDNN's has no fp32
        total += _LOADED_CUDNN_ATTENTION_BYTES
    return total


def _has_streams(recipe: TrainingRecipe) -> bool:
    """Whether DeepSpeed (0.19.8) makes a stream: stages 1 and 2 always, stage 3 where communication overlaps."""
    if recipe.zero_stage != 3:
        return recipe.zero_stage > 0
    overlap = recipe.deepspeed.get("zero_optimization", {}).get("overlap_comm")
    return overlap is None or bool(overlap)


def overhead_bytes(recipe: TrainingRecipe, gpu: GpuSpec) -> int:
    """What torch's allocator does not manage of a process: CUDA context, loaded kernels. NCCL's is beside it (communicators.py)."""
    return gpu.context_bytes + loaded_bytes(recipe, gpu)


class Rank:
    """`rank` of a cluster, simulated. Whatever is asked of it is computed then: a search wants little of most recipes.

    `cap_bytes`: bytes that torch's allocator may reserve (None: the GPU's memory less context and loaded kernels).
    """

    def __init__(
        self, model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, rank: int = 0, cap_bytes: int | None = None
    ) -> None:
        self.recipe, self.rank = recipe, rank
        self._overhead_bytes = overhead_bytes(recipe, cluster.gpu)
        free = cluster.gpu.memory_bytes - self._overhead_bytes
        self._capacity_bytes = free if cap_bytes is None else cap_bytes
        self._key = _key(model, recipe, cluster, rank, free)
        self._sequence = _cached_sequence(self._key)
        self._replays = self._sequence.replays(recipe.allocator)

    @property
    def tape(self) -> Tape:
        """What it asks of the allocator."""
        return self._sequence.tape

    @property
    def out_of_memory(self) -> OutOfMemory | None:
        """The request that fails even where the GPU keeps up with the CPU."""
        return self._actual.out_of_memory

    @property
    def peak_allocated_bytes(self) -> int:
        """Over the training steps."""
        return self._shown.peak_allocated_bytes(True)

    @cached_property
    def required_bytes(self) -> int:
        """Smallest GPU (torch's total_memory) that runs it."""
        return _required_bytes(self._key, self._shown, self._overhead_bytes)

    @property
    def least_bytes(self) -> int:
        """What the tensors and the process take at the least: below it nothing runs."""
        return max(self._shown.peak_allocated_bytes(True), self._shown.peak_allocated_bytes(False)) + self._overhead_bytes

    def runs_in(self, memory_bytes: int) -> bool:
        """Whether it runs on a GPU of `memory_bytes`, which may be less than there is: `required_bytes` for one size, and for less work."""
        cap_bytes = memory_bytes - self._overhead_bytes
        if self.out_of_memory is not None or cap_bytes <= 0:
            return False
        if self._actual.num_retries == 0 and self._actual.peak_reserved_bytes <= cap_bytes:
            return True  # it never came near that cap
        return self._replays.under(cap_bytes).ran

    @property
    def peak_reserved_bytes(self) -> int:
        """Likely, over the whole run."""
        likely = self._likely
        return self._shown.peak_reserved_bytes if likely is None or not likely.ran else likely.peak_reserved_bytes

    @property
    def process_bytes(self) -> int:
        """Reserved memory, CUDA context and loaded kernels."""
        return self.peak_reserved_bytes + self._overhead_bytes

    @property
    def nccl_bytes(self) -> int:
        """What NCCL takes beside the process."""
        return nccl_bytes(self._key.cluster)

    @cached_property
    def is_calm(self) -> bool:
        """Whether it likely runs without flushes, and runs however far the CPU gets ahead. Decided by the least work that can."""
        if self.out_of_memory is not None:
            return False
        if self._late is None:
            return self._actual.num_retries == 0
        return self._unflushed is not None and (self._latest is None or self._latest.ran)

    def estimate(self) -> RankEstimate:
        """Everything that `plan` shows of it."""
        return self._estimate

    @cached_property
    def _estimate(self) -> RankEstimate:
        shown, likely, latest = self._shown, self._likely, self._latest
        low, phases = shown.peak_reserved_bytes, shown.phases
        num_retries = shown.num_retries
        if likely is not None and likely.ran:  # else it only runs where the GPU keeps up
            low = min(low, likely.peak_reserved_bytes)
            phases = [_with_reserved(phase, likely) for phase in phases]
            num_retries = likely.num_retries
        last, tape = self._sequence.steps - 1, self.tape
        return RankEstimate(
            rank=self.rank,
            peak_allocated_bytes=self.peak_allocated_bytes,
            init_peak_allocated_bytes=shown.peak_allocated_bytes(False),
            peak_reserved_bytes=self.peak_reserved_bytes,
            peak_reserved_low_bytes=low,
            peak_reserved_high_bytes=max([shown.peak_reserved_bytes, *(r.peak_reserved_bytes for r in (likely, latest) if r is not None)]),
            process_bytes=self.process_bytes,
            nccl_bytes=self.nccl_bytes,
            required_bytes=self.required_bytes,
            breakdown=breakdown(tape, shown.block_bytes, shown.peak_position),
            peak_phase=shown.peak_phase,
            phases=tuple(phases),
            timeline=tuple(timeline(tape, shown.block_bytes, (f"fwd{last}", f"bwd{last}", f"step{last}"))),
            num_alloc_retries=num_retries if self.out_of_memory is None else self._actual.num_retries,
            out_of_memory=self.out_of_memory,
            runs_at_high=self.out_of_memory is None and all(r.ran for r in (likely, latest) if r is not None),
        )

    # --- replays

    @cached_property
    def _actual(self) -> Replay:
        return self._replays.under(self._capacity_bytes)

    @property
    def _cap_bytes(self) -> int | None:
        """The cap of what is shown: where the memory does not suffice, none."""
        return self._capacity_bytes if self.out_of_memory is None else None

    @cached_property
    def _shown(self) -> Replay:
        return self._replays.under(self._cap_bytes)

    @cached_property
    def _late(self) -> _LateTapes | None:
        """None where no block comes back late."""
        gpu = self._key.cluster.gpu
        return _late_tapes(self._key, Pace.of(gpu, self.recipe.precision)) if self.tape.shared else None

    @cached_property
    def _unflushed(self) -> LateReplay | None:
        """The likely replay, if it never flushes."""
        if self._late is None:
            return None
        with without_collector():
            return replay_until_flush(self._late.likely, self._replays, self._cap_bytes)

    @cached_property
    def _likely(self) -> LateReplay | None:
        return None if self._late is None else self._unflushed or self._replay(self._late.likely)

    @cached_property
    def _latest(self) -> LateReplay | None:
        return None if self._late is None else self._replay(self._late.latest)

    def _replay(self, run: Late) -> LateReplay:
        with without_collector():
            return replay_late(run, self._replays, self._cap_bytes)


def simulate_rank(
    model: ModelSpec,
    recipe: TrainingRecipe,
    cluster: ClusterSpec,
    *,
    rank: int = 0,
    cap_bytes: int | None = None,
) -> RankEstimate:
    """Simulate `rank` of the cluster. The options are those of :class:`Rank`."""
    return Rank(model, recipe, cluster, rank=rank, cap_bytes=cap_bytes).estimate()


def _with_reserved(phase: PhaseStats, likely: LateReplay) -> PhaseStats:
    """`phase` as it ran where blocks come back late; one that was not reached there stays."""
    reserved, peak = likely.reserved.get(phase.name, (phase.reserved_bytes, phase.peak_reserved_bytes))
    return replace(phase, reserved_bytes=reserved, peak_reserved_bytes=peak)


class _LateTapes(NamedTuple):
    """The tape with blocks that come back when they likely do, and as late as they can."""

    likely: Late
    latest: Late


@lru_cache(maxsize=64)
def _late_tapes(key: _Key, pace: Pace) -> _LateTapes:
    """Both tapes at `pace`. In its first step the CPU loads every kernel that it meets and asks cuBLAS and cuDNN for plans, so it is
    hardly ahead.
    """
    tape = _cached_sequence(key).tape
    return _LateTapes(Late(tape, pace, start="bwd0"), Late(tape, pace.without_host(), start="init"))


def _key(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, rank: int, free_bytes: int) -> _Key:
    """The key of one rank; `free_bytes` (before the model is built) only decides whether stages 1 and 2 flatten on the device."""
    return _Key(model, recipe, cluster, rank, free_bytes >= _flatten_bytes(model, recipe))


def _flatten_bytes(model: ModelSpec, recipe: TrainingRecipe) -> int:
    """Device memory with which stages 1 and 2 flatten on the device: the weights and a second copy. Adapters are too small to matter."""
    if recipe.zero_stage not in (1, 2) or recipe.method != "full":
        return 0
    return 2 * model.num_params * (4 if recipe.precision == "fp32" else 2)


class _Key:
    """Cache key of a sequence: what the execution depends on."""

    __slots__ = ("model", "recipe", "cluster", "rank", "on_device", "_key")

    def __init__(self, model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, rank: int, on_device: bool) -> None:
        self.model, self.recipe, self.cluster, self.rank, self.on_device = model, recipe, cluster, rank, on_device
        gpu = cluster.gpu
        self._key = (
            model.family,
            repr(sorted(model.config.items(), key=lambda kv: kv[0])),
            recipe.method,
            recipe.lora,
            recipe.precision,
            recipe.optimizer,
            recipe.zero_stage,
            recipe.checkpointing,
            recipe.attention,
            recipe.loss,
            recipe.micro_batch_size,
            min(recipe.grad_accum_steps, 3),
            num_steps(recipe),
            recipe.seq_len,
            recipe.packing,
            recipe.fused_adapters,
            repr(recipe.deepspeed),
            cluster.num_gpus,
            rank,
            on_device,
            gpu.num_sms,
            gpu.compute_capability,
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


def num_steps(recipe: TrainingRecipe) -> int:
    """Training steps until memory repeats: segments of the native allocator and stage 3's gathers may still differ in the third."""
    return 2 if recipe.allocator == "expandable" and recipe.zero_stage < 3 else 3


@lru_cache(maxsize=64)
def _cached_sequence(key: _Key) -> Sequence:
    recipe, cluster = key.recipe, key.cluster
    family = family_of(key.model)
    settings = ZeroSettings.from_config(recipe.deepspeed, cluster.num_gpus, recipe.optimizer)
    steps = num_steps(recipe)
    with without_collector():
        tape = execute(
            family,
            Config(key.model.config),
            recipe,
            settings,
            kernels=kernels_for(cluster.gpu, fp16=recipe.precision == "fp16"),
            rank=key.rank,
            world=cluster.num_gpus,
            flatten_on_device=key.on_device,
            steps=steps,
        )
    return Sequence(tape, steps)


def _required_bytes(key: _Key, shown: Replay, overhead: int) -> int:
    """Smallest ``total_memory`` of a GPU on which the rank runs, to 1/256 of itself (at most 64 MiB above the true one)."""
    low = max(shown.peak_allocated_bytes(True), shown.peak_allocated_bytes(False))
    model, recipe, cluster, rank = key.model, key.recipe, key.cluster, key.rank
    flat = _flatten_bytes(model, recipe)
    device = _cached_sequence(_Key(model, recipe, cluster, rank, True))
    high = max(shown.peak_reserved_bytes, low)
    best = _search(device.replays(recipe.allocator), low, high)
    if flat and best <= flat + 64 * MIB:
        host = _cached_sequence(_Key(model, recipe, cluster, rank, False)).replays(recipe.allocator)
        whole = host.under(None)
        low = max(whole.peak_allocated_bytes(True), whole.peak_allocated_bytes(False))
        # a GPU with room for the second copy flattens on the device, so only sizes below that count
        if low < min(best, flat):
            through_host = _search(host, low, whole.peak_reserved_bytes)
            best = min(best, through_host) if through_host < flat else best
    return best + overhead


def _search(replays: Replays, low: int, high: int) -> int:
    """A cap in [low, high + a few steps] under which the tape ran, at most `step` bytes above the smallest.

    Most tapes need little more than `low`, so that is tried first. `high`, the memory reserved without a cap, is tried too: near its cap
    the expandable allocator wants room for a whole request.
    """
    step = max(16 * MIB, high // 256)
    stride = step
    while low + stride < high:
        if replays.under(low + stride).ran:
            high = low + stride
            break
        low += stride
        stride *= 2
    else:
        while not replays.under(high).ran:
            low, high = high, high + step
    while high - low > step:
        middle = (low + high) // 2
        if replays.under(middle).ran:
            high = middle
        else:
            low = middle
    return high


def suspect_ranks(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec) -> tuple[int, ...]:
    """Ranks other than 0 that may need more memory than rank 0, from the sizes of the parameters alone.

    Stages 1 and 2 cut the flat parameter buffer without regard to parameters: a rank keeps the *whole* gradient of every parameter that
    touches its part, and takes the norm of its largest piece in fp64. The last rank owns what backward reaches first, and so holds its
    gradients while most activations live. Elsewhere rank 0 is as large as any.
    """
    world = cluster.num_gpus
    if recipe.zero_stage not in (1, 2) or world == 1:
        return ()
    owned, largest = touched(trainable_numels(model, recipe), world)
    out: list[int] = []
    by_owned = max(range(world), key=lambda r: (owned[r], largest[r]))
    if owned[by_owned] > owned[0]:
        out.append(by_owned)
    if recipe.zero_stage == 2 and world - 1 not in out:
        out.append(world - 1)
    by_piece = max(range(world), key=lambda r: (largest[r], owned[r]))
    if largest[by_piece] > largest[0] and by_piece not in out:
        out.append(by_piece)
    return tuple(out)
