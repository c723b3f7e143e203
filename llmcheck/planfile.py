"""The plan file ``llmcheck.plan/1``: a plan as JSON, written whole or not at all, read strictly.

The schema number goes up on any change of meaning. A reader refuses unknown keys and newer schemas: silently dropping
one setting is an out-of-memory error at hour three.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from llmcheck import __version__
from llmcheck.codec import from_plain, to_plain
from llmcheck.errors import UserError
from llmcheck.files import write_atomically
from llmcheck.jsonfile import load_object
from llmcheck.planner.plan import Alternative, DataPrep, Finding, Lever, Plan, SolveResult
from llmcheck.types import ClusterSpec, HostEstimate, MemoryEstimate, ModelSpec, RankEstimate, StepTime, TrainingRecipe, Verdict

SCHEMA = "llmcheck.plan/1"
# The first name is read by every torch; newer ones prefer the second (CUDAAllocatorConfig.h of torch 2.13).
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_WHAT = "plan file"
_MAX_PROBLEMS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the plan is started on one node: an argument list (never a shell string) and the environment that the estimate assumes."""

    launcher: Literal["deepspeed", "torchrun"]
    num_nodes: int
    gpus_per_node: int
    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A check that a run of this plan goes on in spite of, and why (empty where no reason was asked for)."""

    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What :func:`read` returns. `edited`: model, cluster, recipe or deepspeed changed since planning, the estimate no longer applies.

    `allowed`: what `llmcheck train --allow` kept in it.
    """

    plan: Plan
    solve: SolveResult | None
    launch: Launch
    llmcheck_version: str
    digest: str
    edited: bool
    allowed: tuple[Allowed, ...] = ()

    def allowed_codes(self) -> frozenset[str]:
        """The codes of `allowed`."""
        return frozenset(each.code for each in self.allowed)

    def check_export(self, wanted: str) -> None:
        """Raises UserError for a result (`TrainSettings.export`) that the plan's method does not have."""
        adapters = self.plan.recipe.lora is not None
        if wanted in ("auto", "none") or (wanted == "model") != adapters:
            return
        raise UserError(
            f"--export {wanted} does not go with the plan's method {self.plan.recipe.method}",
            code="conflict",
            where="--export",
            hint="--export adapter, or merged" if adapters else "--export model; only adapters are exported as adapter or merged",
        )


@dataclass(frozen=True, kw_only=True)
class _SolveHead:
    """SolveResult without its plan, which the document itself is."""

    target: str
    value: int | str | None
    next_value: int | str | None = None
    limited_by: str = ""
    tried: tuple[tuple[int | str, int, Verdict], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """The parts of the document that hold no estimate."""

    reasons: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    what_if: tuple[Lever, ...] = ()
    findings: tuple[Finding, ...] = ()
    data: DataPrep | None = None
    solve: _SolveHead | None = None
    allowed: tuple[Allowed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The scalars at the top of the document."""

    schema: str
    llmcheck_version: str
    digest: str
    verdict: Verdict
    launch: Launch
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


def document(plan: Plan, *, solve: SolveResult | None = None, out: str = "plan.json") -> dict[str, Any]:
    """`plan` as the document ``llmcheck.plan/1``. `out` is the path that the launch command will read."""
    body = {
        "model": to_plain(plan.model),
        "cluster": {**to_plain(plan.cluster), "num_gpus": plan.cluster.num_gpus},
        "recipe": _recipe_to_plain(plan.recipe, plan.cluster),
        "deepspeed": to_plain(plan.recipe.deepspeed),
    }
    return {
        "schema": SCHEMA,
        "llmcheck_version": __version__,
        "digest": digest(body),
        "verdict": plan.verdict,
        "reasons": list(plan.reasons),
        "model": body["model"],
        "cluster": body["cluster"],
        "recipe": body["recipe"],
        "estimate": _memory_to_plain(plan.memory),
        "time": to_plain(plan.time),
        "alternatives": [_alternative_to_plain(other, plan.cluster) for other in plan.alternatives],
        "what_if": to_plain(plan.what_if),
        "findings": to_plain(plan.findings),
        "data": to_plain(plan.data),
        "solve": None if solve is None else to_plain(_head_of(solve)),
        "deepspeed": body["deepspeed"],
        "launch": to_plain(launch_of(plan, out)),
    }


def launch_of(plan: Plan, path: str) -> Launch:
    """The command that runs the plan at `path` with our trainer, and the allocator setting that the estimate assumes."""
    cluster = plan.cluster
    # `--no_local_rank`: without it the launcher appends an option to the module's own. Several nodes need a hostfile, which
    # names machines and so cannot be in a plan; `hostfile` is the file of that name beside where the command is run.
    place = ["--hostfile", "hostfile"] if cluster.num_nodes > 1 else ["--num_gpus", str(cluster.gpus_per_node)]
    expandable = "expandable_segments:" + ("True" if plan.recipe.allocator == "expandable" else "False")
    return Launch(
        launcher="deepspeed",
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        argv=("deepspeed", *place, "--no_local_rank", "--module", "llmcheck_trainer.train", "--plan", path),
        env=dict.fromkeys(ALLOCATOR_VARIABLES, expandable),
    )


def digest(body: Mapping[str, Any]) -> str:
    """``sha256:`` over the canonical JSON of the document's model, cluster, recipe and deepspeed."""
    decisive = {key: body[key] for key in ("model", "cluster", "recipe", "deepspeed")}
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def dumps(document: Mapping[str, Any]) -> str:
    """The document as text: indented, but lists of numbers on one line, as a timeline would fill screens otherwise."""
    return _dump(document, "") + "\n"


def write(path: str, document: Mapping[str, Any], *, force: bool = False) -> None:
    """Write the document to `path`, whole or not at all.

    Raises UserError when `path` holds something that is not an unedited plan (unless `force`) or cannot be written.
    """
    write_atomically(path, dumps(document).encode("utf-8"), flag="--out", replaceable=is_untouched_plan, force=force)


def keep_allowed(source: str, target: str, allowed: Sequence[Allowed], *, force: bool = False) -> None:
    """Write the plan file at `source` to `target` with `allowed` in it; nothing else changes, so it stays edited where it was.

    Raises UserError as :func:`write` does.
    """
    kept = {each.code: each for each in (*read(source).allowed, *allowed)}
    found = {**load_object(source, what=_WHAT), "allowed": [to_plain(kept[code]) for code in sorted(kept)]}
    same = os.path.realpath(source) == os.path.realpath(target)
    write(target, found, force=force or same)


def read(path: str) -> PlanFile:
    """The plan file at `path`. Raises UserError that names every problem: unreadable, another schema, unknown or ill-typed keys."""
    return from_document(load_object(path, what=_WHAT), path)


def from_document(document: Mapping[str, Any], path: str = "plan") -> PlanFile:
    """The inverse of :func:`document`; `path` names the document in messages."""
    schema = document.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, str) and schema.startswith("llmcheck.plan/")
        raise UserError(
            f"{path} is not a plan file that this llmcheck reads",
            code="plan-schema",
            where=f"{path}: schema",
            why=f"its schema is {schema!r}, this llmcheck {__version__} reads {SCHEMA!r}",
            hint="use the llmcheck that wrote it, or plan again" if newer else "`llmcheck plan --out FILE` writes one",
        )
    problems: list[str] = []
    rest = dict(document)
    parts: dict[str, Any] = {}
    for key in ("model", "cluster", "recipe", "estimate", "time", "deepspeed"):
        parts[key] = rest.pop(key, None)
        if not isinstance(parts[key], dict):
            problems.append(f"{key}: " + ("missing" if parts[key] is None else "expected an object"))
            parts[key] = {}
    head_keys = _Head.__dataclass_fields__
    head = from_plain(_Head, {k: rest.pop(k) for k in list(rest) if k in head_keys}, _WHAT, problems)
    lists = from_plain(_Lists, _without_global_batch(rest, problems), _WHAT, problems)
    model = from_plain(ModelSpec, parts["model"], "model", problems)
    cluster = from_plain(ClusterSpec, _without(parts["cluster"], "num_gpus"), "cluster", problems)
    recipe = from_plain(
        TrainingRecipe, {**_without(parts["recipe"], "global_batch_size"), "deepspeed": parts["deepspeed"]}, "recipe", problems
    )
    memory = _memory_from_plain(parts["estimate"], problems)
    time = from_plain(StepTime, parts["time"], "time", problems)
    if head and lists and model and cluster and recipe and memory and time:
        _check_identities(parts, cluster, recipe, problems)
        _check_environment(head.launch.env, problems)
        if not problems:
            return _assemble(head, lists, Parts(model, cluster, recipe, memory, time), digest(document))
    shown = problems[:_MAX_PROBLEMS_SHOWN]
    more = len(problems) - len(shown)
    raise UserError(
        f"{path} is not a valid plan file: {len(problems)} problem" + ("s" if len(problems) != 1 else ""),
        code="plan-invalid",
        where=path,
        why="; ".join(shown) + (f"; and {more} more" if more else ""),
        hint="plan again with `llmcheck plan --out FILE`",
    )


@dataclass(frozen=True)
class Parts:
    """The decoded parts that a Plan is made of."""

    model: ModelSpec
    cluster: ClusterSpec
    recipe: TrainingRecipe
    memory: MemoryEstimate
    time: StepTime


def _assemble(head: _Head, lists: _Lists, parts: Parts, found_digest: str) -> PlanFile:
    plan = Plan(
        model=parts.model,
        cluster=parts.cluster,
        recipe=parts.recipe,
        memory=parts.memory,
        time=parts.time,
        verdict=head.verdict,
        reasons=lists.reasons,
        alternatives=lists.alternatives,
        what_if=lists.what_if,
        findings=lists.findings,
        data=lists.data,
    )
    solve = None if lists.solve is None else SolveResult(plan=plan, **vars(lists.solve))
    return PlanFile(
        plan=plan,
        solve=solve,
        launch=head.launch,
        llmcheck_version=head.llmcheck_version,
        digest=head.digest,
        edited=head.digest != found_digest,
        allowed=lists.allowed,
    )


def _check_identities(parts: Mapping[str, Any], cluster: ClusterSpec, recipe: TrainingRecipe, problems: list[str]) -> None:
    """Derived numbers are in the file for its readers; they must agree with what they are derived from."""
    for path, found, true in (
        ("cluster.num_gpus", parts["cluster"].get("num_gpus"), cluster.num_gpus),
        ("recipe.global_batch_size", parts["recipe"].get("global_batch_size"), _global_batch_size(recipe, cluster)),
    ):
        if found != true:
            problems.append(f"{path}: expected {true}, found {found!r}")
    if (recipe.lora is None) != (recipe.method == "full"):
        problems.append(f"recipe.lora: must be null exactly when the method is full, which is {recipe.method!r}")


def _check_environment(env: Mapping[str, str], problems: list[str]) -> None:
    """Job files export it, and `llmcheck train` sets it: another name could make programs load a stranger's code, or a shell run it."""
    for name, value in env.items():
        if name not in ALLOCATOR_VARIABLES:
            problems.append(f"launch.env: {name[:60]!r} is none of {', '.join(ALLOCATOR_VARIABLES)}")
        elif not value.isprintable():
            problems.append(f"launch.env.{name}: it has characters that cannot be printed")


def _global_batch_size(recipe: TrainingRecipe, cluster: ClusterSpec) -> int:
    return recipe.micro_batch_size * recipe.grad_accum_steps * cluster.num_gpus


def _recipe_to_plain(recipe: TrainingRecipe, cluster: ClusterSpec) -> dict[str, Any]:
    plain: dict[str, Any] = _without(to_plain(recipe), "deepspeed")
    return {**plain, "global_batch_size": _global_batch_size(recipe, cluster)}


def _alternative_to_plain(other: Alternative, cluster: ClusterSpec) -> dict[str, Any]:
    """An alternative is named by its flags; its DeepSpeed configuration is that of planning with them."""
    return {**to_plain(other), "recipe": _recipe_to_plain(other.recipe, cluster)}


def _without_global_batch(rest: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The remaining keys with the derived batch size taken out of the alternatives' recipes."""
    others = rest.get("alternatives", [])
    if not isinstance(others, list):
        problems.append("alternatives: expected a list")
        return _without(rest, "alternatives")
    plain = []
    for other in others:
        recipe = other.get("recipe") if isinstance(other, dict) else None
        plain.append({**other, "recipe": _without(recipe, "global_batch_size")} if isinstance(recipe, dict) else other)
    return {**rest, "alternatives": plain}


def _memory_to_plain(memory: MemoryEstimate) -> dict[str, Any]:
    """Rank 0's figures flat, as most readers want them; a worse rank in full beside them; `required_bytes` over all ranks."""
    host = to_plain(memory.host)
    host["host_terms"] = host.pop("terms")
    same = memory.worst == memory.rank0
    return {
        **_rank_to_plain(memory.rank0),
        "required_bytes": max(memory.rank0.required_bytes, memory.worst.required_bytes),
        "rank0_required_bytes": memory.rank0.required_bytes,
        "worst_rank": None if same else _rank_to_plain(memory.worst),
        **host,
        "evidence": memory.evidence,
        "error_fraction": memory.error_fraction,
        "assumptions": list(memory.assumptions),
        "not_checked": list(memory.not_checked),
    }


def _memory_from_plain(plain: Mapping[str, Any], problems: list[str]) -> MemoryEstimate | None:
    rest = dict(plain)
    worst = rest.pop("worst_rank", None)
    host = {("terms" if k == "host_terms" else k): rest.pop(k) for k in [*HostEstimate.__dataclass_fields__, "host_terms"] if k in rest}
    rank = {k: rest.pop(k) for k in [*RankEstimate.__dataclass_fields__, "rank0_required_bytes"] if k in rest}
    total = rank.pop("required_bytes", None)
    rank["required_bytes"] = rank.pop("rank0_required_bytes", None)
    rank0 = _rank_from_plain(rank, "estimate", problems)
    worst_rank = rank0 if worst is None else _rank_from_plain(worst, "estimate.worst_rank", problems)
    host_estimate = from_plain(HostEstimate, host, "estimate", problems)
    tail = from_plain(MemoryTail, rest, "estimate", problems)
    if rank0 is None or worst_rank is None or host_estimate is None or tail is None:
        return None
    if total != max(rank0.required_bytes, worst_rank.required_bytes):
        problems.append(f"estimate.required_bytes: expected {max(rank0.required_bytes, worst_rank.required_bytes)}, found {total!r}")
        return None
    return MemoryEstimate(rank0=rank0, worst=worst_rank, host=host_estimate, **vars(tail))


@dataclass(frozen=True, kw_only=True)
class MemoryTail:
    """What MemoryEstimate holds beside its ranks and host."""

    evidence: Literal["simulated-measured-kernels", "simulated-unmeasured-kernels", "conservative-stand-in"]
    error_fraction: float
    assumptions: tuple[str, ...]
    not_checked: tuple[str, ...]


def _rank_to_plain(rank: RankEstimate) -> dict[str, Any]:
    """The timeline by columns: one list of fractions, one of bytes per category (a third of the size, and what a plot wants)."""
    plain: dict[str, Any] = {name: to_plain(value) for name, value in vars(rank).items() if name != "timeline"}
    categories = list(dict.fromkeys(name for _, sizes in rank.timeline for name in sizes))
    plain["timeline"] = {
        "fraction": [at for at, _ in rank.timeline],
        "bytes": {name: [sizes.get(name, 0) for _, sizes in rank.timeline] for name in categories},
    }
    return plain


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """The timeline by columns."""

    fraction: tuple[float, ...]
    bytes: Mapping[str, tuple[int, ...]]


def _rank_from_plain(plain: Any, path: str, problems: list[str]) -> RankEstimate | None:
    if not isinstance(plain, dict):
        problems.append(f"{path}: expected an object")
        return None
    columns = from_plain(_Timeline, plain.get("timeline"), f"{path}.timeline", problems)
    if columns is None:
        return None
    if any(len(sizes) != len(columns.fraction) for sizes in columns.bytes.values()):
        problems.append(f"{path}.timeline: columns of different lengths")
        return None
    rows = [[at, {name: sizes[i] for name, sizes in columns.bytes.items()}] for i, at in enumerate(columns.fraction)]
    return from_plain(RankEstimate, {**plain, "timeline": rows}, path, problems)


def _head_of(solve: SolveResult) -> _SolveHead:
    return _SolveHead(**{name: getattr(solve, name) for name in get_type_hints(_SolveHead)})


def _without(plain: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in plain.items() if k != key}


def is_untouched_plan(data: bytes) -> bool:
    """True when `data` is a plan as llmcheck wrote it: replacing it loses nothing that a person typed."""
    from llmcheck.jsonfile import loads

    try:
        found = loads(data, what=_WHAT, where="")
        return isinstance(found, dict) and not from_document(found).edited
    except UserError:
        return False


def _dump(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        items = (f"{inner}{json.dumps(key)}: {_dump(part, inner)}" for key, part in value.items())
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        return "[\n" + ",\n".join(inner + _dump(part, inner) for part in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def absolute(path: str) -> str:
    """`path` as every rank must see it."""
    return os.path.abspath(path)
