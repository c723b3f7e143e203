"""Parameters under ZeRO stage 3: cut into partitions while the model is built (``deepspeed.zero.Init``), whole again when gathered."""

from __future__ import annotations

from typing import Any

from llmcheck.shadow.module import Build, Module, ModulesToSaveWrapper
from llmcheck.shadow.tape import EMPTY, Storage, cur
from llmcheck.shadow.tensor import Param
from llmcheck.units import ceil_div

NOT_AVAILABLE, INFLIGHT, AVAILABLE = range(3)
NEVER = -(10**10)  # the step in which a parameter that no module fetched was fetched


class DsParam:
    """ZeRO-3's state of one parameter."""

    __slots__ = ("ident", "numel", "partition_numel", "tensor", "status", "active", "persist", "fetched_for")

    def __init__(self, ident: int, numel: int, world: int) -> None:
        self.ident = ident
        self.numel = numel
        self.partition_numel = ceil_div(numel, world)
        self.tensor: Storage = EMPTY  # this rank's partition
        self.status = AVAILABLE
        self.active: set[int] = set()
        self.persist = False
        self.fetched_for = NEVER


class Stage3Build(Build):
    """``deepspeed.zero.Init``: each parameter is partitioned when its module's constructor is done."""

    def __init__(self, item: int, world: int, offload: bool) -> None:
        super().__init__(item)
        self.world = world
        self.offload = offload
        self.count = 0
        self.garbage: list[Any] = []  # dropped parameters in reference cycles: they live until the collector runs

    def finish(self, module: Module) -> None:
        for _, p in module.own_params():
            if p.ds is not None:
                continue
            p.ds = ds = DsParam(self.count, p.numel, self.world)
            self.count += 1
            before, cur.category = cur.category, "weights"
            ds.tensor = EMPTY if self.offload else Storage(ds.partition_numel * p.item)
            cur.category = before
            p.st = EMPTY
            ds.status = NOT_AVAILABLE

    def copy(self, module: Module) -> ModulesToSaveWrapper:
        params = [p for _, p in module.own_params()]
        category, cur.category = cur.category, "gathered_weights"
        for p in params:  # ``GatheredParameters`` around the copying
            p.st = gathered(p, self.world, len(params))
        cur.category = category
        wrapper = super().copy(module)
        for p in params:
            p.st = EMPTY
        return wrapper

    def tied(self, module: Module, key: str, to: Param) -> None:
        self.garbage.append(getattr(module, key))
        setattr(module, key, to)


def gathered(p: Param, world: int, together: int) -> Storage:
    """What ``param.all_gather()`` gives, of `together` parameters in one call.

    Of several on one rank each is its partition (``_allgather_params_coalesced``); a single one is copied on one rank, too
    (``_allgather_params_sequential``).
    """
    whole: Storage = p.ds.tensor if world == 1 and together > 1 else Storage(p.ds.partition_numel * world * p.item)
    return whole
