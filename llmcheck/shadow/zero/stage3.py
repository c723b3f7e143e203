"""ZeRO stage 3, as DeepSpeed 0.19.8 does it on one rank of N.

Parameters are partitioned while the model is built (``zero.Init``). Module hooks gather what a module needs, prefetch along the
recorded order and release afterwards (``partitioned_param_coordinator.py``, ``parameter_offload.py``); gradients are averaged bucket by
bucket into a flat partition buffer (``stage3.py``). Names follow the sources.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from llmcheck.shadow import ops
from llmcheck.shadow.module import Build, Module, ModulesToSaveWrapper
from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.tensor import EMPTY, Note, Param, Storage, Tensor, attach, begin, cur, flops, keep, note, record_stream
from llmcheck.units import ceil_div

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

GATHER_STREAM = 2
REDUCE_STREAM = 1
NOT_AVAILABLE, INFLIGHT, AVAILABLE = range(3)
_NEVER = -(10**10)
_NORM_CHUNK = 250_000_000  # elements whose norm is taken at once (stage3.py, _constant_buffered_norm2)


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
        self.fetched_for = _NEVER


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
            p.st = _gathered(p, self.world, len(params))
        cur.category = category
        wrapper = super().copy(module)
        for p in params:
            p.st = EMPTY
        return wrapper

    def tied(self, module: Module, key: str, to: Param) -> None:
        self.garbage.append(getattr(module, key))
        setattr(module, key, to)


def _gathered(p: Param, world: int, together: int) -> Storage:
    """What ``param.all_gather()`` gives, of `together` parameters in one call.

    Of several on one rank each is its partition (``_allgather_params_coalesced``); a single one is copied on one rank, too
    (``_allgather_params_sequential``).
    """
    whole: Storage = p.ds.tensor if world == 1 and together > 1 else Storage(p.ds.partition_numel * world * p.item)
    return whole


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
            p.ds.fetched_for = _NEVER
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
            p.st = _gathered(p, self.world, 1)
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


class Hooks:
    """What ZeRO-3 does around each module call."""

    def __init__(self, coordinator: Coordinator, root: Module) -> None:
        self.coordinator = coordinator
        self.root = root
        self.remaining: dict[int, int] = {}
        self.stack: list[Module] = []
        self.in_leaf = False
        self.reduce_leaf: Callable[[Module], None] | None = None

    def recording(self, recorder: Any) -> Hooks:
        """The same hooks around modules whose calls `recorder` only writes down."""
        out = Hooks(recorder, self.root)
        out.reduce_leaf = recorder.reduce_leaf
        return out

    def gather_external(self, module: Module) -> None:
        """A weight of `module` is read outside its call."""
        self.coordinator.gather_external(self.stack[-1] if self.stack else self.root, module)

    def call(self, module: Module, args: tuple[Any, ...]) -> Any:
        coordinator = self.coordinator
        if module is self.root:
            self.stack.clear()  # a re-run that stopped early leaves its modules there
            coordinator.reset_step()
        if self.in_leaf:
            return module.forward(*args)
        self.stack.append(module)
        coordinator.fetch(module, True)
        self.remaining[id(module)] = 0
        positional = module.positional
        args = tuple([self._post_backward(module, a) if type(a) is Tensor and i < positional else a for i, a in enumerate(args)])
        if module.zero_leaf:
            out = self._leaf(module, args)
        else:
            out = _forward(module, args)
        self.stack.pop()
        coordinator.release(module, True)
        if type(out) is tuple:
            return tuple([self._pre_backward(module, o) if type(o) is Tensor else o for o in out])
        if type(out) is Tensor:
            return self._pre_backward(module, out)
        return out

    def _leaf(self, module: Module, args: tuple[Any, ...]) -> Any:
        """A leaf's children have no hooks; its parameters' gradients are reduced together when that of its input is there."""
        x, *rest = args
        inner = Tensor(x.shape, x.item, x.st, x.strides)
        if cur.grad and x.req:

            def back(saved: Any, g: Tensor) -> tuple[Tensor]:
                if self.reduce_leaf is not None:
                    self.reduce_leaf(module)
                return (g,)

            attach(inner, begin(back, (x,), ()))
        del x, args
        self.in_leaf = True
        try:
            return _forward(module, (inner, *rest))
        finally:
            self.in_leaf = False

    def _post_backward(self, module: Module, x: Tensor) -> Tensor:
        out = Tensor(x.shape, x.item, x.st, x.strides)
        if not (cur.grad and x.req):
            return out
        key = id(module)
        self.remaining[key] += 1

        def back(saved: Any, g: Tensor) -> tuple[Tensor]:
            self.remaining[key] -= 1
            if self.remaining[key] == 0:
                self.coordinator.release(module, False)
            return (g,)

        return attach(out, begin(back, (x,), ()))

    def _pre_backward(self, module: Module, y: Tensor) -> Tensor:
        out = Tensor(y.shape, y.item, y.st, y.strides)
        if not (cur.grad and y.req):
            return out

        def back(saved: Any, g: Tensor) -> tuple[Tensor]:
            self.coordinator.fetch(module, False)
            return (g,)

        return attach(out, begin(back, (y,), ()))

    def linear(self, x: Tensor, w: Param, b: Param | None) -> Tensor:
        """``LinearFunctionForZeroStage3``: saves after its forward; returns plain gradients."""
        lead, k = x.shape[:-1], x.shape[-1]
        n, rows = w.shape[0], prod(x.shape[:-1])
        copy = (
            Tensor(x.shape, x.item)
            if x.strides is not None and len(lead) > 1 and ops.view_strides(x.shape, x.strides, (rows, k)) is False
            else None
        )
        out = ops.matmul_kernel(lead + (n,), x.item, len(lead) == 1 and b is not None)
        product = 2.0 * rows * n * k
        flops(product)
        del copy
        need_x, need_w, need_b = x.req, w.req, b is not None and b.req
        if not cur.grad or not (need_x or need_w or need_b):
            return out
        xs, item, dense_x = x.shape, x.item, x.strides is None

        def back(saved: list[Any], g: Tensor) -> list[Tensor | None]:
            weight = saved[1]
            if type(weight) is Param:
                self.coordinator.regather(weight)
            gx = gw = gb = None
            dense_g = g.strides is None
            if need_x:
                tmp = None if dense_g else Tensor(g.shape, item)
                gx = ops.matmul_kernel(xs, item)
                flops(product)
                del tmp
            if need_w:
                tmp = None if dense_g else Tensor(g.shape, item)
                tmp2 = None if dense_x else Tensor(xs, item)
                gw = ops.matmul_kernel((n, k), item)
                flops(product)
                del tmp, tmp2
            if need_b:
                gb = ops.column_sum(rows, n, item)
                gb.view = False
            if type(weight) is Param:
                self.coordinator.ungather(weight)
            return [gx, gw, gb]

        return attach(out, begin(back, (x, w, b), [keep(x), keep(w), None if b is None else keep(b)]))


def _forward(module: Module, args: tuple[Any, ...]) -> Any:
    return module.forward(*args)


class Stage3:
    """Optimizer of one rank under stage 3."""

    def __init__(
        self, model: Module, build: Stage3Build, settings: ZeroSettings, *, rank: int, world: int, item: int, optimizer: OptimizerState
    ):
        self.model, self.build, self.settings = model, build, settings
        self.rank, self.world, self.item, self.optimizer = rank, world, item, optimizer
        self.coordinator = Coordinator(settings, world)
        self.all_params = model.parameters()
        self.coordinator.params = self.all_params
        self.params = [p for p in self.all_params if p.req]
        self.bucket: list[Param] = []
        self.elements = 0
        self.buffer: Storage | None = None
        self.flat: Storage | None = None
        self.masters: list[Storage] = []
        self.grad_partitions: Storage | None = None
        self.boundary = True
        self.reduce_stream = REDUCE_STREAM if settings.overlap_comm else 0  # reduce_and_partition_stream
        self.offload = settings.offload_optimizer.enabled
        self.offload_param = settings.offload_param.enabled
        self.master_item = settings.master_bytes
        self.grad_item = 4 if settings.grad_accum_dtype == "fp32" else item
        self.sub_groups = self._sub_groups()

    def _sub_groups(self) -> list[list[Param]]:
        size = self.settings.sub_group_size
        total = sum(p.ds.partition_numel for p in self.params)
        if size >= total:
            return [self.params]
        groups: list[list[Param]] = []
        group: list[Param] = []
        n = 0
        for p in self.params:
            group.append(p)
            n += p.ds.partition_numel
            if n >= size or p is self.params[-1]:
                groups.append(group)
                group, n = [], 0
        return groups

    def initialize(self, flatten_on_device: bool) -> None:
        c = cur
        settings = self.settings
        total = 0
        for p in self.all_params:
            if total + p.numel <= settings.model_persistence_threshold and p.numel <= settings.param_persistence_threshold:
                p.ds.persist = True
                total += p.numel
        self.build.garbage.clear()
        c.category = "weights"
        numels = [sum(p.ds.partition_numel for p in g) for g in self.sub_groups]
        if not self.offload_param:
            for p in self.params:
                p.ds.tensor = EMPTY
            c.tape.mark("empty_cache")
            self.flat = Storage(sum(numels) * self.item)
            for p in self.params:
                p.ds.tensor = self.flat
        if not self.offload:
            c.category = "optimizer_states"
            item = self.master_item
            if self.item == item:
                self.masters = [Storage(item * n) for n in numels]
            else:
                converted: Storage | None = None
                for n in numels:
                    converted = Storage(item * n)
                    self.masters.append(Storage(item * n))
                del converted
            zeros = Storage(item * max(numels, default=0))
            del zeros
        c.category = "zero_buffers"
        if settings.contiguous_gradients:
            self.buffer = Storage(settings.reduce_bucket_size * self.item)
        c.category = "gradients"
        if not self.offload:
            self.grad_partitions = Storage(sum(numels) * self.grad_item)
        c.category = "gathered_weights"
        for p in self.params:
            full = Storage(p.ds.partition_numel * self.world * p.item)
            moved = Storage(p.ds.partition_numel * p.item) if self.offload_param else None
            del full, moved
            p.hook = self._hook
        for module in self.model.modules():
            if module.zero_leaf:
                for p in module.parameters():
                    p.hook = None
        if self.optimizer.kind == "adam-bf16":  # the bundled trainer lets the optimizer work on the weights themselves
            self.masters = []
        c.category = "activations"
        c.hooks = hooks = Hooks(self.coordinator, self.model)
        hooks.reduce_leaf = self._reduce_leaf

    # --- gradients --------------------------------------------------------------------------------------------------------------

    def _hook(self, p: Param) -> None:
        if self.elements + p.numel > self.settings.reduce_bucket_size and self.elements > 0:
            self._reduce()
        assert p.grad is not None
        if self.settings.contiguous_gradients and self.elements + p.numel <= self.settings.reduce_bucket_size:
            assert self.buffer is not None
            note(Note.COPY, p.grad.nbytes)
            record_stream(p.grad.st, self.reduce_stream)
            p.grad.st = self.buffer
        self.bucket.append(p)
        self.elements += p.numel

    def _reduce_leaf(self, module: Module) -> None:
        """``reduce_leaf_module_grads``; parameters that took no part get zeros."""
        for p in self.coordinator.own_params(module):
            if p.req:
                if p.grad is None:
                    p.grad = Tensor(p.shape, p.item)
                self._hook(p)

    def _reduce(self) -> None:
        if not self.bucket:
            return
        c = cur
        note(Note.BUCKET)
        category, stream = c.category, c.stream
        c.category, c.stream = "zero_buffers", self.reduce_stream
        params = sorted(self.bucket, key=lambda q: q.ds.ident)
        note(Note.SLICES, len(params) * self.world)
        flat: Storage | None = None
        if self.settings.reduce_scatter and not (len(params) == 1 and params[0].numel % self.world == 0):
            flat = Storage(sum(p.ds.partition_numel * self.world for p in params) * self.item)
        copy: Storage | None = None
        accumulated = [Storage(4 * p.ds.partition_numel) for p in params] if self.grad_item != self.item else []
        if accumulated:
            flat = None
        for p in params:
            if p.ds.partition_numel * self.rank < p.numel and self.offload:
                n = p.ds.partition_numel
                copy = Storage(self.item * n)  # the partition comes back from the host
                left = n
                while left > 0:
                    norm = Storage(8 * min(left, _NORM_CHUNK))
                    del norm
                    left -= _NORM_CHUNK
                if self.item != self.master_item:
                    converted = Storage(self.master_item * n)
                    del converted
            assert p.grad is not None
            record_stream(p.grad.st, c.stream)
            p.grad = None
        del flat, copy, accumulated
        c.category, c.stream = category, stream
        self.bucket = []
        self.elements = 0

    def epilogue(self) -> None:
        self._reduce()
        note(Note.SYNC)
        self.coordinator.release_backward_leftovers()

    # --- step ----------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        c = cur
        self.coordinator.release_all()
        if not self.offload and self.settings.precision == "fp16":
            # has_overflow: isinf makes |x| and its mask, isnan a mask, over all gradients at once, on the reduction stream
            stream, c.stream = c.stream, self.reduce_stream
            c.category = "zero_buffers"
            n = sum(p.ds.partition_numel for p in self.params)
            absolute = Storage(self.grad_item * n)
            mask = Storage(n)
            del absolute, mask
            nan = Storage(n)
            del nan
            c.stream = stream
        if not self.offload:
            c.category = "optimizer_states"
            for p in self.params:
                norm = Storage(8 * p.ds.partition_numel)
                del norm
            note(Note.SYNC)
            for key, group in enumerate(self.sub_groups):
                n = sum(p.ds.partition_numel for p in group)
                c.category = "gradients"
                flat = Storage(n * self.grad_item) if len(group) > 1 else None
                grad = Storage(self.master_item * n) if self.grad_item != self.master_item else flat
                del flat
                self.optimizer.step([n], key)
                del grad
        persistent = [p for p in self.all_params if p.ds.persist and p.ds.status == NOT_AVAILABLE]
        c.category = "gathered_weights"
        for p in persistent:
            p.st = _gathered(p, self.world, len(persistent))
            p.ds.status = AVAILABLE
        c.category = "activations"
