"""The script of a layer: what it asks of the allocator and of ZeRO-3, recorded once and played for every layer that is built alike.

A decoder repeats one layer dozens of times, and executing it is most of the work of a simulation. What it does between two calls of
ZeRO-3's coordinator or of a gradient's hook depends on nothing but how it is built and what it is given: so the first layer of a kind
is executed once beside the tape, forward and backward, and its storages, its notes and its calls become a script. Playing the script
writes the storages and makes the same calls on the layer's own modules and parameters. Coordinator, hooks and reduction are not part of
it: they are called as ever, since their state differs from layer to layer. That both ways give the same tape is checked in
``tests/laws``. What a script cannot say (a layer that shares parameters, returns more than one tensor or keeps something to itself) is
executed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from enum import IntEnum
from types import FunctionType
from typing import Any, NamedTuple

from llmcheck.shadow.module import CheckpointedLayer, Module
from llmcheck.shadow.quant import PackedWeight
from llmcheck.shadow.tensor import (
    EMPTY,
    SOLE,
    AccumulateGrad,
    Context,
    LeafAccumulate,
    Node,
    OwningNode,
    Packed,
    Param,
    Shape,
    Storage,
    Tape,
    Tensor,
    accumulator,
    backward_from,
    cur,
    edges_of,
)

WORTHWHILE = 3  # layers of a kind from which on recording costs less than it saves: it executes one layer and plays none


class _Do(IntEnum):
    """What a script calls between two runs of storages."""

    FETCH = 0
    RELEASE = 1
    ACCUMULATE = 2
    DROP = 3
    GATHER_EXTERNAL = 4
    REGATHER = 5
    UNGATHER = 6
    HOLD = 7
    WORKSPACE = 8
    REDUCE_LEAF = 9
    NOTHING = 10


_FETCH, _RELEASE, _ACCUMULATE, _DROP, _GATHER_EXTERNAL, _REGATHER, _UNGATHER, _HOLD, _WORKSPACE, _REDUCE_LEAF, _NOTHING = map(int, _Do)


class _UnscriptableError(Exception):
    """The layer does something that a script cannot say."""


class _Like(NamedTuple):
    """A tensor without its storage."""

    shape: Shape
    item: int
    strides: Shape | None
    view: bool

    @staticmethod
    def of(t: Tensor) -> _Like:
        return _Like(t.shape, t.item, t.strides, t.view)

    def on(self, st: Storage) -> Tensor:
        return Tensor(self.shape, self.item, st, self.strides, self.view)


class _Run(NamedTuple):
    """Storages made and dropped between two calls. `events` as on a tape, with the names of the storages."""

    events: list[int]
    sizes: list[int]
    categories: list[str]
    streams: list[int]
    notes: list[tuple[int, int, float]]  # (events before it, what, amount)


class _Op(NamedTuple):
    """A run of storages (None: there is none), then a call under `category`."""

    run: _Run | None
    do: int
    a: Any
    b: Any
    category: str


class _State:
    """A layer at work: of its own storages the requests on the tape, by name, and those that it holds as objects.

    Names are numbers: 0, 1, .. for what the layer makes, -1, -2, .. for what comes from outside.
    """

    __slots__ = ("requests", "held")

    def __init__(self, held: dict[int, Storage]) -> None:
        self.requests: list[int] = []
        self.held = held

    def take(self, name: int) -> Storage:
        """The storage, which the layer does not hold from now on."""
        return self.held.pop(name) if name in self.held else Storage.of_request(self.requests[name])


class _Backward(NamedTuple):
    """`gradient`: name of what arrives. Then `ops`, then the gradient of the input (None: it needs none), by name."""

    gradient: int
    ops: list[_Op]
    result: tuple[int, _Like] | None


class _Arrival(NamedTuple):
    """A gradient that arrives: its layout, and whether nobody else owns its storage."""

    like: _Like
    sole: bool


class Script(NamedTuple):
    """Both directions of a layer."""

    ops: list[_Op]
    result: tuple[int, _Like]
    nothing: tuple[None, ...]  # what a layer that returns a tuple returns behind its result
    holds_result: bool  # until its backward
    holds_given: list[tuple[int, int]]  # the same of what is given: (name, place)
    arrives: _Arrival  # the gradient that `backward` was recorded with
    backward: _Backward


class Parts:
    """A layer with its modules and parameters in order, and what makes it like another."""

    def __init__(self, layer: CheckpointedLayer) -> None:
        self.layer = layer
        self.modules = list(layer.modules())
        self.params = [p for module in self.modules for _, p in module.own_params()]
        self.kind = _kind_of(layer, {})


def _kind_of(value: Any, seen: dict[int, int]) -> Any:
    """Equal for values on which a layer behaves alike; what is not understood is like itself only."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return type(value), tuple([_kind_of(part, seen) for part in value])
    if isinstance(value, FunctionType):
        cells = tuple([_kind_of(cell.cell_contents, seen) for cell in value.__closure__ or ()])
        return value.__code__, cells, _kind_of(value.__defaults__, seen)
    if isinstance(value, PackedWeight):
        return value.shape, value.item
    if type(value) is Tensor:
        return _Like.of(value)
    if isinstance(value, (Param, Module)):
        place = seen.setdefault(id(value), len(seen))
        if place < len(seen) - 1:
            return place  # the same object again
        if isinstance(value, Param):
            return place, value.shape, value.item, value.req
        return place, type(value), tuple([(key, _kind_of(part, seen)) for key, part in value.__dict__.items()])
    return id(value)


class _Hollow(NamedTuple):
    """A tensor that is given: its layout, whether it needs a gradient, and the place of its storage among those given."""

    like: _Like
    req: bool
    place: int


class _Given(NamedTuple):
    """What a layer is given from outside: the layout (arguments, then packed rows), and the storages."""

    layout: Any
    storages: list[Storage]


def _given_of(x: Tensor, bound: tuple[Any, ...], packed: Packed | None) -> _Given:
    storages: list[Storage] = []
    arguments = _hollow((x, *bound), x, storages)
    return _Given((arguments, None if packed is None else _hollow(tuple(packed), x, storages)), storages)


def _hollow(value: Any, x: Tensor, storages: list[Storage]) -> Any:
    """The layout of `value`; adds its storages. Only `x` may need a gradient."""
    if type(value) is Tensor:
        if value.req and value is not x:
            raise _UnscriptableError
        place = next((i for i, st in enumerate(storages) if st is value.st), len(storages))
        if place == len(storages):
            storages.append(value.st)
        return _Hollow(_Like.of(value), value.req, place)
    if value is None or isinstance(value, (int, float, str)):
        return value
    if type(value) is tuple:
        return tuple([_hollow(part, x, storages) for part in value])
    raise _UnscriptableError


def _filled(layout: Any, storages: list[Storage]) -> Any:
    """What `layout` describes, on other storages."""
    if type(layout) is _Hollow:
        out = layout.like.on(storages[layout.place])
        out.req = layout.req
        return out
    return tuple([_filled(part, storages) for part in layout]) if type(layout) is tuple else layout


# --- playing ----------------------------------------------------------------------------------------------------------------------


class Scripts:
    """The scripts of one execution."""

    def __init__(self, model: Module) -> None:
        uses = Counter([id(p) for module in model.modules() for _, p in module.own_params()])
        found = [Parts(m) for m in model.modules() if isinstance(m, CheckpointedLayer)]
        kinds = Counter([parts.kind for parts in found])
        self._parts = {
            id(parts.layer): parts for parts in found if kinds[parts.kind] >= WORTHWHILE and all(uses[id(p)] == 1 for p in parts.params)
        }
        self._scripts: dict[Any, Script | None] = {}
        self._backwards: dict[Any, _Backward] = {}

    def call(self, layer: CheckpointedLayer, x: Tensor, bound: tuple[Any, ...]) -> Any:
        """Play `layer`, or execute it where it has no script."""
        parts = self._parts.get(id(layer))
        if parts is None or cur.pack is not None or not cur.grad:
            return layer.execute(x, *bound)
        try:
            given = _given_of(x, bound, cur.packed)
        except _UnscriptableError:
            return layer.execute(x, *bound)
        key = (parts.kind, given.layout, cur.category)
        if key not in self._scripts:
            self._scripts[key] = _recorded(parts, given.layout, cur.category)
        script = self._scripts[key]
        if script is None:
            return layer.execute(x, *bound)
        state = _State({name: given.storages[place] for name, place in script.holds_given})
        del given
        _play(script.ops, state, parts)
        name, like = script.result
        out = like.on(state.take(name))
        if script.holds_result:
            state.held[name] = out.st

        def back(saved: _State, cell: list[Tensor]) -> list[Tensor | None]:
            return self._play_backward(key, script, parts, saved, cell)

        out.node, out.req = OwningNode(back, edges_of((x,)), state), True
        return (out, *script.nothing) if script.nothing else out

    def _play_backward(self, key: Any, script: Script, parts: Parts, state: _State, cell: list[Tensor]) -> list[Tensor | None]:
        g = cell.pop()
        arrives = _Arrival(_Like.of(g), sys.getrefcount(g.st) == SOLE)
        if arrives == script.arrives:
            backward = script.backward
        else:
            found = self._backwards.get((key, arrives))
            backward = self._record_backward(key, parts, arrives) if found is None else found
        state.held[backward.gradient] = g.st
        del g
        _play(backward.ops, state, parts)
        if backward.result is None:
            return [None]
        name, like = backward.result
        return [like.on(state.take(name))]

    def _record_backward(self, key: Any, parts: Parts, arrives: _Arrival) -> _Backward:
        script = _recorded(parts, key[1], key[2], arrives)
        assert script is not None  # it could be recorded for another gradient
        self._backwards[key, arrives] = script.backward
        return script.backward


def _play(ops: list[_Op], state: _State, parts: Parts) -> None:
    """Write the storages of `ops` on the tape and make their calls."""
    c = cur
    tape, requests, held = c.tape, state.requests, state.held
    events, sizes, categories, streams = c.events, c.sizes, c.categories, c.streams
    modules, params, category = parts.modules, parts.params, c.category
    coordinator: Any = None if c.hooks is None else c.hooks.coordinator
    for run, do, a, b, c.category in ops:
        if run is not None:
            if run.notes:
                at = len(events)
                tape.notes += [(at + before, what, amount) for before, what, amount in run.notes]
            first = len(sizes)
            requests += range(first, first + len(run.sizes))
            sizes += run.sizes
            categories += run.categories
            streams += run.streams
            events += [requests[e] if e >= 0 else ~requests[~e] for e in run.events]
        if do == _FETCH:
            coordinator.fetch(modules[a], b)
        elif do == _RELEASE:
            coordinator.release(modules[a], b)
        elif do == _DROP:
            del held[a]
        elif do == _ACCUMULATE:
            name, like, keeps = b
            acc = accumulator(params[a])
            acc.buf = like.on(state.take(name))
            if keeps:
                held[name] = acc.buf.st
            acc.run()
        elif do == _GATHER_EXTERNAL:
            coordinator.gather_external(modules[a], modules[b])
        elif do == _REGATHER:
            coordinator.regather(params[a])
        elif do == _UNGATHER:
            coordinator.ungather(params[a])
        elif do == _HOLD:
            held[b] = params[a].st
        elif do == _WORKSPACE:
            c.kernels.matmul_workspace(a)
        elif do == _REDUCE_LEAF:
            c.hooks.reduce_leaf(modules[a])
    c.category = category


# --- recording --------------------------------------------------------------------------------------------------------------------


class _Call:
    """A call, where it came: events and notes before it."""

    __slots__ = ("event", "note", "do", "a", "b", "category")

    def __init__(self, do: int, a: Any, b: Any) -> None:
        self.event, self.note = len(cur.events), len(cur.tape.notes)
        self.do, self.a, self.b, self.category = do, a, b, cur.category


class _Recorder:
    """Stands for ZeRO-3's coordinator, a kernel library's workspaces and the parameters' accumulators while a layer is recorded."""

    def __init__(self, parts: Parts) -> None:
        self.modules = {id(module): place for place, module in enumerate(parts.modules)}
        self.params = {id(p): place for place, p in enumerate(parts.params)}
        self.calls: list[_Call] = []
        self.foreign: list[int] = []  # requests of the recording's tape that stand for storages from outside
        self.workspaces: set[tuple[bool, bool]] = set()
        self.gathered: dict[int, Param] = {}  # by place
        self.data: set[int] = set()  # requests that stand for gathered data
        self.held: set[int] = set()  # requests of gathered data that the layer keeps, whatever becomes of the parameter

    def _place(self, module: Module) -> int:
        return _known(self.modules, module)

    def _param(self, p: Param) -> int:
        return _known(self.params, p)

    def outside(self) -> Storage:
        """What stands for a storage from outside."""
        st = Storage(1)
        self.foreign.append(st.ident)
        return st

    def fetch(self, module: Module, forward: bool) -> None:
        self.calls.append(_Call(_FETCH, self._place(module), forward))
        self._gather(module)

    def release(self, module: Module, forward: bool) -> None:
        """Before any parameter may be released: whose data does the layer keep beside it?"""
        for place, p in self.gathered.items():
            data, kept = p.st.ident, sys.getrefcount(p.st) != SOLE
            if kept and data not in self.held:
                self.calls.append(_Call(_HOLD, place, data))
                self.held.add(data)
            elif not kept and data in self.held:
                self.calls.append(_Call(_DROP, data, None))
                self.held.remove(data)
        self.calls.append(_Call(_RELEASE, self._place(module), forward))
        for p in _params_of(module):
            if self.gathered.pop(self._param(p), None) is not None:
                p.st = EMPTY

    def gather_external(self, caller: Module, module: Module) -> None:
        self.calls.append(_Call(_GATHER_EXTERNAL, self._place(caller), self._place(module)))
        self._gather(module)

    def _gather(self, module: Module) -> None:
        for p in _params_of(module):
            if self._param(p) not in self.gathered:
                self.gathered[self._param(p)] = p
                p.st = self.outside()
                self.data.add(p.st.ident)

    def regather(self, p: Param) -> None:
        self.calls.append(_Call(_REGATHER, self._param(p), None))

    def ungather(self, p: Param) -> None:
        self.calls.append(_Call(_UNGATHER, self._param(p), None))

    def reduce_leaf(self, module: Module) -> None:
        self.calls.append(_Call(_REDUCE_LEAF, self._place(module), None))

    def matmul_workspace(self, lt: bool) -> None:
        """The first product of a direction makes the workspace, if any does; cuBLASLt's makes the other, too."""
        direction = cur.kernels.in_backward
        if (direction, True) not in self.workspaces and (direction, lt) not in self.workspaces:
            self.calls.append(_Call(_WORKSPACE, lt, None))
            self.workspaces.add((direction, lt))


def _params_of(module: Module) -> list[Param]:
    """What is gathered with a module."""
    return module.parameters() if module.zero_leaf else [p for _, p in module.own_params()]


def _known(places: dict[int, int], thing: Any) -> int:
    """The place of a module or parameter of the layer."""
    place = places.get(id(thing))
    if place is None:
        raise _UnscriptableError  # another one's
    return place


class _Accumulator(AccumulateGrad):
    """Records that a parameter's gradient is there, and whether the layer still holds its storage afterwards."""

    __slots__ = ("recorder",)

    def __init__(self, param: Param, recorder: _Recorder) -> None:
        super().__init__(param)
        self.recorder = recorder

    def run(self) -> None:
        g, self.buf = self.buf, None
        if g.st.ident < 0:
            raise _UnscriptableError
        call = _Call(_ACCUMULATE, self.recorder.params[id(self.param)], None)
        self.recorder.calls.append(call)
        ident, like, events = g.st.ident, _Like.of(g), len(cur.events)
        del g
        call.b = ident, like, len(cur.events) == events


class _Source(AccumulateGrad):
    """Where the gradient of a layer's input goes."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.found: Tensor | None = None

    def run(self) -> None:
        self.found, self.buf = self.buf, None


@contextmanager
def _beside(parts: Parts, recorder: _Recorder) -> Iterator[None]:
    """Execute on a tape of its own, with `recorder` in the place of what a script calls."""
    c = cur
    before = [(name, getattr(c, name)) for name in Context.__slots__]
    params = [(p, p.st, p.acc) for p in parts.params]
    hooks, kernels, liger, stream = c.hooks, c.kernels, c.liger, c.stream
    try:
        c.reset(Tape())
        c.liger, c.stream = liger, stream
        if kernels is not None:
            c.kernels = copy(kernels)
            c.kernels.matmul_workspace = recorder.matmul_workspace
            c.kernels.in_backward = False
        if hooks is not None:
            c.hooks = hooks.recording(recorder)
        for p, _, _ in params:
            p.acc = _Accumulator(p, recorder)
            if hooks is not None:
                p.st = EMPTY
        yield
    finally:
        for name, value in before:
            setattr(c, name, value)
        for p, st, acc in params:
            p.st, p.acc = st, acc


def _recorded(parts: Parts, layout: Any, category: str, arrives: _Arrival | None = None) -> Script | None:
    """The script of a layer for what `layout` describes; None where a script cannot say what it does."""
    recorder = _Recorder(parts)
    try:
        with _beside(parts, recorder):
            return _execute(parts, recorder, layout, category, arrives)
    except _UnscriptableError:
        return None


class _Point(NamedTuple):
    """How much was recorded."""

    event: int
    call: int
    note: int


def _execute(parts: Parts, recorder: _Recorder, layout: Any, category: str, arrives: _Arrival | None) -> Script:
    c = cur
    events = c.events

    def now() -> _Point:
        return _Point(len(events), len(recorder.calls), len(c.tape.notes))

    c.category = category
    given = [recorder.outside() for _ in range(1 + max(_places(layout)))]
    places = {st.ident: place for place, st in enumerate(given)}
    x, *bound = _filled(layout[0], given)
    c.packed = None if layout[1] is None else Packed(*_filled(layout[1], given))
    del given
    source = x.node = _Source() if x.req else None
    start = now()
    out = parts.layer.execute(x, *bound)
    end = now()
    nothing: tuple[None, ...] = ()
    if type(out) is tuple:
        out, *others = out
        if not others or any(other is not None for other in others):
            raise _UnscriptableError
        nothing = tuple(others)
    if type(out) is not Tensor or not out.req or out.slot or out.node is None or out.node.slots != 1 or x.node is not source:
        raise _UnscriptableError
    node, result, like = out.node, out.st.ident, _Like.of(out)
    if result < start.event or out.st.events is not events or not _is_closed(node):
        raise _UnscriptableError
    del out, x, bound  # as its caller drops them; what is freed now the layer does not hold
    freed = {~e for e in events[end.event :]}
    if not freed <= {result, *places}:
        raise _UnscriptableError
    if c.kernels is not None:
        c.kernels.in_backward = True
    if arrives is None:
        arrives = _Arrival(_Like(like.shape, like.item, None, False), True)
    st = recorder.outside()
    arriving, other = st.ident, None if arrives.sole else st
    node.buf = arrives.like.on(st)
    del st
    begin = now()
    backward_from(node)
    stop = now()
    del other
    compiler = _Compiler(c.tape, recorder)
    forward = compiler.ops(start, end)
    if result not in freed:
        compiler.objects.add(result)
    backward = compiler.ops(begin, stop)
    gradient: tuple[int, _Like] | None = None
    if source is not None:
        if source.found is None or source.found.st.ident < 0 or source.found.st.events is not events:
            raise _UnscriptableError
        gradient = compiler.names[source.found.st.ident], _Like.of(source.found)
        compiler.alive.discard(source.found.st.ident)
    if compiler.alive - {result}:
        raise _UnscriptableError  # it keeps something to itself
    return Script(
        ops=forward,
        result=(compiler.names[result], like),
        nothing=nothing,
        holds_result=result not in freed,
        holds_given=[(compiler.names[i], place) for i, place in places.items() if i not in freed],
        arrives=arrives,
        backward=_Backward(compiler.names[arriving], backward, gradient),
    )


def _places(layout: Any) -> Iterator[int]:
    if type(layout) is _Hollow:
        yield layout.place
    elif type(layout) is tuple:
        for part in layout:
            yield from _places(part)


def _is_closed(node: Node) -> bool:
    """Whether all gradients of the layer stay in it, but for that of its input."""
    seen, stack = {id(node)}, [node]
    while stack:
        for edge in stack.pop().edges or ():
            if edge is not None and id(edge[0]) not in seen:
                seen.add(id(edge[0]))
                if isinstance(edge[0], (AccumulateGrad, LeafAccumulate)):
                    if not isinstance(edge[0], (_Accumulator, _Source)):
                        return False
                else:
                    stack.append(edge[0])
    return True


class _Compiler:
    """Makes operations of what was recorded. `objects`: requests that the layer holds as objects; `alive`: its own not yet freed."""

    def __init__(self, tape: Tape, recorder: _Recorder) -> None:
        self.tape, self.recorder = tape, recorder
        self.names = {request: ~place for place, request in enumerate(recorder.foreign)}
        self.objects = set(recorder.foreign)
        self.alive: set[int] = set()
        self._ops: list[_Op] = []
        self._run = _Run([], [], [], [], [])

    def ops(self, start: _Point, stop: _Point) -> list[_Op]:
        """Of what was recorded between two points."""
        self._ops, at, note = [], start.event, start.note
        for call in self.recorder.calls[start.call : stop.call]:
            self._write(at, call.event, note, call.note)
            at, note, a, b = call.event, call.note, call.a, call.b
            if call.do == _ACCUMULATE:
                request, like, keeps = b
                if keeps:
                    self.objects.add(request)
                else:
                    at += 1  # whoever takes the gradient frees it
                    self.alive.discard(request)
                b = self.names[request], like, keeps
            elif call.do == _HOLD:
                b = self.names[b]
            elif call.do == _DROP:
                a = self.names[a]
            self._call(call.do, a, b, call.category)
        self._write(at, stop.event, note, stop.note)
        if self._run.events or self._run.notes:
            self._call(_NOTHING, None, None, "")
        return self._ops

    def _call(self, do: int, a: Any, b: Any, category: str) -> None:
        run = self._run
        self._ops.append(_Op(run if run.events or run.notes else None, do, a, b, category))
        self._run = _Run([], [], [], [], [])

    def _write(self, at: int, until: int, note: int, note_until: int) -> None:
        tape, notes, recorder = self.tape, self.tape.notes, self.recorder
        for position in range(at, until + 1):
            while note < note_until and notes[note][0] <= position:
                self._run.notes.append((len(self._run.events), *notes[note][1:]))
                note += 1
            if position == until:
                break
            e = tape.events[position]
            if e < 0 and ~e in self.objects:
                if ~e in recorder.data and ~e not in recorder.held:
                    continue  # the parameter's alone: the coordinator frees it
                self._call(_DROP, self.names[~e], None, "")
            elif e < 0:
                self._run.events.append(~self.names[~e])
                self.alive.discard(~e)
            elif e not in self.objects:
                self.names[e] = len(self.names) - len(self.recorder.foreign)
                self.alive.add(e)
                self._run.events.append(self.names[e])
                self._run.sizes.append(tape.sizes[e])
                self._run.categories.append(tape.categories[e])
                self._run.streams.append(tape.streams[e])
