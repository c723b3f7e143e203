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

from enum import IntEnum
from types import FunctionType
from typing import Any, NamedTuple

from llmcheck.shadow.module import CheckpointedLayer, Module
from llmcheck.shadow.quant import PackedWeight
from llmcheck.shadow.tape import Packed, Storage
from llmcheck.shadow.tensor import Param, Shape, Tensor


class Do(IntEnum):
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


FETCH, RELEASE, ACCUMULATE, DROP, GATHER_EXTERNAL, REGATHER, UNGATHER, HOLD, WORKSPACE, REDUCE_LEAF, NOTHING = map(int, Do)


class UnscriptableError(Exception):
    """The layer does something that a script cannot say."""


class Like(NamedTuple):
    """A tensor without its storage."""

    shape: Shape
    item: int
    strides: Shape | None
    view: bool

    @staticmethod
    def of(t: Tensor) -> Like:
        return Like(t.shape, t.item, t.strides, t.view)

    def on(self, st: Storage) -> Tensor:
        return Tensor(self.shape, self.item, st, self.strides, self.view)


class Run(NamedTuple):
    """Storages made and dropped between two calls. `events` as on a tape, with the names of the storages."""

    events: list[int]
    sizes: list[int]
    categories: list[str]
    streams: list[int]
    notes: list[tuple[int, int, float]]  # (events before it, what, amount)


class Op(NamedTuple):
    """A run of storages (None: there is none), then a call under `category`."""

    run: Run | None
    do: int
    a: Any
    b: Any
    category: str


class State:
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


class Backward(NamedTuple):
    """`gradient`: name of what arrives. Then `ops`, then the gradient of the input (None: it needs none), by name."""

    gradient: int
    ops: list[Op]
    result: tuple[int, Like] | None


class Arrival(NamedTuple):
    """A gradient that arrives: its layout, and whether nobody else owns its storage."""

    like: Like
    sole: bool


class Script(NamedTuple):
    """Both directions of a layer."""

    ops: list[Op]
    result: tuple[int, Like]
    nothing: tuple[None, ...]  # what a layer that returns a tuple returns behind its result
    holds_result: bool  # until its backward
    holds_given: list[tuple[int, int]]  # the same of what is given: (name, place)
    arrives: Arrival  # the gradient that `backward` was recorded with
    backward: Backward


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
        return Like.of(value)
    if isinstance(value, (Param, Module)):
        place = seen.setdefault(id(value), len(seen))
        if place < len(seen) - 1:
            return place  # the same object again
        if isinstance(value, Param):
            return place, value.shape, value.item, value.req
        return place, type(value), tuple([(key, _kind_of(part, seen)) for key, part in value.__dict__.items()])
    return id(value)


class Hollow(NamedTuple):
    """A tensor that is given: its layout, whether it needs a gradient, and the place of its storage among those given."""

    like: Like
    req: bool
    place: int


class Given(NamedTuple):
    """What a layer is given from outside: the layout (arguments, then packed rows), and the storages."""

    layout: Any
    storages: list[Storage]


def given_of(x: Tensor, bound: tuple[Any, ...], packed: Packed | None) -> Given:
    storages: list[Storage] = []
    arguments = _hollow((x, *bound), x, storages)
    return Given((arguments, None if packed is None else _hollow(tuple(packed), x, storages)), storages)


def _hollow(value: Any, x: Tensor, storages: list[Storage]) -> Any:
    """The layout of `value`; adds its storages. Only `x` may need a gradient."""
    if type(value) is Tensor:
        if value.req and value is not x:
            raise UnscriptableError
        place = next((i for i, st in enumerate(storages) if st is value.st), len(storages))
        if place == len(storages):
            storages.append(value.st)
        return Hollow(Like.of(value), value.req, place)
    if value is None or isinstance(value, (int, float, str)):
        return value
    if type(value) is tuple:
        return tuple([_hollow(part, x, storages) for part in value])
    raise UnscriptableError


def filled(layout: Any, storages: list[Storage]) -> Any:
    """What `layout` describes, on other storages."""
    if type(layout) is Hollow:
        out = layout.like.on(storages[layout.place])
        out.req = layout.req
        return out
    return tuple([filled(part, storages) for part in layout]) if type(layout) is tuple else layout
