"""From what a user gives to facts: each subject is read by its own probe, which is loaded only then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmcheck.rules.facts import Facts

_NO_SUBJECTS = ("logs", "reach", "data_max_bytes", "plan_config")  # of Request: how it is read, or read by others


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to examine. `environment`: this interpreter's packages, or `python`'s, and this machine."""

    environment: bool = False
    python: str | None = None
    requirements: str | None = None
    lock: str | None = None
    tokenizer: str | None = None
    model: str | None = None
    ds_config: str | None = None
    train_args: str | None = None
    data: tuple[str, ...] = ()
    data_max_bytes: int | None = None  # of each file; None: as much as the probe reads by itself
    plan: str | None = None
    plan_config: bool = False  # the plan's DeepSpeed section too, as if it were a configuration of its own
    hostfile: str | None = None
    reach: bool = False  # try the hosts of the hostfile
    logs: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Gathered:
    """What was read. `facts`: of everything that there is once; `files`: of one file each, where several of a kind were given.

    `wanted` are the subjects that were asked for: rules that touch none of them are not judged. The packages of this environment are known
    beside them, since they decide what a tokenizer or a configuration does, but are not judged for themselves.
    """

    facts: Facts = field(default_factory=Facts)
    wanted: set[str] = field(default_factory=set)
    titles: list[str] = field(default_factory=list)
    files: list[Facts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(requests: Sequence[Request]) -> Gathered:
    """All facts for `requests`. Raises UserError for what the user gave and cannot be read."""
    result = Gathered()
    if not any(vars(request)[name] for request in requests for name in vars(request) if name not in _NO_SUBJECTS):
        return result
    for read in (_environment, _tokenizer, _model, _configuration, _plan, _hostfile, _data):
        for request in requests:
            read(request, result)
    _relate(result)
    return result


def _relate(result: Gathered) -> None:
    """What follows from several subjects together, of the common facts and of each further file with them."""
    if "training" not in result.wanted:
        return
    from llmcheck.probe import related

    result.facts = result.facts.merged(related.facts(result.facts))
    result.files = [found.merged(related.facts(result.facts.merged(found))) for found in result.files]


def _environment(request: Request, result: Gathered) -> None:
    pinned = request.requirements or request.lock
    if pinned is not None:
        from llmcheck.probe import requirements

        flag = "--requirements" if request.requirements is not None else "--lock"
        named = requirements.facts(pinned, flag)
        _add(result, named, pinned)
        if not any(name.startswith("pkg.") for name in (*named.known, *named.unreadable)):
            result.notes.append(f"{pinned} names no packages: nothing was checked in it")
    if request.environment or request.python is not None or (pinned is None and "packages" not in result.facts.subjects):
        from llmcheck.probe import environment

        found = environment.facts(request.python)
        if request.environment or request.python is not None:
            _add(result, found, request.python or "this environment")
        else:
            result.facts = result.facts.merged(found)
    if request.environment:
        from llmcheck.probe import host

        _add(result, host.facts(), "this machine")
    if request.environment or request.plan is not None:
        _derive(result)


def _derive(result: Gathered) -> None:
    from llmcheck.probe import derived

    result.facts = result.facts.merged(derived.facts(result.facts))


def _tokenizer(request: Request, result: Gathered) -> None:
    if request.tokenizer is None:
        return
    from llmcheck.probe import tokenizer

    version = result.facts.get("pkg.transformers")
    installed = version.value if version is not None and isinstance(version.value, str) else None
    _add(result, tokenizer.facts(request.tokenizer, installed), f"tokenizer {request.tokenizer}")


def _model(request: Request, result: Gathered) -> None:
    if request.model is None:
        return
    from llmcheck.probe import model_folder

    _add(result, model_folder.facts(request.model), f"model {request.model}")


def _configuration(request: Request, result: Gathered) -> None:
    if request.ds_config is not None:
        from llmcheck.probe import ds_config

        _add(result, ds_config.facts(request.ds_config), f"DeepSpeed configuration {request.ds_config}")
    if request.train_args is not None:
        from llmcheck.probe import train_args

        _add(result, train_args.facts(request.train_args), f"training arguments {request.train_args}")


def _plan(request: Request, result: Gathered) -> None:
    if request.plan is None:
        return
    from llmcheck.doctor import plan_facts

    found, read = plan_facts.facts(request.plan)
    _add(result, found, f"plan {request.plan}")
    if request.plan_config:
        from llmcheck.probe import ds_config

        _add(result, ds_config.of(request.plan, read.plan.recipe.deepspeed, {}), f"DeepSpeed configuration of {request.plan}")


def _hostfile(request: Request, result: Gathered) -> None:
    if request.hostfile is None:
        return
    from llmcheck.probe import hostfile

    wanted = result.facts.get("plan.num_gpus")
    slots = wanted.value if wanted is not None and isinstance(wanted.value, int) else None
    _add(result, hostfile.facts(request.hostfile, wanted_slots=slots, reach=request.reach), f"hostfile {request.hostfile}")


def _data(request: Request, result: Gathered) -> None:
    for path in request.data:
        from llmcheck.probe import dataset

        limit = dataset.DEFAULT_MAX_BYTES if request.data_max_bytes is None else request.data_max_bytes
        _add(result, dataset.facts(path, result.facts, max_bytes=limit), f"data {path}")


def _add(result: Gathered, found: Facts, title: str) -> None:
    """Take `found` in: into the common facts, or, where there is one of its kind already, as a file of its own."""
    result.titles.append(title)
    twice = found.subjects & result.wanted
    result.wanted |= found.subjects
    if twice:
        result.files.append(found)
    else:
        result.facts = result.facts.merged(found)
