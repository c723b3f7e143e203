"""Which parameters of ZeRO stage 3 are whole, and when: gathered for a module, prefetched along the recorded order, released afterwards
(DeepSpeed 0.19.8, ``partitioned_param_coordinator.py``). Names follow the source.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

from llmcheck.shadow.module import Module
from llmcheck.shadow.tape import EMPTY, Note, Storage, cur, note, record_stream
from llmcheck.shadow.tensor import Param
from llmcheck.shadow.zero.partition import AVAILABLE, INFLIGHT, NEVER, NOT_AVAILABLE, gathered

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

GATHER_STREAM = 2


class _Handle:
    """A coalesced gather in flight: one flat buffer, copied apart at the first wait."""

    __slots__ = ("flat", "params", "world", "complete")

    def __init__(self, flat: Storage, params: list[Param], world: int) -> None:
        self.flat = flat
        self.params = params
        self.world = world
        self.complete = False

    def wait(self) -> None:
        if self.complete:
            return
        note(Note.SLICES, len(self.params) * self.world)
        for p in self.params:
            p.st = Storage(p.ds.numel * p.item)
            p.ds.status = AVAILABLE
        self.complete = True


class _Single:
    """A gather of one parameter: its buffer becomes the parameter. On one rank nothing is gathered."""

    __slots__ = ("params",)

    def __init__(self, params: list[Param]) -> None:
        self.params = params

    def wait(self) -> None:
        for p in self.params:
            p.ds.status = AVAILABLE


class Coordinator:
    """``PartitionedParameterCoordinator``: record, fetch, prefetch, release."""

    def __init__(self, settings: ZeroSettings, world: int) -> None:
        self.settings = settings
        self.world = world
        self.stream = GATHER_STREAM if settings.overlap_comm else 0
        self.mode = "invalid"
        self.step_id = 0
        self.order: list[Module] = []
        self.trace: list[tuple[Param, int]] = []
        self.queue: deque[tuple[Param, int]] = deque()
        self.available = 0
        self.inflight: dict[Param, _Handle | _Single] = {}
        self.active_backward: dict[int, Module] = {}
        self.recompute: dict[int, dict[Param, None]] = {}  # insertion order: a set's would hang on addresses
        self.release_cache: dict[tuple[int, int], frozenset[int]] = {}
        self.params: list[Param] = []
        self.uses: dict[bool, tuple[list[int], dict[int, list[int]]]] = {}
        self.own: dict[Module, list[Param]] = {}
        self.listed: dict[tuple[Module, bool], list[Param]] = {}
        self.below: dict[Module, list[Param]] = {}
        self.regathered: set[Param] = set()

    def own_params(self, module: Module) -> list[Param]:
        """``iter_params``: a leaf module's parameters are all those below it."""
        found = self.own.get(module)
        if found is None:
            found = self.own[module] = self._params(module, module.zero_leaf)
        return found

    def _params(self, module: Module, recurse: bool) -> list[Param]:
        key = module, recurse
        if key not in self.listed:
            params = self._params_below(module) if recurse else [p for _, p in module.own_params()]
            self.listed[key] = list(dict.fromkeys(params))
        return self.listed[key]

    def _params_below(self, module: Module) -> list[Param]:
        """``module.parameters()``, each module walked once for all that are above it."""
        found = self.below.get(module)
        if found is None:
            params = [p for _, p in module.own_params()]
            for _, child in module.children():
                params += self._params_below(child)
            found = self.below[module] = list(dict.fromkeys(params))
        return found

    def reset_step(self) -> None:
        """Start of a forward pass."""
        self._clean_inflight()
        if self.mode == "record":
            self.trace = [(p, i) for i, m in enumerate(self.order) for p in sorted(self.own_params(m), key=lambda q: q.ds.ident)]
            self.mode = "complete"
        elif self.mode == "invalid":
            self.mode = "record"
        self.queue = deque(self.trace)
        for p in self.params:
            p.ds.fetched_for = NEVER
        self.step_id = 0
        self.available = 0

    def _clean_inflight(self) -> None:
        for p, handle in list(self.inflight.items()):
            handle.wait()
            self.release_param(p)
        self.inflight.clear()

    def fetch(self, module: Module, forward: bool) -> None:
        """``fetch_sub_module``."""
        if self.mode == "record":
            self.order.append(module)
        if not forward:
            self.active_backward.setdefault(id(module), module)
        params = self.own_params(module)
        note(Note.FORWARD if forward else Note.BACKWARD)  # the hook takes its time for modules without parameters too
        if params:
            self._claim(module, params, forward)
        if self.mode == "complete":
            self._prefetch(params)
        self.step_id += 1

    def _claim(self, module: Module, params: list[Param], forward: bool) -> None:
        """Gather what is missing of the parameters of `module`, mark them as in use, wait for them."""
        missing = [p for p in params if p.ds.status == NOT_AVAILABLE]
        if missing:
            self._gather(missing)
        # DeepSpeed walks a set of parameters here, ordered by address: the copies of a leaf module's (experts') weights may come in another
        # order, and reserved memory may differ by a few per cent from run to run
        recompute = forward and cur.kernels is not None and cur.kernels.in_backward
        for p in params:
            p.ds.active.add(id(module))
            if recompute and self.active_backward and not p.req:
                owner = next(reversed(self.active_backward.values()))
                self.recompute.setdefault(id(owner), {})[p] = None
                p.ds.active.add(id(owner))
            handle = self.inflight.pop(p, None)
            if handle is not None:
                stream, cur.stream = cur.stream, self.stream
                category, cur.category = cur.category, "gathered_weights"
                handle.wait()
                cur.stream, cur.category = stream, category
            handle = None

    def _prefetch(self, params: list[Param]) -> None:
        if params:
            wanted = {p for p in params if p.ds.fetched_for < self.step_id}
            seen: set[Param] = set()
            while self.queue and len(seen) < len(wanted):
                p, used = self.queue.popleft()
                p.ds.fetched_for = used
                seen.add(p)
        if self.settings.prefetch_bucket_size <= 0:
            return
        limit = min(self.settings.max_live_parameters - self.available, self.settings.prefetch_bucket_size)
        fetch: dict[Param, None] = {}
        numel = 0
        while self.queue and numel < limit:
            p, used = self.queue.popleft()
            ds = p.ds
            if used > ds.fetched_for:
                ds.fetched_for = used
            if ds.status == NOT_AVAILABLE and p not in fetch:
                fetch[p] = None
                numel += ds.numel
        if numel > 0:
            self._gather(list(fetch))

    def _gather(self, params: list[Param]) -> None:
        """``all_gather_coalesced`` on the gather stream."""
        self.available += sum(p.ds.numel for p in params)
        note(Note.GATHER, len(params))
        stream, cur.stream = cur.stream, self.stream
        category, cur.category = cur.category, "gathered_weights"
        handle: _Handle | _Single
        offload = self.settings.offload_param.enabled
        if self.world == 1:
            for p in params:
                p.st = Storage(p.ds.numel * p.item) if offload and not p.ds.persist else p.ds.tensor
            handle = _Single(params)
        elif len(params) == 1:
            p = params[0]
            buffer = Storage(p.ds.partition_numel * self.world * p.item)
            if offload:
                moved = Storage(p.ds.partition_numel * p.item)  # the partition comes to the device first
                del moved
            p.st = buffer
            del buffer
            handle = _Single(params)
        else:
            params = sorted(params, key=lambda q: q.ds.ident)
            total = sum(p.ds.partition_numel * p.item for p in params)
            flat = Storage(total * self.world)
            if offload:
                moved_all = [Storage(p.ds.partition_numel * p.item) for p in params]
                del moved_all
            handle = _Handle(flat, params, self.world)
            del flat
        cur.stream, cur.category = stream, category
        for p in params:
            p.ds.status = INFLIGHT
            self.inflight[p] = handle

    def _params_to_release(self, module: Module) -> frozenset[int]:
        params = self.own_params(module)
        if not params:
            return frozenset()
        key = (id(module), self.step_id)
        cached = self.release_cache.get(key)
        if cached is not None:
            return cached
        numels, places = self._uses(module.zero_leaf)  # sic: whether the released module is a leaf decides
        start = min(self.step_id, len(self.order))
        stop = bisect_left(numels, numels[start] + self.settings.max_reuse_distance, start)
        release = set()
        for p in params:
            if not p.ds.persist and p.ds.fetched_for <= self.step_id:
                used = places.get(p.ds.ident, ())
                i = bisect_left(used, start)
                if i == len(used) or used[i] >= stop:
                    release.add(p.ds.ident)
        out = self.release_cache[key] = frozenset(release)
        return out

    def _uses(self, leaf: bool) -> tuple[list[int], dict[int, list[int]]]:
        """Of the recorded order: elements of the modules before each place, and the places at which each parameter is used."""
        if leaf not in self.uses:
            numels, places = [0], dict[int, list[int]]()
            for place, module in enumerate(self.order):
                params = self._params(module, leaf)
                for p in params:
                    places.setdefault(p.ds.ident, []).append(place)
                numels.append(numels[-1] + sum(p.ds.numel for p in params))
            self.uses[leaf] = numels, places
        return self.uses[leaf]

    def release(self, module: Module, forward: bool) -> None:
        """``release_sub_module``."""
        params = self.own_params(module)
        if forward and not params:
            return
        release: set[int] | frozenset[int]
        release = self._params_to_release(module) if self.mode == "complete" else {p.ds.ident for p in params}
        if not forward:
            extra = self.recompute.pop(id(module), None)
            if extra:
                release = set(release) | {p.ds.ident for p in extra if not p.ds.persist}
                params = list(dict.fromkeys((*params, *extra)))
            self.active_backward.pop(id(module), None)
        for p in params:
            p.ds.active.discard(id(module))
            if p.ds.ident in release:
                self.release_param(p)

    def release_param(self, p: Param) -> None:
        ds = p.ds
        if ds.status == AVAILABLE and not ds.active:
            record_stream(p.st, 0)
            p.st = EMPTY
            ds.status = NOT_AVAILABLE
            self.available -= ds.numel

    def gather_external(self, caller: Module, module: Module) -> None:
        """A weight read outside its module's call (``ZeROOrderedDict``): gathered at once and from then on fetched with the caller."""
        for p in self.own_params(module):
            if p.ds.status != NOT_AVAILABLE:
                continue
            known = self.own_params(caller)
            if p not in known:
                known.append(p)
                self.uses.clear()
            category, cur.category = cur.category, "gathered_weights"
            p.st = gathered(p, self.world, 1)
            cur.category = category
            p.ds.status = AVAILABLE

    def regather(self, p: Param) -> None:
        """Before the gradients of a product: its weight, where it was released."""
        if p.ds.status == NOT_AVAILABLE:
            p.st = Storage(p.ds.partition_numel * self.world * p.item)
            self.regathered.add(p)

    def ungather(self, p: Param) -> None:
        """Undo `regather`."""
        if p in self.regathered:
            self.regathered.remove(p)
            p.st = EMPTY

    def release_backward_leftovers(self) -> None:
        while self.active_backward:
            _, module = self.active_backward.popitem()
            for p in dict.fromkeys((*self.own_params(module), *self.recompute.pop(id(module), {}))):
                p.ds.active.discard(id(module))
                if not p.ds.persist:
                    self.release_param(p)

    def release_all(self) -> None:
        """``release_and_reset_all``, before the step."""
        for p in self.params:
            handle = self.inflight.pop(p, None)
            if handle is not None:
                handle.wait()
            handle = None
            p.ds.active.clear()
            self.release_param(p)
