"""The order, colour and words of the memory categories, for the bar, the legend and the timeline alike."""

from __future__ import annotations

from collections.abc import Mapping

from llmcheck.types import ClusterSpec, MemoryEstimate, RankEstimate

# From what stays to what comes and goes, so that a stack has its steady parts at the bottom. A category that is not listed
# comes after these, largest first.
ORDER = (
    "weights",
    "gradients",
    "optimizer_states",
    "zero_buffers",
    "gathered_weights",
    "unpacked_weights",
    "activations",
    "logits",
    "workspace",
    "inputs",
    "other",
)


def ordered(breakdown: Mapping[str, int]) -> tuple[str, ...]:
    """The categories with any bytes, in drawing order."""
    rank = {name: i for i, name in enumerate(ORDER)}
    present = [name for name, size in breakdown.items() if size > 0]
    return tuple(sorted(present, key=lambda name: (rank.get(name, len(ORDER)), -breakdown[name], name)))


def folded(breakdown: Mapping[str, int], below: float) -> dict[str, int]:
    """`breakdown` with its parts of less than `below` bytes summed up as "other"."""
    large = {name: size for name, size in breakdown.items() if size >= below and name != "other"}
    rest = sum(breakdown.values()) - sum(large.values())
    return {**large, "other": rest} if rest else large


def words(name: str) -> str:
    """`name` as people read it."""
    return name.replace("_", " ").replace("-", " ")


def deciding_rank(memory: MemoryEstimate) -> RankEstimate:
    """The rank that needs the largest GPU: it decides the verdict, so it is the one that is drawn."""
    return memory.worst if memory.worst.required_bytes > memory.rank0.required_bytes else memory.rank0


def required_bytes(memory: MemoryEstimate) -> int:
    """The smallest GPU (torch's total_memory) that runs every rank."""
    return deciding_rank(memory).required_bytes


def margin_bytes(memory: MemoryEstimate, cluster: ClusterSpec) -> int:
    """What the GPU has beyond what the plan needs; negative when it has too little."""
    return cluster.gpu.memory_bytes - required_bytes(memory)
