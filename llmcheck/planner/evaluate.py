"""One recipe on one cluster: memory of rank 0 and of the worst rank, host memory, step time, verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from llmcheck.planner.findings import findings
from llmcheck.planner.plan import DataPrep, DataPrepWay, Plan
from llmcheck.steptime.kernels import GpuRates
from llmcheck.steptime.model import estimate as estimate_time
from llmcheck.steptime.reading import read_shape
from llmcheck.steptime.shape import Shape
from llmcheck.types import (
    ClusterSpec,
    HostEstimate,
    MemoryEstimate,
    ModelSpec,
    OutOfMemory,
    RankEstimate,
    StepTime,
    TrainingRecipe,
    Verdict,
)
from llmcheck.units import MIB, gib

if TYPE_CHECKING:
    from llmcheck.steptime.profile import Profile

Evidence = Literal["simulated-measured-kernels", "simulated-unmeasured-kernels", "conservative-stand-in"]

# Half-width of the band of simulated memory, by evidence: the bars that benchmarks/ hold on rows the simulation has not seen (2 % of
# reserved and process memory). Kernels that were not measured differ in workspaces of a few hundred MiB; a stand-in is built to
# overestimate.
ERROR_FRACTIONS: dict[Evidence, float] = {
    "simulated-measured-kernels": 0.02,
    "simulated-unmeasured-kernels": 0.04,
    "conservative-stand-in": 0.15,
}


NOTABLE_BYTES = 256 * MIB  # differences between ranks below this stay inside the error band, and the final plan sees them


class Outlook(Protocol):
    """What a search asks of a rank: a :class:`RankEstimate`, or what computes as much of it as is asked for."""

    @property
    def required_bytes(self) -> int:
        """Smallest GPU (torch's total_memory) that runs it."""

    @property
    def least_bytes(self) -> int:
        """Below it nothing runs."""

    def runs_in(self, memory_bytes: int) -> bool:
        """Whether it runs on a GPU of that size; less work than `required_bytes`."""

    @property
    def peak_allocated_bytes(self) -> int:
        """Over the training steps."""

    @property
    def process_bytes(self) -> int:
        """Reserved memory, CUDA context and loaded kernels."""

    @property
    def nccl_bytes(self) -> int:
        """What NCCL takes beside it."""

    @property
    def out_of_memory(self) -> OutOfMemory | None:
        """The request that fails."""

    @property
    def is_calm(self) -> bool:
        """Whether it likely runs without flushes, and runs however far the CPU gets ahead of the GPU."""

    def estimate(self) -> RankEstimate:
        """All that there is to know."""


class Simulate(Protocol):
    """Device memory of one rank: :class:`llmcheck.shadow.run.Rank`."""

    def __call__(self, model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec, *, rank: int = 0) -> Outlook:
        """Simulate `rank`."""


class Tools(NamedTuple):
    """The parts that the planner asks. Tests put their own in place."""

    simulate: Simulate
    host: Callable[[ModelSpec, TrainingRecipe, ClusterSpec], HostEstimate]
    complete: Callable[[ModelSpec, TrainingRecipe, ClusterSpec], TrainingRecipe]  # writes `recipe.deepspeed`
    likely_rank: Callable[[ModelSpec, TrainingRecipe, ClusterSpec], int]  # the rank that a search looks at
    suspects: Callable[[ModelSpec, TrainingRecipe, ClusterSpec], tuple[int, ...]]  # ranks that may need more than rank 0

    @staticmethod
    def real() -> Tools:
        """The simulation, the host model and DeepSpeed's configuration, imported when first needed."""
        from llmcheck.host import estimate as host
        from llmcheck.shadow.run import Rank, suspect_ranks

        return Tools(Rank, host, complete, likely_rank, suspect_ranks)


def complete(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec) -> TrainingRecipe:
    """`recipe` with DeepSpeed's complete configuration; one that is there already stays."""
    if recipe.deepspeed:
        return recipe
    from llmcheck.dsconfig import complete as complete_config
    from llmcheck.dsconfig import hidden_size_of

    return replace(recipe, deepspeed=complete_config(recipe, world_size=cluster.num_gpus, hidden_size=hidden_size_of(model)))


def likely_rank(model: ModelSpec, recipe: TrainingRecipe, cluster: ClusterSpec) -> int:
    """The rank that a search simulates: the one with the most gradients where that matters, else rank 0.

    Stages 1 and 2 cut one flat buffer, and a rank keeps the whole gradients of all parameters that touch its part.
    """
    ranks = cluster.num_gpus
    if ranks == 1 or recipe.zero_stage not in (1, 2) or recipe.method != "full":
        return 0
    from llmcheck.shadow.parameters import touched, trainable_numels

    whole = touched(trainable_numels(model, recipe), ranks).whole
    most = max(range(ranks), key=lambda rank: (whole[rank], -rank))
    return most if 2 * (whole[most] - whole[0]) > NOTABLE_BYTES else 0


class Checked(NamedTuple):
    """What a search knows of a recipe: the worst rank's memory, the time, the verdict."""

    recipe: TrainingRecipe
    worst: Outlook
    host: HostEstimate
    time: StepTime
    verdict: Verdict
    why: str  # why it does not fit or has too little margin; `Evaluator.why` knows the rest


class Evaluator:
    """Evaluates recipes of one model on one cluster, each simulation once."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        *,
        tools: Tools | None = None,
        num_samples: int | None = None,
        num_tokens: int | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.model, self.cluster, self.profile = model, cluster, profile
        self.tools = tools or Tools.real()
        self.shape: Shape = read_shape(model)
        self.evidence = _evidence(model, cluster)
        self.error_fraction = ERROR_FRACTIONS[self.evidence]
        self._amount = (num_samples, num_tokens)
        self._ranks: dict[str, Outlook] = {}
        self._checked: dict[str, Checked] = {}
        self.num_simulations = 0

    def time(self, recipe: TrainingRecipe) -> StepTime:
        """Step time of `recipe`."""
        samples, tokens = self._amount
        rates = host = None
        if self.profile is not None:
            from llmcheck.steptime.profile import host_of, rates_of

            base = GpuRates.from_spec(self.cluster.gpu, recipe.precision)
            rates, host = rates_of(self.profile, base, recipe.precision), host_of(self.profile)
        time = estimate_time(
            self.model, recipe, self.cluster, rates=rates, host=host, shape=self.shape, num_samples=samples, num_tokens=tokens
        )
        if self.profile is None:
            return time
        return replace(time, assumptions=(*time.assumptions, f"rates as measured on {self.profile.device} (--profile)"))

    def check(self, recipe: TrainingRecipe) -> Checked:
        """Simulate the rank of `recipe` that is likely the worst, and judge it."""
        recipe = self.tools.complete(self.model, recipe, self.cluster)
        key = repr(recipe)
        if key not in self._checked:
            worst = self._simulate(recipe, self.tools.likely_rank(self.model, recipe, self.cluster))
            host = self.tools.host(self.model, recipe, self.cluster)
            verdict, why = self.judge(worst, host)
            self._checked[key] = Checked(recipe, worst, host, self.time(recipe), verdict, why)
        return self._checked[key]

    def known(self, recipe: TrainingRecipe) -> Checked | None:
        """What `check` has found of a completed `recipe`, None when it was not asked yet."""
        return self._checked.get(repr(recipe))

    @property
    def checked(self) -> tuple[Checked, ...]:
        """Every recipe checked so far, in order."""
        return tuple(self._checked.values())

    def plan(self, recipe: TrainingRecipe) -> Plan:
        """The whole plan of `recipe`: rank 0 and every rank that may be worse, with its findings."""
        checked = self.check(recipe)
        recipe = checked.recipe
        rank0 = worst = self._simulate(recipe, 0)
        for rank in self.tools.suspects(self.model, recipe, self.cluster):
            worst = max(worst, self._simulate(recipe, rank), key=lambda estimate: estimate.required_bytes)
        verdict, why = self.judge(worst, checked.host)
        memory = MemoryEstimate(
            rank0=rank0.estimate(),
            worst=worst.estimate(),
            host=checked.host,
            evidence=self.evidence,
            error_fraction=self.error_fraction,
            assumptions=_assumptions(recipe, self.cluster),
            not_checked=_not_checked(self.cluster),
        )
        plan = Plan(
            model=self.model,
            cluster=self.cluster,
            recipe=recipe,
            memory=memory,
            time=checked.time,
            verdict=verdict,
            reasons=() if verdict == "fits" else (why or _unrest(worst),),
            data=self._data(recipe),
        )
        return replace(plan, findings=findings(plan, self.shape))

    def reject(self, checked: Checked, plan: Plan) -> None:
        """Remember that another rank of `checked` fails."""
        self._checked[repr(checked.recipe)] = checked._replace(worst=plan.memory.worst, verdict=plan.verdict, why=plan.reasons[0])

    def why(self, checked: Checked) -> str:
        """Why `checked` does not fit or is tight; empty when it fits."""
        return "" if checked.verdict == "fits" else checked.why or _unrest(checked.worst)

    def judge(self, worst: Outlook, host: HostEstimate) -> tuple[Verdict, str]:
        """The verdict over GPU and host memory, and why it does not fit or has too little margin.

        A search wants to know the verdict only, so what takes most work is asked last, and no further than it decides.
        """
        memory = self.cluster.gpu.memory_bytes
        if worst.out_of_memory is not None:
            oom = worst.out_of_memory
            lacking = max(worst.required_bytes - memory, 0)
            where = f"{oom.phase}: a request of {gib(oom.requested_bytes)} for {oom.category} fails"
            return "does-not-fit", f"needs {gib(worst.required_bytes)} per GPU, {gib(lacking)} more than there is ({where})"
        node = self.cluster.host_memory_bytes
        if node is not None and max(host.host_bytes_per_node, host.load_peak_bytes_per_node) > node:
            need = max(host.host_bytes_per_node, host.load_peak_bytes_per_node)
            return "does-not-fit", f"needs {gib(need)} of host memory per node, which has {gib(node)}"
        nccl = worst.nccl_bytes
        if worst.runs_in(int((memory - nccl) / (1 + self.error_fraction))):
            return ("fits" if worst.is_calm and worst.process_bytes <= memory else "tight"), ""
        if worst.required_bytes > memory:
            return "does-not-fit", f"needs {gib(worst.required_bytes)} per GPU, {gib(worst.required_bytes - memory)} more than there is"
        margin = memory - worst.required_bytes - nccl  # what the allocator caches beyond the required size, it gives back
        if margin < 0:
            return "tight", f"NCCL's memory, about {gib(nccl)}, does not fit beside the {gib(worst.required_bytes)} of the run"
        if margin < self.error_fraction * worst.required_bytes:
            return "tight", f"the margin of {gib(margin)} is inside the error band of ±{100 * self.error_fraction:.0f} %"
        return ("fits" if worst.is_calm and worst.process_bytes <= memory else "tight"), ""

    def _data(self, recipe: TrainingRecipe) -> DataPrep | None:
        """Preparing the samples, when their number is given."""
        num_samples = self._amount[0]
        if num_samples is None:
            return None
        from llmcheck import dataprep

        kind = dataprep.tokenizer_kind(self.model)
        found = dataprep.estimate(num_samples, seq_len=recipe.seq_len, ranks_per_node=self.cluster.gpus_per_node, tokenizer=kind)
        naive, ours = (
            DataPrepWay(name=w.name, host_bytes=w.host_bytes, time_s=w.time_s, disk_bytes=w.disk_bytes) for w in (found.naive, found.ours)
        )
        return DataPrep(num_samples=num_samples, naive=naive, ours=ours, assumptions=found.assumptions)

    def _simulate(self, recipe: TrainingRecipe, rank: int) -> Outlook:
        key = f"{rank} {recipe!r}"
        if key not in self._ranks:
            self.num_simulations += 1
            self._ranks[key] = self.tools.simulate(self.model, recipe, self.cluster, rank=rank)
        return self._ranks[key]


def evaluate(
    model: ModelSpec,
    recipe: TrainingRecipe,
    cluster: ClusterSpec,
    *,
    tools: Tools | None = None,
    num_samples: int | None = None,
    num_tokens: int | None = None,
) -> Plan:
    """The plan of exactly `recipe`: nothing is searched."""
    return Evaluator(model, cluster, tools=tools, num_samples=num_samples, num_tokens=num_tokens).plan(recipe)


def _evidence(model: ModelSpec, cluster: ClusterSpec) -> Evidence:
    if not model.family_known:
        return "conservative-stand-in"
    return "simulated-measured-kernels" if cluster.gpu.kernels_measured else "simulated-unmeasured-kernels"


def _unrest(worst: Outlook) -> str:
    """Why a rank that has a margin may not run well."""
    if not worst.estimate().runs_at_high:
        return "it runs while the GPU keeps up with the CPU; where the CPU gets ahead, gathered weights may use up the memory"
    return "the allocator runs only by giving memory back and taking it again, which is slow and depends on versions"


def _assumptions(recipe: TrainingRecipe, cluster: ClusterSpec) -> tuple[str, ...]:
    out = [
        "torch 2.11, transformers 5.17, DeepSpeed 0.19.8; every sequence has the full length",
        "labels and an attention mask of ones are passed, no key-value cache",
    ]
    if cluster.num_gpus == 1:
        from llmcheck.shadow.communicators import other_loop_bytes

        other = gib(other_loop_bytes(cluster.gpu))
        out.append(f"the bundled trainer starts no NCCL for one GPU; DeepSpeed in another loop does, for about {other} beside the process")
    if recipe.checkpointing:
        out.append("checkpointing is non-reentrant, one segment per layer")
    if recipe.lora is not None:
        out.append(f"adapters of rank {recipe.lora.rank} on {recipe.lora.targets}, in the model's number format")
        if recipe.lora.train_embeddings == "in-place":
            out.append("token embedding and head train in place; learned positions stay frozen")
        elif recipe.lora.train_embeddings == "modules-to-save":
            out.append("peft's modules_to_save: copies of token embedding and head train in the model's number format, the originals stay")
    return tuple(out)


def _not_checked(cluster: ClusterSpec) -> tuple[str, ...]:
    out = ["other programs on the GPU", "evaluation and generation during training"]
    if cluster.num_gpus > 1:
        out.insert(0, "NCCL's buffers: of two ranks over sockets as measured, of NVLink and networks as its sources have them")
    if cluster.host_memory_bytes is None:
        out.append("host memory of the node (say --host-memory)")
    return tuple(out)
