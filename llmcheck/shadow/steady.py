"""Steps that repeat the one before, written on the tape without executing them.

Under stages 0 to 2 the second step is the first without what is made once (optimizer states, workspaces). Stage 3 gathers differently in
the first step, whose order of modules it records. From the second step on nothing changes any more. All this is checked against the
execution in ``tests/laws``.
"""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

from llmcheck.shadow.tape import Tape


class Start(NamedTuple):
    """Where a step starts on the tape."""

    event: int
    request: int
    mark: int
    note: int


def start_of_step(tape: Tape) -> Start:
    """Where the step starts that comes next."""
    return Start(len(tape.events), len(tape.sizes), len(tape.marks), len(tape.notes))


def repeat_first(tape: Tape, first: Start, ids: int, step: int) -> bool:
    """Write the first step, the tape's last, again as `step`, without what it has made to stay. False where it frees what was there before.

    `ids`: the request of the input, which the next step frees when it has its own. It is all that a step leaves to the next.
    """
    events, requests = tape.events[first.event :], range(first.request, len(tape.sizes))
    gone = {~e for e in events if e < 0}
    if any(i < first.request for i in gone):
        return False
    stays = {i for i in requests if i not in gone and i != ids}
    kept = [i for i in requests if i not in stays]
    number = dict(zip(kept, count(len(tape.sizes)), strict=False))
    new = [number[e] if e >= 0 else ~number[~e] for e in events if e not in stays]
    new.insert(1, ~ids)  # the next input is made before
    dropped = [position for position, e in enumerate(events, first.event) if e in stays]
    for position, kind, name in tape.marks[first.mark :]:
        shift = len(events) - sum(place < position for place in dropped) + 1
        tape.marks.append((position + shift, kind, _renamed(name, step)))
    tape.events += new
    _append_requests(tape, kept)
    return True


def repeat(tape: Tape, before: Start, last: Start, step: int) -> bool:
    """Write the tape's last step, which started at `last`, again as `step`. False (and nothing is written) where it may not repeat.

    What the step that started at `before` left to the last one to free, the last one leaves to its repetition.
    """
    shift = len(tape.sizes) - last.request
    events, requests = tape.events[last.event :], range(last.request, len(tape.sizes))
    gone = {~e for e in events if e < 0}
    inherited = sorted(i for i in gone if i < last.request)
    left = [i for i in requests if i not in gone]
    if any(i < before.request for i in inherited) or [_request(tape, i) for i in inherited] != [_request(tape, i) for i in left]:
        return False
    freed = dict(zip(inherited, left, strict=True))
    tape.marks += [(position + len(events), kind, _renamed(name, step)) for position, kind, name in tape.marks[last.mark :]]
    tape.notes += [(position + len(events), what, amount) for position, what, amount in tape.notes[last.note :]]
    tape.shared.update({i + shift: tape.shared[i] for i in requests if i in tape.shared})
    tape.events += [e + shift if e >= 0 else e - shift if ~e >= last.request else ~freed[~e] for e in events]
    _append_requests(tape, requests)
    return True


def _renamed(name: str, step: int) -> str:
    return name.replace(str(step - 1), str(step))


def _append_requests(tape: Tape, requests: range | list[int]) -> None:
    tape.sizes += [tape.sizes[i] for i in requests]
    tape.categories += [tape.categories[i] for i in requests]
    tape.streams += [tape.streams[i] for i in requests]


def _request(tape: Tape, i: int) -> tuple[int, str, int]:
    return tape.sizes[i], tape.categories[i], tape.streams[i]
