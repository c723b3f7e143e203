"""What is written down while a shadow model runs: storages made and dropped, with what the running code looks up.

A storage writes one event to the tape when it is made and one when Python's reference counting drops it. So a shadow model written
like the real ``forward`` frees its temporaries where the real one does.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcheck.shadow.allocator import rounded

if TYPE_CHECKING:
    from llmcheck.shadow.tensor import Tensor


class Note(IntEnum):
    """What a note on the tape says of CPU and GPU; the meaning of its amount in brackets."""

    FORWARD = 0  # ZeRO-3's hooks of a module; from here on Python launches the kernels [0]
    BACKWARD = 1  # the same; from here on autograd's engine launches them [0]
    GATHER = 2  # parameters are gathered [their number]
    SLICES = 3  # a loop over parameters and ranks [its turns]
    PRODUCT = 4  # a matrix product [FLOPs]
    ATTENTION = 5  # fused attention [FLOPs, as the forward's rate counts]
    COPY = 6  # a gradient's hook: the reduction stream waits for the default stream, then copies [bytes]
    BUCKET = 7  # a reduction begins: the CPU waits for the last but two [0]
    SYNC = 8  # the CPU waits for all streams [0]


class Tape:
    """The events of a run in order: ``i`` allocates request `i`, ``~i`` frees it.

    `sizes`, `categories`, `streams` are indexed by request. `marks` holds (position in `events`, kind, name), kind "phase" or
    "empty_cache".

    ZeRO-3 uses blocks on a second stream: `shared` has that stream by request. The block comes back only when the stream has done what it
    was given before the free. `notes` says what decides when that is: (position in `events`, one of `Note`, amount). See `shadow.late`.
    """

    __slots__ = ("events", "sizes", "categories", "streams", "marks", "shared", "notes", "_block_sizes")

    def __init__(self) -> None:
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.categories: list[str] = []
        self.streams: list[int] = []
        self.marks: list[tuple[int, str, str]] = []
        self.shared: dict[int, int] = {}
        self.notes: list[tuple[int, int, float]] = []
        self._block_sizes: list[int] = []

    @property
    def block_sizes(self) -> list[int]:
        """The requests as the allocator rounds them. Every replay asks, so they are kept."""
        if len(self._block_sizes) < len(self.sizes):
            known = {nbytes: rounded(nbytes) for nbytes in set(self.sizes)}
            self._block_sizes = [known[nbytes] for nbytes in self.sizes]
        return self._block_sizes

    def mark(self, kind: str, name: str = "") -> None:
        self.marks.append((len(self.events), kind, name))


class Context:
    """What the running code looks up: the tape's lists, the grad mode, the category and stream of new storages."""

    __slots__ = (
        "tape",
        "events",
        "sizes",
        "categories",
        "streams",
        "grad",
        "category",
        "stream",
        "seq",
        "pack",
        "hooks",
        "kernels",
        "liger",
        "packed",
        "scripts",
    )

    def __init__(self) -> None:
        self.reset(Tape())

    def reset(self, tape: Tape, kernels: Any = None) -> None:
        """Start a run on `tape`; `kernels` knows the device's kernel buffers (see `shadow.kernels`)."""
        self.tape = tape
        self.events, self.sizes = tape.events, tape.sizes
        self.categories, self.streams = tape.categories, tape.streams
        self.grad = True
        self.category = "other"
        self.stream = 0
        self.seq = 0
        self.pack: Callable[[Any], Any] | None = None  # saved-tensor hook of the checkpoint being run
        self.hooks: Any = None  # ZeRO-3's module hooks
        self.kernels = kernels
        self.liger = False  # Liger's norms, rotary embedding and gated products instead of the eager ones
        self.packed: Packed | None = None  # the micro-batch's rows within its sequences
        self.scripts: Any = None  # the layers' scripts (`shadow.playing`); without them every layer is executed


class Packed(NamedTuple):
    """Sequences of several rows: `positions` [b, s] within each row; the additive mask [b, 1, s, s], or where the rows begin (int32)."""

    positions: Tensor
    mask: Tensor | None = None
    bounds: Tensor | None = None


cur = Context()


def note(what: Note, amount: float = 0.0) -> None:
    """Write a note on the tape."""
    c = cur
    c.tape.notes.append((len(c.events), what, amount))


def flops(amount: float, what: Note = Note.PRODUCT) -> None:
    """Note `amount` FLOPs, where the GPU's pace matters (ZeRO-3)."""
    if cur.hooks is not None:
        note(what, amount)


def record_stream(st: Storage, stream: int) -> None:
    """``Tensor.record_stream``: `st` is also used on `stream`."""
    if st.ident >= 0 and cur.streams[st.ident] != stream:
        cur.tape.shared[st.ident] = stream


class Storage:
    """Bytes on the device. Made: one tape event; dropped: another."""

    __slots__ = ("ident", "events")

    def __init__(self, nbytes: int) -> None:
        c = cur
        if nbytes > 0:
            self.ident = ident = len(c.sizes)
            c.sizes.append(nbytes)
            c.categories.append(c.category)
            c.streams.append(c.stream)
            c.events.append(ident)
            self.events = c.events
        else:
            self.ident = -1

    @staticmethod
    def of_request(ident: int) -> Storage:
        """The storage of a request that is on the tape already."""
        out = Storage.__new__(Storage)
        out.ident, out.events = ident, cur.events
        return out

    def __del__(self) -> None:
        if self.ident >= 0:
            self.events.append(~self.ident)


EMPTY = Storage(0)
