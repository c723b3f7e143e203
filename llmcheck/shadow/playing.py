"""Playing the scripts of layers (``script.py``) on the tape of an execution."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from llmcheck.shadow.autograd import SOLE, OwningNode, accumulator, edges_of
from llmcheck.shadow.module import CheckpointedLayer, Module
from llmcheck.shadow.recording import recorded
from llmcheck.shadow.script import (
    ACCUMULATE,
    DROP,
    FETCH,
    GATHER_EXTERNAL,
    HOLD,
    REDUCE_LEAF,
    REGATHER,
    RELEASE,
    UNGATHER,
    WORKSPACE,
    Arrival,
    Backward,
    Like,
    Op,
    Parts,
    Script,
    State,
    UnscriptableError,
    given_of,
)
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor

WORTHWHILE = 3  # layers of a kind from which on recording costs less than it saves: it executes one layer and plays none


class Scripts:
    """The scripts of one execution."""

    def __init__(self, model: Module) -> None:
        uses = Counter([id(p) for module in model.modules() for _, p in module.own_params()])
        found = [Parts(m) for m in model.modules() if isinstance(m, CheckpointedLayer) and not any(part.tells for part in m.modules())]
        kinds = Counter([parts.kind for parts in found])
        self._parts = {
            id(parts.layer): parts for parts in found if kinds[parts.kind] >= WORTHWHILE and all(uses[id(p)] == 1 for p in parts.params)
        }
        self._scripts: dict[Any, Script | None] = {}
        self._backwards: dict[Any, Backward] = {}

    def call(self, layer: CheckpointedLayer, x: Tensor, bound: tuple[Any, ...]) -> Any:
        """Play `layer`, or execute it where it has no script."""
        parts = self._parts.get(id(layer))
        if parts is None or cur.pack is not None or not cur.grad:
            return layer.execute(x, *bound)
        try:
            given = given_of(x, bound, cur.packed)
        except UnscriptableError:
            return layer.execute(x, *bound)
        key = (parts.kind, given.layout, cur.category)
        if key not in self._scripts:
            self._scripts[key] = recorded(parts, given.layout, cur.category)
        script = self._scripts[key]
        if script is None:
            return layer.execute(x, *bound)
        state = State({name: given.storages[place] for name, place in script.holds_given})
        del given
        _play(script.ops, state, parts)
        name, like = script.result
        out = like.on(state.take(name))
        if script.holds_result:
            state.held[name] = out.st

        def back(saved: State, cell: list[Tensor]) -> list[Tensor | None]:
            return self._play_backward(key, script, parts, saved, cell)

        out.node, out.req = OwningNode(back, edges_of((x,)), state), True
        return (out, *script.nothing) if script.nothing else out

    def _play_backward(self, key: Any, script: Script, parts: Parts, state: State, cell: list[Tensor]) -> list[Tensor | None]:
        g = cell.pop()
        arrives = Arrival(Like.of(g), sys.getrefcount(g.st) == SOLE)
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

    def _record_backward(self, key: Any, parts: Parts, arrives: Arrival) -> Backward:
        script = recorded(parts, key[1], key[2], arrives)
        assert script is not None  # it could be recorded for another gradient
        self._backwards[key, arrives] = script.backward
        return script.backward


def _play(ops: list[Op], state: State, parts: Parts) -> None:
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
        if do == FETCH:
            coordinator.fetch(modules[a], b)
        elif do == RELEASE:
            coordinator.release(modules[a], b)
        elif do == DROP:
            del held[a]
        elif do == ACCUMULATE:
            name, like, keeps = b
            acc = accumulator(params[a])
            acc.buf = like.on(state.take(name))
            if keeps:
                held[name] = acc.buf.st
            acc.run()
        elif do == GATHER_EXTERNAL:
            coordinator.gather_external(modules[a], modules[b])
        elif do == REGATHER:
            coordinator.regather(params[a])
        elif do == UNGATHER:
            coordinator.ungather(params[a])
        elif do == HOLD:
            held[b] = params[a].st
        elif do == WORKSPACE:
            c.kernels.matmul_workspace(a)
        elif do == REDUCE_LEAF:
            c.hooks.reduce_leaf(modules[a])
    c.category = category
