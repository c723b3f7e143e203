"""Recording a layer's script (``script.py``): it is executed once beside the tape, with stand-ins for what the script calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

from llmcheck.shadow.autograd import SOLE, AccumulateGrad, LeafAccumulate, Node, backward_from
from llmcheck.shadow.module import Module
from llmcheck.shadow.script import (
    ACCUMULATE,
    DROP,
    FETCH,
    GATHER_EXTERNAL,
    HOLD,
    NOTHING,
    REDUCE_LEAF,
    REGATHER,
    RELEASE,
    UNGATHER,
    WORKSPACE,
    Arrival,
    Backward,
    Hollow,
    Like,
    Op,
    Parts,
    Run,
    Script,
    UnscriptableError,
    filled,
)
from llmcheck.shadow.tape import EMPTY, Context, Packed, Storage, Tape, cur
from llmcheck.shadow.tensor import Param, Tensor


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
        self.calls.append(_Call(FETCH, self._place(module), forward))
        self._gather(module)

    def release(self, module: Module, forward: bool) -> None:
        """Before any parameter may be released: whose data does the layer keep beside it?"""
        for place, p in self.gathered.items():
            data, kept = p.st.ident, sys.getrefcount(p.st) != SOLE
            if kept and data not in self.held:
                self.calls.append(_Call(HOLD, place, data))
                self.held.add(data)
            elif not kept and data in self.held:
                self.calls.append(_Call(DROP, data, None))
                self.held.remove(data)
        self.calls.append(_Call(RELEASE, self._place(module), forward))
        for p in _params_of(module):
            if self.gathered.pop(self._param(p), None) is not None:
                p.st = EMPTY

    def gather_external(self, caller: Module, module: Module) -> None:
        self.calls.append(_Call(GATHER_EXTERNAL, self._place(caller), self._place(module)))
        self._gather(module)

    def _gather(self, module: Module) -> None:
        for p in _params_of(module):
            if self._param(p) not in self.gathered:
                self.gathered[self._param(p)] = p
                p.st = self.outside()
                self.data.add(p.st.ident)

    def regather(self, p: Param) -> None:
        self.calls.append(_Call(REGATHER, self._param(p), None))

    def ungather(self, p: Param) -> None:
        self.calls.append(_Call(UNGATHER, self._param(p), None))

    def reduce_leaf(self, module: Module) -> None:
        self.calls.append(_Call(REDUCE_LEAF, self._place(module), None))

    def matmul_workspace(self, lt: bool) -> None:
        """The first product of a direction makes the workspace, if any does; cuBLASLt's makes the other, too."""
        direction = cur.kernels.in_backward
        if (direction, True) not in self.workspaces and (direction, lt) not in self.workspaces:
            self.calls.append(_Call(WORKSPACE, lt, None))
            self.workspaces.add((direction, lt))


def _params_of(module: Module) -> list[Param]:
    """What is gathered with a module."""
    return module.parameters() if module.zero_leaf else [p for _, p in module.own_params()]


def _known(places: dict[int, int], thing: Any) -> int:
    """The place of a module or parameter of the layer."""
    place = places.get(id(thing))
    if place is None:
        raise UnscriptableError  # another one's
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
            raise UnscriptableError
        call = _Call(ACCUMULATE, self.recorder.params[id(self.param)], None)
        self.recorder.calls.append(call)
        ident, like, events = g.st.ident, Like.of(g), len(cur.events)
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


def recorded(parts: Parts, layout: Any, category: str, arrives: Arrival | None = None) -> Script | None:
    """The script of a layer for what `layout` describes; None where a script cannot say what it does."""
    recorder = _Recorder(parts)
    try:
        with _beside(parts, recorder):
            return _execute(parts, recorder, layout, category, arrives)
    except UnscriptableError:
        return None


class _Point(NamedTuple):
    """How much was recorded."""

    event: int
    call: int
    note: int


def _execute(parts: Parts, recorder: _Recorder, layout: Any, category: str, arrives: Arrival | None) -> Script:
    c = cur
    events = c.events

    def now() -> _Point:
        return _Point(len(events), len(recorder.calls), len(c.tape.notes))

    c.category = category
    given = [recorder.outside() for _ in range(1 + max(_places(layout)))]
    places = {st.ident: place for place, st in enumerate(given)}
    x, *bound = filled(layout[0], given)
    c.packed = None if layout[1] is None else Packed(*filled(layout[1], given))
    del given
    source = x.node = _Source() if x.req else None
    start = now()
    out = parts.layer.execute(x, *bound)
    end = now()
    nothing: tuple[None, ...] = ()
    if type(out) is tuple:
        out, *others = out
        if not others or any(other is not None for other in others):
            raise UnscriptableError
        nothing = tuple(others)
    if type(out) is not Tensor or not out.req or out.slot or out.node is None or out.node.slots != 1 or x.node is not source:
        raise UnscriptableError
    node, result, like = out.node, out.st.ident, Like.of(out)
    if result < start.event or out.st.events is not events or not _is_closed(node):
        raise UnscriptableError
    del out, x, bound  # as its caller drops them; what is freed now the layer does not hold
    freed = {~e for e in events[end.event :]}
    if not freed <= {result, *places}:
        raise UnscriptableError
    if c.kernels is not None:
        c.kernels.in_backward = True
    if arrives is None:
        arrives = Arrival(Like(like.shape, like.item, None, False), True)
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
    gradient: tuple[int, Like] | None = None
    if source is not None:
        if source.found is None or source.found.st.ident < 0 or source.found.st.events is not events:
            raise UnscriptableError
        gradient = compiler.names[source.found.st.ident], Like.of(source.found)
        compiler.alive.discard(source.found.st.ident)
    if compiler.alive - {result}:
        raise UnscriptableError  # it keeps something to itself
    return Script(
        ops=forward,
        result=(compiler.names[result], like),
        nothing=nothing,
        holds_result=result not in freed,
        holds_given=[(compiler.names[i], place) for i, place in places.items() if i not in freed],
        arrives=arrives,
        backward=Backward(compiler.names[arriving], backward, gradient),
    )


def _places(layout: Any) -> Iterator[int]:
    if type(layout) is Hollow:
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
        self._ops: list[Op] = []
        self._run = Run([], [], [], [], [])

    def ops(self, start: _Point, stop: _Point) -> list[Op]:
        """Of what was recorded between two points."""
        self._ops, at, note = [], start.event, start.note
        for call in self.recorder.calls[start.call : stop.call]:
            self._write(at, call.event, note, call.note)
            at, note, a, b = call.event, call.note, call.a, call.b
            if call.do == ACCUMULATE:
                request, like, keeps = b
                if keeps:
                    self.objects.add(request)
                else:
                    at += 1  # whoever takes the gradient frees it
                    self.alive.discard(request)
                b = self.names[request], like, keeps
            elif call.do == HOLD:
                b = self.names[b]
            elif call.do == DROP:
                a = self.names[a]
            self._call(call.do, a, b, call.category)
        self._write(at, stop.event, note, stop.note)
        if self._run.events or self._run.notes:
            self._call(NOTHING, None, None, "")
        return self._ops

    def _call(self, do: int, a: Any, b: Any, category: str) -> None:
        run = self._run
        self._ops.append(Op(run if run.events or run.notes else None, do, a, b, category))
        self._run = Run([], [], [], [], [])

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
                self._call(DROP, self.names[~e], None, "")
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
